# SPDX-License-Identifier: Apache-2.0
"""What the commands that load a network share."""

import pytest

from generation import commands
from torch_utils.devices import PRECISIONS


def test_the_precisions_offered_are_those_that_exist() -> None:
    assert tuple(PRECISIONS) == commands.PRECISION_NAMES


def test_a_truncation_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="--trunc=nan is not a finite number"):
        commands.NetworkOptions("net.pkl", False, float("nan"), None, "auto", "cpu", None)


@pytest.mark.parametrize(
    ("seeds", "count", "expected"), [([5], 3, [5, 6, 7]), ([5, 9], None, [5, 9]), ([5, 9], 2, [5, 9])]
)
def test_seeds_of_a_sheet(seeds: list[int], count: int | None, expected: list[int]) -> None:
    assert commands.sheet_seeds(seeds, count) == expected
