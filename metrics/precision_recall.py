# SPDX-License-Identifier: Apache-2.0
"""How two feature sets cover each other: precision, recall, density, coverage, and closeness to real images.

All of it needs distances between every pair of rows. They are computed in blocks, in memory that does not
grow with the product of the sizes.

Shapes: n real and m generated rows, D features, k neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

BLOCK_ROWS = 2048  # rows of either side whose distances are held at once: 2048 x 2048 float64 is 32 MiB

Progress = Callable[[int, int], None]  # blocks of distances done, blocks in all


class Steps:
    """Counts blocks for a progress callback."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done = total, progress, 0

    def __call__(self) -> None:
        """One block is done."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


def blocks(count: int) -> list[slice]:
    """Slices of at most BLOCK_ROWS rows."""
    return [slice(start, min(start + BLOCK_ROWS, count)) for start in range(0, count, BLOCK_ROWS)]


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows in float64, each divided by its length."""
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, np.finfo(np.float64).tiny))


def _pairs(count: int) -> Iterator[tuple[slice, slice]]:
    """Every block with itself and with each block after it."""
    parts = blocks(count)
    return ((rows, columns) for i, rows in enumerate(parts) for columns in parts[i:])


@dataclasses.dataclass(frozen=True)
class _Distances:
    """Distances between rows, as exact squares or with the published rounding.

    centre: subtracted from all rows, which leaves distances alone and keeps digits. half: features and radii
    are rounded to float16 and distances to float32, as the published code does; otherwise squares in float64.
    """

    centre: np.ndarray
    half: bool = False

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """[rows of a, rows of b]."""
        if self.half:
            a, b = a.astype(np.float16), b.astype(np.float16)
        a, b = a.astype(np.float64) - self.centre, b.astype(np.float64) - self.centre
        squared = a @ b.T
        squared *= -2
        squared += np.einsum("nd,nd->n", a, a)[:, None]
        squared += np.einsum("nd,nd->n", b, b)
        np.maximum(squared, 0, out=squared)
        return np.asarray(np.sqrt(squared), np.float32) if self.half else squared

    def radii(self, points: np.ndarray, neighbours: int, step: Callable[[], None]) -> np.ndarray:
        """Distance from each point to its k-th nearest other point: [n].

        That is the (k+1)-th smallest, the point itself included. Distances are symmetric: a block serves the
        points of its rows and those of its columns.
        """
        nearest = np.full((len(points), neighbours + 1), np.inf)
        for rows, columns in _pairs(len(points)):
            distances = self(points[rows], points[columns])
            nearest[rows] = _keep_smallest(nearest[rows], distances)
            if rows != columns:
                nearest[columns] = _keep_smallest(nearest[columns], distances.T)
            step()
        radii = nearest.max(axis=1)
        return np.asarray(radii, np.float16) if self.half else radii


