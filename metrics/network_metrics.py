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
    """

    network: StyleNetwork
    images: GeneratedImages
    num_gen: int
    batch: int
    detector: Callable[[str], Any]
    progress: Callable[[str, int, int], None] | None = None
    pause: Callable[[bool], None] | None = None

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

    def rows(self, group: int, work: Callable[[range], np.ndarray]) -> np.ndarray:
        """What `work` returns for each group of samples, in their order: float64 [rows, K], in every process.

        group: samples per call; the last call may get fewer. Groups go to processes in turn.
        """
        groups = [range(i, min(i + group, self.num_gen)) for i in range(0, self.num_gen, group)]
        rank, world = distributed.rank(), distributed.world_size()
        mine: list[np.ndarray] = []
        for turn in range(-(-len(groups) // world)):
            if self.pause is not None:
                self.pause(False)
            if turn * world + rank < len(groups):
                with torch.no_grad():
                    mine.append(np.asarray(work(groups[turn * world + rank]), np.float64))
                if self.progress is not None and distributed.is_main():
                    self.progress("network", min((turn + 1) * world * group, self.num_gen), self.num_gen)
        parts = distributed.all_gather_object(mine)
        return np.concatenate([parts[i % world][i // world] for i in range(len(groups))])


def as_network(generator: Any, metric: str) -> StyleNetwork:
    """The generator, if a network metric can measure it. Raises ValueError if it makes images only."""
    if not isinstance(generator, StyleNetwork):
        raise ValueError(
            f"metric {metric} needs a StyleGAN network: its mapping, synthesis and input transform; it "
            "cannot measure images or another kind of generator"
        )
    return generator
