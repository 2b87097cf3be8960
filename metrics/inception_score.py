# SPDX-License-Identifier: Apache-2.0
"""Inception Score of class probabilities (Salimans et al. 2016)."""

from __future__ import annotations

import numpy as np
from scipy.special import xlogy


def inception_score(probabilities: np.ndarray, num_splits: int = 10) -> tuple[float, float]:
    """Compute exp E_x KL(p(y|x) || p(y)) over contiguous parts, where p(y) is the mean over the part.

    Args:
        probabilities: [N, K], in random order: parts of a sorted set would each have few classes.
        num_splits: number of parts.

    Returns:
        Mean and population standard deviation over the parts.

    Raises:
        ValueError: there are fewer rows than parts.
    """
    probabilities = np.asarray(probabilities, np.float64)
    num_rows = len(probabilities)
    if num_rows < num_splits:
        raise ValueError(
            f"the Inception Score takes {num_splits} splits, so at least as many images; got {num_rows}"
        )
    scores = []
    for split in range(num_splits):
        part = probabilities[split * num_rows // num_splits : (split + 1) * num_rows // num_splits]  # [n, K]
        marginal = part.mean(axis=0)
        divergence = xlogy(part, part).sum(axis=1).mean() - xlogy(marginal, marginal).sum()
        scores.append(np.exp(divergence))
    return float(np.mean(scores)), float(np.std(scores))
