# SPDX-License-Identifier: Apache-2.0
"""Improved precision and recall between feature sets (Kynkäänniemi et al. 2019), in memory that does not grow
with the product of their sizes.

Shapes: n real and m generated rows, D features, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

BLOCK_ROWS = 2048  # rows of either side whose distances are held at once: 2048 x 2048 float64 is 32 MiB

Progress = Callable[[int, int], None]  # blocks of distances done, blocks in all


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + BLOCK_ROWS, count)) for start in range(0, count, BLOCK_ROWS)]


def _squared_distances(a: np.ndarray, b: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """|a_i - b_j|^2, float64 [rows of a, rows of b]. Both are shifted by `centre`, which leaves distances
    alone and keeps digits.
    """
    a, b = a.astype(np.float64) - centre, b.astype(np.float64) - centre
    squared = a @ b.T
    squared *= -2
    squared += np.einsum("nd,nd->n", a, a)[:, None]
    squared += np.einsum("nd,nd->n", b, b)
    return np.maximum(squared, 0, out=squared)


def _keep_smallest(nearest: np.ndarray, squared: np.ndarray) -> np.ndarray:
    """The k+1 smallest of each row of `nearest` [n, k+1] and `squared` [n, columns] together, in any
    order.
    """
    together = np.concatenate([nearest, squared], axis=1)
    width = nearest.shape[1]
    return np.partition(together, width - 1, axis=1)[:, :width]


def _radii(points: np.ndarray, neighbours: int, step: Callable[[], None]) -> np.ndarray:
    """Squared distance from each point to its k-th nearest other point (the (k+1)-th smallest, itself
    included): [n].

    Distances are symmetric: a block serves the points of its rows and those of its columns.
    """
    centre = points.mean(axis=0, dtype=np.float64)
    nearest = np.full((len(points), neighbours + 1), np.inf)
    for rows, columns in _pairs(len(points)):
        squared = _squared_distances(points[rows], points[columns], centre)
        nearest[rows] = _keep_smallest(nearest[rows], squared)
        if rows != columns:
            nearest[columns] = _keep_smallest(nearest[columns], squared.T)
        step()
    return nearest.max(axis=1)


def _pairs(count: int) -> Iterator[tuple[slice, slice]]:
    """Every block with itself and with each block after it."""
    blocks = _blocks(count)
    return ((rows, columns) for i, rows in enumerate(blocks) for columns in blocks[i:])


def precision_recall(
    real: np.ndarray, generated: np.ndarray, neighbours: int = 3, progress: Progress | None = None
) -> tuple[float, float]:
    """Precision: the fraction of generated rows inside the union of balls around real rows, each reaching its
    k-th nearest neighbour; recall: the same with the sides exchanged.

    real, generated: [n, D] and [m, D] of any float type; distances are float64, where the published code
    keeps float16 features and distances. Beside the rows themselves about 0.2 GB is held, however many rows
    there are. The time grows with (n + m)^2 D.

    Raises ValueError when a side has no k-th neighbour.
    """
    if min(len(real), len(generated)) <= neighbours:
        sizes = f"got {len(real)} and {len(generated)}"
        raise ValueError(f"precision and recall need more than k = {neighbours} images on each side, {sizes}")
    sides = [len(_blocks(len(rows))) for rows in (real, generated)]
    total, done = sum(count * (count + 1) // 2 for count in sides) + sides[0] * sides[1], 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    real_radii, generated_radii = _radii(real, neighbours, step), _radii(generated, neighbours, step)
    centre = real.mean(axis=0, dtype=np.float64)
    recalled, precise = np.zeros(len(real), bool), np.zeros(len(generated), bool)
    for rows in _blocks(len(real)):
        for columns in _blocks(len(generated)):
            squared = _squared_distances(real[rows], generated[columns], centre)
            precise[columns] |= (squared <= real_radii[rows, None]).any(axis=0)
            recalled[rows] |= (squared <= generated_radii[columns]).any(axis=1)
            step()
    return float(precise.mean()), float(recalled.mean())
