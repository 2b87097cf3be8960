# SPDX-License-Identifier: Apache-2.0
"""Data sets and sources of strangers: a few bytes that ask for gigabytes, files that never end, labels of
millions of classes."""

import bz2
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import dataset_tool
from image_data import archives, cifar, sources
from tests.memory_limit import limited
from training.data.dataset import ImageDataset

NUM_IMAGES = 8


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, index: bytes | str, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for i in range(NUM_IMAGES):
            archive.writestr(f"{i}.png", png())
        archive.writestr("dataset.json", index)
    return path


def labelled(value: Any, **metadata: Any) -> str:
    return json.dumps(
        {"labels": [[f"{i}.png", value if i == 0 else 0] for i in range(NUM_IMAGES)], "metadata": metadata}
    )


def refused_everywhere(path: Path, message: str) -> None:
    """By training's data set, by the tool and by its check, each in one line and little memory."""
    for look in (lambda: ImageDataset(path, use_labels=True), lambda: sources.open_source(path)):
        with limited(400), pytest.raises(ValueError, match=message) as error:
            look()
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
    for arguments in (
        ["--check", str(path)],
        ["--source", str(path), "--dest", str(path.parent / "out.zip")],
    ):
        with limited(400):
            result = CliRunner().invoke(dataset_tool.main, [*arguments, "--workers=1"])
        assert (
            result.exit_code == 1
            and "Traceback" not in result.output
            and not (path.parent / "out.zip").exists()
        )


INDICES: dict[str, Callable[[], str]] = {
    "blanks": lambda: " " * 2**30 + "{}",
    "lists": lambda: '{"labels": ' + "[" + "[]," * 1_000_000 + "[]]}",
    "objects": lambda: '{"labels": null, "metadata": {"a": [' + "{}," * 500_000 + "{}]}}",
}


@pytest.mark.parametrize("what", ["blanks", "lists", "objects"])
def test_an_index_larger_than_its_images_explain(tmp_path: Path, what: str) -> None:
    text = INDICES[what]() if what != "blanks" else " " * 2**26 + "{}"
    path = write(tmp_path / "x.zip", text)
    assert path.stat().st_size < 2**20
    refused_everywhere(path, r"unpacks to \d+ MiB, over the limit|too many lists and objects")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    refused_everywhere(tmp_path / "folder", r"larger than \d+ MiB|too many lists and objects")


@pytest.mark.parametrize("claimed", [2, 2**32 - 2])
def test_an_index_that_lies_about_its_size(tmp_path: Path, claimed: int) -> None:
    path = write(tmp_path / "x.zip", " " * 2**26 + "{}")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", claimed)
    path.write_bytes(data)
    refused_everywhere(path, r"dataset\.json: (unpacks to|damaged zip entry)")


@pytest.mark.parametrize("place, value", [(20, 2**32 - 2), (42, 2**32 - 2)])
def test_entries_that_lie_about_what_is_stored(tmp_path: Path, place: int, value: int) -> None:
    """The stored size, and the place of the entry."""
    path = write(tmp_path / "x.zip", "{}")
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + place
    data[at : at + 4] = struct.pack("<I", value)
    path.write_bytes(data)
    archive = archives.open_archive(path)
    with limited(300), pytest.raises(ValueError, match="damaged zip entry"):
        archive.reader.read(archive.images[0])
    with pytest.raises(ValueError, match="damaged zip entry"):
        archive.reader.read(archive.images[0]._replace(offset=2**64 - 2))


@pytest.mark.parametrize("value", [2**15 + 1, 10**6, 2**24 - 1])
def test_labels_beyond_any_class(tmp_path: Path, value: int) -> None:
    refused_everywhere(
        write(tmp_path / "x.zip", labelled(value)), rf"label {value} is too large: .* without \"class_names\""
    )


def test_labels_that_are_large_for_a_reason(tmp_path: Path) -> None:
    """A few images of ImageNet-21k, and one-hot labels of many classes."""
    dataset = ImageDataset(write(tmp_path / "a.zip", labelled(21_840)), use_labels=True)
    assert dataset.label_dim == 21_841
    names = [f"class {i}" for i in range(40_000)]
    assert (
        ImageDataset(
            write(tmp_path / "b.zip", labelled(39_999, class_names=names)), use_labels=True
        ).label_dim
        == 40_000
    )
    one_hot = json.dumps({"labels": [[f"{i}.png", [0.0] * 1400 + [1.0]] for i in range(NUM_IMAGES)]})
    assert ImageDataset(write(tmp_path / "c.zip", one_hot), use_labels=True).label_dim == 1401


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    for look in (archives.open_archive, sources.open_source):
        with pytest.raises(ValueError, match="neither a file nor a folder"):
            look(tmp_path / "pipe.zip")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(png())
    os.mkfifo(tmp_path / "set" / "dataset.json")
    assert archives.open_archive(tmp_path / "set").index is None


