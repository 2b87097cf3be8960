# SPDX-License-Identifier: Apache-2.0
"""Zip writing and positional zip reading, against the standard library."""

import io
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_data import archives
from image_data.classes import parse_label


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
    files = {f"{i:05d}/img{i}.png": np.random.RandomState(i).bytes(100 * i) for i in range(8)} | {
        "dataset.json": b"{}"
    }
    path = write(tmp_path / "x.zip", files, start)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files
        info = archive.infolist()[0]
        assert (
            info.date_time == (1980, 1, 1, 0, 0, 0)
            and info.external_attr >> 16 == 0o100644
            and info.compress_type == zipfile.ZIP_STORED
        )
    assert read_all(path) == {name: content for name, content in files.items() if name.endswith(".png")}


@pytest.mark.parametrize("count", [0xFFFE, 0xFFFF])
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
    assert [parse_label(value, "x") for value in (3, 3.0, [0, 0, 0, 1], [0.0, 1.0])] == [3, 3, 3, 1]
    for bad in (
        -1,
        1.5,
        float("nan"),
        float("inf"),
        1e300,
        2**24,
        10**400,
        -(10**400),
        None,
        "a",
        True,
        [],
        [0],
        [1, 1],
        [2, 0],
        [-1, 1],
        [[1]],
    ):
        with pytest.raises(ValueError, match=r"^x is "):
            parse_label(bad, "x")


# What is listed, and what is left out.


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    names = [
        "a.png",
        "b.txt",
        "c.TXT",
        "d.heic",
        ".DS_Store",
        "__MACOSX/._a.png",
        "@eaDir/a.png/thumb.jpg",
        "LOC_synset_mapping.txt",
        "x/.git/y.png",
    ]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for name in names:
            file.writestr(name, b"")
            (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "x" / name).touch()
    archive = archives.open_archive(tmp_path / "x.zip")
    assert [entry.name for entry in archive.images] == ["a.png"]
    assert str(archive.left_out) == (
        "3 with an unsupported extension (.txt 2, .heic 1), 4 hidden or system files (.DS_Store 1, .git "
        "1, @eaDir 1, __MACOSX 1)"
    )
    folder = archives.open_archive(tmp_path / "x")
    assert [entry.name for entry in folder.images] == ["a.png"] and folder.left_out.counts[
        archives.ENDING
    ] == 3
    assert folder.left_out.counts[archives.HIDDEN] == 4
    assert str(archives.LeftOut()) == "nothing"
    many = archives.LeftOut()
    for i in range(200):
        many.add("with odd names", f"x{i % 150}")
    assert str(many).startswith("200 with odd names (") and str(many).endswith(", ...)")


def test_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "cat").mkdir(parents=True)
    (tmp_path / "elsewhere" / "cat" / "1.png").write_bytes(b"1")
    root = tmp_path / "root"
    (root / "dog").mkdir(parents=True)
    (root / "dog" / "2.png").write_bytes(b"2")
    (root / "also").symlink_to("dog")
    archive = archives.open_archive(root)
    assert [entry.name for entry in archive.images] == ["dog/2.png"]
    assert str(archive.left_out) == "1 links to folders (use --follow-links to read them) (also)"
    (root / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    with pytest.raises(
        ValueError,
        match=r"cat is a link that leads out of the folder .* or pass --follow-links to dataset_tool\.py",
    ):
        archives.open_archive(root)
    (root / "dog" / "up").symlink_to(root)
    (root / "dog" / "self").symlink_to(".")
    (tmp_path / "elsewhere" / "cat" / "back").symlink_to(root)
    followed = archives.open_archive(root, follow_links=True)
    assert {entry.name: followed.reader.read(entry) for entry in followed.images} == {
        "also/2.png": b"2",
        "cat/1.png": b"1",
        "dog/2.png": b"2",
    }
    assert followed.left_out.counts[archives.CIRCLE] == 5  # two in dog, seen twice, and one in cat
    (root / "gone").symlink_to("nowhere")
    for follow_links in (False, True):
        with pytest.raises(
            ValueError,
            match=r"is a broken link: .*nowhere does not exist; remove the link|leads out of the folder",
        ):
            archives.open_archive(root, follow_links)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    archive = archives.open_archive(tmp_path)
    assert not archive.images and str(archive.left_out) == "1 neither files nor folders (pipe.png)"


def zip_with(path: Path, raw: bytes, flags: int = 0, extra: bytes = b"") -> Path:
    """A zip whose one entry has this name, byte by byte."""
    content = b"data"
    shared = struct.pack(
        "<HHHHIIIH", flags, 0, 0, 33, zlib.crc32(content), len(content), len(content), len(raw)
    )
    local = b"PK\3\4" + struct.pack("<H", 20) + shared + struct.pack("<H", len(extra)) + raw + extra + content
    directory = (
        b"PK\1\2"
        + struct.pack("<HH", 20, 20)
        + shared
        + struct.pack("<HHHHII", len(extra), 0, 0, 0, 0, 0)
        + raw
        + extra
    )
    path.write_bytes(
        local + directory + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), len(local), 0)
    )
    return path


def unicode_field(name: str, raw: bytes) -> bytes:
    value = struct.pack("<BI", 1, zlib.crc32(raw)) + name.encode()
    return b"\x55\x54\1\0x" + struct.pack("<HH", 0x7075, len(value)) + value  # another field stands before


