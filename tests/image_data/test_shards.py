# SPDX-License-Identifier: Apache-2.0
"""Tar shards: samples, damage, and the index that training keeps."""

import json
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image_data import archives, shards
from image_data.sources import Columns, open_source
from tests.image_data import formats
from tests.toy_data import png


def names(path: Path) -> list[str]:
    return [entry.name for entry in archives.open_archive(path).images]


def test_the_files_of_a_sample(tmp_path: Path) -> None:
    """Further images of a sample are counted; a dot in the name of a single image changes nothing."""
    files = {
        "a/1.jpg": png(0),
        "a/1.seg.png": png(1),
        "a/1.cls": b"0",
        "a/2.v1.png": png(2),
        "a/2.cls": b"1\n",
        "a/2.txt": b"caption",
        "a/.hidden.png": b"",
    }
    source = open_source(formats.write_tar(tmp_path / "x.tar", files))
    assert [ref.name for ref in source.refs] == ["a/1.jpg", "a/2.v1.png"]
    assert source.labels is not None and source.labels.tolist() == [0, 1]
    assert str(source.left_out) == (
        "1 with an unsupported extension (.txt), 1 hidden or system files (.hidden.png), "
        "1 further images of a sample (seg.png)"
    )


def test_a_key_of_the_records_is_chosen(tmp_path: Path) -> None:
    records = [{"label": 0, "kind": kind} for kind in "xyxyx"]
    folder = formats.write_shards(tmp_path, record=True, values=records)
    for shard in folder.iterdir():  # records as they are, not below "label"
        shard.unlink()
    files = {}
    for name, record in zip(formats.NAMES, records, strict=True):
        files |= {name: formats.images()[name], name.replace("png", "json"): json.dumps(record).encode()}
    path = formats.write_tar(folder / "x.tar", files)
    assert open_source(path).num_classes == 1
    assert open_source(path, columns=Columns(labels="kind")).class_names == ["x", "y"]
    with pytest.raises(ValueError, match="--label-column=colour"):
        open_source(path, columns=Columns(labels="colour"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, "cat", 1, 0], r"names \('cat'\) and numbers \('0'\) are mixed"),
        ([0, -1, 0, 1, 0], "label of 001.png is -1"),
        ([0, "1 2", 0, 1, 0], "'1 2' is a list: only one class per image is supported"),
        ([0.5, 1, 0, 1, 0], "label of 000.png is 0.5; .*continuous values are not supported"),
    ],
)
def test_labels_that_are_no_classes(values: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(formats.write_shards(tmp_path, values=values))


@pytest.mark.parametrize("kept", [-1024, -10240, 700, 512, 100, 0])
def test_a_shard_that_ends_early(kept: int, tmp_path: Path) -> None:
    """In the middle of a file, after one, in a header, or without the blocks of zeros at the end."""
    folder = formats.write_shards(tmp_path)
    shard = folder / "train-001.tar"
    data = shard.read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512)
    shard.write_bytes({-1024: data, -10240: data[:-512]}.get(kept, data[:kept]))
    for index in (False, True):
        with pytest.raises(ValueError, match=r"train-001\.tar: the shard is damaged or ends early") as error:
            archives.open_archive(folder, index=index)
        assert "\n" not in str(error.value)
    assert not list(folder.glob("*.index.npz"))


def header(fields: dict[str, str]) -> bytes:
    info = tarfile.TarInfo("1.png")
    info.pax_headers = fields
    return info.tobuf(tarfile.PAX_FORMAT)


LONG_NAME = tarfile.TarInfo("././@LongLink")
LONG_NAME.type, LONG_NAME.size = tarfile.GNUTYPE_LONGNAME, 5


