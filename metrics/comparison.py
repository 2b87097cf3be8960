# SPDX-License-Identifier: Apache-2.0
"""Metric records side by side: differences, their uncertainty, and which numbers cannot be compared."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib import bounded
from dnnlib.records import metric_files
from metrics.names import RETRAINING
from metrics.records import FORMAT, differences_between

QUANTILE = 1.96  # of the normal distribution: 95% lie within
# What every record of ours says; without it, nothing is known about how a number was measured.
_REQUIRED = ("detector", "num_gen")
_CONDITIONS = ("num_gen", "num_real", "labels", "truncation", "centroids")
# What makes two lines measurements of the same thing, but for the seed of the latents.
_IDENTITY = ("snapshot_pkl", "images", "kimg", *_CONDITIONS, "reference", "detector", "covariance")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One number of one source, over one or more seeds.

    Attributes:
        path: Of the file or folder that the records are from.
        name: Of the number, as in the results of the records.
        values: One for each seed.
        deviation: Of a single value; None if it is not known.
        record: The last record, which has the conditions of all.
    """

    path: str
    name: str
    values: tuple[float, ...]
    deviation: float | None
    record: Mapping[str, Any]

    @property
    def value(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def error(self) -> float | None:
        """Standard error of the value; None if it is not known."""
        return None if self.deviation is None else self.deviation / math.sqrt(len(self.values))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The comparison of one number: `second` minus `first`.

    Attributes:
        difference: Of the values.
        noise: Half the width of the 95% interval of the difference under other samples; None if unknown.
        is_tie: Whether the difference is within the noise, or below what another training run would give.
        text: In words.
        notes: What else a reader must know.
    """

    first: Measurement
    second: Measurement
    difference: float
    noise: float | None
    is_tie: bool
    text: str
    notes: tuple[str, ...]


def read(path: str, best: bool = False) -> dict[str, Measurement]:
    """The newest measurements in a file of metric records or a run folder, by the number's name.

    Args:
        path: JSON lines, or a folder with metric-*.jsonl.
        best: Take the best line of each metric, not the newest.

    Raises:
        ValueError: One line that names the file and the line that is no metric record of a known format.
        OSError: It cannot be read.
    """
    files = metric_files(Path(path)) if os.path.isdir(path) else [Path(path)]
    records = [record for file in files for record in _records(file)]
    if not records:
        raise ValueError(
            f"{path}: no metric records (metric-*.jsonl of a run, or the output of calc_metrics.py)"
        )
    found: dict[str, Measurement] = {}
    for metric in dict.fromkeys(record["metric"] for record in records):
        found |= _measurements(path, [r for r in records if r["metric"] == metric], best)
    return found


def _records(file: Path) -> list[dict[str, Any]]:
    data = bounded.read_bytes(file, 16 * bounded.MAX_TEXT_BYTES)
    found = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            raise ValueError(f"{where}: not a metric record (not JSON)") from None
        found.append(_checked(record, where))
    return found


def _checked(record: Any, where: str) -> dict[str, Any]:
    """The record. Raises ValueError if it is none, or one of a later format."""
    results = record.get("results") if isinstance(record, dict) else None
    if not isinstance(results, dict) or not isinstance(record.get("metric"), str) or not results:
        raise ValueError(f"{where}: not a metric record (no 'metric' or no 'results')")
    version = record.get("format", 1)
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise ValueError(
            f"{where}: a metric record of format {str(version)[:20]}; formats up to {FORMAT} are known"
        )
    numbers = [value for value in results.values() if type(value) in (int, float) and math.isfinite(value)]
    if len(numbers) != len(results):
        raise ValueError(f"{where}: a result is not a finite number")
    return dict(record)


def _measurements(path: str, records: Sequence[dict[str, Any]], best: bool) -> dict[str, Measurement]:
    chosen = records[-1]
    if best:
        lower = bool(chosen.get("lower_is_better", True))
        pick = min if lower else max
        chosen = pick(records, key=lambda record: next(iter(record["results"].values())))
    wanted = _identity(chosen)
    same = {r.get("seed"): r for r in records if _identity(r) == wanted}  # the newest of each seed
    found = {}
    for name in chosen["results"]:
        if name.endswith("_std"):
            continue
        values = tuple(float(r["results"][name]) for r in same.values() if name in r["results"])
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else _recorded_deviation(chosen, name)
        found[name] = Measurement(path, name, values, spread, chosen)
    return found


def _identity(record: Mapping[str, Any]) -> str:
    return json.dumps([record.get(key) for key in _IDENTITY], sort_keys=True)


def _recorded_deviation(record: Mapping[str, Any], name: str) -> float | None:
    interval = record.get("interval")
    stds = interval.get("std") if isinstance(interval, dict) else None
    value = stds.get(name) if isinstance(stds, dict) else None
    if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return float(value)
    return None


def measured_differently(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """In words, the conditions that make two records incomparable; empty if there are none."""
    missing = [key for key in _REQUIRED if key not in first or key not in second]
    if missing:
        which = "the first" if missing[0] not in first else "the second"
        return [f"{which} does not record its {missing[0]}: it is of another program or version"]
    found = differences_between(second, first)
    for key in _CONDITIONS:
        a, b = first.get(key), second.get(key)
        if a != b and (key == "centroids" or (a is not None and b is not None)):
            found.append(f"{key} {a} against {b}")
    return found


def judge(
    first: Measurement, second: Measurement, retraining: float = RETRAINING, force: bool = False
) -> Verdict:
    """Compare two measurements of one number.

    Args:
        first: The baseline.
        second: What is compared with it.
        retraining: Relative difference of a Frechet distance below which two training runs are a tie.
        force: Compare numbers that were measured differently, with a note.

    Raises:
        ValueError: They were measured differently; names the condition.
    """
    reasons = measured_differently(first.record, second.record)
    if reasons and not force:
        raise ValueError(
            f"{first.name} of {first.path} and {second.path} were measured differently: "
            f"{'; '.join(reasons)}; measure both alike, or use --force"
        )
    difference = second.value - first.value
    errors = (first.error, second.error)
    noise = None if None in errors else QUANTILE * math.hypot(*(e for e in errors if e is not None))
    is_distance = "covariance" in first.record
    floor = retraining * abs(first.value) if is_distance else 0.0
    text, is_tie = _words(first, difference, noise, floor)
    notes = [f"measured differently: {'; '.join(reasons)}"] if reasons else []
    if noise is None:
        notes.append("sampling noise unknown: measure with --repeats=3 or --bootstrap=20")
    return Verdict(first, second, difference, noise, is_tie, text, tuple(notes))


def _words(first: Measurement, difference: float, noise: float | None, floor: float) -> tuple[str, bool]:
    """The verdict in words, and whether it is a tie."""
    if difference == 0:
        return "a tie: equal", True
    if noise is not None and abs(difference) <= noise:
        return "a tie: within the sampling noise", True
    if abs(difference) <= floor:
        return f"a tie: below the {floor / abs(first.value):.1%} that training again moves it by", True
    lower = bool(first.record.get("lower_is_better", True))
    is_better = (difference < 0) == lower
    share = f" by {abs(difference / first.value):.1%}" if first.value else ""
    return f"{'better' if is_better else 'worse'}{share}", False


def compare(
    paths: Sequence[str], best: bool = False, retraining: float = RETRAINING, force: bool = False
) -> list[Verdict]:
    """Every number that all sources have, each source against the first.

    Args:
        paths: Files of metric records or run folders.
        best: As for `read`.
        retraining: As for `judge`.
        force: As for `judge`.

    Raises:
        ValueError: A file has no records, they share no metric, or two were measured differently.
    """
    sources = [read(path, best) for path in paths]
    shared = [name for name in sources[0] if all(name in source for source in sources[1:])]
    if not shared:
        has = "; ".join(f"{path}: {', '.join(source)}" for path, source in zip(paths, sources, strict=True))
        raise ValueError(f"no number is in all of them ({has})")
    return [
        judge(sources[0][name], other[name], retraining, force) for name in shared for other in sources[1:]
    ]
