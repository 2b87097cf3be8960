# SPDX-License-Identifier: Apache-2.0
"""How many images a round can have: what --batch-gpu=auto decides before a run begins.

On a GPU by trial: rounds of networks of the run's plan, from the largest down, until they fit in every
process. Elsewhere, where a process that asks for too much is killed without an error, and in plans, by the
estimate and the memory that is free. The number goes into the run's options, so that a run which goes on asks
no more.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

from torch_utils import devices, distributed, memory, rng, training_stats
from training import build, steps
from training.config import TrainConfig
from training.data.dataset import ImageDataset
from training.generator import Generator
from training.inputs import InputSource
from training.networks.stems import Lineage
from training.run import plan
from training.state import TrainState

TRIAL_ROUNDS = 2  # of each step: the second meets the gradients of the first
MARGIN, MIN_MARGIN_BYTES = (
    0.05,
    2**29,
)  # of a GPU's memory, that a trial leaves free: for fragmentation, metrics, pictures
HOST_MARGIN = 0.1  # of the free memory; the estimate is a rough one


@dataclass(frozen=True)
class Choice:
    """Images per round and process, and why."""

    batch_gpu: int
    why: str

    def line(self, cfg: TrainConfig) -> str:
        """What the user is told."""
        share = cfg.run.batch // cfg.run.gpus
        return (
            f"--batch-gpu=auto: {self.batch_gpu} of a process's {share} images per round "
            f"({self.why}{_statistics_note(cfg, self.batch_gpu)})"
        )


def settled(cfg: TrainConfig, batch_gpu: int) -> TrainConfig:
    """The configuration with its number in place of `auto`."""
    return cfg.override({"run.batch_gpu": batch_gpu})


def candidates(share: int, group: int) -> list[int]:
    """Divisors of a process's share of the batch, the largest first: before others, multiples of the heads'
    group, which give the same results.
    """
    divisors = [n for n in range(share, 0, -1) if share % n == 0]
    return sorted(
        divisors, key=lambda n: bool(group) and n % group != 0
    )  # sorted() keeps the order among equals


def _statistics_note(cfg: TrainConfig, n: int) -> str:
    group, share = cfg.discriminator.bn_group, cfg.run.batch // cfg.run.gpus
    same = n == share or (group > 0 and n % group == 0)
    return (
        ""
        if same
        else f"; the heads' batch statistics are over these {n}, so another number is another result"
    )


def largest(cfg: TrainConfig, fits: Callable[[int], bool]) -> tuple[int, int | None]:
    """(the first candidate that fits, the one before it that did not or None).

    Raises:
        ValueError: none fits.
    """
    refused = None
    for n in candidates(cfg.run.batch // cfg.run.gpus, cfg.discriminator.bn_group):
        if fits(n):
            return n, refused
        refused = n
    raise ValueError(
        "--batch-gpu=auto: not even one image per round fits into memory: lower --cbase or --cmax, or use a "
        "device with more memory"
    )


def by_estimate(
    cfg: TrainConfig, G: Generator, d_params: int, backbone_params: int, device: torch.device
) -> Choice:
    """The largest rounds whose estimated memory is free now. G, d_params and backbone_params: as for
    `plan.estimate_memory_gb`.

    Under torchrun every process asks, and that with the least memory decides.
    """
    sharing = 1 if device.type == "cuda" else distributed.processes_here(cfg.run.gpus)
    free = min(distributed.all_gather_object(memory.free_bytes(device) / sharing / 2**30))

    def need(n: int) -> float:
        return plan.estimate_memory_gb(settled(cfg, n), G, d_params, backbone_params)

    n, refused = largest(cfg, lambda n: need(n) <= free * (1 - HOST_MARGIN))
    more = f", {refused} would need {need(refused):.2f}" if refused else ""
    return Choice(n, f"estimated {need(n):.2f} GiB of {free:.2f} GiB that are free per process{more}")


def planned(cfg: TrainConfig, G: Generator, d_params: int, backbone_params: int) -> Choice:
    """What --dry-run shows: the estimate on this machine, which need not be the one that trains."""
    try:
        device = devices.pick_device(cfg.run.device)
    except ValueError:
        device = torch.device("cpu")
    try:
        choice = by_estimate(cfg, G, d_params, backbone_params, device)
    except ValueError:
        choice = Choice(1, "by the estimate, not even one fits into what is free")
    return Choice(choice.batch_gpu, f"{choice.why} here and now; on a GPU the run will try for itself")


def by_trial(
    cfg: TrainConfig, dataset: ImageDataset, device: torch.device, lineage: Lineage | None = None
) -> Choice:
    """The largest rounds that every process can train on its device. The networks of the trial are its own,
    and are gone when it ends.

    Raises:
        ValueError: none fits. Whatever else stops a training step.
    """
    trial = Trial(cfg, dataset, device, lineage)
    n, refused = largest(cfg, trial.fits)
    del trial
    _free_cached(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Choice(
        n, f"tried on {cfg.run.gpus} x {name}" + (f"; {refused} ran out of memory" if refused else "")
    )


class Trial:
    """Training steps on networks of the run's plan, which belong to nobody else. Leaves random states and
    statistics of the process as they were.
    """

    def __init__(
        self, cfg: TrainConfig, dataset: ImageDataset, device: torch.device, lineage: Lineage | None = None
    ) -> None:
        # Path length regularisation in every step: it takes the most memory. What the weights are makes no
        # difference.
        self.cfg = cfg.override({"loss.pl_start_kimg": 0, "loss.pl_interval": 1})
        self.dataset, self.device, self.lineage = dataset, device, lineage
        self.state: TrainState | None = None
        self.classifier: steps.Classifier | None = None
        self.world, self.rank = distributed.world_size(), distributed.rank()

    def fits(self, n: int) -> bool:
        """Whether rounds of n images fit in all processes, which must all ask."""
        devices = [self.device] if self.device.type == "cuda" else []
        fitted = True
        # Each process by itself: one that runs out of memory in the middle of a step must not leave the
        # others waiting in a collective.
        with distributed.alone(), training_stats.unrecorded(), torch.random.fork_rng(devices=devices):
            try:
                self._train(n)
            except steps.NonFiniteError as error:
                raise ValueError(
                    f"--batch-gpu=auto: the trial failed ({error}): give a number, or try --precision=fp32"
                ) from None
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                fitted = False
        if self.state is not None:
            for p in (*self.state.g_params.values(), *self.state.d_params.values()):
                p.grad = None
        _free_cached(self.device)
        return all(distributed.all_gather_object(fitted))

    def _train(self, n: int) -> None:
        """Two rounds of every kind of step, twice: in the second pass the optimizers have their moments. With
        memory held back as a margin.
        """
        cfg = self.cfg
        if self.state is None:
            networks = build.make_networks(cfg, self.dataset, cfg.data.embed_dim, self.lineage)
            self.state = build.assemble(cfg, *networks, self.device)
        state = self.state
        if (
            self.classifier is None
            and (classifier := build.make_classifier(cfg.loss, self.dataset, quiet=True)) is not None
        ):
            self.classifier = classifier.to(self.device)
        margin = torch.empty(self._margin_bytes(state), dtype=torch.uint8, device=self.device)
        inputs = InputSource.of(
            settled(cfg, n), self.dataset.labels, state.G.z_dim, self.device, self.world, self.rank
        )
        pixels, chosen = self._images()  # all of a step's, as in training
        for _ in range(2):
            steps.train_step(state, inputs, cfg, pixels, chosen, self.classifier, TRIAL_ROUNDS)
        del margin

    def _images(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Noise in the place of this process's real images, with labels."""
        share, size = self.cfg.run.batch // self.world, self.dataset.resolution
        generator = rng.torch_generator(self.cfg.run.seed, "trial/images")
        pixels = torch.randint(0, 256, (share, 3, size, size), dtype=torch.uint8, generator=generator)
        labels = torch.arange(share) % self.dataset.label_dim if self.dataset.label_dim > 0 else None
        return pixels, labels

    def _margin_bytes(self, state: TrainState) -> int:
        """What must stay free on a GPU; where processes average gradients, a flat copy of them more."""
        if self.device.type != "cuda":
            return 0
        margin = max(
            int(torch.cuda.get_device_properties(self.device).total_memory * MARGIN), MIN_MARGIN_BYTES
        )
        copies = (
            max(sum(4 * p.numel() for p in params.values()) for params in (state.g_params, state.d_params))
            if self.world > 1
            else 0
        )
        return margin + copies


def _free_cached(device: torch.device) -> None:
    gc.collect()  # a step that failed leaves cycles of frames and graphs
    if device.type == "cuda":
        torch.cuda.empty_cache()


def choose(
    cfg: TrainConfig, dataset: ImageDataset, device: torch.device, lineage: Lineage | None = None
) -> Choice:
    """Trial on a GPU, estimate elsewhere. All processes call it and get the same number. lineage: of a run
    that goes on, as for `plan.plan`.

    Raises:
        ValueError: none fits.
    """
    if device.type == "cuda":
        return by_trial(cfg, dataset, device, lineage)
    G, D = plan.plan(cfg, dataset, lineage=lineage)
    return by_estimate(cfg, G, *plan.parameter_counts(D), device)
