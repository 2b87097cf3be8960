# SPDX-License-Identifier: Apache-2.0
"""Every format gives the same data set as a folder of the same images."""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image_data import sources
from image_data.conversion import convert
from tests.image_data import formats
from tests.toy_data import write_folder


def contents(path: Path) -> tuple[dict[str, bytes], Any, Any]:
    """(bytes by name, labels, class names) of a data set."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    index = json.loads(files.pop("dataset.json"))
    return files, index["labels"], index["metadata"]["class_names"]


@pytest.mark.parametrize("kind", formats.KINDS)
def test_a_format_gives_the_same_bytes_as_a_folder(kind: str, tmp_path: Path) -> None:
    if kind in formats.NEEDS:
        pytest.importorskip(formats.NEEDS[kind])
    convert(formats.write_twin(tmp_path), tmp_path / "twin.zip", workers=1)
    workers = 2 if kind == "parquet" else 1  # its images are read in this process
    convert(formats.write(kind, tmp_path), tmp_path / "out.zip", workers=workers)
    files, labels, class_names = contents(tmp_path / "twin.zip")
    found_files, found_labels, found_names = contents(tmp_path / "out.zip")
    if kind == "tar of folders":  # sorted by folder
        assert sorted(found_files.values()) == sorted(files.values())
        assert [label for _, label in found_labels] == sorted(formats.LABELS)
    else:
        assert found_files == files and found_labels == labels
    assert found_names == class_names
    unlabelled = sources.open_source(formats.write(kind, tmp_path), labels="none")
    assert unlabelled.labels is None and len(unlabelled) == len(formats.LABELS)


@pytest.mark.parametrize(("name", "package"), [("x.parquet", "pyarrow"), ("x.h5", "h5py")])
def test_a_missing_package_is_named(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"{name}: .* pip install {package}$"):
        sources.open_source(tmp_path / name)


def test_columns_of_a_source_without_columns_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", {name: data for name, data in formats.images().items()})
    for columns, flag in (
        (sources.Columns(images="a"), "--image-column=a"),
        (sources.Columns(labels="a"), "--label-column=a"),
    ):
        with pytest.raises(ValueError, match=flag):
            sources.open_source(folder, columns=columns)


def test_images_are_chosen_by_name(tmp_path: Path) -> None:
    stack = np.zeros([3, 8, 8, 3], np.uint8)
    np.savez(tmp_path / "x.npz", pictures=stack, kinds=np.array([[0, 1], [1, 0], [1, 0]]))
    found = sources.open_source(tmp_path / "x.npz", columns=sources.Columns("pictures", "kinds"))
    assert found.labels is not None and found.labels.tolist() == [1, 0, 0] and found.origin == "kinds"
    with pytest.raises(ValueError, match="--label-column=colour: no such column; the columns are kinds"):
        sources.open_source(tmp_path / "x.npz", columns=sources.Columns("pictures", "colour"))
