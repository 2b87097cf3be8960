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

from metrics import equivariance, fid, inception_score, kid, path_length, precision_recall, vendi
from metrics.names import (
    CLIP,
    DINOV2,
    INCEPTION,
    INCEPTION_RANDOM,
    LITE0,
    POPULATION,
    UNBIASED,
    VGG16,
    VGG16_TORCHVISION,
)
from metrics.network_metrics import Measured, Task
from metrics.statistics import FeatureArray, Moments, Store

DEFAULT_NUM_GEN = 50_000
MAX_NUM_GEN = 10_000_000
MAX_PR_REAL = 200_000  # real images of pr50k3_full, as published
LITE0_REAL_IMAGES = 10_000  # of fd_lite0_<count>; docs/metrics.md has the measurement


@dataclasses.dataclass(frozen=True)
class Rules:
    """How numbers are computed, beside the features.

    Args:
        seed: of shuffles and subsets.
        covariance: of Frechet distances, one of COVARIANCES.
        labels: class of each generated image, None where they have none.
        progress: called as (blocks done, blocks in all).
    """

    seed: int = 0
    covariance: str = POPULATION
    labels: np.ndarray | None = None
    progress: Callable[[int, int], None] | None = None


Compute = Callable[[Store, Store | None, Rules], dict[str, float]]
Measure = Callable[[Task], Measured]


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
        prefix: text before the count; the name unless given.
        suffix: text after the count.
        default_count: images to generate where a name has no count.
        bare_full: the name without a count compares with every real image; otherwise with a subset.
        max_real: real images at most, a seeded random subset of more.
        uses_labels: Rules.labels is read.
        measure: what a network metric finds.
    """

    name: str
    detector: str
    output: Literal["features", "probabilities", "spatial"] = "features"
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
    bare_full: bool = True
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

    @property
    def warning(self) -> str | None:
        """What a reader who knows the published meaning of the name must know; None if it is the same."""
        name = self.family.name
        if name in ("fid", "kid", "pr") and not self.full:
            return (
                f"{self.name}: published code compares with the first {self.num_gen:,} images of the data "
                "set, few classes if it is sorted; this takes a random subset. "
                f"{self.family.spell(self.num_gen, True)} takes every image"
            )
        if name == "rfid":
            return (
                f"{self.name}: the published random weights differ; compare with records of this project only"
            )
        return None


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
    values = kid.kernel_distances(_array(real), _array(generated), rng=np.random.RandomState(rules.seed))
    return {"": float(values.mean()), "_std": float(values.std())}


def _precision_recall(
    generated: Store, real: Store | None, rules: Rules, half: bool = False
) -> dict[str, float]:
    values = precision_recall.precision_recall(_array(real), _array(generated), 3, rules.progress, half)
    return dict(zip(("_precision", "_recall"), values, strict=True))


def _prdc(generated: Store, real: Store | None, rules: Rules) -> dict[str, float]:
    values = precision_recall.prdc(_array(real), _array(generated), 5, rules.progress)
    return dict(zip(("_precision", "_recall", "_density", "_coverage"), values, strict=True))


def _closer(generated: Store, real: Store | None, rules: Rules) -> dict[str, float]:
    return {"": precision_recall.closer_than_real(_array(real), _array(generated), rules.progress)}


def _cmmd(generated: Store, real: Store | None, rules: Rules) -> dict[str, float]:
    return {"": kid.cmmd(_array(real), _array(generated), rules.progress)}


def _vendi(generated: Store, real: Store | None, rules: Rules) -> dict[str, float]:
    scores = list(vendi.per_class(_array(generated), rules.labels).values())
    return {"": float(np.mean(scores)), "_min": min(scores), "_max": max(scores)}


def _equivariance(kind: str, prefix: str, suffix: str = "") -> Family:
    measure = functools.partial(equivariance.equivariance, kind=kind)
    return Family(
        kind,
        "",
        needs_real=False,
        lower_is_better=False,
        min_images=equivariance.GROUP,
        prefix=prefix,
        suffix=suffix,
        measure=measure,
    )


def _path_length(name: str, detector: str, need_lpips: bool) -> Family:
    measure = functools.partial(path_length.path_length, detector=detector, need_lpips=need_lpips)
    return Family(name, detector, needs_real=False, count_separator="_", bare_is_full=True, measure=measure)


def _families_of(tag: str, detector: str) -> list[Family]:
    """What is measured on any detector's features; names end in its tag."""
    some = functools.partial(Family, detector=detector, count_separator="_", default_count=10_000)
    return [
        some(f"prdc_{tag}", compute=_prdc, lower_is_better=False, min_images=6, bare_full=False),
        some(f"vendi_{tag}", compute=_vendi, lower_is_better=False, needs_real=False, uses_labels=True),
        some(f"closer_{tag}", compute=_closer),
    ]


