# SPDX-License-Identifier: Apache-2.0
"""Lists of images: --subset."""

from pathlib import Path

import numpy as np
import pytest

from image_data.selection import Subset, select
from image_data.sources import Source, array_source, open_source
from tests.toy_data import png, write_folder


def source(tmp_path: Path) -> Source:
    files = {f"{folder}/{i}{folder}.png": png(i) for folder in "ab" for i in range(3)}
    return open_source(write_folder(tmp_path / "d", {**files, "a/x.png": png(7), "b/x.png": png(8)}))


def chosen(tmp_path: Path, text: str) -> list[int]:
    (tmp_path / "list.txt").write_text(text)
    subset = Subset.read(str(tmp_path / "list.txt"))
    return select(source(tmp_path), None, None, None, subset)[0].tolist()


def test_names_base_names_and_indices(tmp_path: Path) -> None:
    assert chosen(tmp_path, "b/1b.png\n\n0a.png\na/x.png\n") == [0, 3, 5]
    assert chosen(tmp_path, "7\n2\n") == [2, 7]
    assert chosen(tmp_path, "./b/1b.png\n") == [5]  # as `find .` lists files
    (tmp_path / "list.txt").write_text("1\n4\n5\n6\n")
    subset = Subset.read(str(tmp_path / "list.txt"))
    indices, rest = select(source(tmp_path), 2, None, ["b"], subset)
    assert indices.tolist() == [4, 5] and rest.class_names == ["b"]
    assert "4 outside of --subset" in str(rest.left_out)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list is empty"),
        ("1\n1\n", "1 occurs twice"),
        ("8\n", "index 8: the source has 8 images"),
        ("c.png\n", r"c\.png is not in the source, whose first image is a/0a\.png"),
        ("x.png\n", "x.png names 2 images; give its folder, too"),
        ("a/0a.png\n0a.png\n", "listed twice"),
    ],
)
def test_mistakes(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^--subset=.*{message}"):
        chosen(tmp_path, text)


def test_nothing_is_left(tmp_path: Path) -> None:
    subset = Subset("list.txt", ("0", "1"))
    with pytest.raises(ValueError, match="d: --subset and --classes leave no images"):
        select(source(tmp_path), None, None, ["b"], subset)


def test_a_missing_list_and_names_of_arrays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--subset=none\.txt: No such file"):
        Subset.read("none.txt")
    (tmp_path / "list.txt").write_text("a.png\n")
    images = array_source("x", np.zeros([2, 4, 4], np.uint8))
    with pytest.raises(ValueError, match="have no names: list indices"):
        Subset.read(str(tmp_path / "list.txt")).indices(images)
