# SPDX-License-Identifier: Apache-2.0
"""What a step reads: latents or real images, labels, augmentation draws.

A step of B images over P processes runs in rounds. Round r of process p takes the global samples [(r P + p)
b, (r P + p + 1) b) of the step, b = images per round and process. Every draw is a function of (seed, purpose,
images shown, global sample), so neither P nor b changes one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from torch_utils import images, rng
from training.config import TrainConfig
from training.data.dataset import BalancedClasses, sample_indices
from training.discriminator.augment import NUM_DRAWS


@dataclass
class Round:
    """Generated samples of one accumulation round of one process, before they are generated."""

    z: torch.Tensor  # [b, Z]
    labels: torch.Tensor | None  # int64 [b]
    draws: dict[str, torch.Tensor] | None  # backbone -> uniform [b, 7]
    samples: Sequence[int]  # global sample indices within the step


@dataclass
class RealRound:
    """Real samples of one accumulation round of one process."""

    images: torch.Tensor  # [b, 3, R, R] in [-1, 1]
    labels: torch.Tensor | None  # int64 [b]
    draws: dict[str, torch.Tensor] | None  # backbone -> uniform [b, 7]


def round_samples(batch: int, processes: int, rank: int, batch_gpu: int) -> list[list[int]]:
    """Global sample indices of each round of process `rank`."""
    starts = range(rank * batch_gpu, batch, processes * batch_gpu)
    return [list(range(s, min(s + batch_gpu, batch))) for s in starts]


@dataclass
class InputSource:
    """Draws the inputs of every step.

    `labels`: the data set's labels, int64 [n], from which generated samples take theirs (None:
    unconditional). `balanced`: real images and labels of generated ones are drawn evenly over its classes
    instead.
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

    @classmethod
    def of(
        cls,
        cfg: TrainConfig,
        labels: np.ndarray | None,
        z_dim: int,
        device: torch.device,
        processes: int,
        rank: int,
    ) -> InputSource:
        """The inputs of a run in process `rank`. labels: the data set's; None for unconditional training."""
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
        )

    def augment_draws(
        self, purpose: str, nimg: int, samples: Sequence[int]
    ) -> dict[str, torch.Tensor] | None:
        """Uniform draws [b, 7] per backbone, or None without augmentation."""
        if not self.backbones:
            return None
        return {
            name: rng.uniform(self.seed, f"augment/{purpose}/{name}", nimg, samples, (NUM_DRAWS,)).to(
                self.device, non_blocking=True
            )
            for name in self.backbones
        }

    def latents(
        self, purpose: str, nimg: int, samples: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """z [b, Z] and labels [b], drawn from the data set's or evenly."""
        z = rng.normal(self.seed, f"z/{purpose}", nimg, samples, (self.z_dim,)).to(
            self.device, non_blocking=True
        )
        if self.labels is None:
            return z, None
        choice = self.labels if self.balanced is None else self.balanced.classes
        picks = rng.integers(self.seed, f"label/{purpose}", nimg, samples, len(choice))
        return z, torch.from_numpy(choice[picks.numpy()]).to(self.device, non_blocking=True)

    def rounds(self, purpose: str, nimg: int, shrink: int = 1) -> list[Round]:
        """Rounds of generated samples for one phase, equally many and equally large in all processes.

        `shrink` divides the batch (path length regularisation), rounding down to a multiple of the number of
        processes.
        """
        share = max(self.batch // (shrink * self.processes), 1)
        batch_gpu = max(b for b in range(1, max(self.batch_gpu // shrink, 1) + 1) if share % b == 0)
        rounds = []
        for samples in round_samples(share * self.processes, self.processes, self.rank, batch_gpu):
            z, labels = self.latents(purpose, nimg, samples)
            rounds.append(Round(z, labels, self.augment_draws(purpose, nimg, samples), samples))
        return rounds

    def real_rounds(self, nimg: int, pixels: torch.Tensor, labels: torch.Tensor | None) -> list[RealRound]:
        """Rounds of real samples of one step. pixels: uint8 [n, 3, R, R], and labels: int64 [n], of this
        process in the order of `real_indices`.
        """
        rounds = []
        for i, samples in enumerate(round_samples(self.batch, self.processes, self.rank, self.batch_gpu)):
            part = slice(i * self.batch_gpu, (i + 1) * self.batch_gpu)
            x = images.to_float(pixels[part].to(self.device, non_blocking=True))
            c = (
                labels[part].to(self.device, non_blocking=True)
                if self.labels is not None and labels is not None
                else None
            )
            rounds.append(RealRound(x, c, self.augment_draws("real", nimg, samples)))
        return rounds

    def real_indices(self, nimg: int, dataset_size: int) -> Iterator[np.ndarray]:
        """This process's real images, step after step from `nimg` on: data set indices in the order of the
        rounds.
        """
        mine = np.concatenate(round_samples(self.batch, self.processes, self.rank, self.batch_gpu))
        while True:
            yield sample_indices(self.seed, nimg, self.batch, dataset_size, self.balanced)[mine]
            nimg += self.batch
