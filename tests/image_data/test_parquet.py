# SPDX-License-Identifier: Apache-2.0
"""Parquet files of the package datasets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image_data.conversion import convert
from image_data.sources import Columns, open_source
from tests.image_data import formats
from tests.toy_data import png

pytest.importorskip("pyarrow")


def test_classes_and_splits_of_a_folder(tmp_path: Path) -> None:
    folder = formats.write("parquet", tmp_path)
    columns = {"image": formats.image_structs(), "label": [0] * 5}
    formats.write_parquet(folder / "test-00000-of-00001.parquet", columns, formats.FEATURES)
    source = open_source(folder)
    assert source.class_names == formats.CLASSES and source.origin == "the column label"
    assert "1 files of other splits (test-00000-of-00001.parquet)" in str(source.left_out)
    assert source.names == formats.NAMES
    assert open_source(folder / "test-{00000..00000}-of-00001.parquet").num_classes == 2


def test_rows_in_any_order_and_across_row_groups(tmp_path: Path) -> None:
    source = open_source(formats.write("parquet", tmp_path))
    for index in (4, 0, 3, 1, 2, 2):
        assert source.refs[index] == (formats.NAMES[index], png(index))
    with pytest.raises(IndexError):
        source.refs[5]


def test_coarse_and_fine_labels(tmp_path: Path) -> None:
    features = {
        "img": {"_type": "Image"},
        "coarse_label": {"_type": "ClassLabel", "names": ["animal"]},
        "fine_label": {"_type": "ClassLabel", "names": ["cat", "dog"]},
    }
    columns = {"img": formats.image_structs(), "coarse_label": [0] * 5, "fine_label": formats.LABELS}
    path = formats.write_parquet(tmp_path / "x.parquet", columns, features)
    assert open_source(path).class_names == ["cat", "dog"]
    assert open_source(path, columns=Columns(labels="coarse_label")).class_names == ["animal"]


def test_images_beside_the_file_and_rows_without_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    structs = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": None}]
    path = tmp_path / "x.parquet"
    structs += [{"bytes": png(1), "path": "b.png"}, {"bytes": None, "path": "missing.png"}]
    formats.write_parquet(path, {"image": structs, "label": [0, 1, 1, 0]}, formats.FEATURES)
    with pytest.raises(ValueError, match=r"x\.parquet row 1: the row has no image"):
        convert(path, tmp_path / "out.zip", workers=1)
    report = convert(path, tmp_path / "out.zip", workers=1, on_error="skip")
    assert report.num_images == 2 and report.skipped[1] == "missing.png: No such file or directory"
    structs[0]["path"] = "../a.png"
    formats.write_parquet(path, {"image": structs, "label": [0, 1, 1, 0]})
    with pytest.raises(ValueError, match="leads out of the folder"):
        convert(path, tmp_path / "other.zip", workers=1)
    assert not (tmp_path / "other.zip").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": ["x"] * 5, "label": [0] * 5}, "no column of images"),
        ({"image": ["x"] * 5, "label": [0] * 5}, "no column of images"),
        ({"label": [0, 1, None, 0, 0]}, "label of 002.png is missing"),
        ({"label": [0, 1, -1, 0, 0]}, 'column label: -1 means "unknown"'),
        ({"label": [0.0, 0.5, 0.0, 0.0, 0.0]}, "label of 001.png is 0.5"),
        ({"label": [[0, 1], [1], [0], [0], [0]]}, "only one class per image"),
        ({"label": [0, 1, 2, 0, 0]}, "label 2 has no name: there are 2 names"),
        ({"label": np.full(5, 2**63, np.uint64)}, "label of 000.png is 9223372036854775808"),
        ({"image": [], "label": []}, "contains no rows"),
    ],
)
def test_mistakes(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    image = {} if columns.keys() & {"image", "picture"} else {"image": formats.image_structs()}
    features = formats.FEATURES if image else None
    path = formats.write_parquet(tmp_path / "x.parquet", {**image, **columns}, features)
    with pytest.raises(ValueError, match=message) as error:
        open_source(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_missing_columns_mixed_types_and_damage(tmp_path: Path) -> None:
    folder = formats.write("parquet", tmp_path)
    with pytest.raises(ValueError, match="--label-column=kind: no such column; the columns are image, label"):
        open_source(folder, columns=Columns(labels="kind"))
    second = folder / "train-00001-of-00002.parquet"
    columns: dict[str, Any] = {"image": formats.image_structs(), "label": ["a"] * 5}
    formats.write_parquet(second, columns)
    with pytest.raises(ValueError, match=r"train-00001.*: its columns or class names differ from those of"):
        open_source(folder)
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train-00001.*: not a readable Parquet file") as error:
        open_source(folder)
    assert "\n" not in str(error.value) and str(error.value).endswith(": copy or download it again")
    pattern = folder / "train-{00000..00001}-of-00002.parquet"
    second.unlink()
    with pytest.raises(ValueError, match=r"\}-of.*: .*train-00001-of-00002\.parquet does not exist"):
        open_source(pattern)


@pytest.mark.parametrize("kind", ["Sequence", "List", None])
def test_lists_of_classes_are_no_one_hot_labels(kind: str | None, tmp_path: Path) -> None:
    inside = {"_type": "ClassLabel", "names": formats.CLASSES}
    feature: Any = [inside] if kind is None else {"_type": kind, "feature": inside}
    features = {"image": {"_type": "Image"}, "label": feature}
    columns = {"image": formats.image_structs(), "label": [[0, 1]] * 5}
    path = formats.write_parquet(tmp_path / "x.parquet", columns, features)
    with pytest.raises(ValueError, match="column label has lists of classes: only one class per image"):
        open_source(path)
    assert open_source(path, labels="none").labels is None


def test_a_file_damaged_in_the_middle(tmp_path: Path) -> None:
    path = formats.write("parquet of binaries", tmp_path)
    data = bytearray(path.read_bytes())
    place = data.index(b"\x89PNG")
    data[place - 40 : place + 3000] = bytes(3040)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=str(path)) as error:
        convert(path, tmp_path / "out.zip", workers=1)
    assert "\n" not in str(error.value) and not (tmp_path / "out.zip").exists()