@pytest.mark.parametrize(
    "headers",
    [
        (LONG_NAME.tobuf(tarfile.GNU_FORMAT) + b"abcd".ljust(512, b"\0")) * 2000,  # read recursively
        header({"GNU.sparse.size": "abc"}),
        header({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "12"}) + b"z" * 512,
        header({"size": "9" * 26}),
    ],
)
def test_hostile_headers(headers: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(headers + bytes(1024))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: the shard is damaged or ends early, "):
        archives.open_archive(path)


def test_patterns_splits_and_duplicates(tmp_path: Path) -> None:
    folder = formats.write_shards(tmp_path / "s")
    shutil.copy(folder / "train-000.tar", folder / "val-000.tar")
    source = open_source(folder)
    assert len(source) == 5 and "1 shards of other splits (val-000.tar)" in str(source.left_out)
    assert archives.open_archive(folder / "train-{000..001}.tar").name == "train-000..001"
    with pytest.raises(ValueError, match=r"train-002\.tar does not exist"):
        open_source(folder / "train-{000..002}.tar")
    with pytest.raises(ValueError, match=r"000\.png exists twice, in train-000\.tar and val-000\.tar"):
        open_source(folder / "{train,val}-000.tar")
    shutil.copytree(folder, tmp_path / "t")
    with pytest.raises(ValueError, match=r"several shards are named train-000\.tar"):
        open_source(tmp_path / "{s,t}" / "train-000.tar")


def test_the_index_is_made_once_and_checks_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = formats.write_shards(tmp_path / "s")
    archive = archives.open_archive(folder, index=True)
    (index,) = folder.glob("*.index.npz")
    assert index.name == "train-000--train-001.index.npz" and not list(folder.glob("*.lock"))
    stamp = os.stat(index).st_mtime_ns
    again = archives.open_archive(folder, index=True)
    assert os.stat(index).st_mtime_ns == stamp and again.images == archive.images
    assert again.sample_labels == archive.sample_labels
    reversed_order = archives.open_archive(folder / "train-{001,000}.tar", index=True)
    assert reversed_order.images == archive.images and len(list(folder.glob("*.index.npz"))) == 1
    reader = pickle.loads(pickle.dumps(again.reader))
    assert reader.checks_content
    assert {entry.name: reader.read(entry) for entry in again.images} == formats.images()
    monkeypatch.setattr(shards, "MAX_OPEN", 1)
    reader.close()
    assert {entry.name: reader.read(entry) for entry in again.images} == formats.images()
    assert len(reader._fds) == 1
    # the same size, start, middle and end, but other pixels
    entry = again.images[1]
    with open(folder / "train-000.tar", "r+b") as file:
        file.seek(entry.offset + 60)
        file.write(b"xx")
    with pytest.raises(ValueError, match=rf"{entry.name}: .*has changed since it was listed, or is damaged"):
        reader.read(entry)


def test_an_index_of_other_shards_is_refused(tmp_path: Path) -> None:
    folder = formats.write_shards(tmp_path / "s")
    archives.open_archive(folder, index=True)
    index = next(folder.glob("*.index.npz"))
    shutil.copy(folder / "train-000.tar", folder / "train-001.tar")
    message = (
        rf"^{re.escape(str(index))} is the index of other shards \(train-001\.tar has changed\): delete "
    )
    with pytest.raises(ValueError, match=message):
        archives.open_archive(folder, index=True)
    formats.write_shards(folder)
    shutil.copy(folder / "train-000.tar", folder / "train-0005.tar")
    with pytest.raises(ValueError, match="is the index of other shards"):
        archives.open_archive(folder, index=True)
    for damage in (b"", b"PK", index.read_bytes()[:-40]):
        index.write_bytes(damage)
        with pytest.raises(ValueError, match=r"index\.npz: not a readable index of shards .*: delete "):
            archives.open_archive(folder / "train-{000..001}.tar", index=True)


def change_column(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda columns, text: columns.update({name: value(columns[name])})


def change_text(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda columns, text: text.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_column("size", lambda x: x - 10**6), "impossible values"),
        (change_column("size", lambda x: x + 10**12), "impossible values"),
        (change_column("offset", lambda x: x - 10**6), "impossible values"),
        (change_column("offset", lambda x: x + 10**12), "impossible values"),
        (change_column("shard", lambda x: x + 2), "impossible values"),
        (change_column("offset", lambda x: x + 0.5), "float64"),
        (change_column("offset", lambda x: x[1:]), "shorter"),
        (change_text("names", [1] * 10), "int"),
        (change_text("names", 3), "int"),
        (change_text("labels", []), "impossible values"),
        (change_text("shards", 3), "int"),
        (change_text("version", 99), "its version is 99, not 1"),
    ],
)
def test_an_index_with_other_values_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    folder = formats.write_shards(tmp_path / "s")
    archives.open_archive(folder, index=True)
    index = next(folder.glob("*.index.npz"))
    columns = dict(np.load(index))
    text = json.loads(columns["text"].tobytes())
    change(columns, text)
    columns["text"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    np.savez(index, **columns)
    with pytest.raises(ValueError, match=r"not a readable index of shards") as error:
        archives.open_archive(folder, index=True)
    assert message in str(error.value) and str(error.value).count(str(index)) == 2
    assert "\n" not in str(error.value) and str(error.value).endswith("to index the shards again")


def test_the_index_of_a_folder_that_is_not_writable_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    folder = formats.write_shards(tmp_path / "s")
    real = shards._save

    def save(path: Path, *args: Any) -> None:
        if path.parent == folder:
            raise PermissionError(13, "Permission denied")
        real(path, *args)

    monkeypatch.setattr(shards, "_save", save)
    archives.open_archive(folder, index=True)
    assert len(list((tmp_path / "cache").rglob("*.index.npz"))) == 1 and not list(folder.glob("*.npz"))
    monkeypatch.setattr(shards, "_save", None)
    assert len(archives.open_archive(folder, index=True).images) == 5


def test_tar_files_of_one_class_each_are_not_unlabelled(tmp_path: Path) -> None:
    for synset in ("n01440764", "n01443537"):
        formats.write_tar(
            tmp_path / "train" / f"{synset}.tar", {f"{synset}_{i}.JPEG": png(i) for i in range(2)}
        )
    with pytest.raises(
        ValueError, match=r"n01440764, n01443537 seem to be classes.*: unpack each into a folder"
    ):
        open_source(tmp_path / "train")
    assert len(open_source(tmp_path / "train", labels="none")) == 4
    for name in ("cat", "dog"):
        formats.write_tar(tmp_path / "pets" / f"{name}.tar", {f"{name}.png": png(0)})
    with pytest.raises(ValueError, match=r"such as cat\.tar; if each has .* one class, unpack each"):
        open_source(tmp_path / "pets")
