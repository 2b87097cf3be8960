# SPDX-License-Identifier: Apache-2.0
"""Rows of arrays in .npz files: mapped or unpacked, and what damaged files are refused with."""

import pickle

import numpy as np
import pytest

from dnnlib import arrays


@pytest.fixture(params=[np.savez, np.savez_compressed])
def file(request, tmp_path):
    path = tmp_path / "a.npz"
    images = np.random.RandomState(0).randint(0, 256, (9, 4, 5, 3), dtype=np.uint8)
    request.param(path, other=np.arange(3.0), arr_0=images)
    return path, images


def test_rows_are_those_of_the_array_in_any_order(file):
    path, images = file
    found = arrays.members(path)
    assert list(found) == ["other", "arr_0"] and found["arr_0"].shape == (9, 4, 5, 3)
    rows = arrays.Rows(found["arr_0"])
    for i in (0, 1, 5, 8, 2, 2):
        assert (rows[i] == images[i]).all()
    again = pickle.loads(pickle.dumps(rows))
    assert len(again) == 9 and (again[3] == images[3]).all()
    with pytest.raises(IndexError):
        rows[9]


def test_only_the_arrays_that_are_asked_for_are_read(file):
    path, _ = file
    assert list(arrays.read(path, ["other", "missing"])) == ["other"]
    assert arrays.read(path, ["other"], limit=1000)["other"].tolist() == [0, 1, 2]


def test_damage_is_named(file):
    path, _ = file
    data = bytearray(path.read_bytes())
    start = data.index(b"arr_0.npy") + 200
    data[start : start + 60] = b"\xff" * 60
    path.write_bytes(data)
    with pytest.raises(ValueError, match="arr_0"):
        rows = arrays.Rows(arrays.members(path)["arr_0"])
        for i in range(9):
            rows[i]
    path.write_bytes(data[:300])
    with pytest.raises(ValueError, match=r"not a numpy \.npz file"):
        arrays.members(path)


def test_objects_and_columns_are_refused(tmp_path):
    np.savez(tmp_path / "o.npz", arr_0=np.array([{}, {}], dtype=object))
    with pytest.raises(ValueError, match="object"):
        arrays.members(tmp_path / "o.npz")
    np.savez(tmp_path / "f.npz", arr_0=np.asfortranarray(np.zeros((3, 4))), one=np.float32(1))
    found = arrays.members(tmp_path / "f.npz")
    with pytest.raises(ValueError, match="stored by columns"):
        arrays.Rows(found["arr_0"])
    with pytest.raises(ValueError, match="a single value"):
        arrays.Rows(found["one"])
