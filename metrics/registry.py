# SPDX-License-Identifier: Apache-2.0
"""Metric names and what they mean.

    name     = family [count] [_full]         fid50k_full  fid10k_full  fid50k  is50k  kid50k_full
             | pr_inception [_count] [_full]  pr_inception_50k_full
             | fd_lite0 [_count] [_full]      fd_lite0  fd_lite0_2k  fd_lite0_2k_full
    count    = images to generate: digits, with an optional k for thousands (default: 50k)

`_full` compares with every image of the data set. A name with a count and without `_full` compares with a
seeded random subset:

    published names      as many real images as are generated
    fd_lite0_<count>     10,000 real images, or as many as are generated if that is more; smaller data sets
                         are taken whole

`fd_lite0` alone is 50,000 generated images against every real one. Precision and recall here are on
Inception's features, so they do not take the published name pr50k3_full, which is VGG16's. Names are
rewritten to one spelling (`fid50000_full` is `fid50k_full`). A new metric is one more `Family`: the detector
output it reads, what it keeps of it, which end is good, and a pure function from arrays to numbers.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from metrics import fid, inception_score, kid, precision_recall
from metrics.statistics import FeatureArray, Moments, Store

DEFAULT_NUM_GEN = 50_000
MAX_NUM_GEN = 10_000_000
INCEPTION = "inception-2015-12-05"
LITE0 = "lite0"
LITE0_REAL_IMAGES = 10_000  # of fd_lite0_<count>; docs/metrics.md has the measurement
POPULATION, UNBIASED = "population", "unbiased"  # covariance over n, as published, or over n - 1
COVARIANCES = (POPULATION, UNBIASED)


@dataclasses.dataclass(frozen=True)
class Rules:
    """How numbers are computed, beside the features. seed: of shuffles and subsets. progress: (blocks done,
    blocks in all).
    """

    seed: int = 0
    covariance: str = POPULATION
    progress: Callable[[int, int], None] | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of number. `compute(generated, real, rules)` gets what was kept of the detector's output
    (`real` is None unless needs_real) and returns values keyed by what follows the metric's name in the
    results: '' for a single number, or '_mean', ...

    min_images: that the number needs, on each side. real_images: of a name without `_full`, if more than are
    generated. bare_is_full: the name without a count compares with every real image, and takes no `_full`.
    """

    name: str
    detector: str
    output: Literal["features", "probabilities"]
    keep: Literal["moments", "array"]
    needs_real: bool
    compute: Callable[[Store, Store | None, Rules], dict[str, float]]
    lower_is_better: bool
    min_images: int
    count_separator: str = ""
    real_images: int = 0
    bare_is_full: bool = False

    @property
    def has_covariance(self) -> bool:
        """Whether the number depends on Rules.covariance."""
        return self.compute is _frechet


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric with its sample count. full: asked for with `_full`."""

    name: str
    family: Family
    num_gen: int
    full: bool

    @property
    def num_real(self) -> int | None:
        """Real images to compare with, a seeded random subset of a data set that has more; None = all."""
        bare = self.family.bare_is_full and self.num_gen == DEFAULT_NUM_GEN
        return None if self.full or bare else max(self.num_gen, self.family.real_images)


def _frechet(generated: Store, real: Store | None, rules: Rules) -> dict[str, float]:
    assert isinstance(generated, Moments) and isinstance(real, Moments)
    unbiased = rules.covariance == UNBIASED
    sigmas = [side.unbiased_covariance if unbiased else side.covariance for side in (real, generated)]
    return {"": fid.frechet_distance(real.mean, sigmas[0], generated.mean, sigmas[1])}


def _array(store: Store | None) -> np.ndarray:
    assert isinstance(store, FeatureArray)
    return store.array


def _inception_score(generated: Store, real: Store | None, rules: Rules) -> dict[str, float]:
    rows = _array(generated)
    # Published: samples are in random order. Ours are numbered, and their labels random, but an image set's
    # order is by class.
    mean, std = inception_score.inception_score(
        rows[np.random.RandomState(rules.seed).permutation(len(rows))]
    )
    return {"_mean": mean, "_std": std}


def _kid(generated: Store, real: Store | None, rules: Rules) -> dict[str, float]:
    return {"": kid.kernel_distance(_array(real), _array(generated), rng=np.random.RandomState(rules.seed))}


def _precision_recall(generated: Store, real: Store | None, rules: Rules) -> dict[str, float]:
    sides = _array(real), _array(generated)
    precision, recall = precision_recall.precision_recall(*sides, neighbours=3, progress=rules.progress)
    return {"_precision": precision, "_recall": recall}


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("fid", INCEPTION, "features", "moments", True, _frechet, lower_is_better=True, min_images=2),
        Family("is", INCEPTION, "probabilities", "array", False, _inception_score, lower_is_better=False,
        min_images=10),
        Family(
            "fd_lite0", LITE0, "features", "moments", True, _frechet, lower_is_better=True, min_images=2,
            count_separator="_", real_images=LITE0_REAL_IMAGES, bare_is_full=True,
        ),
        Family("kid", INCEPTION, "features", "array", True, _kid, lower_is_better=True, min_images=2),
        Family(
            "pr_inception", INCEPTION, "features", "array", True, _precision_recall, lower_is_better=False,
            min_images=4,
            count_separator="_",
        ),
    )
}  # fmt: skip
EXAMPLES = (
    "fid50k_full", "is50k", "fd_lite0", "kid50k_full", "pr_inception_50k_full", "fid50k", "fid10k_full",
    "fd_lite0_10k", "is10k",
)  # fmt: skip


def _spell_count(count: int) -> str:
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def make(family: Family, num_gen: int, full: bool) -> Metric:
    """The metric of a family with `num_gen` generated images, under its one spelling.

    Raises ValueError if that is fewer than the number needs, or more than anybody waits for.
    """
    if num_gen > MAX_NUM_GEN:
        raise ValueError(
            f"metric {family.name} of {str(num_gen)[:20]} generated images: at most {MAX_NUM_GEN:,}"
        )
    if num_gen < family.min_images:
        raise ValueError(
            f"metric {family.name} needs at least {family.min_images} generated images, got {num_gen}"
        )
    full = full and family.needs_real
    if family.bare_is_full and num_gen == DEFAULT_NUM_GEN:
        return Metric(family.name, family, num_gen, full)
    name = family.name + family.count_separator + _spell_count(num_gen)
    return Metric(name + ("_full" if full else ""), family, num_gen, full)


def parse_metric(name: str, num_gen: int | None = None) -> Metric:
    """The metric that `name` means; `num_gen` replaces the count in it. Raises ValueError with the nearest
    known name.
    """
    for family in sorted(FAMILIES.values(), key=lambda f: -len(f.name)):
        pattern = rf"{family.name}(?:{family.count_separator}(\d{{1,18}})(k?))?(_full)?"
        match = re.fullmatch(pattern, name)
        if match:
            digits, thousands, full = match.groups()
            count = int(digits) * (1000 if thousands else 1) if digits else DEFAULT_NUM_GEN
            if full and not family.needs_real:
                raise ValueError(
                    f"metric {name!r} looks at generated images alone, so there is no '_full': say "
                    f"{name.removesuffix('_full')!r}"
                )
            return make(family, num_gen or count, bool(full) or not (digits or family.bare_is_full))
    nearest = difflib.get_close_matches(name, EXAMPLES, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"unknown metric {name!r}; the nearest known one is {nearest!r} (known: {', '.join(EXAMPLES[:5])}; "
        "any count may replace 50k)"
    )


def parse_list(names: str | Sequence[str], num_gen: int | None = None) -> list[Metric]:
    """'fid50k_full,is50k' or a list of names -> metrics without repetition; 'none' or nothing -> [].

    Raises ValueError for an unknown name.
    """
    if isinstance(names, str):
        names = names.split(",")
    wanted = [name for name in (part.strip() for part in names) if name and name.lower() != "none"]
    return list({metric.name: metric for metric in (parse_metric(name, num_gen) for name in wanted)}.values())
