# SPDX-License-Identifier: Apache-2.0
"""Texts, JSON and numpy's arrays from strangers: what a file says of its size is not believed."""

import io
import json
import os
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dnnlib import bounded
from dnnlib.util import Damaged
from tests.memory_limit import limited


def npy(shape: str, dtype: str = "<f4", data: bytes = b"", version: int = 1) -> bytes:
    """A .npy file that says what it likes."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + struct.pack("<H" if version == 1 else "<I", len(header))
        + header
        + data
    )


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.eye(3, 5)),
        np.float32(3),
        np.zeros([0, 7]),
        np.arange(5) > 2,
    ],
)
def test_arrays_come_back(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", one=array, kind=np.asarray("text"))
    np.savez_compressed(tmp_path / "b.npz", one=array)
    for found in (
        bounded.read_npy(tmp_path / "a.npy"),
        *(bounded.read_npz(tmp_path / name)["one"] for name in ("a.npz", "b.npz")),
    ):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == np.asarray(array).dtype and found.flags.writeable
    assert str(bounded.read_npz(tmp_path / "a.npz")["kind"]) == "text"


HUGE = {
    "shape": npy("(1000000000, 1000000)"),
    "just beyond the file": npy("(3,)", data=b"x" * 8),
    "beyond int64": npy(f"({10**30},)"),
    "zero times huge": npy(f"(0, {10**30})"),
    "negative": npy("(-1, 4)"),
    "dimensions": npy(f"({'1, ' * 400})", data=b"abcd"),
    "item": npy("(1000,)", "<U1000000000"),
    "nothing, very often": npy(f"({10**12},)", "|V0"),
    "header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{" * 1000,
    "nested header": npy("(" * 5000),
    "objects": npy("(1,)", "|O", b"x" * 8),
    "no header": b"\x93NUMPY\x01",
    "another file": b"<html>",
    "empty": b"",
    "version": b"\x93NUMPY\x09\x00" + b"x" * 100,
}


@pytest.mark.parametrize("what", HUGE)
def test_headers_that_promise_too_much(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(HUGE[what])
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("rows.npy", HUGE[what])
    for read, file in ((bounded.read_npy, path), (bounded.read_npz, tmp_path / "a.npz")):
        with limited(300), pytest.raises(ValueError, match=rf"^{file}: ") as error:
            read(file)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_npz_bombs(tmp_path: Path) -> None:
    zeros = npy(f"({2**23},)", "|u1", bytes(2**23))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.npy", zeros)
    with pytest.raises(ValueError, match="unpack to more than 1 MiB"):
        bounded.read_npz(tmp_path / "a.npz", 2**20)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    at = data.rindex(b"PK\x01\x02") + 24  # the directory's word for the size
    data[at : at + 4] = struct.pack("<I", 2**32 - 2)
    (tmp_path / "a.npz").write_bytes(data)
    with limited(300), pytest.raises(ValueError, match=r"zip bomb|bytes follow|and .* follow"):
        bounded.read_npz(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for i in range(bounded.MAX_NPZ_MEMBERS + 1):
            archive.writestr(f"{i}.npy", b"")
    with pytest.raises(ValueError, match="more than 1000 arrays"):
        bounded.read_npz(tmp_path / "many.npz")
    (tmp_path / "no.npz").write_bytes(b"PK\x03\x04 and nothing")
    with pytest.raises(Damaged, match=r"not a numpy \.npz file"):
        bounded.read_npz(tmp_path / "no.npz")


def test_texts_end_at_their_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ä" * 10)
    assert bounded.read_text(path, 20) == "ä" * 10 and bounded.read_bytes(path, 20) == ("ä" * 10).encode()
    with pytest.raises(ValueError, match=rf"^{path}: larger than 19 bytes$"):
        bounded.read_text(path, 19)
    path.write_bytes(b"ok \xff")
    with pytest.raises(Damaged, match=rf"^{path}: not UTF-8 text \(invalid start byte at byte 3\)"):
        bounded.read_text(path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_devices_without_end(tmp_path: Path) -> None:
    with limited(300), pytest.raises(ValueError, match=r"^/dev/zero: larger than 16 MiB"):
        bounded.read_text("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("[1]"))
    writer.start()
    assert bounded.read_json(tmp_path / "pipe") == [1]  # as a shell's <(command)
    writer.join()


@pytest.mark.parametrize(
    "text", ["{", "", "[1,]", "nul", "[" * 100_000, "\ufeff{}x", "1" * 5000, "{}" * 300_000, "[[]," * 300_000]
)
def test_json_that_is_none_or_too_much(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^{path}: ") as error:
        bounded.read_json(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "ä"], "b": {}}
    (tmp_path / "a.json").write_text(json.dumps(value), encoding="utf-8")
    assert bounded.read_json(tmp_path / "a.json") == value


def test_the_file_not_its_stated_size_counts(tmp_path: Path) -> None:
    """A member whose header in the zip promises more than there is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("rows.npy", npy("(1000,)", "|u1", bytes(1000)))
    data = bytearray(buffer.getvalue())
    at = data.rindex(b"PK\x01\x02") + 20
    data[at : at + 8] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "a.npz").write_bytes(data)
    with limited(300), pytest.raises(ValueError, match=rf"^{tmp_path}/a\.npz: "):
        bounded.read_npz(tmp_path / "a.npz")
