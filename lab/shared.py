# SPDX-License-Identifier: Apache-2.0
"""Shared by the experiments: intervals over seeds, plots and results on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "lab"


def interval(values: Sequence[float], level: float = 0.95) -> dict[str, float]:
    """Return the mean, the half width of the t interval, the standard deviation and the number of values.

    Args:
        values: independent values.
        level: level of the interval.
    """
    x = np.asarray(values, dtype=np.float64)
    spread = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    half = (
        float(stats.t.ppf(0.5 + level / 2, len(x) - 1)) * spread / math.sqrt(len(x))
        if len(x) > 1
        else math.nan
    )
    return {"mean": float(x.mean()), "half_width": half, "std": spread, "n": len(x)}


def improvement(
    reference: Sequence[float], own: Sequence[float], lower_is_better: bool = False
) -> dict[str, float]:
    """Return the interval of the differences of two methods, paired by seed; positive = `own` is better.

    Args:
        reference: a value per seed.
        own: values of the same seeds.
        lower_is_better: of the values.
    """
    sign = -1 if lower_is_better else 1
    return interval([sign * (y - x) for x, y in zip(reference, own, strict=True)])


def compared(
    reference: Sequence[float],
    own: Sequence[float],
    lower_is_better: bool = False,
    names: tuple[str, str] = ("GAN", "SAN"),
) -> dict[str, Any]:
    """Return a row of a table: the intervals of two methods, their `improvement` and its verdict.

    Args:
        reference: as for `improvement`.
        own: as for `improvement`.
        lower_is_better: of the values.
        names: of the reference and of the other method.
    """
    difference = improvement(reference, own, lower_is_better)
    return {
        names[0]: interval(reference),
        names[1]: interval(own),
        "improvement": difference,
        f"{names[1]} is": verdict(difference),
    }


def text(summary: dict[str, float], digits: int = 3) -> str:
    """Format an interval as "mean ± half width"."""
    return f"{summary['mean']:.{digits}f} ± {summary['half_width']:.{digits}f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def verdict(difference: dict[str, float]) -> str:
    """Interpret the 95% interval of a paired difference (positive = better)."""
    if difference["mean"] - difference["half_width"] > 0:
        return "better"
    return "worse" if difference["mean"] + difference["half_width"] < 0 else "no difference seen"


def band(
    axes: Any, curves: Sequence[tuple[Sequence[float], Sequence[float]]], colour: str, label: str
) -> None:
    """Draw the mean of curves (x, y) with equal x, and the band of its 95% interval for several curves."""
    x = list(curves[0][0])
    at = [interval([y[i] for _, y in curves]) for i in range(len(x))]
    mean = np.array([a["mean"] for a in at])
    axes.plot(x, mean, color=colour, label=label)
    if len(curves) > 1:
        half = np.array([a["half_width"] for a in at])
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)


def dots(axes: Any, points: Sequence[tuple[float, float]], colour: str) -> None:
    """Draw single values (x, y) as dots."""
    axes.scatter([x for x, _ in points], [y for _, y in points], s=10, color=colour, alpha=0.5)


def write(out: Path, name: str, results: dict[str, Any]) -> None:
    """Write OUT/NAME.json atomically, with numbers rounded to six digits."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f".{name}.json.tmp"
    temporary.write_text(json.dumps(_rounded(results), indent=1) + "\n")
    temporary.replace(out / f"{name}.json")


def read(out: Path, name: str) -> dict[str, Any] | None:
    """Read OUT/NAME.json; None if it does not exist."""
    path = out / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return found


def read_same(out: Path, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Read OUT/NAME.json to go on with it; {} if it does not exist.

    Raises:
        ValueError: it has runs of other settings, which would be lost.
    """
    found = read(out, name) or {}
    if found and {key: found.get(key) for key in settings} != settings:
        raise ValueError(f"{out / name}.json has runs of other options: give another --out")
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value
