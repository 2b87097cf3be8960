# SPDX-License-Identifier: Apache-2.0
"""FID, IS, KID, precision and recall against the numbers of the published code."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from metrics import kid, precision_recall, registry
from metrics.fid import frechet_distance
from metrics.inception_score import inception_score
from metrics.names import UNBIASED
from metrics.statistics import Moments

GOLDENS = Path(__file__).parent / "goldens"
EXPECTED = json.loads((GOLDENS / "metrics.json").read_text())
ARRAYS = dict(np.load(GOLDENS / "metrics.npz"))
SETS = ["plain", "near_singular", "rank_deficient_n40"]


def moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    stats = Moments(rows.shape[1])
    stats.append(rows)
    return stats.mean, stats.covariance


@pytest.mark.parametrize("name", SETS)
def test_moments_are_the_published_ones(name):
    mean, covariance = moments(ARRAYS[f"{name}/real"])
    np.testing.assert_allclose(mean, ARRAYS[f"{name}/mu_real"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(covariance, ARRAYS[f"{name}/sigma_real"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SETS)
def test_fid_is_the_published_one(name):
    real, generated = moments(ARRAYS[f"{name}/real"]), moments(ARRAYS[f"{name}/gen"])
    # sqrtm and the published eigendecomposition differ from each other by 1e-5 on the near-singular set, and
    # from the exact value by 4e-5
    assert frechet_distance(*real, *generated) == pytest.approx(EXPECTED[name]["fid"], rel=1e-5)
    assert frechet_distance(*generated, *real) == pytest.approx(EXPECTED[name]["fid"], rel=1e-5)
    assert (
        abs(frechet_distance(*real, *generated) - EXPECTED[name]["fid_unbiased_cov(ddof=1)_for_comparison"])
        > 1e-3
    )


@pytest.mark.parametrize("name", SETS)
def test_unbiased_fid_is_that_of_torch_fidelity_and_pytorch_fid(name):
    stores = [Moments(ARRAYS[f"{name}/{side}"].shape[1]) for side in ("real", "gen")]
    for store, side in zip(stores, ("real", "gen"), strict=True):
        store.append(ARRAYS[f"{name}/{side}"])
    rules = registry.Rules(covariance=UNBIASED)
    value = registry.FAMILIES["fid"].compute(stores[1], stores[0], rules)[""]
    assert value == pytest.approx(EXPECTED[name]["fid_unbiased_cov(ddof=1)_for_comparison"], rel=1e-4)


@pytest.mark.parametrize("name", SETS)
def test_fid_of_singular_sets_is_exact(name):
    # tr (S_x S_y)^(1/2) is the nuclear norm of X^T Y / sqrt(n m) for centred rows: no square root of a
    # matrix, no eigenvalue, full precision
    x, y = (ARRAYS[f"{name}/{side}"].astype(np.float64) for side in ("real", "gen"))
    shift = x.mean(0) - y.mean(0)
    x, y = x - x.mean(0), y - y.mean(0)
    factors = [np.linalg.qr(rows, mode="r") / np.sqrt(len(rows)) for rows in (x, y)]
    exact = (
        shift @ shift
        + sum((f**2).sum() for f in factors)
        - 2 * scipy.linalg.svdvals(factors[0] @ factors[1].T).sum()
    )
    assert frechet_distance(
        *moments(ARRAYS[f"{name}/real"]), *moments(ARRAYS[f"{name}/gen"])
    ) == pytest.approx(exact, rel=1e-9)


def test_fid_of_a_set_with_itself_is_zero():
    stats = (ARRAYS["identical/mu_real"], ARRAYS["identical/sigma_real"])
    assert 0 <= frechet_distance(*stats, *stats) < 1e-10


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score(splits):
    assert inception_score(ARRAYS["is/probs"], splits) == pytest.approx(
        EXPECTED["is"][f"splits{splits}"], rel=1e-6, abs=1e-6
    )


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("subsets", "size"), [(1, 1000), (10, 100)])
def test_kid(name, subsets, size):
    rng = np.random.RandomState(1234)
    value = kid.kernel_distance(
        ARRAYS[f"{name}/real"], ARRAYS[f"{name}/gen"], num_subsets=subsets, max_subset_size=size, rng=rng
    )
    # the published code multiplies float32 features in float32
    assert value == pytest.approx(EXPECTED[name][f"kid_subsets{subsets}_max{size}_npseed1234"], rel=2e-5)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall(name, k):
    values = precision_recall.precision_recall(ARRAYS[f"{name}/real"], ARRAYS[f"{name}/gen"], k)
    assert values == pytest.approx(EXPECTED[name][f"pr_k{k}_fp64"], abs=1e-9)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_with_the_published_rounding(name, k):
    sides = ARRAYS[f"{name}/real"], ARRAYS[f"{name}/gen"]
    values = precision_recall.precision_recall(*sides, k, half=True)
    assert values == pytest.approx(EXPECTED[name][f"pr_k{k}_fp16feat_fp32dist_fp16kth"], abs=1e-6)