def idx(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_file_that_claims_more_than_it_has(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(pack(idx((2**20, 64, 64), bytes(1000))))
    with limited(300), pytest.raises(ValueError, match="the header declares"):
        sources.open_source(path, labels="none")


def test_a_gzip_bomb_in_an_idx_file(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx((2**16, 32, 32), bytes(2**26))))
    with limited(150), pytest.raises(ValueError, match="the header declares"):
        sources.open_source(path, labels="none")
    path.write_bytes(gzip.compress(idx((8, 4, 4), bytes(2**26))))  # more than it claims
    with limited(150), pytest.raises(ValueError, match="the file contains more"):
        sources.open_source(path, labels="none")


def tarball(path: Path, members: dict[str, bytes], pack: Callable[[bytes], bytes], **headers: str) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", pax_headers=headers) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(pack(buffer.getvalue()))
    return path


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
@pytest.mark.parametrize("where", ["member", "header", "many members"])
def test_tar_bombs(tmp_path: Path, pack: Callable[[bytes], bytes], where: str) -> None:
    zeros = bytes(2**26)
    if where == "member":
        path = tarball(tmp_path / "c.tar.gz", {"cifar-10-batches-py/batches.meta": zeros, "b": b""}, pack)
    elif where == "header":
        path = tarball(tmp_path / "c.tar.gz", {"a": b"x"}, pack, comment="0" * 2**26)
    else:
        path = tarball(tmp_path / "c.tar.gz", {f"{i}": b"" for i in range(1001)}, pack)
    assert path.stat().st_size < 2**18
    with (
        limited(200),
        pytest.raises(ValueError, match=r"unpacks to more than 100 times|more than 1000 files"),
    ):
        sources.open_source(path)


@pytest.mark.parametrize("size", [2**33, 2**62])
def test_a_tar_header_that_claims_more_than_there_is(tmp_path: Path, size: int) -> None:
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("cifar-10-batches-py/batches.meta")
        info.size, info.type = size, kind
        header = info.tobuf(tarfile.GNU_FORMAT)
        (tmp_path / "c.tar").write_bytes(header + bytes(10240))
        with limited(200), pytest.raises(ValueError, match=str(tmp_path)):
            sources.open_source(tmp_path / "c.tar")


class Array:
    """Pickled as numpy's arrays are, with the arguments and the state that are wished for."""

    def __init__(self, shape: tuple[int, ...], state: Any = None):
        self.shape, self.state = shape, state

    def __reduce__(self) -> Any:
        import numpy._core.multiarray as multiarray

        made = multiarray._reconstruct, (np.ndarray, self.shape, b"b")  # type: ignore[attr-defined]
        return made if self.state is None else (*made, self.state)


def nested() -> list[Any]:
    """A list of 2**30 numbers to whoever unfolds it."""
    value: list[Any] = [0] * 2
    for _ in range(29):
        value = [value, value]
    return value


BATCHES: dict[str, Callable[[], bytes]] = {
    "a place of 4 billion in Python's table": lambda: b"\x80\x02}r\xff\xff\xff\xff.",
    "a text's place": lambda: b"\x80\x02}p4294967295\n.",
    "a byte array of 2**60": lambda: b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".",
    "an integer of a million digits": lambda: (
        b"\x80\x02\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20 + b"."
    ),
    "an array by its arguments": lambda: pickle.dumps({b"data": Array((2**40,)), b"labels": []}, 2),
    "an array by its state": lambda: pickle.dumps(
        {b"data": Array((0,), (1, (2**40,), np.dtype("u1"), False, b"x")), b"labels": []}, 2
    ),
    "a list in lists": lambda: pickle.dumps({b"data": nested(), b"labels": nested()}, 2),
    "labels in lists": lambda: pickle.dumps({b"data": np.zeros([2, 3072], np.uint8), b"labels": nested()}, 2),
    "bytes again and again": lambda: (
        b"\x80\x02c_codecs\nencode\nq\x00(X"
        + struct.pack("<I", 2**20)
        + b"a" * 2**20
        + b"X\x06\x00\x00\x00latin1tq\x01"
        + b"h\x00h\x01R" * 10_000
        + b"."
    ),
    "a type of a gigabyte": lambda: pickle.dumps({b"data": np.zeros(1, "V1000"), b"labels": []}, 2),
    "labels beyond any class": lambda: pickle.dumps(
        {b"data": np.zeros([2, 3072], np.uint8), b"labels": [0, 10**9]}, 2
    ),
    "not a table": lambda: pickle.dumps([1, 2], 2),
    "half a pickle": lambda: pickle.dumps({b"data": np.zeros([2, 3072], np.uint8)}, 2)[:-100],
}


@pytest.mark.parametrize("what", BATCHES)
def test_pickles_that_ask_for_memory(tmp_path: Path, what: str) -> None:
    """In a CIFAR tarball; Python's own reader takes 64 GB for the first, which has 9 bytes."""
    files = {f"cifar-10-batches-py/data_batch_{i}": BATCHES[what]() for i in range(1, 6)}
    meta = pickle.dumps({b"label_names": [b"a", b"b"]}, 2)
    path = tarball(tmp_path / "c.tar.gz", {"cifar-10-batches-py/batches.meta": meta, **files}, gzip.compress)
    with limited(300), pytest.raises(ValueError, match=rf"^{path}: ") as error:
        sources.open_source(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("protocol", [2, 4])
def test_batches_come_back(protocol: int) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, [3, 3072], dtype=np.uint8)
    for labels in ([1, 0, 2], np.array([1, 0, 2])):
        table = cifar.batch(
            "x", pickle.dumps({b"data": np.asfortranarray(pixels), b"labels": labels}, protocol)
        )
        found, numbers = cifar.images("x", table, "labels")
        np.testing.assert_array_equal(found, pixels.reshape(3, 3, 32, 32).transpose(0, 2, 3, 1))
        assert numbers.tolist() == [1, 0, 2]


def test_an_lmdb_that_leads_back_to_itself_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lmdb = pytest.importorskip("lmdb")
    path = tmp_path / "church_lmdb"
    with lmdb.open(str(path), map_size=2**20) as environment, environment.begin(write=True) as transaction:
        for i in range(100):
            transaction.put(f"{i:03d}".encode(), png())
    assert len(sources.open_source(path)) == 100
    monkeypatch.setattr(sources, "LMDB_ENTRY_BYTES", 2**14)
    with pytest.raises(ValueError, match="form a loop"):
        sources.open_source(path)
    monkeypatch.setattr(archives, "MAX_ENTRY_BYTES", 10)
    with pytest.raises(ValueError, match="missing or too large"):
        sources.LmdbOpener(str(path)).load(b"000")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_files_of_class_names_end(tmp_path: Path) -> None:
    path = write(tmp_path / "x.zip", labelled(0))
    with limited(400):
        result = CliRunner().invoke(
            dataset_tool.main,
            ["--source", str(path), "--dest", str(tmp_path / "o.zip"), "--class-names=@/dev/zero"],
        )
    assert result.exit_code == 1 and "--class-names=@/dev/zero: larger than 16 MiB" in result.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--resolution=65536"], "--resolution 65536x65536: at most 11,585 pixels wide"),
        (["--resolution=16,1048576"], "--resolution 1048576x1048576: at most"),
        ([f"--resolution={'9' * 5000}"], "is not a size"),
        (["--workers=100000"], "--workers=100000 must be between 1 and"),
        (["--workers=0"], "--workers=0 must be between 1 and"),
    ],
)
def test_numbers_beyond_reason(tmp_path: Path, arguments: list[str], message: str) -> None:
    path = write(tmp_path / "x.zip", labelled(0))
    with limited(400):
        result = CliRunner().invoke(
            dataset_tool.main, ["--source", str(path), "--dest", str(tmp_path / "o{res}.zip"), *arguments]
        )
    assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output


