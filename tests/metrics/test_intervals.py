# SPDX-License-Identifier: Apache-2.0
"""Intervals beside independent draws, and the extrapolation beside the line it fits."""

import dataclasses

import numpy as np
import pytest

from metrics import intervals
from metrics.intervals import Extras
from metrics.registry import FAMILIES, Rules, parse_list, parse_metric
from metrics.statistics import FeatureArray, Moments

FD, KID = FAMILIES["fd_lite0"], FAMILIES["kid"]


def rows(seed, n=400, dim=4, shift=0.5):
    return (np.random.RandomState(seed).randn(n, dim) + shift).astype(np.float32)


def real_store(family, dim=4):
    return intervals.store_of(family, rows(999, 2000, dim, 0.0))


def _mean(generated, real, rules):
    return {"": float(generated.array.mean())}


def test_the_deviation_is_that_of_independent_samples():
    real, rules = real_store(FD), Rules()
    drawn = [FD.compute(intervals.store_of(FD, rows(seed)), real, rules)[""] for seed in range(60)]
    found = [intervals.deviations(FD, rows(seed), real, rules, 40)[""] for seed in range(4)]
    assert np.mean(found) == pytest.approx(np.std(drawn, ddof=1), rel=0.35)


@pytest.mark.parametrize("count", [100, 101])
def test_the_deviation_of_a_mean_is_the_known_one(count):
    family = dataclasses.replace(KID, compute=_mean)
    sample = rows(0, count)
    found = intervals.deviations(family, sample, None, Rules(), 400)[""]
    assert found == pytest.approx(sample.mean(axis=1).std(ddof=1) / count**0.5, rel=0.15)


def test_deviations_are_reproducible_and_refuse_too_few_samples():
    real = real_store(FD)
    assert intervals.deviations(FD, rows(0), real, Rules(), 5) == intervals.deviations(
        FD, rows(0), real, Rules(), 5
    )
    with pytest.raises(ValueError, match="fd_lite0 needs at least 4 generated images for an interval, got 3"):
        intervals.deviations(FD, rows(0, 3), real, Rules(), 5)


def test_the_extrapolation_removes_the_bias_of_few_samples():
    real = real_store(FD, 16)
    sample = rows(0, 400, 16, 0.0)
    at_400 = FD.compute(intervals.store_of(FD, sample), real, Rules())[""]
    found = intervals.extrapolate(FD, sample, real, Rules())
    assert found["sizes"][0] == 40 and found["sizes"][-1] == 400 and len(found["values"]) == 15
    assert found["values"][-1] == pytest.approx(at_400)
    assert abs(found["value"]) < at_400 / 3
    _, intercept = np.polyfit(1 / np.array(found["sizes"]), found["values"], 1)
    assert found["value"] == pytest.approx(intercept)
    with pytest.raises(
        ValueError, match="16 features: its extrapolation needs at least 160 generated images"
    ):
        intervals.extrapolate(FD, rows(0, 159, 16), real, Rules())


def test_extras_of_a_metric():
    metric, real = parse_metric("fd_lite0_400"), real_store(FD)
    kept = FeatureArray(4)
    kept.append(rows(0))
    values, extra = Extras(10, True).compute(metric, kept, real, Rules())
    moments = Moments(4)
    moments.append(rows(0))
    assert values == Extras().compute(metric, moments, real, Rules())[0]
    assert extra["interval"]["std"].keys() == {"fd_lite0_400"} and extra["interval"]["repeats"] == 10
    assert extra["infinity"]["values"][-1] == pytest.approx(values[""])
    assert not Extras(0, True).needs_rows(KID) and Extras(2).needs_rows(KID)


def test_extras_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"--bootstrap=1: use 2 to 1,000"):
        Extras(1)
    with pytest.raises(ValueError, match="--extrapolate has no effect on is50k"):
        Extras(0, True).check(parse_list("is50k"))
