# SPDX-License-Identifier: Apache-2.0
import errno
import pickle
import tempfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import statistics
from metrics.statistics import FeatureArray, Moments
from tests import memory_limit


def rows(n: int, dim: int = 5, seed: int = 0, offset: float = 0) -> np.ndarray:
    rng = np.random.RandomState(seed)
    return (rng.randn(n, dim) @ rng.randn(dim, dim) + offset).astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(0, 5))
def test_any_split_and_merge_gives_the_covariance_over_n(sizes, cut):
    x = rows(sum(sizes) + 2)
    parts = np.split(x, np.cumsum(sizes))
    a, b = Moments(5), Moments(5)
    for position, part in enumerate(parts):
        (a if position < cut else b).append(part)
    a.merge(b)
    assert len(a) == len(x)
    np.testing.assert_allclose(a.mean, x.astype(np.float64).mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(a.covariance, np.cov(x.astype(np.float64).T, ddof=0), rtol=1e-10, atol=1e-12)


def test_batch_size_does_not_change_a_bit():
    x = rows(1000)
    results = []
    for size in (1, 37, 256, 1000):
        stats = Moments(5)
        for start in range(0, len(x), size):
            stats.append(x[start : start + size])
        results.append((stats.mean, stats.covariance))
    assert all((mean == results[0][0]).all() and (cov == results[0][1]).all() for mean, cov in results)


def test_a_large_mean_costs_no_digits():
    x = np.random.RandomState(0).randn(5000, 3) + 1e8
    stats = Moments(3)
    stats.append(x)
    np.testing.assert_allclose(stats.covariance, np.cov((x - 1e8).T, ddof=0), atol=1e-6)


def test_feature_array_is_in_sample_order():
    x = rows(10)
    a, b = FeatureArray(5), FeatureArray(5)
    a.append(x[4:6], [4, 5])
    a.append(x[:2], range(0, 2))
    b.append(x[6:], range(6, 10))
    b.append(x[2:4], [2, 3])
    a.merge(b)
    assert (a.array == x).all()


@pytest.mark.parametrize("kind", ["moments", "array"])
def test_saved_stores_come_back(tmp_path, kind):
    store = statistics.new_store(kind, 5)
    store.append(rows(300))
    path = tmp_path / "stats.npz"
    statistics.save(path, store, {"dataset": "a", "n": 300})
    again, description = statistics.load(path)
    assert description == {"dataset": "a", "n": 300} and len(again) == 300
    before, after = store.arrays(), again.arrays()
    assert type(again) is type(store) and all((before[name] == after[name]).all() for name in before)
    assert [p.name for p in tmp_path.iterdir()] == ["stats.npz"]


def test_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "stats.npz"
    statistics.save(path, Moments(2), {})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="does not hold feature statistics"):
        statistics.load(path)
    odd = [
        {"other": np.zeros(3)},
        {"kind": "array", "rows": np.zeros(3), "indices": np.zeros(3), "description": "{}"},
        {"kind": "array"},
    ]
    odd += [{"kind": "moments", "description": "[" * 10**6, **Moments(2).arrays()}]
    for arrays in odd:
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match="does not hold feature statistics"):
            statistics.load(path)


def test_a_cache_that_promises_too_much_costs_nothing(tmp_path):
    path = tmp_path / "stats.npz"
    statistics.save(path, FeatureArray(4), {})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(
                name, data.replace(b"(0, 4)", b"(999999999999, 4)") if name == "rows.npy" else data
            )
    with memory_limit.limited(300), pytest.raises(ValueError, match="does not hold feature statistics"):
        statistics.load(path)


@pytest.mark.parametrize("store", [Moments(5), FeatureArray(5)])
def test_bad_features_are_refused(store):
    with pytest.raises(ValueError, match=r"must be \[n, 5\]"):
        store.append(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="NaN or Inf"):
        store.append(np.full((3, 5), np.nan))
    assert len(store) == 0


def test_no_rows_no_covariance():
    with pytest.raises(ValueError, match="no features"):
        _ = Moments(3).covariance
    with pytest.raises(ValueError, match="cannot merge"):
        Moments(3).merge(Moments(4))
    with pytest.raises(ValueError, match="2 sample indices"):
        FeatureArray(5).append(rows(3), [0, 1])


def test_large_feature_arrays_lie_in_temporary_files(monkeypatch, tmp_path):
    monkeypatch.setattr(statistics, "MAX_BYTES_IN_MEMORY", 40 * 5 * 4)
    mapped = []
    make = statistics._mapped
    monkeypatch.setattr(statistics, "_mapped", lambda *args: mapped.append(args[:2]) or make(*args))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    values, order = rows(300), np.random.RandomState(0).permutation(300)
    store, other = FeatureArray(5), FeatureArray(5)
    for start in range(0, 200, 15):
        part = order[start : min(start + 15, 200)]
        store.append(values[part], part)
    other.append(values[order[200:]], order[200:])
    store.merge(pickle.loads(pickle.dumps(other)))
    assert len(store) == 300 and (store.array == values).all()
    assert mapped[-1] == (300, 5) and max(count for count, _ in mapped[:-1]) < 150
    assert not list(tmp_path.iterdir())  # the files have no names: nothing is left behind


def test_a_disk_without_room_for_features_is_one_line(monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(statistics.os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="set TMPDIR to a folder on another disk"):
        statistics._mapped(10, 10)
