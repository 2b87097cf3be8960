# SPDX-License-Identifier: Apache-2.0
"""Improved precision and recall between feature sets (Kynkäänniemi et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BLOCK_ROWS = 2048  # rows of the distance matrix held at once: 2048 x 50,000 float64 is 0.8 GB


def _squared_distances(queries: np.ndarray, points: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of |q - p|^2, [<= 2048, m]. Both sides are shifted by the same mean, which leaves distances alone and keeps digits."""
    centre = points.mean(axis=0)
    points = points - centre
    norms = np.einsum("nd,nd->n", points, points)
    for start in range(0, len(queries), _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, len(queries)))
        block = queries[rows] - centre
        squared = np.einsum("nd,nd->n", block, block)[:, None] + norms - 2 * block @ points.T
        yield rows, np.maximum(squared, 0)


def _radii(points: np.ndarray, neighbours: int) -> np.ndarray:
    """Squared distance from each point to its k-th nearest other point (the (k+1)-th smallest, itself included): [n]."""
    radii = np.empty(len(points))
    for rows, squared in _squared_distances(points, points):
        radii[rows] = np.partition(squared, neighbours, axis=1)[:, neighbours]
    return radii


def _covered_fraction(queries: np.ndarray, points: np.ndarray, radii: np.ndarray) -> float:
    covered = sum(int((squared <= radii).any(axis=1).sum()) for _, squared in _squared_distances(queries, points))
    return covered / len(queries)


def precision_recall(real: np.ndarray, generated: np.ndarray, neighbours: int = 3) -> tuple[float, float]:
    """Precision: the fraction of generated rows inside the union of balls around real rows, each reaching its k-th nearest neighbour; recall: the
    same with the sides exchanged. Rows are [n, D]; float64, where the published code keeps float16 features and distances.

    Raises ValueError when a side has no k-th neighbour.
    """
    if min(len(real), len(generated)) <= neighbours:
        raise ValueError(f"precision and recall need more than k = {neighbours} images on each side, got {len(real)} and {len(generated)}")
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    precision = _covered_fraction(generated, real, _radii(real, neighbours))
    return precision, _covered_fraction(real, generated, _radii(generated, neighbours))
