# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance between two Gaussians fitted to feature sets.

FID on Inception's pool3 features, sFID on its spatial ones, fd_* on the features of other detectors.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

TRACE_TOLERANCE = 1e-9  # relative error of a trace, above which singular values are used


def trace_sqrt_product(sigma_a: np.ndarray, sigma_b: np.ndarray) -> float:
    """Trace of (A B)^(1/2) for symmetric positive semidefinite A, B [D, D].

    A B has the eigenvalues of F^T B F for any factor F F^T = A, and the trace is the sum of their square
    roots. F is a Cholesky factor with pivoting, which has as many columns as A's rank.

    A rounding error e of an eigenvalue becomes sqrt(e) where the eigenvalue is 0. Singular or nearly singular
    matrices (fewer images than features) therefore use the singular values of F_A^T F_B, which are these
    square roots, exact to rounding. They are few where the rank is low.
    """
    factor = _factor(sigma_a)
    if factor.shape[1] == len(sigma_a):
        eigenvalues = np.clip(scipy.linalg.eigvalsh(factor.T @ sigma_b @ factor), 0, None)
        roots = np.sqrt(eigenvalues)
        rounding = np.finfo(np.float64).eps * eigenvalues.max(initial=0)
        error = rounding / (2 * np.maximum(roots, np.sqrt(rounding)) + np.finfo(np.float64).tiny)
        if error.sum() <= TRACE_TOLERANCE * roots.sum():
            return float(roots.sum())
    return float(scipy.linalg.svdvals(factor.T @ _factor(sigma_b)).sum())


def _factor(sigma: np.ndarray) -> np.ndarray:
    """F [D, rank] with F F^T = sigma. Pivots that are rounding errors, or negative, count as 0.

    LAPACK's pivoted Cholesky decomposition takes a tenth of the time of an eigendecomposition.
    """
    lower, pivots, rank, _ = scipy.linalg.lapack.dpstrf(sigma, lower=1)
    rank = rank if sigma.diagonal().max(initial=0) > 0 else 0
    factor = np.empty((len(sigma), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor


def frechet_distance(
    mean_a: np.ndarray, sigma_a: np.ndarray, mean_b: np.ndarray, sigma_b: np.ndarray
) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), in float64.

    Dowson and Landau 1982; Heusel et al. 2017 (FID). A result that rounding put below zero is returned as 0.

    Args:
        mean_a: mean of one set, [D].
        sigma_a: its covariance, [D, D].
        mean_b: mean of the other set.
        sigma_b: its covariance.

    Raises:
        ValueError: shapes do not match, or values are not finite.
    """
    arrays = [np.asarray(x, np.float64) for x in (mean_a, sigma_a, mean_b, sigma_b)]
    dim = arrays[0].size
    if [x.shape for x in arrays] != [(dim,), (dim, dim)] * 2:
        raise ValueError(f"means and covariances do not match: shapes {[list(x.shape) for x in arrays]}")
    if not all(np.isfinite(x).all() for x in arrays):
        raise ValueError("means or covariances hold NaN or Inf")
    mean_a, sigma_a, mean_b, sigma_b = arrays
    shift = mean_a - mean_b
    distance = (
        shift @ shift + np.trace(sigma_a) + np.trace(sigma_b) - 2 * trace_sqrt_product(sigma_a, sigma_b)
    )
    return max(float(distance), 0.0)