def _distances_of(tag: str, detector: str, real_images: int = 0) -> list[Family]:
    """Frechet and kernel distance on a detector's features."""
    some = functools.partial(
        Family, detector=detector, count_separator="_", real_images=real_images, bare_is_full=True
    )
    return [some(f"fd_{tag}", keep="moments", compute=_frechet), some(f"kd_{tag}", compute=_kid)]


def _all_families() -> list[Family]:
    half = functools.partial(_precision_recall, half=True)
    pr = functools.partial(Family, compute=_precision_recall, lower_is_better=False, min_images=4)
    pr_vgg = functools.partial(pr, compute=half, suffix="3", max_real=MAX_PR_REAL)
    return [
        Family("fid", INCEPTION, keep="moments", compute=_frechet),
        Family(
            "is", INCEPTION, "probabilities", needs_real=False, compute=_inception_score, min_images=10,
            lower_is_better=False,
        ),
        *_distances_of("lite0", LITE0, LITE0_REAL_IMAGES),
        *_distances_of("dinov2", DINOV2),
        Family("kid", INCEPTION, compute=_kid),
        Family("sfid", INCEPTION, "spatial", "moments", compute=_frechet),
        Family("rfid", INCEPTION_RANDOM, keep="moments", compute=_frechet),
        Family("cmmd", CLIP, compute=_cmmd, count_separator="_", default_count=10_000, bare_full=False),
        pr("pr_inception", INCEPTION, count_separator="_"),
        pr_vgg("pr", VGG16),
        pr_vgg("pr_vgg16", VGG16_TORCHVISION, count_separator="_"),
        *_families_of("inception", INCEPTION),
        *_families_of("lite0", LITE0),
        *_families_of("dinov2", DINOV2),
        _equivariance("eqt_int", "eqt", "_int"),
        _equivariance("eqt_frac", "eqt", "_frac"),
        _equivariance("eqr", "eqr"),
        _path_length("ppl2_wend", VGG16, need_lpips=True),
        _path_length("ppl2_vgg16_wend", VGG16_TORCHVISION, need_lpips=False),
    ]  # fmt: skip


FAMILIES: dict[str, Family] = {family.name: family for family in _all_families()}
EXAMPLES = (
    "fid50k_full", "is50k", "fd_lite0", "kid50k_full", "pr50k3_full", "pr_inception_50k_full", "fid50k",
    "fid10k_full", "fd_lite0_10k", "is10k", "kd_lite0", "fd_dinov2", "kd_dinov2", "sfid50k_full",
    "rfid50k_full", "cmmd", "pr_vgg16_50k3_full", "ppl2_wend", "ppl2_vgg16_wend", "eqt50k_int",
    "eqt50k_frac", "eqr50k",
    *(f"{kind}_{tag}" for kind in ("prdc", "vendi", "closer") for tag in ("inception", "lite0", "dinov2")),
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
    """The metric that `name` means.

    Args:
        name: see the module's docstring.
        num_gen: replaces the count in the name.

    Raises:
        ValueError: the name is unknown; the message has a known one that is similar.
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
            bare = not digits and family.bare_full and not family.bare_is_full
            return make(family, num_gen or count, bool(full) or bare)
    near = difflib.get_close_matches(name, EXAMPLES, n=1)
    hint = f"; the nearest known one is {near[0]!r}" if near else ""
    raise ValueError(
        f"unknown metric {name!r}{hint} (known: {', '.join(EXAMPLES[:5])}; any count may replace 50k; "
        "docs/metrics.md lists all)"
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