def _keep_smallest(nearest: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The k+1 smallest of each row of `nearest` [n, k+1] and `distances` [n, columns] together, unordered."""
    together = np.concatenate([nearest, distances], axis=1)
    width = nearest.shape[1]
    return np.partition(together, width - 1, axis=1)[:, :width]


def _check(what: str, real: np.ndarray, generated: np.ndarray, neighbours: int) -> None:
    if min(len(real), len(generated)) <= neighbours:
        sizes = f"got {len(real)} and {len(generated)}"
        raise ValueError(f"{what} need more than k = {neighbours} images on each side, {sizes}")


def _steps(real: np.ndarray, generated: np.ndarray, progress: Progress | None, both: bool = True) -> Steps:
    """Blocks within the real side, within both if asked, and between them."""
    n, m = (len(blocks(len(rows))) for rows in (real, generated))
    return Steps(n * (n + 1) // 2 + (m * (m + 1) // 2 if both else 0) + n * m, progress)


def precision_recall(
    real: np.ndarray,
    generated: np.ndarray,
    neighbours: int = 3,
    progress: Progress | None = None,
    half: bool = False,
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    Precision is the fraction of generated rows inside the union of balls around real rows, each reaching its
    k-th nearest neighbour; recall is the same with the sides exchanged. Beside the rows themselves about
    0.2 GB is held, however many rows there are. The time grows with (n + m)^2 D.

    Args:
        real: [n, D] of any float type.
        generated: [m, D].
        neighbours: k.
        progress: called as (blocks done, blocks in all).
        half: round as the published code does; by default distances are float64.

    Raises:
        ValueError: a side has no k-th neighbour.
    """
    _check("precision and recall", real, generated, neighbours)
    step = _steps(real, generated, progress)
    distances = _Distances(real.mean(axis=0, dtype=np.float64), half)
    real_radii = distances.radii(real, neighbours, step)
    generated_radii = distances.radii(generated, neighbours, step)
    recalled, precise = np.zeros(len(real), bool), np.zeros(len(generated), bool)
    for rows in blocks(len(real)):
        for columns in blocks(len(generated)):
            between = distances(real[rows], generated[columns])
            precise[columns] |= (between <= real_radii[rows, None]).any(axis=0)
            recalled[rows] |= (between <= generated_radii[columns]).any(axis=1)
            step()
    return float(precise.mean()), float(recalled.mean())


def prdc(
    real: np.ndarray, generated: np.ndarray, neighbours: int = 5, progress: Progress | None = None
) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage (Naeem et al. 2020).

    Density is the mean number of real balls that a generated row lies in, divided by k; coverage is the
    fraction of real balls that hold a generated row. Here a row on the surface of a ball is
    outside of it, as in the authors' code. Arguments and errors as `precision_recall`.
    """
    _check("precision, recall, density and coverage", real, generated, neighbours)
    step = _steps(real, generated, progress)
    distances = _Distances(real.mean(axis=0, dtype=np.float64))
    real_radii = distances.radii(real, neighbours, step)
    generated_radii = distances.radii(generated, neighbours, step)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    holding = np.zeros(len(generated), np.int64)  # real balls that hold each generated row
    for rows in blocks(len(real)):
        for columns in blocks(len(generated)):
            between = distances(real[rows], generated[columns])
            inside = between < real_radii[rows, None]
            holding[columns] += inside.sum(axis=0)
            covered[rows] |= inside.any(axis=1)
            recalled[rows] |= (between < generated_radii[columns]).any(axis=1)
            step()
    density = holding.sum() / (neighbours * len(generated))
    return float((holding > 0).mean()), float(recalled.mean()), float(density), float(covered.mean())


def closer_than_real(real: np.ndarray, generated: np.ndarray, progress: Progress | None = None) -> float:
    """The share of generated rows whose nearest real row is closer to them than to any other real row.

    Copies of training images lie close to them, so a high share hints at memorisation. It is 1 minus the
    authenticity of Alaa et al. 2022. Compare it with the share of held-out real images, which is not 0.

    Args:
        real: [n, D].
        generated: [m, D].
        progress: called as (blocks done, blocks in all).

    Raises:
        ValueError: fewer than 2 real rows, or no generated one.
    """
    if len(real) < 2 or not len(generated):
        raise ValueError(
            "closeness to real images needs 2 real images and 1 generated, "
            f"got {len(real)} and {len(generated)}"
        )
    step = _steps(real, generated, progress, both=False)
    distances = _Distances(real.mean(axis=0, dtype=np.float64))
    radii = distances.radii(real, 1, step)
    nearest, where = np.full(len(generated), np.inf), np.zeros(len(generated), np.int64)
    for rows in blocks(len(real)):
        for columns in blocks(len(generated)):
            between = distances(real[rows], generated[columns])
            place = between.argmin(axis=0)
            found = between[place, np.arange(between.shape[1])]
            better = found < nearest[columns]
            nearest[columns] = np.where(better, found, nearest[columns])
            where[columns] = np.where(better, place + rows.start, where[columns])
            step()
    return float((nearest < radii[where]).mean())
