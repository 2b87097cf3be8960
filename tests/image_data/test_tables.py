# SPDX-License-Identifier: Apache-2.0
"""metadata.csv and metadata.jsonl of Hugging Face image folders."""

from pathlib import Path

import pytest

from image_data.sources import Columns, open_source
from tests.toy_data import png, write_folder, write_zip

IMAGES = {"a.png": png(0), "b.png": png(1)}


def labels(path: Path, **options: str) -> tuple[list[int] | None, str]:
    source = open_source(path, **options)
    return None if source.labels is None else source.labels.tolist(), source.origin


def test_the_table_decides_and_its_names_are_relative_to_its_folder(tmp_path: Path) -> None:
    table = b"file_name,label\nx/b.png,1\nx/a.png,0\n"
    files = {f"set/x/{name}": data for name, data in IMAGES.items()}
    path = write_folder(tmp_path / "d", {**files, "set/metadata.csv": table})
    assert labels(path) == ([0, 1], "set/metadata.csv, column label")
    assert labels(path, labels="folders")[0] == [0, 0]
    assert labels(path, labels="none")[0] is None


def test_a_table_without_labels_leaves_the_folders(tmp_path: Path) -> None:
    files = {f"{name[0]}/{name}": data for name, data in IMAGES.items()}
    path = write_zip(tmp_path / "d.zip", {**files, "metadata.csv": b"file_name,text\na/a.png,x\nb/b.png,y\n"})
    found, origin = labels(path)
    assert found == [0, 1] and origin == "the folders a, b"
    assert "1 tables that define no labels (metadata.csv)" in str(open_source(path).left_out)


def test_another_column(tmp_path: Path) -> None:
    table = b'{"file_name": "a.png", "kind": "x"}\n{"file_name": "./b.png", "kind": "y"}\n'
    path = write_folder(tmp_path / "d", {**IMAGES, "metadata.jsonl": table})
    assert labels(path)[0] is None
    assert open_source(path, columns=Columns(labels="kind")).class_names == ["x", "y"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"name,label\na.png,0\nb.png,1\n", r"has no column file_name \(it has name, label\)"),
        (b"file_name,label\na.png,0\n", "1 of 2 images have no label in metadata.csv, column label"),
        (b"file_name,label\na.png,0\nb.png,0\nc.png,0\n", r"are missing, the first is c\.png"),
        (b"file_name,label\na.png,0\na.png,1\n", "row 2 is a second row for a.png"),
        (b"file_name,label\na.png,0\nb.png\n", "row 2 has fewer columns than the header"),
        (b"file_name,label\na.png,0\nb.png,cat\n", "are mixed"),
        (b"file_name,label\na.png,0\nb.png,\n", "label of b.png is missing"),
        (b"file_name,label\na.png,0.5\nb.png,0.25\n", "a.png is 0.5; .*continuous values are not supported"),
        (b'file_name,label\na.png,"[0, 1]"\nb.png,[1]\n', r"'\[0, 1\]' is a list: only one class per image"),
        (b"file_name;label\na.png;0\nb.png;1\n", "its columns are separated by ';': separate them by commas"),
        (b"file_name,label,label\na.png,0,1\nb.png,1,0\n", "has two columns 'label': rename or remove one"),
        (b"file_name,label\n", "has no rows: remove it, or use dataset_tool.py --labels=folders"),
        (b"", "has no rows"),
        (b"file_name,label\n/etc/x.png,0\n", "leads out of the folder"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_mistakes_are_one_line(table: bytes, message: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", {**IMAGES, "metadata.csv": table})
    with pytest.raises(ValueError, match=message) as error:
        open_source(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_malformed_json_lines_and_two_tables(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "d", {**IMAGES, "metadata.jsonl": b'{"file_name": "a.png", "label"'})
    with pytest.raises(ValueError, match="line 1 is not valid JSON"):
        open_source(path)
    write_folder(path, {"metadata.csv": b"file_name,label\na.png,0\nb.png,1\n"})
    with pytest.raises(ValueError, match="both define labels"):
        open_source(path)
