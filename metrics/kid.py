# SPDX-License-Identifier: Apache-2.0
"""Kernel distances between feature sets: KID and kd_* with the cubic kernel, CMMD with a Gaussian one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from metrics.precision_recall import Progress, Steps, blocks, unit_rows

GAUSSIAN_SIGMA = 10.0  # of CMMD, on features of unit length
CMMD_SCALE = 1000.0


def _cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(a, b) = (a . b / D + 1)^3 for rows of x [n, D] and y [m, D]: [n, m]."""
    kernel = x @ y.T
    kernel /= x.shape[1]
    kernel += 1
    return np.asarray(kernel * kernel * kernel)  # numpy's power takes ten times as long


def kernel_distances(
    real: np.ndarray,
    generated: np.ndarray,
    *,
    num_subsets: int = 100,
    max_subset_size: int = 1000,
    rng: np.random.RandomState | None = None,
) -> np.ndarray:
    """Unbiased squared maximum mean discrepancy under the cubic kernel (Binkowski et al. 2018), per subset.

    Args:
        real: rows [n, D].
        generated: rows [m, D].
        num_subsets: random subsets of equal size; each draws generated rows first, then real ones, without
            replacement.
        max_subset_size: rows of a subset, or all of the smaller side.
        rng: of the subsets.

    Returns:
        float64 [num_subsets]. Values can be negative.

    Raises:
        ValueError: one side has fewer than 2 rows.
    """
    rng = rng or np.random.RandomState(0)
    size = min(len(real), len(generated), max_subset_size)
    if size < 2:
        raise ValueError(
            f"the kernel distance needs at least 2 images on each side, got {len(real)} and {len(generated)}"
        )
    distances = np.empty(num_subsets)
    for subset in range(num_subsets):
        x = generated[rng.choice(len(generated), size, replace=False)].astype(np.float64)
        y = real[rng.choice(len(real), size, replace=False)].astype(np.float64)
        within = _cubic_kernel(x, x) + _cubic_kernel(y, y)
        unbiased = (within.sum() - np.trace(within)) / (size * (size - 1))
        distances[subset] = unbiased - 2 * _cubic_kernel(x, y).mean()
    return distances


def kernel_distance(
    real: np.ndarray,
    generated: np.ndarray,
    *,
    num_subsets: int = 100,
    max_subset_size: int = 1000,
    rng: np.random.RandomState | None = None,
) -> float:
    """The mean of `kernel_distances`."""
    values = kernel_distances(
        real, generated, num_subsets=num_subsets, max_subset_size=max_subset_size, rng=rng
    )
    return float(values.mean())


def _mean_gaussian(x: np.ndarray, y: np.ndarray, step: Callable[[], None]) -> float:
    """Mean of exp(-|a - b|^2 / (2 sigma^2)) over all pairs of rows, in blocks."""
    total = 0.0
    for rows in blocks(len(x)):
        left = unit_rows(x[rows])
        for columns in blocks(len(y)):
            squared = 2 - 2 * (left @ unit_rows(y[columns]).T)  # rows have length 1
            total += float(np.exp(squared / (-2 * GAUSSIAN_SIGMA**2)).sum())
            step()
    return total / (len(x) * len(y))


def cmmd(real: np.ndarray, generated: np.ndarray, progress: Progress | None = None) -> float:
    """1000 x squared maximum mean discrepancy under a Gaussian kernel (Jayasumana et al. 2024).

    Rows are scaled to length 1; sigma is 10. The means include each row with itself, as published.

    Args:
        real: rows [n, D].
        generated: rows [m, D].
        progress: called as (blocks done, blocks in all).
    """
    counts = [len(blocks(len(rows))) for rows in (real, generated)]
    steps = Steps(counts[0] ** 2 + counts[1] ** 2 + counts[0] * counts[1], progress)
    within = _mean_gaussian(real, real, steps) + _mean_gaussian(generated, generated, steps)
    return CMMD_SCALE * (within - 2 * _mean_gaussian(real, generated, steps))
