# SPDX-License-Identifier: Apache-2.0
"""Brace patterns and the training split of a folder of shards."""

import pytest

from image_data import parts


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{x,y}/{0..1}.tar", ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]),
    ],
)
def test_patterns(pattern: str, paths: list[str]) -> None:
    assert parts.is_pattern(pattern, ".tar") and parts.expand(pattern) == paths


@pytest.mark.parametrize("pattern", ["{5..3}.tar", "{0..9999999}.tar", "{0..999}{0..999}.tar"])
def test_patterns_are_bounded(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"must count up|more than 100,000 files"):
        parts.expand(pattern)


def test_paths_that_do_not_exist() -> None:
    assert parts.missing("x.tar") == "x.tar: no such file or folder"
    assert parts.missing("s/*.tar").endswith(": give the folder, or a pattern such as train-{000..009}.tar")
    with pytest.raises(ValueError, match=r"none-\{0\.\.1\}\.tar: none-0\.tar does not exist"):
        parts.files("none-{0..1}.tar")


def test_one_set_of_several() -> None:
    train = ["in1k-train-0000.tar", "in1k-train-0001.tar"]
    assert parts.training_set("x", [*train, "in1k-validation-00.tar"]) == (train, ["in1k-validation-00.tar"])
    hub = ["train-00000-of-00002-0123456789abcdef.parquet", "train-00001-of-00002-fedcba9876543210.parquet"]
    assert parts.training_set("x", [*hub, "test-00000-of-00001.parquet"])[0] == hub
    assert parts.training_set("x", ["train/0.tar", "val/0.tar"])[0] == ["train/0.tar"]
    assert parts.training_set("x", ["0.tar", "1.tar"]) == (["0.tar", "1.tar"], [])
    with pytest.raises(
        ValueError, match=r"the files of 2 sets \(cats, dogs\): .* such as cats-0.tar; or not"
    ):
        parts.training_set("x", ["cats-0.tar", "dogs-0.tar"], "; or not")
