# SPDX-License-Identifier: Apache-2.0
"""Class indices of label values."""

from typing import Any

import pytest

from image_data.classes import balance, classes_of


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        ([2, 0, 1], [2, 0, 1], None),
        (["2", " 0", "1"], [2, 0, 1], None),
        ([2.0, 0.0, 1.0], [2, 0, 1], None),
        (["10.0", "2.0", "2"], [10, 2, 2], None),  # as tables of floats are written
        ([[0, 1], [1, 0], [0, 1]], [1, 0, 1], None),
        (["dog", "cat", "dog"], [1, 0, 1], ["cat", "dog"]),
        (["x10", "x2", "x2"], [0, 1, 1], ["x10", "x2"]),
        (["20-29", "[UNK]", "20-29"], [0, 1, 0], ["20-29", "[UNK]"]),
    ],
)
def test_values(values: list[Any], labels: list[int], names: list[str] | None) -> None:
    found = classes_of(values, "file", ["a", "b", "c"])
    assert found.labels.tolist() == labels and found.class_names == names
    assert found.num_classes == max(labels) + 1


def test_known_names_may_be_numbers() -> None:
    found = classes_of(["2.5", "1,5"], "file", ["a", "b"], ["1,5", "2.5"])
    assert found.labels.tolist() == [1, 0] and found.class_names == ["1,5", "2.5"]


@pytest.mark.parametrize(
    ("values", "class_names", "message"),
    [
        ([0, None], None, "label of b is missing"),
        (["cat", ""], None, "b has no label"),
        (["cat", None], None, "b has no label"),
        (["cat", 3], None, r"names \('cat'\) and numbers \(3\) are mixed"),
        (["cat", "3"], None, r"names \('cat'\) and numbers \('3'\) are mixed"),
        ([0, -1], None, 'label of b is -1, which means "unknown"'),
        ([0, 0.5], None, r"label of b is 0.5; expected a class index \(0, 1, ...\); continuous values are"),
        (["0.5", "0.25"], None, "label of a is 0.5; .*continuous values are not supported"),
        (["cat", "2.5"], None, r"names \('cat'\) and numbers \('2.5'\) are mixed"),
        (["[0, 1]", "[1]"], None, r"'\[0, 1\]' is a list: only one class per image is supported"),
        (["['x', 'y']", "['x']"], None, "is a list: only one class per image"),
        (["[0.5 1.5]", "[1]"], None, "is a list"),
        (["1 2", "3"], None, "'1 2' is a list"),
        ([[1], [1]], None, "labels are lists of one value: write a class index instead of a list"),
        ([[0, 1], [0, 1, 0]], None, "lists of labels differ in length: write one class index per image"),
        ([[0, 1], 1], None, "labels are lists and numbers"),
        ([0, True], None, "label of b is True"),
        ([[0, 1], [1, 1]], None, r"label of b is \[1, 1\].*only one class per image is supported"),
        ([{"a": 1}, 0], None, "label of a is {'a': 1}"),
        ([0, 2], ["x", "y"], "label 2 has no name: there are 2 names"),
        ([0, 2**20], None, "label 1048576 is too large"),
    ],
)
def test_mistakes(values: list[Any], class_names: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"^file.*{message}") as error:
        classes_of(values, "file", ["a", "b"], class_names)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([], ""),
        ([5], ""),
        ([4, 4, 0], "4 images in every class"),
        ([10, 15], "10 (a) to 15 (b) images per class, median 12, ratio 1.5"),
        (
            [10, 1000, 20],
            "10 (a) to 1,000 (b) images per class, median 20, ratio 100.0 "
            "(train.py --balanced=True draws all classes equally often)",
        ),
    ],
)
def test_balance(counts: list[int], text: str) -> None:
    assert balance(counts, ["a", "b", ""]) == text
    assert balance([3, 1], ["", ""]).startswith("1 (class 1) to 3 (class 0)")
