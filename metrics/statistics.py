# SPDX-License-Identifier: Apache-2.0
"""What is kept of an image set's features: two moments (`Moments`) or all rows (`FeatureArray`).

Both take rows with their global sample indices, both merge with another of their kind (several processes),
and both are saved as one .npz with a JSON description of what was measured. Sums are float64. Moments need
memory that does not grow with the number of images; large feature arrays are memory-mapped temporary files.

Shapes: n rows (images), D features.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dnnlib.util
from dnnlib import bounded

# rows gathered before a covariance update: large enough for a fast product, and independent of the caller's
# batch size
_BLOCK_ROWS = 256
MAX_BYTES_IN_MEMORY = 2**30  # of one FeatureArray; what is beyond lies in temporary files


def _as_rows(features: np.ndarray, dim: int | None) -> np.ndarray:
    rows = np.asarray(features)
    if rows.ndim != 2 or (dim is not None and rows.shape[1] != dim):
        raise ValueError(
            f"features must be [n, {'D' if dim is None else dim}], got an array of shape {list(rows.shape)}"
        )
    if not np.isfinite(rows).all():
        raise ValueError("features hold NaN or Inf: the images or the detector's weights are broken")
    return rows


class Moments:
    """Streaming mean and covariance of feature rows in float64.

    Batches are combined by the pairwise update of Chan, Golub and LeVeque (1983), which does not lose digits
    when the mean is large against the spread. `covariance` is divided by n, as the published FID code does.
    """

    def __init__(self, dim: int) -> None:
        self.dim = int(dim)
        self._count = 0
        self._mean = np.zeros(dim, np.float64)  # [D]
        self._scatter = np.zeros((dim, dim), np.float64)  # [D, D] sum of (x - mean)(x - mean)^T
        self._pending: list[np.ndarray] = []
        self._num_pending = 0

    def __len__(self) -> int:
        return self._count + self._num_pending

    def append(self, features: np.ndarray, indices: Sequence[int] | np.ndarray | None = None) -> None:
        """Add rows [n, D]. `indices` has no effect: the order of rows does not matter here."""
        rows = _as_rows(features, self.dim)
        if not len(rows):
            return
        self._pending.append(rows.astype(np.float64))
        self._num_pending += len(rows)
        if self._num_pending >= _BLOCK_ROWS:
            rows = np.concatenate(self._pending)
            whole = len(rows) - len(rows) % _BLOCK_ROWS
            for start in range(0, whole, _BLOCK_ROWS):
                self._add_block(rows[start : start + _BLOCK_ROWS])
            self._pending = [rows[whole:]]
            self._num_pending = len(rows) - whole

    def _flush(self) -> None:
        if self._num_pending:
            self._add_block(np.concatenate(self._pending))
        self._pending, self._num_pending = [], 0

    def _add_block(self, rows: np.ndarray) -> None:
        mean = rows.mean(axis=0)
        centred = rows - mean
        self._combine(len(rows), mean, centred.T @ centred)

    def _combine(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        """Chan et al. 1983: S = S_a + S_b + n_a n_b / (n_a + n_b) (m_b - m_a)(m_b - m_a)^T."""
        total = self._count + count
        shift = mean - self._mean
        self._scatter += scatter
        if self._count:
            self._scatter += np.outer(shift, shift * (self._count * count / total))
        self._mean = self._mean + shift * (count / total)
        self._count = total

    def merge(self, other: Moments) -> None:
        """Add another process's rows. Raises ValueError if the feature widths differ."""
        if other.dim != self.dim:
            raise ValueError(f"cannot merge {other.dim}-wide statistics into {self.dim}-wide ones")
        self._flush()
        other._flush()
        if other._count:
            self._combine(other._count, other._mean, other._scatter)

    @property
    def mean(self) -> np.ndarray:
        """[D] float64."""
        self._flush()
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """[D, D] float64, divided by n. Raises ValueError when no row was added."""
        self._flush()
        if not self._count:
            raise ValueError("no features were added: there is no covariance")
        return self._scatter / self._count

    @property
    def unbiased_covariance(self) -> np.ndarray:
        """[D, D] float64, divided by n - 1, as torch-fidelity and pytorch-fid do.

        Raises:
            ValueError: there are fewer than two rows.
        """
        self._flush()
        if self._count < 2:
            raise ValueError(f"the unbiased covariance needs at least 2 images, got {self._count}")
        return self._scatter / (self._count - 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes."""
        self._flush()
        return {"count": np.asarray(self._count, np.int64), "mean": self._mean, "scatter": self._scatter}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Moments:
        """A store from what `arrays` returned. Raises ValueError or KeyError for anything else."""
        stats = cls(len(arrays["mean"]))
        stats._count = int(arrays["count"])
        stats._mean = np.asarray(arrays["mean"], np.float64)
        stats._scatter = np.asarray(arrays["scatter"], np.float64)
        if stats._scatter.shape != (stats.dim, stats.dim):
            raise ValueError(
                f"scatter matrix has shape {list(stats._scatter.shape)}, expected {[stats.dim, stats.dim]}"
            )
        return stats


def _mapped(count: int, dim: int, dtype: type[np.floating[Any]] = np.float32) -> np.ndarray:
    """[count, dim] in a temporary file without a name, which disappears with the array.

    Raises:
        OSError: the disk has no room for it.
    """
    size = count * dim * np.dtype(dtype).itemsize
    with tempfile.TemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk fails here, not at a later access
        except OSError as error:
            raise OSError(
                error.errno,
                f"{tempfile.gettempdir()} has no room for {size / 2**30:.1f} GiB of features "
                f"({error.strerror}): set TMPDIR to a folder on another disk",
            ) from None
        return np.memmap(file, dtype, "r+", shape=(count, dim)).view(np.ndarray)


def _new_rows(count: int, dim: int, dtype: type[np.floating[Any]]) -> np.ndarray:
    """[count, dim], in memory if it is small enough."""
    if count * dim * np.dtype(dtype).itemsize > MAX_BYTES_IN_MEMORY:
        return _mapped(count, dim, dtype)
    return np.empty((count, dim), dtype)


class FeatureArray:
    """Keeps every feature row with its sample index.

    Rows beyond MAX_BYTES_IN_MEMORY go to temporary files, which the system maps into memory as needed.

    Args:
        dim: D.
        dtype: Of the rows.
    """

    def __init__(self, dim: int, dtype: type[np.floating[Any]] = np.float32) -> None:
        self.dim, self.dtype = int(dim), dtype
        self._num_in_memory = 0  # rows at the end of the list that are not in a file
        self._rows: list[np.ndarray] = []
        self._indices: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(len(x) for x in self._indices)

    def append(self, features: np.ndarray, indices: Sequence[int] | np.ndarray | None = None) -> None:
        """Add rows [n, D] of the samples `indices` (default: numbered on from the rows held)."""
        rows = _as_rows(features, self.dim)
        numbers = (
            np.arange(len(self), len(self) + len(rows)) if indices is None else np.asarray(indices, np.int64)
        )
        if len(numbers) != len(rows):
            raise ValueError(f"{len(rows)} feature rows came with {len(numbers)} sample indices")
        self._rows.append(rows.astype(self.dtype))
        self._indices.append(numbers.astype(np.int64))
        self._num_in_memory += len(rows)
        if self._num_in_memory * self.dim * self._rows[-1].itemsize > MAX_BYTES_IN_MEMORY:
            self._move_to_file()

    def _move_to_file(self) -> None:
        """Move the rows that are in memory to a temporary file."""
        part, end = _mapped(self._num_in_memory, self.dim, self.dtype), self._num_in_memory
        while end:
            rows = self._rows.pop()
            part[end - len(rows) : end] = rows
            end -= len(rows)
        self._rows.append(part)
        numbers = np.concatenate(self._indices)
        parts = np.cumsum([len(rows) for rows in self._rows])[:-1]
        self._indices, self._num_in_memory = np.split(numbers, parts), 0

    def merge(self, other: FeatureArray) -> None:
        """Add another process's rows. Raises ValueError if the feature widths differ."""
        if other.dim != self.dim:
            raise ValueError(f"cannot merge {other.dim}-wide features into {self.dim}-wide ones")
        for rows, numbers in zip(other._rows, other._indices, strict=True):
            self.append(rows, numbers)

    @property
    def array(self) -> np.ndarray:
        """[n, D] in the order of the sample indices, whichever process or batch computed them.

        Not to be written to. The parts are put in order once and then kept as this one array, so that a large
        set is held twice for a moment only.
        """
        if not self._rows:
            return np.zeros((0, self.dim), self.dtype)
        if len(self._rows) > 1:
            numbers = np.concatenate(self._indices)
            order = np.argsort(numbers, kind="stable")
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            rows, start = _new_rows(len(order), self.dim, self.dtype), 0
            for part in self._rows:
                rows[place[start : start + len(part)]] = part
                start += len(part)
            self._rows, self._indices, self._num_in_memory = [rows], [numbers[order]], 0
        elif (np.diff(self._indices[0]) < 0).any():
            order = np.argsort(self._indices[0], kind="stable")
            self._rows, self._indices = [self._rows[0][order]], [self._indices[0][order]]
        return self._rows[0]

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes."""
        rows = self.array
        return {"rows": rows, "indices": self._indices[0] if self._indices else np.zeros(0, np.int64)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> FeatureArray:
        """A store from what `arrays` returned. Raises ValueError or KeyError for anything else."""
        store = cls(arrays["rows"].shape[1])
        store.append(arrays["rows"], arrays["indices"])
        return store


Store = Moments | FeatureArray
_KINDS: dict[str, type[Moments] | type[FeatureArray]] = {"moments": Moments, "array": FeatureArray}


def new_store(kind: str, dim: int) -> Store:
    """An empty store of the kind 'moments' or 'array' for features of width `dim`."""
    return _KINDS[kind](dim)


def save(path: str | Path, store: Store, description: dict[str, Any]) -> None:
    """Write a store with a JSON description of what it was measured on, atomically."""
    kind = "moments" if isinstance(store, Moments) else "array"
    text = np.asarray(json.dumps(description, sort_keys=True))
    with dnnlib.util.atomic_write(path) as f:
        np.savez(f, kind=np.asarray(kind), description=text, **store.arrays())  # type: ignore[arg-type]


def load(path: str | Path) -> tuple[Store, dict[str, Any]]:
    """Read what `save` wrote: (store, description).

    Raises:
        ValueError: the file is damaged or not of this kind; one line.
    """
    try:
        arrays = bounded.read_npz(path)
        return _KINDS[str(arrays["kind"])].from_arrays(arrays), json.loads(str(arrays["description"]))
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not hold feature statistics ({error})") from None