@pytest.mark.parametrize(
    ("raw", "flags", "extra", "expected"),
    [
        ("café/é.png".encode(), 0x800, b"", "café/é.png"),
        ("café/é.png".encode(), 0, b"", "café/é.png"),  # macOS: UTF-8 without saying so
        ("café/é.png".encode("cp437"), 0, b"", "café/é.png"),
        ("猫.png".encode("shift_jis"), 0, unicode_field("猫.png", "猫.png".encode("shift_jis")), "猫.png"),
        (
            "é.png".encode("cp437"),
            0,
            unicode_field("x.png", b"another name"),
            "é.png",
        ),  # renamed since: the field is stale
        ("é.png".encode("cp437"), 0, b"\x75\x70\x06\0\2\0\0\0\0x", "é.png"),  # of another version
        (
            b"#U732b.png",
            0,
            unicode_field("猫.png", b"#U732b.png"),
            "猫.png",
        ),  # Info-ZIP in a locale without the letter
        (b"plain.png", 0, unicode_field("x.png", b"another name"), "plain.png"),
    ],
)
def test_names_in_zips_are_what_their_writers_meant(
    tmp_path: Path, raw: bytes, flags: int, extra: bytes, expected: str
) -> None:
    archive = archives.open_archive(zip_with(tmp_path / "x.zip", raw, flags, extra))
    assert [entry.name for entry in archive.images] == [expected] and archive.reader.read(
        archive.images[0]
    ) == b"data"


def test_a_name_cannot_leave_the_folder_by_its_unicode_field(tmp_path: Path) -> None:
    raw = "é.png".encode("cp437")
    with pytest.raises(ValueError, match="leads out of the folder"):
        archives.open_archive(zip_with(tmp_path / "x.zip", raw, 0, unicode_field("../x.png", raw)))


# Images.


def test_every_format_that_pillow_writes_is_read() -> None:
    read = 0
    for ending, kind in Image.registered_extensions().items():
        if ending not in archives.image_extensions() or kind not in Image.SAVE:
            continue
        buffer = io.BytesIO()
        try:
            Image.new("1" if kind in ("MSP", "XBM") else "RGB", (16, 16)).save(buffer, kind)
        except (OSError, ValueError, KeyError):
            continue
        assert archives.open_image(buffer.getvalue()).size in ((16, 16), (1024, 1024)), (
            kind
        )  # ICNS has one size
        read += 1
    assert read > 20
    for ending in (".jfif", ".apng", ".ico", ".tga", ".pcx", ".qoi", ".psd", ".jp2", ".JPG"):
        assert archives.is_image_name(f"x{ending}")
    for ending in (".eps", ".ps", ".wmf", ".mpg", ".h5", ".fits", ".txt", ".heic", ".pdf", ""):
        assert not archives.is_image_name(f"x{ending}")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(*chunks: bytes, after: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + b"".join(chunks) + data[33:-12] + after + data[-12:]


LARGE = zlib.compress(bytes(3 * 2**20), 9)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"parameters\0\0" + LARGE),
        png_chunk(b"iTXt", b"XML\0\1\0en\0XML\0" + LARGE),
        png_chunk(b"iTXt", b"XML\0\0\0\0\0" + bytes(3 * 2**20)),
        png_chunk(b"iCCP", b"profile\0\0" + LARGE),
        png_chunk(b"tEXt", b"a\0" + b"x" * (70 * 2**20)),
        b"".join(png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20), 9)) for _ in range(70)),
    ],
)
def test_large_texts_and_profiles_do_not_matter(chunk: bytes) -> None:
    for data in (png_with(chunk), png_with(after=chunk)):
        np.testing.assert_array_equal(
            np.asarray(archives.open_image(data)), np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
        )


def test_small_texts_stay() -> None:
    small = png_with(png_chunk(b"tEXt", b"a\0b"), png_chunk(b"zTXt", b"c\0\0" + zlib.compress(b"d")))
    assert archives.without_large_text(small) is small
    mixed = png_with(
        png_chunk(b"tEXt", b"a\0b"), png_chunk(b"zTXt", b"big\0\0" + LARGE), png_chunk(b"tEXt", b"e\0f")
    )
    image = archives.open_image(mixed)
    image.load()
    assert image.text == {"a": "b", "e": "f"}  # type: ignore[attr-defined]
    for damaged in (mixed[:60], mixed[:40] + bytes(20), b"\x89PNG\r\n\x1a\n" + b"\xff" * 8 + b"tEXt" * 4):
        archives.without_large_text(damaged)  # ends


def test_texts_are_unpacked_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of texts that unpack to a megabyte each cost no more than a few dozen of them."""
    unpacked = []
    original = archives._text_length
    monkeypatch.setattr(
        archives, "_text_length", lambda *args: unpacked.append(original(*args)) or unpacked[-1]
    )
    archives.open_image(png_with(b"".join(png_chunk(b"zTXt", b"a\0\0" + LARGE) for _ in range(2000))))
    assert sum(unpacked) < 70 * 2**20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>", r"unknown image format, starting with b'<!DOCTYPE ht'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "PNG: "),
        (b"GIF89a", "GIF: "),
        (b"x", "unknown image format, starting with"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "unknown image format, starting with"),
    ],
)
def test_the_decoders_reason_is_given(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=r"^not a readable image \(") as caught:
        archives.open_image(data)
    text = str(caught.value)
    assert (
        re.search(message, text)
        and "Error" not in text
        and "0x" not in text.replace(r"\x", "")
        and "\n" not in text
    )
