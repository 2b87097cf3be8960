# SPDX-License-Identifier: Apache-2.0
"""Detect signs of collapse in the statistics of a run. Each is a one-line warning and never stops a run.

Every rule is a function of the lines of stats.jsonl and metric-*.jsonl. So alarms are reproducible, and a
resumed run raises the same ones.

    variety     Samples of a class (unconditional: all samples) become alike: their spread is far below that
                of the data, or below its own best.
    shapes      Samples of a class miss kinds of images that the data have: their recall is far below that of
                the data, or below its own best. Few shapes can have the spread of the data.
    classes     Classes become alike: as variety, for the class means.
    saturated   The discriminator separates all images and its loss is near zero: the generator gets no
                useful gradient.
    metric      The first metric has not improved for several evaluations and is clearly worse than its best.

docs/troubleshooting.md explains how the thresholds were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.config import TrainConfig
from training.run_folder import BEST_NETWORK, kimg_text
from training.watch.ticks import number

WINDOW = 5  # the rules use medians over this many ticks, so that one odd tick raises no alarm
STREAK = 3  # the rule must hold for this many windows in a row
WARM_UP_STEPS, WARM_UP_TICKS = 1000, 20  # low variety is normal at the start of training
AGAIN_AFTER = 50  # ticks until an alarm with the same cause is printed again
FLOORS = {"Variety/within": 0.5, "Variety/recall": 0.15, "Variety/between": 0.3}  # fractions of the data's
# Fraction of a run's own best value since the warm-up. The best counts as at most 1, because early artefacts
# vary more than images.
FALLS = {"Variety/within": 0.65, "Variety/recall": 0.5, "Variety/between": 0.65}
SIGN = 0.97  # mean sign of the logits
SATURATED_TICKS = 10  # ticks in a row
SPENT = 0.05  # loss as a fraction of its first values
EVALUATIONS, WORSE = 4, 1.25  # evaluations since the best one; ratio between the latest ones and the best


@dataclass(frozen=True)
class Alarm:
    """What was observed, since when, and what to try."""

    cause: str
    kimg: float
    tick: int
    since_kimg: float
    seen: str
    advice: str

    @property
    def line(self) -> str:
        """The alarm in one line."""
        return f"{self.seen}, since {kimg_text(self.since_kimg)} kimg. Try {self.advice}"


def excerpt(record: dict[str, Any]) -> dict[str, Any]:
    """The values of a line of stats.jsonl that the rules need."""
    return {
        name: _value(record, name)
        for name in ("kimg", "Progress/tick", *FLOORS, "Loss/signs/real", "Loss/signs/fake", "Loss/D/fun")
    }


def find(
    stats: Sequence[dict[str, Any]],
    metrics: Sequence[tuple[float, float]],
    cfg: TrainConfig,
    metric_name: str = "",
    best: str = "min",
) -> list[Alarm]:
    """The alarms that are active at the last tick.

    Args:
        stats: lines of stats.jsonl, with ascending kimg.
        metrics: (kimg, value) of the first metric, with ascending kimg.
        cfg: the run.
        metric_name: name of the first metric.
        best: "min" if lower values of the metric are better, else "max".
    """
    if len(stats) < WARM_UP_TICKS or _value(stats[-1], "kimg") * 1000 < WARM_UP_STEPS * cfg.run.batch:
        return []
    rules: list[tuple[str, Callable[[], tuple[float, str, str] | None]]] = [
        ("variety", lambda: _alike(stats, "Variety/within", cfg)),
        ("shapes", lambda: _alike(stats, "Variety/recall", cfg)),
        ("classes", lambda: _alike(stats, "Variety/between", cfg)),
        ("saturated", lambda: _saturated(stats, cfg)),
        ("metric", lambda: _worse(metrics, metric_name, best, cfg)),
    ]
    kimg, tick = _value(stats[-1], "kimg"), _value(stats[-1], "Progress/tick")
    found = [(cause, rule()) for cause, rule in rules]
    return [
        Alarm(cause, kimg, int(tick) if math.isfinite(tick) else len(stats), *what)
        for cause, what in found
        if what is not None
    ]


def new_alarms(found: Iterable[Alarm], printed: Iterable[dict[str, Any]]) -> list[Alarm]:
    """The alarms whose cause was not printed (lines of alarms.jsonl) within the last AGAIN_AFTER ticks."""
    last: dict[Any, float] = {}
    for line in printed:
        last[line.get("cause")] = _value(line, "tick")
    return [a for a in found if not a.tick - last.get(a.cause, -math.inf) < AGAIN_AFTER]


def _value(record: dict[str, Any], name: str) -> float:
    return number(record.get(name))


def _series(stats: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(kimg, values) of a statistic at the ticks that have it."""
    x, y = (np.array([_value(record, key) for record in stats]) for key in ("kimg", name))
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def _streak(holds: np.ndarray) -> int:
    """The number of consecutive True values at the end."""
    wrong = np.flatnonzero(~holds)
    return len(holds) - (int(wrong[-1]) + 1 if len(wrong) else 0)


