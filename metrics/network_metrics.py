# SPDX-License-Identifier: Apache-2.0
"""Metrics that need the network itself: what they use of it, and how processes share the work.

A metric of images works on any callable. Path length and equivariance take a latent through the mapping
network, change the result or the input transform, and run the synthesis network. `StyleNetwork` is all that
they use; generation.measures.MeasuredGenerator provides it for our generators.

Shapes: N batch, Z width of z, W width of w, L styles per image, R resolution.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from metrics.image_sets import GeneratedImages
from metrics.partial import Partial
from metrics.statistics import FeatureArray
from torch_utils import distributed


@runtime_checkable
class StyleNetwork(Protocol):
    """A generator with a mapping network, a synthesis network and an input transform."""

    z_dim: int
    c_dim: int

    def styles(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Latents [N, Z] and labels int64 [N] to styles [N, L, W]."""
        ...

    def synthesize(self, styles: Tensor) -> Tensor:
        """Styles [N, L, W] to float32 images [N, C, R, R] in [-1, 1], computed in float32 throughout."""
        ...

    def transformed(self, matrix: Tensor) -> contextlib.AbstractContextManager[None]:
        """Within, the synthesis input is transformed by a 3x3 matrix: pixel p shows what was at matrix @ p.

        Raises ValueError if the network has no input transform.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network metric measures.

    Args:
        network: the generator.
        images: draws latents and labels, each a function of (seed, sample).
        num_gen: samples, or pairs of them.
        batch: images at a time, per process.
        detector: a detector by its name.
        progress: called as ("network", done, total) on process 0.
        pause: called as (False) in every process before each of its batches, equally often in all.
        open_partial: returns where the rows of an unfinished measurement are saved, None for nowhere.
    """

    network: StyleNetwork
    images: GeneratedImages
    num_gen: int
    batch: int
    detector: Callable[[str], Any]
    progress: Callable[[str, int, int], None] | None = None
    pause: Callable[[bool], None] | None = None
    open_partial: Callable[[], Partial | None] | None = None

    @property
    def seed(self) -> int:
        """Seed of every draw."""
        return self.images.seed

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.images.device

    def latents(self, samples: Sequence[int], purpose: str = "metrics/z") -> tuple[Tensor, Tensor | None]:
        """Latents z [N, Z] and labels [N] (None without classes) of samples, on the network's device."""
        labels = self.images.labels(samples)
        z = self.images.latents(samples, purpose)
        return z, None if labels is None else labels.to(self.device)

    def rows(self, group: int, width: int, work: Callable[[range], np.ndarray]) -> np.ndarray:
        """What `work` returns for each group of samples, in their order: float64 [rows, K], in every process.

        A measurement that was killed resumes where it was saved last.

        Args:
            group: Samples per call; the last call may get fewer. Groups go to processes in turn.
            width: K.
            work: Samples to float64 [n, K], n at most the number of samples.
        """
        groups = [range(i, min(i + group, self.num_gen)) for i in range(0, self.num_gen, group)]
        rank, world = distributed.rank(), distributed.world_size()
        mine, store = groups[rank::world], FeatureArray(width, np.float64)
        stores = {"rows": store}
        partial = None if self.open_partial is None else self.open_partial()
        begin = 0 if partial is None else min(partial.restore(stores), len(mine))
        for turn in range(min(distributed.all_gather_object(begin)), -(-len(groups) // world)):
            if self.pause is not None:
                self.pause(False)
            if begin <= turn < len(mine):
                with torch.no_grad():
                    found = np.asarray(work(mine[turn]), np.float64)
                indices = range(mine[turn].start, mine[turn].start + len(found))
                store.append(found, indices)
                if partial is not None:
                    partial.add(0, found, indices)
                    partial.save_if_due(stores, turn + 1)
            if self.progress is not None and distributed.is_main():
                self.progress("network", min((turn + 1) * world * group, self.num_gen), self.num_gen)
        for other_rank, other in enumerate(distributed.all_gather_object(store)):
            if other_rank != rank:
                store.merge(other)
        return store.array


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a network metric found.

    Attributes:
        rows: Float64 [n, K], one for each independent draw: a pair of images, or a group with one transform.
        compute: Rows to numbers by what follows the metric's name in the results.
    """

    rows: np.ndarray
    compute: Callable[[np.ndarray], dict[str, float]]


def as_network(generator: Any, metric: str) -> StyleNetwork:
    """The generator, if a network metric can measure it. Raises ValueError if it makes images only."""
    if not isinstance(generator, StyleNetwork):
        raise ValueError(
            f"metric {metric} needs a StyleGAN network: its mapping, synthesis and input transform; it "
            "cannot measure images or another kind of generator"
        )
    return generator
