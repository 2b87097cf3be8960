# SPDX-License-Identifier: Apache-2.0
"""Metric records: numbers with the conditions of their measurement, and which may be compared.

A record is one line of metric-NAME.jsonl.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnlib.records import Damaged, append_jsonl, last_line
from dnnlib.records import metric_file as record_path
from metrics.image_sets import preparation_differences
from metrics.names import POPULATION, UNBIASED

FORMAT = 1  # of the records; a change that older readers would misread must raise it


@dataclasses.dataclass(frozen=True)
class Record:
    """A number and the conditions of its measurement.

    Attributes:
        metric: Name of the metric.
        value: The first of the results.
        lower_is_better: The good end of every result (of a standard deviation there is none).
        results: Keyed as in published files: {'fid50k_full': 2.1}, {'is50k_mean': 274.2, 'is50k_std': 4.0}.
        conditions: JSON values: numbers of images, detector, reference, truncation, labels, seed, device,
            versions, time.
    """

    metric: str
    value: float
    lower_is_better: bool
    results: dict[str, float]
    conditions: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The JSON line."""
        head = {
            "results": self.results,
            "metric": self.metric,
            "value": self.value,
            "lower_is_better": self.lower_is_better,
            "format": FORMAT,
        }
        return {**head, **self.conditions}

    @property
    def notes(self) -> list[str]:
        """What a reader of the number must know: random weights, another covariance, a subset, ..."""
        found, reference = [], self.conditions.get("reference") or {}
        if (self.conditions["detector"] or {}).get("weights") == "random":
            found.append("random weights: comparable with numbers of these very weights alone")
        if self.conditions.get("covariance") == UNBIASED:
            found.append("covariance over n - 1, not the published n")
        if reference.get("num_real", 0) < reference.get("num_images", 0):
            found.append(
                f"against a random {reference['num_real']:,} of {reference['num_images']:,} real images"
            )
        if "statistics" in reference and "num_real" not in reference:
            found.append(f"against the statistics in {reference['dataset']}, whose images are unknown")
        if self.conditions.get("singular"):
            found.append("fewer images than features: the covariance is singular, use more images")
        if self.conditions.get("forced"):
            found.append("forced")
        return found


def numbers(records: Sequence[Record]) -> dict[str, float]:
    """{'fid50k_full': 2.1, 'is50k_mean': 274.2, 'is50k_std': 4.0, ...} of what an Evaluator returned."""
    return {name: value for record in records for name, value in record.results.items()}


def differences_between(later: Mapping[str, Any], earlier: Mapping[str, Any]) -> list[str]:
    """In words, in which of reference, detector and covariance two record dicts of a metric differ."""
    a, b = earlier.get("reference") or {}, later.get("reference") or {}
    differences = preparation_differences(a, b)
    for key in ("content_hash", "view"):
        if key in a and key in b and a[key] != b[key]:
            differences.append(f"{key} {str(a[key])[:12]} against {str(b[key])[:12]}")
    detector_a, detector_b = earlier.get("detector") or {}, later.get("detector") or {}
    differences += [
        f"detector {key} {detector_a[key]} against {detector_b.get(key)}"
        for key in detector_a
        if detector_a[key] != detector_b.get(key)
    ]
    rules = [
        record.get("covariance") or POPULATION for record in (earlier, later)
    ]  # version 0.1 did not say: it knew one
    if rules[0] != rules[1]:
        differences.append(f"covariance {rules[0]} against {rules[1]}")
    return differences


def check_comparable(later: Mapping[str, Any], earlier: Mapping[str, Any], force: bool = False) -> None:
    """Raises ValueError if two record dicts of a metric differ in reference, detector or covariance."""
    differences = differences_between(later, earlier)
    if differences and not force:
        reasons = "; ".join(differences)
        raise ValueError(
            f"this {later['metric']} cannot be compared with the recorded one: {reasons}; use another "
            "--outdir, or --force"
        )


def write_record(folder: str | os.PathLike[str], record: Record, force: bool = False) -> Path:
    """Append a record to the metric's JSONL file; for process 0.

    Args:
        folder: Of the file.
        record: The record.
        force: Also after a record with another reference, detector or covariance.

    Returns:
        The path of the file.

    Raises:
        ValueError: The last record of the file has other conditions.
    """
    path = record_path(folder, record.metric)
    line = record.as_dict()
    check_against_last(path, line, force)
    path.parent.mkdir(parents=True, exist_ok=True)
    append_jsonl(path, line)
    return path


def last_record(path: Path) -> dict[str, Any] | None:
    """The last record of a metric's file; None without one. Raises ValueError if it is damaged."""
    try:
        return last_line(path)
    except Damaged:
        raise ValueError(f"{path}: the last line is not a JSON object; move the file away") from None


def check_against_last(path: Path, line: Mapping[str, Any], force: bool) -> None:
    """Raises ValueError if `line` is not comparable with the last one of a file, or if that is damaged."""
    earlier = last_record(path)
    if earlier is not None:
        check_comparable(line, earlier, force)
