# SPDX-License-Identifier: Apache-2.0
"""Signs of collapse in the statistics of a run, found early and said in one line. A run is never stopped by
them.

Every rule is a function of what stands in stats.jsonl and metric-*.jsonl, so an alarm can be found again, and
a resumed run raises the same ones.

    variety     samples of a class (unconditional: all samples) become alike: their spread is far below the
                data's, or below its own best
    classes     classes become alike: the same of the class means
    saturated   the discriminator tells every image apart and its loss is near zero: the generator gets no
                useful gradient
    metric      the first metric has not improved for several evaluations and is clearly worse than its best

How the thresholds were chosen stands in docs/troubleshooting.md.
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

WINDOW = 5  # ticks whose median is looked at: one odd tick raises no alarm
STREAK = 3  # and so many windows in a row
WARM_UP_STEPS, WARM_UP_TICKS = 1000, 20  # a young generator has little variety without being ill
AGAIN_AFTER = 50  # ticks until the same cause is told again
FLOORS = {"Variety/within": 0.5, "Variety/between": 0.3}  # of the data's spread
# of its own best since the warm-up, which counts as 1 at most: early artefacts vary more than images do
FALL = 0.65
SIGN, SATURATED_TICKS, SPENT = (
    0.97,
    10,
    0.05,
)  # mean sign of the logits; ticks in a row; loss as a share of its first values
EVALUATIONS, WORSE = 4, 1.25  # evaluations since the best one; factor between it and the latest ones


@dataclass(frozen=True)
class Alarm:
    """What was seen, since when, what to try."""

    cause: str
    kimg: float
    tick: int
    since_kimg: float
    seen: str
    advice: str

    @property
    def line(self) -> str:
        """One line of text."""
        return f"{self.seen}, since {kimg_text(self.since_kimg)} kimg. Try {self.advice}"


def excerpt(record: dict[str, Any]) -> dict[str, Any]:
    """What the rules read of a line of stats.jsonl."""
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
    """The alarms that hold at the last tick.

    stats: lines of stats.jsonl, kimg ascending. metrics: (kimg, value) of the first metric, kimg ascending;
    best: its good end, "min" or "max".
    """
    if len(stats) < WARM_UP_TICKS or _value(stats[-1], "kimg") * 1000 < WARM_UP_STEPS * cfg.run.batch:
        return []
    rules: list[tuple[str, Callable[[], tuple[float, str, str] | None]]] = [
        ("variety", lambda: _alike(stats, "Variety/within", cfg)),
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


def new_ones(found: Iterable[Alarm], told: Iterable[dict[str, Any]]) -> list[Alarm]:
    """Those whose cause was not told within the last AGAIN_AFTER ticks. told: lines of alarms.jsonl."""
    last: dict[Any, float] = {}
    for line in told:
        last[line.get("cause")] = _value(line, "tick")
    return [a for a in found if not a.tick - last.get(a.cause, -math.inf) < AGAIN_AFTER]


def _value(record: dict[str, Any], name: str) -> float:
    return number(record.get(name))


def _series(stats: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """kimg and values where there are any."""
    x, y = (np.array([_value(record, key) for record in stats]) for key in ("kimg", name))
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def _streak(holds: np.ndarray) -> int:
    """How many True stand at the end."""
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
    streak = _streak((medians < FLOORS[name]) | (medians < FALL * best))
    if streak < STREAK:
        return None
    peak = int(np.argmax(grown))
    who = (
        ("the classes", "class means")
        if name == "Variety/between"
        else ("samples of a class" if cfg.data.cond else "the images", "features")
    )
    best_at = f"at best {grown[peak]:.2f}, at {kimg_text(x[peak])} kimg"
    seen = f"{who[0]} look alike: the spread of their {who[1]} is {medians[-1]:.2f} of the data's ({best_at})"
    return (
        float(x[-streak]),
        seen,
        _advice(
            cfg,
            "are the labels right (dataset_tool.py --check)"
            if name == "Variety/between"
            else "more images per class",
        ),
    )


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
        f"the discriminator tells all images apart: mean signs {real[-1]:+.2f} real, {fake[-1]:+.2f} "
        f"generated, loss {fun[-1]:.3g}"
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
        tips.insert(0, "DiffAugment (--augment=True: it is off here)")
    return ", ".join(tips[:-1]) + f", or {tips[-1]}."
