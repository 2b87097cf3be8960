# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance between two Gaussians fitted to feature sets: FID on Inception's pool3 features, fd_* on
others'.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg


def trace_sqrt_product(sigma_a: np.ndarray, sigma_b: np.ndarray) -> float:
    """tr (A B)^(1/2) for symmetric positive semidefinite A, B [D, D].

    A B has the eigenvalues of A^(1/2) B A^(1/2), so the trace is the sum of the singular values of A^(1/2)
    B^(1/2), or of F_A^T F_B for any factors F F^T of the two matrices; here F = V diag(w^(1/2)) from a
    symmetric eigendecomposition, eigenvalues that rounding made negative counting as 0. Singular matrices
    (fewer images than features) are no special case. Taking singular values of the factors, rather than
    eigenvalues of the product and then roots, keeps the small ones exact: an error of 1e-16 before a square
    root would be one of 1e-8 after it.
    """
    return float(scipy.linalg.svdvals(_factor(sigma_a).T @ _factor(sigma_b)).sum())


def _factor(sigma: np.ndarray) -> np.ndarray:
    """F [D, D] with F F^T = sigma."""
    eigenvalues, vectors = scipy.linalg.eigh(sigma)
    return vectors * np.sqrt(np.clip(eigenvalues, 0, None))


def frechet_distance(
    mean_a: np.ndarray, sigma_a: np.ndarray, mean_b: np.ndarray, sigma_b: np.ndarray
) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), Dowson and Landau 1982; Heusel et al. 2017 (FID).
    Float64 throughout.

    Means are [D], covariances [D, D]. A result that rounding put below zero is returned as 0.
    Raises ValueError for shapes that do not match or values that are not finite.
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
