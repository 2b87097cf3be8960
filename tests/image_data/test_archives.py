# SPDX-License-Identifier: Apache-2.0
"""Zip writing and positional zip reading, against the standard library."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from image_data import archives


def write(path: Path, files: dict[str, bytes], start: int = 0) -> Path:
    with open(path, "wb") as file:
        file.seek(start)  # a hole: the zip begins far into the file
        writer = archives.StoredZipWriter(file)
        for name, content in files.items():
            writer.write(name, content)
        writer.close()
    return path


def read_all(path: Path) -> dict[str, bytes]:
    archive = archives.open_archive(path)
    return {entry.name: archive.reader.read(entry) for entry in archive.images}


@pytest.mark.parametrize("start", [0, 2**32 - 700, 2**32 - 1, 2**32 + 5])
def test_written_zip_is_what_zipfile_reads(tmp_path: Path, start: int) -> None:
    """Also where offsets cross 4 GiB (the file is sparse)."""
    files = {f"{i:05d}/img{i}.png": np.random.RandomState(i).bytes(100 * i) for i in range(8)} | {"dataset.json": b"{}"}
    path = write(tmp_path / "x.zip", files, start)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files
        info = archive.infolist()[0]
        assert info.date_time == (1980, 1, 1, 0, 0, 0) and info.external_attr >> 16 == 0o100644 and info.compress_type == zipfile.ZIP_STORED
    assert read_all(path) == {name: content for name, content in files.items() if name.endswith(".png")}


@pytest.mark.parametrize("count", [0xFFFE, 0xFFFF, 70_000])
def test_more_entries_than_the_short_directory_can_count(tmp_path: Path, count: int) -> None:
    path = write(tmp_path / "x.zip", {f"{i}.png": b"" for i in range(count)})
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == count
    assert len(archives.open_archive(path).images) == count


def test_same_content_same_bytes_as_ever() -> None:
    buffers = [io.BytesIO(), io.BytesIO()]
    for buffer in buffers:
        writer = archives.StoredZipWriter(buffer)
        writer.write("a.png", b"content")
        writer.close()
    assert buffers[0].getvalue() == buffers[1].getvalue()


def test_reader_reads_a_zip_with_a_prefix_and_extra_fields(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.extra = b"\xfe\xca\x04\x00abcd"
        archive.writestr(info, b"one" * 100)
        with archive.open("b.png", "w", force_zip64=True) as file:
            file.write(b"two")
    (tmp_path / "x.zip").write_bytes(b"#!/bin/sh\n" + buffer.getvalue())
    assert read_all(tmp_path / "x.zip") == {"a.png": b"one" * 100, "b.png": b"two"}


def test_label_forms() -> None:
    assert [archives.parse_label(value, "x") for value in (3, 3.0, [0, 0, 0, 1], [0.0, 1.0])] == [3, 3, 3, 1]
    for bad in (-1, 1.5, float("nan"), float("inf"), 1e300, 2**24, 10**400, -(10**400), None, "a", True, [], [0], [1, 1], [2, 0], [-1, 1], [[1]]):
        with pytest.raises(ValueError, match=r"^x is "):
            archives.parse_label(bad, "x")
