# SPDX-License-Identifier: Apache-2.0
"""Metric names and what they mean.

    name  = PREFIX [_] [COUNT] [SUFFIX] [_full]     fid50k_full  kid50k  pr50k3_full  eqt50k_int  fd_lite0_2k
    COUNT = images to generate: digits, with an optional k for thousands

`_full` compares with every image of the data set. A name with a count and without `_full` compares with a
seeded random subset:

    published names      as many real images as are generated
    fd_lite0_<count>     10,000 real images, or as many as are generated if that is more; smaller data sets
                         are taken whole

Names are rewritten to one spelling (`fid50000_full` is `fid50k_full`). docs/metrics.md explains each family.

A new metric is one more `Family`. Two kinds:

* Of images: `compute(generated, real, rules)` is a pure function of what was kept of a detector's output.
* Of the network: `measure(task)` runs the mapping and synthesis networks itself (metrics.network_metrics). It
  is called in every process, and its result counts on process 0.

Either returns one or more numbers, keyed by what follows the metric's name in the results: {"": fid},
{"_mean": ..., "_std": ...}. The first one is the record's `value`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from metrics import equivariance, fid, inception_score, kid, precision_recall
from metrics.network_metrics import Task
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
    blocks in all). labels: class of each generated image, None where they have none.
    """

    seed: int = 0
    covariance: str = POPULATION
    labels: np.ndarray | None = None
    progress: Callable[[int, int], None] | None = None


Compute = Callable[[Store, Store | None, Rules], dict[str, float]]
Measure = Callable[[Task], dict[str, float]]


def _not_of_images(generated: Store, real: Store | None, rules: Rules) -> dict[str, float]:
    raise TypeError("a network metric has nothing to compute from images")


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of number.

    Args:
        name: key in FAMILIES.
        detector: the detector that images pass, '' for none.
        output: the detector output that is kept.
        keep: what is kept of it: first and second moments, or every row.
        needs_real: compares with real images.
        compute: the numbers of an image metric; `real` is None unless needs_real.
        lower_is_better: which end of the first number is good.
        min_images: that the number needs, on each side.
        count_separator: between prefix and count.
        real_images: of a name without `_full`, if more than are generated.
        bare_is_full: the name without a count compares with every real image, and takes no `_full`.
        prefix, suffix: what stands before and after the count; the prefix is the name unless given.
        default_count: images to generate where a name has no count.
        max_real: real images at most, a seeded random subset of more.
        uses_labels: Rules.labels is read.
        measure: the numbers of a network metric.
    """

    name: str
    detector: str
    output: Literal["features", "probabilities", "spatial", "embedding"] = "features"
    keep: Literal["moments", "array"] = "array"
    needs_real: bool = True
    compute: Compute = _not_of_images
    lower_is_better: bool = True
    min_images: int = 2
    count_separator: str = ""
    real_images: int = 0
    bare_is_full: bool = False
    prefix: str = ""
    suffix: str = ""
    default_count: int = DEFAULT_NUM_GEN
    max_real: int | None = None
    uses_labels: bool = False
    measure: Measure | None = None

    @property
    def of_network(self) -> bool:
        """Whether the metric needs the network itself."""
        return self.measure is not None

    @property
    def has_covariance(self) -> bool:
        """Whether the number depends on Rules.covariance."""
        return self.compute is _frechet

    def spell(self, count: int, full: bool) -> str:
        """The one spelling of a name with a count."""
        bare = self.bare_is_full and count == self.default_count
        parts = [self.prefix or self.name, *([] if bare else [self.count_separator, _spell_count(count)])]
        return "".join([*parts, self.suffix, "_full" if full and not bare else ""])


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
        bare = self.family.bare_is_full and self.num_gen == self.family.default_count
        if self.full or bare:
            return self.family.max_real
        return max(self.num_gen, self.family.real_images)


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


def _equivariance(kind: str, prefix: str, suffix: str = "") -> Family:
    return Family(
        kind, "", needs_real=False, lower_is_better=False, min_images=equivariance.GROUP, prefix=prefix,
        suffix=suffix, measure=functools.partial(equivariance.equivariance, kind=kind),
    )  # fmt: skip


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
        _equivariance("eqt_int", "eqt", "_int"), _equivariance("eqt_frac", "eqt", "_frac"),
        _equivariance("eqr", "eqr"),
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
    return Metric(family.spell(num_gen, full), family, num_gen, full)


def parse_metric(name: str, num_gen: int | None = None) -> Metric:
    """The metric that `name` means; `num_gen` replaces the count in it. Raises ValueError with the nearest
    known name.
    """
    for family in sorted(FAMILIES.values(), key=lambda f: -len(f.name)):
        prefix = re.escape(family.prefix or family.name)
        pattern = rf"{prefix}(?:{family.count_separator}(\d{{1,18}})(k?))?{family.suffix}(_full)?"
        match = re.fullmatch(pattern, name)
        if match:
            digits, thousands, full = match.groups()
            count = int(digits) * (1000 if thousands else 1) if digits else family.default_count
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


def detectors_of(metrics: Sequence[Metric]) -> list[str]:
    """The detectors that metrics use, each once."""
    return list(dict.fromkeys(metric.family.detector for metric in metrics if metric.family.detector))