def _alike(stats: Sequence[dict[str, Any]], name: str, cfg: TrainConfig) -> tuple[float, str, str] | None:
    x, y = _series(stats, name)
    if len(y) < WINDOW + STREAK:
        return None
    medians = np.median(np.lib.stride_tricks.sliding_window_view(y, WINDOW), axis=1)
    x = x[WINDOW - 1 :]
    grown = np.where(x * 1000 >= WARM_UP_STEPS * cfg.run.batch, medians, 0.0)
    best = np.minimum(np.maximum.accumulate(grown), 1.0)
    streak = _streak((medians < FLOORS[name]) | (medians < FALLS[name] * best))
    if streak < STREAK:
        return None
    peak = int(np.argmax(grown))
    samples = "samples of a class" if cfg.data.cond else "the images"
    what = {
        "Variety/within": f"{samples} look alike: the spread of their features is",
        "Variety/recall": f"{samples} miss kinds of images that the data have: their recall is",
        "Variety/between": "the classes look alike: the spread of their class means is",
    }[name]
    best_at = f"at best {grown[peak]:.2f}, at {kimg_text(x[peak])} kimg"
    seen = f"{what} {medians[-1]:.2f} of the data's ({best_at})"
    if name == "Variety/between":
        first = "are the labels right (dataset_tool.py --check)"
    elif cfg.data.cond and cfg.loss.energy_weight == 0:
        first = "--energy-weight=100 --class-run=4 (with few classes), more images per class"
    elif cfg.data.cond and not cfg.discriminator.mbstd:
        first = "a new run with --mbstd=True --class-run=4 (with few classes), more images per class"
    else:
        first = "more images per class"
    return float(x[-streak]), seen, _advice(cfg, first)


def _saturated(stats: Sequence[dict[str, Any]], cfg: TrainConfig) -> tuple[float, str, str] | None:
    x, real = _series(stats, "Loss/signs/real")
    _, fake = _series(stats, "Loss/signs/fake")
    _, fun = _series(stats, "Loss/D/fun")
    if not len(real) == len(fake) == len(fun) > SATURATED_TICKS:
        return None
    streak = _streak((real > SIGN) & (fake < -SIGN) & (fun < SPENT * np.median(fun[:WINDOW])))
    if streak < SATURATED_TICKS:
        return None
    seen = (
        f"the discriminator separates all images: mean signs {real[-1]:+.2f} real, {fake[-1]:+.2f} "
        "generated, "
        f"loss {fun[-1]:.3g}"
    )
    return float(x[-streak]), seen, _advice(cfg, f"--dlr={cfg.optim.dlr / 2:g} (half)")


def _worse(
    metrics: Sequence[tuple[float, float]], name: str, best: str, cfg: TrainConfig
) -> tuple[float, str, str] | None:
    points = [(k, v) for k, v in metrics if math.isfinite(k) and math.isfinite(v)]
    if len(points) <= EVALUATIONS:
        return None
    x, y = (np.array(column) for column in zip(*points, strict=True))
    place = int(np.argmin(y) if best == "min" else np.argmax(y))
    latest, before = float(np.median(y[-3:])), float(np.median(y[-5:-2]))
    up, factor = (
        (latest > before, latest / y[place])
        if best == "min"
        else (latest < before, y[place] / max(latest, 1e-12))
    )
    if len(y) - 1 - place < EVALUATIONS or y[place] <= 0 or not up or factor < WORSE:
        return None
    seen = (
        f"{name or 'the metric'} gets worse: {latest:.4g} now, {y[place]:.4g} at best, at "
        f"{kimg_text(x[place])} kimg"
    )
    return float(x[place]), seen, _advice(cfg, "more data")


def _advice(cfg: TrainConfig, first: str) -> str:
    tips = [first, f"--glr={cfg.optim.glr / 2:g} (half)", f"a new run from {BEST_NETWORK} (--init-from)"]
    if not cfg.discriminator.augment:
        tips.insert(0, "DiffAugment (--augment=True; it is off in this run)")
    return ", ".join(tips[:-1]) + f", or {tips[-1]}."
