# SPDX-License-Identifier: Apache-2.0
"""The pure functions from arrays to numbers, on cases with known answers."""

import tracemalloc

import numpy as np
import pytest
import scipy.spatial

from metrics import precision_recall as pr
from metrics.fid import frechet_distance, trace_sqrt_product
from metrics.inception_score import inception_score
from metrics.kid import cmmd, kernel_distance, kernel_distances
from metrics.precision_recall import closer_than_real, prdc, precision_recall
from metrics.vendi import per_class, vendi_score


def test_frechet_distance_of_diagonal_gaussians():
    # |1 - 4|^2 + (2 - 1)^2 + (3 - 5)^2 for standard deviations 2, 3 against 1, 5
    value = frechet_distance(np.array([1.0, 0]), np.diag([4.0, 9]), np.array([4.0, 0]), np.diag([1.0, 25]))
    assert value == pytest.approx(9 + 1 + 4, abs=1e-12)


def test_frechet_distance_is_symmetric_and_rotation_invariant():
    rng = np.random.RandomState(0)
    a, b = (rng.randn(6, 6) for _ in range(2))
    rotation = np.linalg.qr(rng.randn(6, 6))[0]
    m, n, s, t = rng.randn(6), rng.randn(6), a @ a.T, b @ b.T
    value = frechet_distance(m, s, n, t)
    assert value == pytest.approx(frechet_distance(n, t, m, s), rel=1e-12)
    assert value == pytest.approx(
        frechet_distance(rotation @ m, rotation @ s @ rotation.T, rotation @ n, rotation @ t @ rotation.T),
        rel=1e-10,
    )


def test_frechet_distance_of_zero_covariances():
    assert frechet_distance(np.zeros(3), np.zeros((3, 3)), np.array([1.0, 2, 2]), np.zeros((3, 3))) == 9


def test_frechet_distance_refuses_what_is_no_covariance():
    with pytest.raises(ValueError, match="do not match"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="NaN or Inf"):
        frechet_distance(np.zeros(2), np.eye(2), np.array([0, np.nan]), np.eye(2))


def test_inception_score_extremes():
    assert inception_score(np.full((50, 8), 1 / 8), 5) == pytest.approx((1, 0))
    assert inception_score(np.tile(np.eye(8), (10, 1)), 2) == pytest.approx(
        (8, 0)
    )  # zero probabilities count as 0 log 0 = 0


def test_inception_score_splits_are_contiguous_and_its_deviation_is_the_population_one():
    sure = np.zeros((10, 4))
    sure[:, 0] = 1
    parts = np.concatenate([sure, np.tile(np.eye(4), (3, 1))[:10]])
    mean, std = inception_score(parts, 2)
    second = np.exp(-(parts[10:].mean(0) * np.log(parts[10:].mean(0))).sum())
    assert (mean, std) == pytest.approx(((1 + second) / 2, (second - 1) / 2))
    with pytest.raises(ValueError, match="10 splits"):
        inception_score(parts[:9], 10)


def test_kernel_distance_of_two_pairs():
    real, generated = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    # unbiased: k(0,1) + k(1,2) - 2 mean of k over the four pairs, k = (xy + 1)^3: 1 + 27 - (1 + 1 + 8 + 27) /
    # 2
    assert kernel_distance(real, generated, num_subsets=1) == pytest.approx(28 - 18.5)


