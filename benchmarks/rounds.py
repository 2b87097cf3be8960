# SPDX-License-Identifier: Apache-2.0
"""Measures works in rounds: in each round every work runs once, which cancels slow changes of the machine."""

from collections.abc import Callable, Mapping
from statistics import median
from typing import TypeVar

T = TypeVar("T")


def medians(rows: Mapping[str, T], measure: Callable[[T], float], repeats: int) -> dict[str, float]:
    """Return the median of `measure(row)` over `repeats` rounds, for each named row."""
    found: dict[str, list[float]] = {title: [] for title in rows}
    for _ in range(repeats):
        for title, row in rows.items():
            found[title].append(measure(row))
    return {title: median(values) for title, values in found.items()}
