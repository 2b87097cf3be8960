# SPDX-License-Identifier: Apache-2.0
"""What an unfinished pass over images has accumulated, on disk, so that a killed evaluation resumes.

A pass has a folder named after everything that its result depends on. Each process keeps its own files there:
a state with the moments so far and the position, and the feature rows since the state before. Every file is
written whole or not at all, and a state counts rows files only after they are complete. Losing the folder
costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import dnnlib.util
from dnnlib import bounded, trust
from dnnlib.locks import Lock
from metrics import statistics

VERSION = 1
SAVE_SECONDS = 60.0  # of work that a kill may lose
KEPT_SECONDS = 7 * 86400.0  # after which the folder of an abandoned pass is removed
_FOLDER = "partial"
_MAX_BYTES = 2**34  # of one file

Stores = Mapping[Any, statistics.Store]


class Partial:
    """The files of one process for one pass.

    Args:
        cache_dir: Of metrics; the pass gets a folder in it.
        key: JSON values: what the result depends on.
        rank: Of this process.
        now: Clock in seconds.
    """

    def __init__(
        self,
        cache_dir: Path,
        key: Mapping[str, Any],
        rank: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.key = json.loads(json.dumps({**key, "version": VERSION}))
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = cache_dir / _FOLDER / digest
        self.rank, self.now = rank, now
        self._saved_at = now()
        self._parts = 0  # files of rows that the state counts
        self._rows: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # since then, by the store's number
        self._lock: Lock | None = None

    def open(self) -> bool:
        """Reserve the files for this process. False if another one works on the same pass, or on errors."""
        try:
            trust.make_private(self.folder)
            remove_abandoned(self.folder.parent, keep=self.folder)
            lock = Lock(self.folder / f"rank{self.rank}.lock")
            if not lock.acquire():
                return False
        except OSError:
            return False
        self._lock = lock
        return True

    def restore(self, stores: Stores) -> int:
        """Fill empty stores with what was saved.

        Returns:
            The number of this process's batches that they then hold; 0 where nothing usable was saved.
        """
        try:
            position, states = self._read(stores)
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
            self._remove_files()
            return 0
        for store, saved in zip(stores.values(), states, strict=True):
            store.merge(saved)  # type: ignore[arg-type]
        return position

    def add(self, number: int, rows: np.ndarray, indices: range) -> None:
        """Remember feature rows that were added to the store of that number."""
        self._rows.setdefault(number, []).append((rows, np.asarray(indices, np.int64)))

    def save_if_due(self, stores: Stores, position: int) -> None:
        """Save what `position` batches gave, once a minute. Errors end the saving with a warning."""
        if self.now() - self._saved_at < SAVE_SECONDS or self._lock is None:
            return
        try:
            self._save(stores, position)
        except OSError as error:
            self.discard()
            warnings.warn(
                f"{self.folder}: the state of this evaluation cannot be saved ({error.strerror or error}); a "
                "killed evaluation will start again",
                stacklevel=2,
            )
        self._saved_at = self.now()

    def close(self) -> None:
        """Release the files; what was saved stays."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def discard(self) -> None:
        """Remove what was saved, and the folder if no other process uses it."""
        if self._lock is not None:
            self._remove_files()
            self.close()
            with contextlib.suppress(OSError):
                (self.folder / f"rank{self.rank}.lock").unlink()
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                self.folder.parent.rmdir()

    def _save(self, stores: Stores, position: int) -> None:
        if self._rows:
            content = {}
            for number, added in self._rows.items():
                content[f"{number}_rows"] = np.concatenate([rows for rows, _ in added])
                content[f"{number}_indices"] = np.concatenate([indices for _, indices in added])
            with dnnlib.util.atomic_write(self._part(self._parts)) as file:
                np.savez(file, **content)  # type: ignore[arg-type]
        parts = self._parts + bool(self._rows)
        state = {"position": np.asarray(position), "parts": np.asarray(parts)}
        for number, store in enumerate(stores.values()):
            if isinstance(store, statistics.Moments):
                # a copy: writing the pending rows of the store itself into its moments would change its
                # rounding
                moments = copy.deepcopy(store).arrays()
                state |= {f"{number}_{name}": array for name, array in moments.items()}
        with dnnlib.util.atomic_write(self._state()) as file:
            np.savez(file, key=np.asarray(json.dumps(self.key, sort_keys=True)), **state)  # type: ignore[arg-type]
        self._parts, self._rows = parts, {}

    def _read(self, stores: Stores) -> tuple[int, list[statistics.Store]]:
        """Position and one store for each of `stores`. Raises whatever a damaged file makes it raise."""
        state = bounded.read_npz(self._state(), _MAX_BYTES)
        if json.loads(str(state["key"])) != self.key:
            raise ValueError("another pass")
        parts = int(state["parts"])
        rows = [bounded.read_npz(self._part(i), _MAX_BYTES) for i in range(parts)]
        found: list[statistics.Store] = []
        for number, store in enumerate(stores.values()):
            if isinstance(store, statistics.Moments):
                content = {name: state[f"{number}_{name}"] for name in ("count", "mean", "scatter")}
                found.append(statistics.Moments.from_arrays(content))
            else:
                array = statistics.FeatureArray(store.dim, store.dtype)
                for part in rows:
                    if f"{number}_rows" in part:
                        array.append(part[f"{number}_rows"], part[f"{number}_indices"])
                found.append(array)
            if found[-1].dim != store.dim:
                raise ValueError("another width")
        self._parts = parts
        return int(state["position"]), found

    def _state(self) -> Path:
        return self.folder / f"rank{self.rank}.npz"

    def _part(self, number: int) -> Path:
        return self.folder / f"rank{self.rank}-{number:06d}.npz"

    def _remove_files(self) -> None:
        self._parts, self._rows = 0, {}
        for path in (self._state(), *self.folder.glob(f"rank{self.rank}-*.npz")):
            with contextlib.suppress(OSError):
                path.unlink()


def remove_abandoned(folder: Path, keep: Path, now: Callable[[], float] = time.time) -> None:
    """Remove the folders of passes that nobody has worked on for a week.

    Args:
        folder: With a folder for each pass.
        keep: The one that is about to be used.
        now: Seconds since the epoch.
    """
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if (
                path != keep
                and now() - max(os.stat(p).st_mtime for p in (path, *path.iterdir())) > KEPT_SECONDS
            ):
                shutil.rmtree(path)