def test_kernel_distance_repeats_with_its_seed():
    x, y = np.random.RandomState(0).randn(2, 50, 4)
    values = [
        kernel_distance(x, y, num_subsets=3, max_subset_size=10, rng=np.random.RandomState(s))
        for s in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


def test_precision_and_recall_of_line_sets():
    real = np.arange(10, dtype=np.float32)[:, None]
    inside, outside = real[:5] + 0.5, real[:5] + 100
    precision, recall = precision_recall(real, np.concatenate([inside, outside]), neighbours=2)
    assert precision == 0.5
    assert recall == pytest.approx(0.7)  # the generated balls reach from -1.5 to 6.5, so they hold 0 to 6
    with pytest.raises(ValueError, match="more than k = 3"):
        precision_recall(real[:3], real)


def _naive_precision_recall(real, generated, k):
    """The definition, with every distance at once."""
    between = scipy.spatial.distance.cdist(real, generated)
    radii = [np.sort(scipy.spatial.distance.cdist(side, side), axis=1)[:, k] for side in (real, generated)]
    precision, recall = (between <= radii[0][:, None]).any(0).mean(), (between <= radii[1]).any(1).mean()
    return float(precision), float(recall)


@pytest.mark.parametrize("rows", [1, 7, 40, 1000])
def test_blocks_do_not_change_precision_and_recall(rows, monkeypatch):
    monkeypatch.setattr(pr, "BLOCK_ROWS", rows)
    random = np.random.RandomState(0)
    real, generated = random.randn(83, 4), random.randn(41, 4) * 0.8
    calls = []
    values = precision_recall(real, generated, 3, lambda *call: calls.append(call))
    assert values == _naive_precision_recall(real, generated, 3)
    assert [done for done, _ in calls] == list(range(1, calls[-1][1] + 1))


def test_precision_and_recall_take_memory_that_does_not_grow(monkeypatch):
    monkeypatch.setattr(pr, "BLOCK_ROWS", 100)
    peaks = []
    for count in (1000, 4000):
        real, generated = (np.random.RandomState(seed).randn(count, 8).astype(np.float32) for seed in (0, 1))
        tracemalloc.start()
        precision_recall(real, generated)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (
        peaks[1] - peaks[0] < 4000 * 100
    )  # bytes: a few numbers per row, where one block of rows x all columns takes 800


def test_the_trace_is_exact_by_either_way():
    random = np.random.RandomState(0)
    full = [np.cov(random.randn(40, 12).T) for _ in range(2)]
    thin = [np.cov(random.randn(5, 12).T) for _ in range(2)]
    for a, b in (full, thin, (full[0], thin[0])):
        roots = np.sqrt(np.clip(np.linalg.eigvals(a @ b).real, 0, None))
        assert trace_sqrt_product(a, b) == pytest.approx(roots[roots > 1e-6].sum(), rel=1e-9)
    # singular: a nuclear norm, beside which square roots of rounding errors would show
    x, y = random.randn(2, 3, 12)
    exact = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    assert trace_sqrt_product(x.T @ x, y.T @ y) == pytest.approx(exact, rel=1e-12)


def test_singular_covariances_are_exact_where_eigenvalues_of_their_product_are_not():
    random = np.random.RandomState(0)
    x, y = (random.randn(40, 120) * np.arange(1.0, 121) ** -0.5 for _ in range(2))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    exact = np.linalg.svd(x @ y.T, compute_uv=False).sum() / 39
    a, b = (np.cov(rows, rowvar=False) for rows in (x, y))
    assert trace_sqrt_product(a, b) == pytest.approx(exact, rel=1e-12)
    # torch-fidelity sums the roots of the eigenvalues of A B, of which 81 should be 0 and are not
    eigenvalues = np.linalg.eigvals(a @ b).astype(complex)
    assert np.sqrt(eigenvalues).real.sum() > exact * (1 + 1e-10)


def test_kernel_distances_have_a_spread():
    x, y = np.random.RandomState(0).randn(2, 50, 4)
    values = kernel_distances(x, y, num_subsets=5, max_subset_size=10, rng=np.random.RandomState(0))
    assert values.shape == (5,) and values.std() > 0
    mean = kernel_distance(x, y, num_subsets=5, max_subset_size=10, rng=np.random.RandomState(0))
    assert mean == pytest.approx(values.mean())


@pytest.mark.parametrize("rows", [7, 1000])
def test_cmmd_is_its_definition(rows, monkeypatch):
    monkeypatch.setattr(pr, "BLOCK_ROWS", rows)
    real, generated = np.random.RandomState(0).randn(2, 30, 6)
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (real, generated)]

    def mean(a, b):
        return np.exp(-(scipy.spatial.distance.cdist(a, b) ** 2) / 200).mean()

    expected = mean(unit[0], unit[0]) + mean(unit[1], unit[1]) - 2 * mean(*unit)
    assert cmmd(real, generated * 3) == pytest.approx(1000 * expected, rel=1e-9)


@pytest.mark.parametrize("rows", [7, 1000])
def test_density_and_coverage_are_their_definitions(rows, monkeypatch):
    monkeypatch.setattr(pr, "BLOCK_ROWS", rows)
    random = np.random.RandomState(0)
    real, generated = random.randn(43, 4), random.randn(31, 4) * 0.7
    between = scipy.spatial.distance.cdist(real, generated)
    radii = [np.sort(scipy.spatial.distance.cdist(side, side), axis=1)[:, 5] for side in (real, generated)]
    inside = between < radii[0][:, None]
    expected = (
        inside.any(0).mean(),
        (between < radii[1]).any(1).mean(),
        inside.sum() / (5 * 31),
        inside.any(1).mean(),
    )
    assert prdc(real, generated) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="more than k = 5"):
        prdc(real[:5], generated)


@pytest.mark.parametrize("rows", [7, 1000])
def test_closeness_to_real_images_finds_copies(rows, monkeypatch):
    monkeypatch.setattr(pr, "BLOCK_ROWS", rows)
    random = np.random.RandomState(0)
    real = random.randn(60, 8)
    copies, far = real[:10] + 0.01 * random.randn(10, 8), random.randn(30, 8) + 50
    assert closer_than_real(real, np.concatenate([copies, far])) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="2 real images"):
        closer_than_real(real[:1], far)


def test_vendi_score_counts_different_images():
    assert vendi_score(np.eye(5)) == pytest.approx(5)
    assert vendi_score(np.ones((5, 3))) == pytest.approx(1)
    repeated = np.repeat(np.eye(4), 10, axis=0)  # more rows than columns
    assert vendi_score(repeated * 7) == pytest.approx(4)
    assert per_class(repeated, np.arange(40) // 20) == pytest.approx({0: 2, 1: 2})
    assert per_class(repeated, None) == pytest.approx({0: 4})
