# SPDX-License-Identifier: Apache-2.0
"""The inputs of a training step: latents or real images, labels, augmentation draws.

A step of B images over P processes is split into micro-batches of b images per process. Micro-batch i of
process p takes the global samples [(i P + p) b, (i P + p + 1) b) of the step. Every draw is a function of
(seed, purpose, images shown, global sample), so the draws do not depend on P or b.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from torch_utils import devices, images, rng
from training.config import TrainConfig
from training.data.dataset import BalancedClasses, ClassRuns, EpochOrder, sample_indices
from training.discriminator.augment import NUM_DRAWS
from training.discriminator.discriminator import BACKGROUND


class MicroBatch(NamedTuple):
    """The generated samples of one micro-batch of one process, before the generator runs."""

    z: torch.Tensor  # [b, Z]
    labels: torch.Tensor | None  # int64 [b]
    draws: dict[str, torch.Tensor] | None  # backbone -> uniform [b, 7]; BACKGROUND -> uniform [b, 3]
    samples: Sequence[int]  # global sample indices within the step


class RealMicroBatch(NamedTuple):
    """The real samples of one micro-batch of one process."""

    images: torch.Tensor  # [b, C, R, R] in [-1, 1]
    labels: torch.Tensor | None  # int64 [b]
    draws: dict[str, torch.Tensor] | None  # as in MicroBatch


def micro_batch_samples(batch: int, processes: int, rank: int, batch_gpu: int) -> list[list[int]]:
    """Return the global sample indices of each micro-batch of process `rank`."""
    starts = range(rank * batch_gpu, batch, processes * batch_gpu)
    return [list(range(s, min(s + batch_gpu, batch))) for s in starts]


@dataclass
class InputSource:
    """Draws the inputs of every step.

    Attributes:
        labels: Labels of the data set, int64 [n]. The labels of generated samples are drawn from them. None =
            unconditional.
        backbones: Names of the backbones that get augmentation draws. Empty = no augmentation.
        balanced: Draw real images and the labels of generated images evenly over these classes. None = as
            often as the data set has them.
        class_run: Consecutive real images that share a class.
        alpha: Images have an alpha channel: draw a background colour for each.
    """

    seed: int
    z_dim: int
    labels: np.ndarray | None
    backbones: tuple[str, ...]  # empty: no augmentation
    device: torch.device
    batch: int
    processes: int
    rank: int
    batch_gpu: int
    balanced: BalancedClasses | None = None
    class_run: int = 1
    alpha: bool = False

    @classmethod
    def of(
        cls,
        cfg: TrainConfig,
        labels: np.ndarray | None,
        z_dim: int,
        device: torch.device,
        processes: int,
        rank: int,
        alpha: bool = False,
    ) -> InputSource:
        """Return the inputs of a run in process `rank`.

        Args:
            cfg: Configuration of the run.
            labels: Labels of the data set, int64 [n]; None for unconditional training.
            z_dim: Number of latent dimensions.
            device: Device of this process.
            processes: Number of processes.
            rank: Index of this process.
            alpha: The images have an alpha channel.
        """
        return cls(
            seed=cfg.run.seed,
            z_dim=z_dim,
            labels=labels,
            backbones=cfg.discriminator.backbones if cfg.discriminator.augment else (),
            device=device,
            batch=cfg.run.batch,
            processes=processes,
            rank=rank,
            batch_gpu=cfg.batch_gpu,
            balanced=BalancedClasses(labels) if cfg.data.balanced and labels is not None else None,
            class_run=cfg.data.class_run,
            alpha=alpha,
        )

    def augment_draws(
        self, purpose: str, nimg: int, samples: Sequence[int]
    ) -> dict[str, torch.Tensor] | None:
        """Return uniform draws [b, 7] per backbone, and [b, 3] for backgrounds; None without any."""
        if not self.backbones and not self.alpha:
            return None
        widths = dict.fromkeys(self.backbones, NUM_DRAWS) | ({BACKGROUND: 3} if self.alpha else {})
        return {
            name: devices.upload(
                rng.uniform(self.seed, f"augment/{purpose}/{name}", nimg, samples, (width,)), self.device
            )
            for name, width in widths.items()
        }

    def latents(
        self, purpose: str, nimg: int, samples: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw latents z [b, Z] and labels [b]: from the data set, or evenly from its classes."""
        z = devices.upload(rng.normal(self.seed, f"z/{purpose}", nimg, samples, (self.z_dim,)), self.device)
        if self.labels is None:
            return z, None
        choice = self.labels if self.balanced is None else self.balanced.classes
        picks = rng.integers(self.seed, f"label/{purpose}", nimg, samples, len(choice))
        return z, devices.upload(torch.from_numpy(choice[picks.numpy()]), self.device)

    def micro_batches(self, purpose: str, nimg: int, shrink: int = 1) -> list[MicroBatch]:
        """Return the micro-batches of generated samples for one phase.

        All processes get the same number of micro-batches, of the same size.

        Args:
            purpose: Name of the phase, part of the random key.
            nimg: Images shown before the step.
            shrink: Divisor of the batch (path length regularisation). The result is rounded down to a
                multiple of the number of processes.
        """
        share = max(self.batch // (shrink * self.processes), 1)
        batch_gpu = max(b for b in range(1, max(self.batch_gpu // shrink, 1) + 1) if share % b == 0)
        micro_batches = []
        for samples in micro_batch_samples(share * self.processes, self.processes, self.rank, batch_gpu):
            z, labels = self.latents(purpose, nimg, samples)
            micro_batches.append(MicroBatch(z, labels, self.augment_draws(purpose, nimg, samples), samples))
        return micro_batches

    def real_micro_batches(
        self, nimg: int, pixels: torch.Tensor, labels: torch.Tensor | None
    ) -> list[RealMicroBatch]:
        """Return the micro-batches of real samples for one step.

        Args:
            nimg: Images shown before the step.
            pixels: Images of this process, uint8 [n, C, R, R], in the order of `real_indices`.
            labels: Their labels, int64 [n], or None.
        """
        micro_batches = []
        for i, samples in enumerate(
            micro_batch_samples(self.batch, self.processes, self.rank, self.batch_gpu)
        ):
            part = slice(i * self.batch_gpu, (i + 1) * self.batch_gpu)
            x = images.to_float(devices.upload(pixels[part], self.device))
            c = (
                devices.upload(labels[part], self.device)
                if self.labels is not None and labels is not None
                else None
            )
            micro_batches.append(RealMicroBatch(x, c, self.augment_draws("real", nimg, samples)))
        return micro_batches

    @functools.cached_property
    def _order(self) -> EpochOrder | None:
        """The epochs of real images; None = permutations of the data set."""
        if self.labels is None or self.class_run == 1:
            return self.balanced
        return ClassRuns(self.labels, self.class_run, self.balanced)

    def real_indices(self, nimg: int, dataset_size: int) -> Iterator[np.ndarray]:
        """Yield the data set indices of this process's real images, one array per step, from `nimg` on.

        The order is that of the micro-batches.
        """
        mine = np.concatenate(micro_batch_samples(self.batch, self.processes, self.rank, self.batch_gpu))
        while True:
            yield sample_indices(self.seed, nimg, self.batch, dataset_size, self._order)[mine]
            nimg += self.batch
