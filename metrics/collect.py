# SPDX-License-Identifier: Apache-2.0
"""Images through detectors: one pass for all that is needed of them, shared among processes.

The next batch is generated or read by a second thread while this one is in the detectors. A pass with a key
(what its images are) saves its state once a minute (metrics.partial) and resumes from it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metrics import detectors, statistics
from metrics.detector import Detector
from metrics.image_sets import ImageSource
from metrics.partial import Partial
from torch_utils import distributed

# The stages that an evaluator's progress is called with, and their labels.
STAGES = {
    "real": "Real images",
    "generated": "Generated images",
    "compared": "Images",
    "network": "Images of the network",
    "distances": "Blocks of distances",
}

Progress = Callable[[str, int, int], None]  # stage, images done, images in all
Pause = Callable[[bool], None]  # may raise to end the work; its argument: this process is alone in calling it


_speeds: dict[Detector, float] = {}  # seconds per image


class Need(NamedTuple):
    """What is kept of one detector output over the first `num_images` images of a source."""

    detector: str
    output: str
    keep: str
    num_images: int


class Collector:
    """Runs images through detectors.

    Args:
        detector: Returns a detector by its name.
        batch: Images at a time, per process.
        progress: Called on process 0.
        pause: Called in every process before each of its batches, equally often in all, so that they can
            agree in it to stop.
        cache_dir: Where unfinished passes are saved; None = nowhere.
    """

    def __init__(
        self,
        detector: Callable[[str], Detector],
        batch: int,
        progress: Progress | None = None,
        pause: Pause | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self.detector, self.batch, self.progress, self.pause = detector, batch, progress, pause
        self.cache_dir = cache_dir
        self._partials: list[Partial] = []

    def computing(self, done: int, total: int) -> None:
        """Show the blocks of distances that are computed, and stop if asked to; on process 0 alone."""
        if self.pause is not None:
            self.pause(True)
        if self.progress is not None:
            self.progress("distances", done, total)

    def __call__(
        self, source: ImageSource, what: str, needs: Sequence[Need], key: Mapping[str, Any] | None = None
    ) -> dict[Need, statistics.Store]:
        """The stores of all needs, merged on process 0, partial elsewhere.

        Args:
            source: Of the images.
            what: The stage, for progress.
            needs: What to keep.
            key: JSON values: what the images are. None = the pass cannot resume.
        """
        stores = {
            need: statistics.new_store(need.keep, self.detector(need.detector).dims[need.output])
            for need in needs
        }
        total = max(need.num_images for need in needs)
        world = distributed.world_size()
        batches = [range(start, min(start + self.batch, total)) for start in range(0, total, self.batch)]
        mine = batches[distributed.rank() :: world]
        partial = self._partial(key, needs)
        begin = 0 if partial is None else min(partial.restore(stores), len(mine))
        first = min(distributed.all_gather_object(begin))
        self._show(what, min(total, first * self.batch * world), total)
        with detectors.full_float32(), _ahead(source, mine[begin:]) as pixels:
            for position in range(first, -(-len(batches) // world)):
                if self.pause is not None:
                    self.pause(False)
                if begin <= position < len(mine):
                    self._run(next(pixels), mine[position], stores, partial)
                    if partial is not None:
                        partial.save_if_due(stores, position + 1)
                self._show(what, min(total, (position + 1) * self.batch * world), total)
        _merge(stores)
        return stores

    def finished(self) -> None:
        """The results of the passes so far are safe: remove their saved states."""
        for partial in self._partials:
            partial.discard()
        self._partials.clear()

    def interrupted(self) -> None:
        """Release the saved states of unfinished passes, which stay for the next attempt."""
        for partial in self._partials:
            partial.close()
        self._partials.clear()

    def seconds_per_image(self, name: str, resolution: int) -> float:
        """Measured on the second of two small batches of noise, once per detector."""
        network = self.detector(name)
        if network not in _speeds:
            pixels = torch.randint(256, [4, 3, resolution, resolution], dtype=torch.uint8)
            for _ in range(2):
                started = time.monotonic()
                network(pixels)
                _speeds[network] = max(time.monotonic() - started, 1e-9) / len(pixels)
        return _speeds[network]

    def _partial(self, key: Mapping[str, Any] | None, needs: Sequence[Need]) -> Partial | None:
        if key is None:
            return None
        described = [[*need, self.detector(need.detector).description] for need in needs]
        return self.open_partial({"images": key, "needs": described})

    def open_partial(self, key: Mapping[str, Any]) -> Partial | None:
        """Where the state of a pass is saved; None if it cannot be, or if another process uses the place.

        Args:
            key: JSON values: what the result depends on, beside batch and number of processes.
        """
        if self.cache_dir is None:
            return None
        whole = {**key, "batch": self.batch, "processes": distributed.world_size()}
        partial = Partial(self.cache_dir, whole, distributed.rank())
        if not partial.open():
            return None
        self._partials.append(partial)
        return partial

    def _show(self, what: str, done: int, total: int) -> None:
        if self.progress and distributed.is_main():
            self.progress(what, done, total)

    def _run(
        self, pixels: Tensor, batch: range, stores: Mapping[Need, statistics.Store], partial: Partial | None
    ) -> None:
        for name in {need.detector for need in stores}:
            wanted = {
                need: number
                for number, need in enumerate(stores)
                if need.detector == name and need.num_images > batch.start
            }
            if wanted:
                outputs = self.detector(name)(pixels[: max(need.num_images for need in wanted) - batch.start])
                for need, number in wanted.items():
                    indices = range(batch.start, min(batch.stop, need.num_images))
                    rows = outputs[need.output][: len(indices)].numpy()
                    stores[need].append(rows, indices)
                    if partial is not None and need.keep == "array":
                        partial.add(number, rows, indices)


@contextlib.contextmanager
def _ahead(source: ImageSource, batches: Sequence[range]) -> Iterator[Iterator[Tensor]]:
    """The images of batches, each made by a second thread while the caller uses the one before."""
    device = getattr(source, "device", None)

    def start() -> None:
        if device is not None and device.type == "cuda" and device.index is not None:  # one per thread
            torch.cuda.set_device(device)

    with ThreadPoolExecutor(max_workers=1, initializer=start) as pool:

        def images() -> Iterator[Tensor]:
            pending = pool.submit(source, batches[0]) if batches else None
            for following in [*batches[1:], None]:
                if pending is None:
                    return
                ready = pending.result()
                pending = None if following is None else pool.submit(source, following)
                yield ready

        yield images()


def _merge(stores: Mapping[Need, statistics.Store]) -> None:
    """Bring every process's share to process 0."""
    if distributed.world_size() > 1:
        for store in stores.values():
            for other_rank, other in enumerate(distributed.all_gather_object(store)):
                if distributed.is_main() and other_rank > 0:
                    store.merge(other)
