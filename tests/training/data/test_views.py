# SPDX-License-Identifier: Apache-2.0
"""Flipped and turned copies of a data set."""

from pathlib import Path

import numpy as np
import pytest

from tests.toy_data import write_dataset
from training.data.dataset import ImageDataset
from training.data.views import View, views


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ((False, False, False), 1),
        ((True, False, False), 2),
        ((False, True, False), 2),
        ((True, True, False), 4),
        ((False, False, True), 4),
        ((True, False, True), 8),
        ((True, True, True), 8),
    ],
)
def test_the_copies_are_different_and_complete(options: tuple[bool, bool, bool], count: int) -> None:
    """They are a group: turning or flipping a copy gives another one of them."""
    image = np.arange(9).reshape(1, 3, 3)
    found = views(*options)
    assert found[0] == View() and len(found) == count
    copies = []
    for view in found:
        copy = np.empty_like(image)
        view.target(copy)[...] = image
        copies.append(copy)
    assert len({copy.tobytes() for copy in copies}) == count
    known = {copy.tobytes() for copy in copies}
    xflip, yflip, turns = options
    changes = [copy[:, :, ::-1] for copy in copies] if xflip else []
    changes += [copy[:, ::-1] for copy in copies] if yflip else []
    changes += [np.rot90(copy, axes=(1, 2)) for copy in copies] if turns else []
    assert {change.tobytes() for change in changes} <= known


def test_copies_of_a_data_set_keep_labels_and_names(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "x.zip", 6, class_names=["a", "b", "c"])
    plain = ImageDataset(path, use_labels=True)
    dataset = ImageDataset(path, use_labels=True, xflip=True, yflip=True, max_size=4)
    assert len(dataset) == 16 and dataset.num_originals == 4
    details = [dataset.get_details(i) for i in range(16)]
    for i in range(4):
        original = plain.load(np.array([details[i].raw_index]))[0]
        expected = [original, original[:, :, ::-1], original[:, ::-1], original[:, ::-1, ::-1]]
        for k, image in enumerate(expected):
            np.testing.assert_array_equal(dataset.load(np.array([i + 4 * k]))[0], image)
            same = details[i + 4 * k]
            assert same.name == details[i].name and same.raw_label == details[i].raw_label
            assert same.xflip == (k in (1, 2))
    turned = ImageDataset(path, quarter_turns=True).load(np.array([6]))[0]
    np.testing.assert_array_equal(turned, np.rot90(plain.load(np.array([0]))[0], axes=(1, 2)))
    assert (
        dataset.label_distribution().tolist() == (4 * np.bincount(dataset.labels[:4], minlength=3)).tolist()
    )
    assert dataset.content_hash() == plain.content_hash()
