# SPDX-License-Identifier: Apache-2.0
"""Read the lines of stats.jsonl: numbers, order, and the speed of whole ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

SHORT = 0.5  # fraction of the usual length; the speed of a shorter tick is not meaningful
SPEED = "Timing/images_per_sec"


def number(value: Any, key: str = "mean") -> float:
    """A number, or the `key` of a {'num', 'mean', 'std'} object; NaN for anything else and infinities."""
    if isinstance(value, dict):
        value = value.get(key)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else math.nan


def in_order(records: Iterable[dict[str, Any]]) -> list[tuple[float, dict[str, Any]]]:
    """(kimg, line) with ascending kimg, without lines after a checkpoint that was later resumed."""
    line: list[tuple[float, dict[str, Any]]] = []
    for record in records:
        kimg = number(record.get("kimg", record.get("Progress/kimg")))
        if math.isnan(kimg):
            continue
        while line and line[-1][0] >= kimg:
            line.pop()
        line.append((kimg, record))
    return line


def lengths(kimg: np.ndarray) -> np.ndarray:
    """The kimg shown in each tick [N], from the kimg at the ends of ticks [N]. The first tick starts at 0."""
    return np.diff(kimg, prepend=0.0)


def whole_ticks(kimg: np.ndarray, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge each short tick with the previous one.

    The last tick of a run ends with the run. Work that happens once per tick (diagnostics, class variety)
    takes a larger fraction of it, so its speed alone would look like a sudden drop. The merged speed is the
    images of both ticks divided by the seconds of both.

    Args:
        kimg: the ends of ticks [N].
        rate: their images per second [N].

    Returns:
        (ends, images per second) of the merged ticks.
    """
    sizes = lengths(kimg)
    least = SHORT * float(np.median(sizes)) if len(sizes) else 0.0
    whole: list[tuple[float, float, float]] = []  # end, kimg shown, kimg shown / rate
    for end, size, speed in zip(kimg.tolist(), sizes.tolist(), rate.tolist(), strict=True):
        took = size / speed if speed > 0 else math.inf
        if whole and min(size, whole[-1][1]) < least:
            _, other_size, other_took = whole.pop()
            size, took = size + other_size, took + other_took
        whole.append((end, size, took))
    return np.array([end for end, _, _ in whole]), np.array([size / took for _, size, took in whole])


def speed(records: Iterable[dict[str, Any]]) -> float:
    """Images per second of the newest whole tick; NaN if unknown."""
    rates = [(kimg, number(record.get(SPEED))) for kimg, record in in_order(records)]
    found = [(kimg, rate) for kimg, rate in rates if math.isfinite(rate)]
    ends, speeds = np.array(found).reshape(-1, 2).T
    whole = whole_ticks(ends, speeds)[1]
    return float(whole[-1]) if len(whole) else math.nan
