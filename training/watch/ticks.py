# SPDX-License-Identifier: Apache-2.0
"""What the lines of stats.jsonl say: numbers, their order, and the speed of whole ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

SHORT = 0.5  # of the usual length: a shorter tick is no measurement of speed
SPEED = "Timing/images_per_sec"


def number(value: Any, key: str = "mean") -> float:
    """A number, or the `key` of a {'num', 'mean', 'std'} object; NaN for anything else and for infinities."""
    if isinstance(value, dict):
        value = value.get(key)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else math.nan


def in_order(records: Iterable[dict[str, Any]]) -> list[tuple[float, dict[str, Any]]]:
    """(kimg, record) with kimg ascending, without what a run wrote beyond a checkpoint that it went back
    to.
    """
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
    """kimg shown in each tick [N], of where the ticks ended, ascending [N]. The first one began at 0."""
    return np.diff(kimg, prepend=0.0)


def whole_ticks(kimg: np.ndarray, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where ticks ended [N] and their images per second [N], each short tick together with the one before.

    A run's last tick ends with the run. What happens once a tick (diagnostics, class variety) weighs more in
    it, so that its rate alone looks like a sudden loss of speed. Together: images of both over seconds of
    both.
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
    """Images per second of the newest whole tick; NaN if no line says it."""
    rates = [(kimg, number(record.get(SPEED))) for kimg, record in in_order(records)]
    found = [(kimg, rate) for kimg, rate in rates if math.isfinite(rate)]
    ends, speeds = np.array(found).reshape(-1, 2).T
    whole = whole_ticks(ends, speeds)[1]
    return float(whole[-1]) if len(whole) else math.nan
