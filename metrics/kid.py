# SPDX-License-Identifier: Apache-2.0
"""Kernel distance between feature sets: KID on Inception's pool3 features."""

from __future__ import annotations

import numpy as np


def _cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(a, b) = (a . b / D + 1)^3 for rows of x [n, D] and y [m, D]: [n, m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(
    real: np.ndarray,
    generated: np.ndarray,
    *,
    num_subsets: int = 100,
    max_subset_size: int = 1000,
    rng: np.random.RandomState | None = None,
) -> float:
    """Unbiased squared maximum mean discrepancy under the cubic kernel (Binkowski et al. 2018), averaged over
    random subsets of equal size.

    Rows are [n, D]; each subset draws generated rows first, then real ones, without replacement. Can be
    negative. float64. Raises ValueError when one side has fewer than 2 rows.
    """
    rng = rng or np.random.RandomState(0)
    size = min(len(real), len(generated), max_subset_size)
    if size < 2:
        raise ValueError(
            f"the kernel distance needs at least 2 images on each side, got {len(real)} and {len(generated)}"
        )
    total = 0.0
    for _ in range(num_subsets):
        x = generated[rng.choice(len(generated), size, replace=False)].astype(np.float64)
        y = real[rng.choice(len(real), size, replace=False)].astype(np.float64)
        within = _cubic_kernel(x, x) + _cubic_kernel(y, y)
        total += (within.sum() - np.trace(within)) / (size * (size - 1)) - 2 * _cubic_kernel(x, y).mean()
    return float(total / num_subsets)