def test_large_pictures_among_small_ones_are_not_unpacked(tmp_path: Path) -> None:
    """Without --resolution all images have the first one's size, so there is no reason to."""
    buffer = io.BytesIO()
    Image.new("1", (8192, 8192)).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", png())
        for i in range(8):
            archive.writestr(f"b{i}.png", buffer.getvalue())
    arguments = ["--source", str(tmp_path / "x.zip"), "--dest", str(tmp_path / "o.zip"), "--workers=1"]
    with limited(150):
        result = CliRunner().invoke(dataset_tool.main, arguments)
        assert (
            result.exit_code == 1
            and "b0.png: is 8192x8192, but a.png is 16x16: use --resolution" in result.output
        )
        result = CliRunner().invoke(dataset_tool.main, [*arguments, "--on-error=skip"])
    assert result.exit_code == 0 and "8 unreadable images were skipped" in result.output


def test_pictures_of_too_many_pixels(tmp_path: Path) -> None:
    """By their headers: what follows is not looked at."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 2**15, 2**15, 8, 6, 0, 0, 0)
    bomb = png()[:12] + header + struct.pack(">I", zlib.crc32(header)) + png()[33:]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", bomb)
    refused = "decompression bomb"
    with limited(150), pytest.raises(ValueError, match=refused):
        ImageDataset(tmp_path / "x.zip")
    for arguments in (
        ["--check", str(tmp_path / "x.zip")],
        ["--source", str(tmp_path / "x.zip"), "--dest", str(tmp_path / "o.zip")],
    ):
        result = CliRunner().invoke(dataset_tool.main, [*arguments, "--workers=1"])
        assert result.exit_code == 1 and refused in result.output
