# SPDX-License-Identifier: Apache-2.0
"""Images through detectors, once for all that is needed of them, shared among processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from metrics import detectors, statistics
from metrics.image_sets import ImageSource, RealImages
from torch_utils import distributed

# What an evaluator's progress is told to be doing, and what to call it.
STAGES = {
    "real": "Real images",
    "generated": "Generated images",
    "compared": "Images",
    "network": "Images of the network",
    "distances": "Blocks of distances",
}

Progress = Callable[[str, int, int], None]  # what is being done, images done, images in all
Pause = Callable[[bool], None]  # may raise to end the work; its argument: this process is alone in calling it


_speeds: dict[detectors.Detector, float] = {}  # seconds per image


class Need(NamedTuple):
    """What is kept of one detector output over the first `num_images` images of a source."""

    detector: str
    output: str
    keep: str
    num_images: int


class Collector:
    """Runs images through detectors.

    detector: a detector by its name. batch: images at a time, per process. progress: called on process 0.
    pause: called in every process before each of its batches, equally often in all, so that they can agree in
    it to stop.
    """

    def __init__(
        self,
        detector: Callable[[str], detectors.Detector],
        batch: int,
        progress: Progress | None = None,
        pause: Pause | None = None,
    ) -> None:
        self.detector, self.batch, self.progress, self.pause = detector, batch, progress, pause

    def computing(self, done: int, total: int) -> None:
        """Tell of blocks of distances that are computed, and stop if asked to; on process 0 alone."""
        if self.pause is not None:
            self.pause(True)
        if self.progress is not None:
            self.progress("distances", done, total)

    def __call__(self, source: ImageSource, what: str, needs: Sequence[Need]) -> dict[Need, statistics.Store]:
        """The stores of all needs, merged on process 0, partial elsewhere."""
        stores = {
            need: statistics.new_store(need.keep, self.detector(need.detector).dims[need.output])
            for need in needs
        }
        total = max(need.num_images for need in needs)
        batches = [range(start, min(start + self.batch, total)) for start in range(0, total, self.batch)]
        world = distributed.world_size()
        mine = batches[distributed.rank() :: world]
        self._show(what, 0, total)
        with ThreadPoolExecutor(
            max_workers=1
        ) as pool:  # the next batch is read while this one is in the network
            ahead = isinstance(source, RealImages)
            pending = pool.submit(source, mine[0]) if ahead and mine else None
            for position in range(-(-len(batches) // world)):
                if self.pause is not None:
                    self.pause(False)
                if position < len(mine):
                    pixels = pending.result() if pending else source(mine[position])
                    more = ahead and position + 1 < len(mine)
                    pending = pool.submit(source, mine[position + 1]) if more else None
                    self._run(pixels, mine[position], stores)
                    self._show(what, min(total, (position + 1) * self.batch * world), total)
        _merge(stores)
        return stores

    def seconds_per_image(self, name: str, resolution: int) -> float:
        """Measured on two small batches of noise, the second of which counts; once per detector, which
        resizes what it gets.
        """
        network = self.detector(name)
        if network not in _speeds:
            pixels = torch.randint(256, [4, 3, resolution, resolution], dtype=torch.uint8)
            for _ in range(2):
                started = time.monotonic()
                network(pixels)
                _speeds[network] = max(time.monotonic() - started, 1e-9) / len(pixels)
        return _speeds[network]

    def _show(self, what: str, done: int, total: int) -> None:
        if self.progress and distributed.is_main():
            self.progress(what, done, total)

    def _run(self, pixels: Tensor, batch: range, stores: Mapping[Need, statistics.Store]) -> None:
        for name in {need.detector for need in stores}:
            wanted = {
                need: store
                for need, store in stores.items()
                if need.detector == name and need.num_images > batch.start
            }
            if wanted:
                outputs = self.detector(name)(pixels[: max(need.num_images for need in wanted) - batch.start])
                for need, store in wanted.items():
                    indices = range(batch.start, min(batch.stop, need.num_images))
                    store.append(outputs[need.output][: len(indices)].numpy(), indices)


def _merge(stores: Mapping[Need, statistics.Store]) -> None:
    """Bring every process's share to process 0."""
    if distributed.world_size() > 1:
        for store in stores.values():
            for other_rank, other in enumerate(distributed.all_gather_object(store)):
                if distributed.is_main() and other_rank > 0:
                    store.merge(other)
