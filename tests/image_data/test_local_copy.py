# SPDX-License-Identifier: Apache-2.0
"""Copies of data sets on the disk of a node: --data-cache."""

import os
import re
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from image_data import archives, local_copy
from tests.image_data import formats
from tests.toy_data import png, write_dataset, write_folder
from training.build import make_dataset, plain_dataset
from training.config import DataConfig


def make_zip(folder: Path) -> Path:
    return write_dataset(folder / "photos.zip", class_names=["a", "b"])


def make_folder(folder: Path) -> Path:
    names = {f"{label}/{i} \u00e9.png": png(i) for i in range(3) for label in "ab"}
    return write_folder(folder / "photos", {**names, "notes.txt": b"x"})


def make_shards(folder: Path) -> Path:
    (folder / "photos").mkdir()
    return formats.write_shards(folder / "photos")


MAKE = {"zip": make_zip, "folder": make_folder, "shards": make_shards}


@pytest.fixture(params=MAKE)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make: Callable[[Path], Path] = MAKE[request.param]
    return make(tmp_path)


def remains(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_copy_is_made_once_and_read_in_place_of_the_original(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain = make_dataset(DataConfig(path=str(source), cond=True), 0)
    everything = plain.load(np.arange(len(plain)))
    cfg = DataConfig(path=str(source), cond=True, data_cache=str(cache))
    dataset = make_dataset(cfg, 0)
    assert dataset.content_hash() == plain.content_hash() and dataset.path == str(source)
    (copy,) = remains(cache)
    assert copy.startswith("photos-")
    stamps = {path: os.stat(path).st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    shutil.move(source, tmp_path / "away")  # nothing is read from the original any more
    np.testing.assert_array_equal(dataset.load(np.arange(len(dataset))), everything)
    shutil.move(tmp_path / "away", source)
    again = plain_dataset(make_dataset(cfg, 0))
    assert again.local_copies == str(cache)
    np.testing.assert_array_equal(again.load(np.arange(len(again))), everything)
    assert {path: os.stat(path).st_mtime_ns for path in stamps if path.suffix != ".lock"} == {
        path: stamp for path, stamp in stamps.items() if path.suffix != ".lock"
    }
    for path in stamps:
        path.write_bytes(bytes(path.stat().st_size))
    # The copy is damaged, not the original.
    message = rf"^{re.escape(str(cache / copy))}: .*: delete this copy, and it is made again$"
    with pytest.raises(ValueError, match=message):
        again.load(np.arange(1))
    for path in source.rglob("*.*") if source.is_dir() else [source]:
        path.unlink() if path.suffix == ".png" else path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(source))}: .*") as error:  # so is the original
        again.load(np.arange(1))
    assert "delete this copy" not in str(error.value)


def test_zips_with_the_same_images_in_another_order_are_not_mixed_up(tmp_path: Path) -> None:
    keys = set()
    for names in ("ab", "ba"):
        (tmp_path / names).mkdir()
        with zipfile.ZipFile(tmp_path / names / "x.zip", "w") as file:
            for name in names:
                file.writestr(f"{name}.png", png(ord(name)))
        keys.add(local_copy._key(archives.open_archive(tmp_path / names / "x.zip")))
    assert len(keys) == 2


def test_a_changed_original_gets_its_own_copy_and_a_damaged_copy_is_made_again(
    source: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    archive = archives.open_archive(source, index=True)
    local_copy.local_copy(archive, str(cache), "--data-cache")
    (copy,) = remains(cache)
    for file in (cache / copy).iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    found = local_copy.local_copy(archive, str(cache), "--data-cache")
    assert [found.reader.read(entry) for entry in found.images]
    assert remains(cache) == [copy]
    for index in tmp_path.rglob("*.index.npz"):
        index.unlink()
    shutil.rmtree(source) if source.is_dir() else source.unlink()
    other = write_folder(tmp_path / "other", {f"{label}/x.png": png(9) for label in "ab"})
    os.rename(other, source.with_suffix(""))
    archive = archives.open_archive(source.with_suffix(""), index=True)
    found = local_copy.local_copy(archive, str(cache), "--data-cache")
    assert found.reader.read(found.images[0]) == png(9) and len(remains(cache)) == 2


class _Usage(NamedTuple):
    free: int


def test_a_full_disk_is_one_line_and_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    archive = archives.open_archive(source, index=True)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: _Usage(100))
        with pytest.raises(ValueError, match=r"^--data-cache=.*: the copy of .* needs .* MiB, and 0\.0"):
            local_copy.local_copy(archive, str(cache), "--data-cache")
    assert remains(cache) == []

    def full(file: Any) -> None:  # the disk fills up while the copy is written
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(local_copy, "_flush", full)
        with pytest.raises(
            ValueError, match=r"cannot copy .* \(No space left on device\): choose another folder with"
        ) as e:
            local_copy.local_copy(archive, str(cache), "--data-cache")
    assert remains(cache) == [] and "\n" not in str(e.value)
    assert local_copy.local_copy(archive, str(cache), "--data-cache").images


def test_a_copy_that_differs_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archives.open_archive(source, index=True)
    flush = local_copy._flush

    def damage(file: Any) -> None:
        file.seek(100)
        file.write(b"damage")
        flush(file)

    monkeypatch.setattr(local_copy, "_flush", damage)
    with pytest.raises(ValueError, match="differs from what was written"):
        local_copy.local_copy(archive, str(tmp_path / "cache"), "--data-cache")
    assert remains(tmp_path / "cache") == []


def test_several_processes_copy_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archives.open_archive(make_zip(tmp_path))
    copies, make = [], local_copy._make

    def counted(*args: Any) -> None:
        copies.append(args)
        make(*args)

    monkeypatch.setattr(local_copy, "_make", counted)
    arguments = (archive, str(tmp_path / "cache"), "--data-cache")
    threads = [threading.Thread(target=local_copy.local_copy, args=arguments) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copies) == 1 and len(remains(tmp_path / "cache")) == 1
