# SPDX-License-Identifier: Apache-2.0
"""The saved state of an unfinished pass: a kill, damage, two processes, a full disk."""

import numpy as np
import pytest

import dnnlib.util
from metrics import partial, statistics
from metrics.partial import Partial

KEY = {"images": {"content_hash": "abc"}, "batch": 4}


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def new_stores():
    return {"m": statistics.new_store("moments", 3), "a": statistics.new_store("array", 2)}


def batch(i):
    rows = np.random.RandomState(i).rand(4, 5).astype(np.float32)
    return rows[:, :3], rows[:, 3:], range(4 * i, 4 * i + 4)


def run(state, stores, begin, end, clock):
    """Batches, each of which takes 40 seconds."""
    for i in range(begin, end):
        moments, rows, indices = batch(i)
        stores["m"].append(moments, indices)
        stores["a"].append(rows, indices)
        state.add(1, rows, indices)
        clock.time += 40
        state.save_if_due(stores, i + 1)


@pytest.fixture
def killed(tmp_path):
    """Seven batches, of which six were saved."""
    clock = Clock()
    state = Partial(tmp_path, KEY, now=clock)
    assert state.open()
    run(state, new_stores(), 0, 7, clock)
    state.close()
    return tmp_path


def test_a_killed_pass_resumes_with_equal_results(killed):
    clock = Clock()
    state, stores = Partial(killed, KEY, now=clock), new_stores()
    assert state.open()
    begin = state.restore(stores)
    assert begin == 6 and len(stores["m"]) == len(stores["a"]) == 24
    run(state, stores, begin, 10, clock)
    whole = new_stores()
    run(Partial(killed / "none", KEY), whole, 0, 10, Clock())
    assert (stores["a"].array == whole["a"].array).all()
    assert stores["m"].mean == pytest.approx(whole["m"].mean, rel=1e-13)
    assert stores["m"].covariance == pytest.approx(whole["m"].covariance, rel=1e-12)
    state.discard()
    assert not (killed / "partial").exists()


def test_saving_does_not_change_the_pass(tmp_path):
    results = []
    for limit in (1e9, 60.0):
        clock, stores = Clock(), new_stores()
        state = Partial(tmp_path, {**KEY, "limit": limit}, now=clock)
        state.open()
        for i in range(90):
            moments, _, indices = batch(i)
            stores["m"].append(moments, indices)
            clock.time += 40 if limit < 100 else 0
            state.save_if_due(stores, i + 1)
        results.append(stores["m"].covariance)
        state.close()
    assert (results[0] == results[1]).all()


@pytest.mark.parametrize("damage", ["rank0.npz", "rank0-000000.npz", "key"])
def test_damage_starts_anew(killed, damage):
    if damage == "key":
        state = Partial(killed, KEY)
        state.key = {"other": 1}
    else:
        (file,) = killed.glob(f"partial/*/{damage}")
        file.write_bytes(file.read_bytes()[:40])
        state = Partial(killed, KEY)
    stores = new_stores()
    assert state.open() and state.restore(stores) == 0
    assert len(stores["m"]) == len(stores["a"]) == 0
    assert not list(killed.glob("partial/*/*.npz"))
    state.close()


def test_other_images_resume_nothing(killed):
    state = Partial(killed, {**KEY, "images": {"content_hash": "other"}})
    assert state.open() and state.restore(new_stores()) == 0
    state.close()
    assert list(killed.glob("partial/*/rank0.npz"))


def test_a_second_process_works_without_the_files(killed):
    first, second = Partial(killed, KEY), Partial(killed, KEY)
    assert first.open() and not second.open()
    second.save_if_due(new_stores(), 3)
    second.discard()
    assert first.restore(new_stores()) == 6
    first.close()


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    clock, stores = Clock(), new_stores()
    state = Partial(tmp_path, KEY, now=clock)
    state.open()
    run(state, stores, 0, 2, clock)
    monkeypatch.setattr(dnnlib.util, "atomic_write", full)
    with pytest.warns(UserWarning, match="cannot be saved .No space left on device"):
        run(state, stores, 2, 4, clock)
    run(state, stores, 4, 8, clock)
    assert len(stores["a"]) == 32 and not (tmp_path / "partial").exists()


def test_a_folder_that_cannot_be_written_saves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    state = Partial(tmp_path / "file", KEY)
    assert not state.open()
    state.discard()


def test_abandoned_passes_are_removed(killed):
    (folder,) = (killed / "partial").iterdir()
    newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    for age, left in ((partial.KEPT_SECONDS - 1, 1), (partial.KEPT_SECONDS + 1, 0)):
        partial.remove_abandoned(killed / "partial", killed / "keep", now=lambda age=age: newest + age)
        assert len(list((killed / "partial").iterdir())) == left
