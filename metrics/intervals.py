# SPDX-License-Identifier: Apache-2.0
"""How far a number would move with other generated samples, and what it tends to with more of them.

Both need the features of the generated samples, not only their moments. The real images are fixed.

Shapes: n samples, D features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from metrics import statistics
from metrics.network_metrics import Measured
from metrics.registry import Family, Metric, Rules

POINTS = 15  # sizes of the extrapolation, as Chong and Forsyth chose
SMALLEST_SHARE = 10  # the smallest size is n / 10: 5,000 of 50,000
MAX_REPEATS = 1000
METHOD = "random halves without replacement"

Step = Callable[[], None]


def _nothing() -> None:
    """Default of the callbacks."""


@dataclasses.dataclass(frozen=True)
class Extras:
    """What is computed beside a number.

    Attributes:
        bootstrap: Random halves that give an interval, at least 2; 0 = no interval.
        extrapolate: Also the value of Frechet distances for infinitely many generated samples.
    """

    bootstrap: int = 0
    extrapolate: bool = False

    def __post_init__(self) -> None:
        if self.bootstrap and not 2 <= self.bootstrap <= MAX_REPEATS:
            raise ValueError(
                f"--bootstrap={self.bootstrap}: use 2 to {MAX_REPEATS:,} repetitions, or 0 for none"
            )

    def check(self, metrics: Sequence[Metric]) -> None:
        """Raises ValueError if there is nothing to extrapolate, or half of the samples are too few."""
        for metric in metrics if self.bootstrap else ():
            _check_halves(metric.family, metric.num_gen)
        if self.extrapolate and not any(metric.family.has_covariance for metric in metrics):
            names = ", ".join(metric.name for metric in metrics)
            raise ValueError(
                f"--extrapolate has no effect on {names}: add a Frechet distance such as fid50k_full"
            )

    def needs_rows(self, family: Family) -> bool:
        """Whether the features of all generated samples must be kept."""
        return bool(self.bootstrap) or (self.extrapolate and family.has_covariance)

    def compute(
        self, metric: Metric, generated: statistics.Store, real: statistics.Store | None, rules: Rules
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The results of a metric, and what its record has beside them: 'interval', 'infinity'."""
        family = metric.family
        if not self.needs_rows(family):
            return family.compute(generated, real, rules), {}
        assert isinstance(generated, statistics.FeatureArray)
        rows = generated.array
        values = family.compute(store_of(family, rows), real, rules)
        found: dict[str, Any] = {}
        if self.bootstrap:
            spread = deviations(family, rows, real, rules, self.bootstrap)
            found["interval"] = self._interval(metric, spread)
        if self.extrapolate and family.has_covariance:
            found["infinity"] = extrapolate(family, rows, real, rules)
        return values, found

    def compute_network(
        self, metric: Metric, measured: Measured, seed: int
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """As `compute`, of a network metric."""
        values = measured.compute(measured.rows)
        if not self.bootstrap:
            return values, {}
        if len(measured.rows) < 2:
            raise ValueError(
                f"metric {metric.name}: one group of images has comparable pixels, an interval needs two"
            )
        spread = half_deviations(
            lambda chosen: measured.compute(measured.rows[chosen]), len(measured.rows), seed, self.bootstrap
        )
        return values, {"interval": self._interval(metric, spread)}

    def _interval(self, metric: Metric, spread: dict[str, float]) -> dict[str, Any]:
        std = {metric.name + suffix: value for suffix, value in spread.items()}
        return {"method": METHOD, "repeats": self.bootstrap, "std": std}


def _check_halves(family: Family, count: int) -> None:
    """Raises ValueError if half of `count` samples are too few for the metric."""
    if count // 2 < family.min_images:
        raise ValueError(
            f"metric {family.name} needs at least {2 * family.min_images} generated images for an interval, "
            f"got {count}"
        )


def store_of(family: Family, rows: np.ndarray) -> statistics.Store:
    """What a family computes from, of feature rows [n, D]."""
    store = statistics.new_store(family.keep, rows.shape[1])
    store.append(rows)
    return store


def deviations(
    family: Family,
    rows: np.ndarray,
    real: statistics.Store | None,
    rules: Rules,
    repeats: int,
    step: Step = _nothing,
) -> dict[str, float]:
    """Standard deviation of each result of a family under another draw of the generated samples.

    The results are computed on `repeats` random halves of the samples, drawn without replacement (Politis and
    Romano 1994). For a statistic of m of n samples, the deviation over such subsets is that over independent
    draws of n samples times sqrt((n - m) / m), which is 1 for halves. Samples drawn with replacement, as in
    the ordinary bootstrap, would not do: a repeated sample is its own nearest neighbour, and it adds its own
    variance to a covariance.

    Args:
        family: Of the metric.
        rows: Features of the generated samples, [n, D].
        real: Statistics of the real images.
        rules: How numbers are computed; its seed chooses the halves.
        repeats: Number of halves, at least 2.
        step: Called after each half.

    Returns:
        By what follows the metric's name in the results.

    Raises:
        ValueError: Half of the samples are too few for the metric.
    """
    _check_halves(family, len(rows))

    def compute(chosen: np.ndarray) -> dict[str, float]:
        return family.compute(store_of(family, rows[chosen]), real, _rules_of(rules, chosen))

    return half_deviations(compute, len(rows), rules.seed, repeats, step)


def half_deviations(
    compute: Callable[[np.ndarray], dict[str, float]],
    count: int,
    seed: int,
    repeats: int,
    step: Step = _nothing,
) -> dict[str, float]:
    """The deviations of `deviations` for numbers that are computed from chosen samples.

    Args:
        compute: Indices of the chosen samples, sorted, to numbers.
        count: Samples in all, at least 2.
        seed: Chooses the halves.
        repeats: Number of halves.
        step: Called after each half.
    """
    half = count // 2
    found: dict[str, list[float]] = {}
    for repeat in range(repeats):
        chosen = np.sort(np.random.RandomState([seed, repeat]).permutation(count)[:half])
        for suffix, value in compute(chosen).items():
            found.setdefault(suffix, []).append(value)
        step()
    scale = math.sqrt(half / (count - half))
    return {suffix: float(np.std(values, ddof=1)) * scale for suffix, values in found.items()}


def _rules_of(rules: Rules, chosen: np.ndarray) -> Rules:
    """The rules of a subset: its labels, and no progress within the metric."""
    changes: dict[str, Any] = {"progress": None}
    labels = getattr(rules, "labels", None)
    if labels is not None:
        changes["labels"] = labels[chosen]
    return dataclasses.replace(rules, **changes)


def least_for_extrapolation(dim: int) -> int:
    """Samples that an extrapolation needs: its smallest size has as many as there are features."""
    return SMALLEST_SHARE * dim


def extrapolate(
    family: Family,
    rows: np.ndarray,
    real: statistics.Store | None,
    rules: Rules,
    step: Step = _nothing,
) -> dict[str, Any]:
    """The Frechet distance for infinitely many generated samples (Chong and Forsyth, CVPR 2020).

    The distance of N samples is nearly linear in 1/N. It is computed on random subsets of 15 sizes from n/10
    to n; the value is the line's at 1/N = 0. The bias due to the number of real images stays in it.

    Args:
        family: A Frechet distance.
        rows: Features of the generated samples, [n, D].
        real: Statistics of the real images.
        rules: How numbers are computed; its seed chooses the subsets.
        step: Called after each size.

    Returns:
        {"value", "sizes", "values", "residual"}; residual: root mean square distance from the line.

    Raises:
        ValueError: There are fewer samples than ten times the number of features.
    """
    count, dim = rows.shape
    if count < least_for_extrapolation(dim):
        raise ValueError(
            f"metric {family.name} has {dim} features: its extrapolation needs at least "
            f"{least_for_extrapolation(dim):,} generated images, got {count:,}"
        )
    sizes = np.linspace(count // SMALLEST_SHARE, count, POINTS).astype(int)
    values = []
    for i, size in enumerate(sizes):
        chosen = np.random.RandomState([rules.seed, i]).permutation(count)[:size]
        found = family.compute(store_of(family, rows[chosen]), real, _rules_of(rules, chosen))
        values.append(next(iter(found.values())))
        step()
    slope, intercept = np.polyfit(1 / sizes, values, 1)
    residual = np.asarray(values) - (intercept + slope / sizes)
    return {
        "value": float(intercept),
        "sizes": sizes.tolist(),
        "values": [float(value) for value in values],
        "residual": float(np.sqrt(np.mean(residual**2))),
    }
