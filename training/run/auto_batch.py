# SPDX-License-Identifier: Apache-2.0
"""The size of a micro-batch for --batch-gpu=auto, chosen before a run begins.

On a GPU by trial: training steps of the run's networks, from the largest micro-batch down, until one fits in
every process. On a CPU, where the system kills a process that uses too much memory, and for --dry-run: from
the memory estimate and the free memory. The result is stored in the run's options; a resumed run reuses it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

from torch_utils import devices, distributed, memory, rng, training_stats
from training import build, energy, steps
from training.config import TrainConfig
from training.data.dataset import ImageDataset
from training.generator import Generator
from training.guard import NonFiniteError
from training.inputs import InputSource
from training.networks.stems import Lineage
from training.run import plan
from training.state import TrainState

TRIAL_MICRO_BATCHES = 2  # per step: the second one runs beside the gradients of the first
# Share of a GPU's memory, and bytes, that a trial leaves free for fragmentation, metrics and pictures.
MARGIN, MIN_MARGIN_BYTES = 0.05, 2**29
HOST_MARGIN = 0.1  # of the free memory: the estimate is rough


@dataclass(frozen=True)
class Choice:
    """Images per micro-batch and process, and the reason."""

    batch_gpu: int
    why: str

    def line(self, cfg: TrainConfig) -> str:
        """The line that is printed."""
        share = cfg.run.batch // cfg.run.gpus
        return (
            f"--batch-gpu=auto: {self.batch_gpu} of a process's {share} images per micro-batch "
            f"({self.why}{_statistics_note(cfg, self.batch_gpu)})"
        )


def settled(cfg: TrainConfig, batch_gpu: int) -> TrainConfig:
    """The configuration with `auto` replaced by its value."""
    return cfg.override({"run.batch_gpu": batch_gpu})


def candidates(share: int, group: int) -> list[int]:
    """Divisors of a process's share of the batch, in the order in which they are tried.

    Multiples of the heads' group for batch statistics come first, because they give the same results; within
    both parts the largest comes first.
    """
    divisors = [n for n in range(share, 0, -1) if share % n == 0]
    return sorted(divisors, key=lambda n: bool(group) and n % group != 0)  # sorted() is stable


def _statistics_note(cfg: TrainConfig, n: int) -> str:
    group, share = cfg.discriminator.bn_group, cfg.run.batch // cfg.run.gpus
    same = n == share or (group > 0 and n % group == 0)
    return (
        ""
        if same
        else f"; the heads' batch statistics are computed over these {n}, so other values give other results"
    )


def allowed(cfg: TrainConfig) -> list[int]:
    """The candidates of a run, in the order in which they are tried."""
    # SONA heads, --mbstd and the energy distance compare images of a micro-batch.
    comparing = cfg.discriminator.heads == "sona" or cfg.discriminator.mbstd or cfg.loss.energy_weight > 0
    return [
        n
        for n in candidates(cfg.run.batch // cfg.run.gpus, cfg.discriminator.bn_group)
        if n >= (2 if comparing else 1) and n % cfg.data.class_run == 0
    ]


def largest(cfg: TrainConfig, fits: Callable[[int], bool]) -> tuple[int, int | None]:
    """The first candidate that fits, and the last one that did not (None if the first one fits).

    Raises:
        ValueError: None fits.
    """
    refused = None
    for n in allowed(cfg):
        if fits(n):
            return n, refused
        refused = n
    fewest = min(allowed(cfg), default=1)
    raise ValueError(
        f"--batch-gpu=auto: not even {'one image' if fewest == 1 else f'{fewest} images'} per micro-batch "
        "fits into memory: lower --cbase or --cmax, or use a device with more memory"
    )


def by_estimate(
    cfg: TrainConfig, G: Generator, d_params: int, backbone_params: int, device: torch.device
) -> Choice:
    """The largest micro-batch whose estimated memory is free now.

    Takes the networks' sizes as `plan.estimate_memory_gb`. With several processes the one with the least free
    memory decides; all of them must call this.
    """
    sharing = 1 if device.type == "cuda" else distributed.processes_here(cfg.run.gpus)
    free = min(distributed.all_gather_object(memory.free_bytes(device) / sharing / 2**30))

    def need(n: int) -> float:
        return plan.estimate_memory_gb(settled(cfg, n), G, d_params, backbone_params)

    n, refused = largest(cfg, lambda n: need(n) <= free * (1 - HOST_MARGIN))
    more = f", {refused} would need {need(refused):.2f}" if refused else ""
    return Choice(n, f"estimated {need(n):.2f} GiB of {free:.2f} GiB free per process{more}")


def planned(cfg: TrainConfig, G: Generator, d_params: int, backbone_params: int) -> Choice:
    """The choice for --dry-run: by the estimate on this machine, which may not be the one that trains."""
    try:
        device = devices.pick_device(cfg.run.device)
    except ValueError:
        device = torch.device("cpu")
    try:
        choice = by_estimate(cfg, G, d_params, backbone_params, device)
    except ValueError:
        choice = Choice(1, "by the estimate not even one image fits into the free memory")
    return Choice(choice.batch_gpu, f"{choice.why} on this machine; on a GPU the run decides by trial")


def by_trial(
    cfg: TrainConfig, dataset: ImageDataset, device: torch.device, lineage: Lineage | None = None
) -> Choice:
    """The largest micro-batch that every process can train on its device.

    The trial builds its own networks and frees them at the end.

    Raises:
        ValueError: None fits. Errors of a training step other than a lack of memory are passed on.
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
    """Training steps on networks of its own; leaves random states and statistics of the process unchanged."""

    def __init__(
        self, cfg: TrainConfig, dataset: ImageDataset, device: torch.device, lineage: Lineage | None = None
    ) -> None:
        # Path length regularisation in every step: it takes the most memory. The weights do not matter.
        self.cfg = cfg.override({"loss.pl_start_kimg": 0, "loss.pl_interval": 1})
        self.dataset, self.device, self.lineage = dataset, device, lineage
        self.state: TrainState | None = None
        self.classifier: steps.Classifier | None = None
        self.reals: energy.Reals | None = None
        self.world, self.rank = distributed.world_size(), distributed.rank()

    def fits(self, n: int) -> bool:
        """Whether micro-batches of n images fit in all processes. All of them must call this."""
        devices = [self.device] if self.device.type == "cuda" else []
        fitted = True
        # Without collectives: a process that runs out of memory must not leave the others waiting in one.
        with distributed.alone(), training_stats.unrecorded(), torch.random.fork_rng(devices=devices):
            try:
                self._train(n)
            except NonFiniteError as error:
                raise ValueError(
                    f"--batch-gpu=auto: the trial failed ({error}): set --batch-gpu, or try --precision=fp32"
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
        """Every kind of step twice, with a margin kept free: the second pass has the optimizers' moments."""
        cfg = self.cfg
        if self.state is None:
            networks = build.make_networks(cfg, self.dataset, cfg.data.embed_dim, self.lineage, self.device)
            self.state = build.assemble(cfg, *networks, self.device)
        state = self.state
        if self.classifier is None:
            self.classifier = build.classifier_on(self.device, cfg, self.dataset, quiet=True)
        if self.reals is None:
            self.reals = build.make_reals(cfg, self.dataset, self.device)
        margin = torch.empty(self._margin_bytes(state), dtype=torch.uint8, device=self.device)
        inputs = InputSource.of(
            settled(cfg, n),
            self.dataset.labels,
            state.G.z_dim,
            self.device,
            self.world,
            self.rank,
            self.dataset.num_channels == 4,
        )
        pixels, chosen = self._images()  # for a whole step, as in training
        for _ in range(2):
            steps.train_step(
                state, inputs, cfg, pixels, chosen, self.classifier, TRIAL_MICRO_BATCHES, self.reals
            )
        state.guard.check()
        del margin

    def _images(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Noise in place of this process's real images, with labels."""
        share = self.cfg.run.batch // self.world
        generator = rng.torch_generator(self.cfg.run.seed, "trial/images")
        shape = (share, *self.dataset.image_shape)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.arange(share) % self.dataset.label_dim if self.dataset.label_dim > 0 else None
        return pixels, labels

    def _margin_bytes(self, state: TrainState) -> int:
        """Bytes to keep free on a GPU, with a flat copy of the gradients if there are several processes."""
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
    gc.collect()  # a failed step leaves reference cycles of frames and graphs
    if device.type == "cuda":
        torch.cuda.empty_cache()


def choose(
    cfg: TrainConfig, dataset: ImageDataset, device: torch.device, lineage: Lineage | None = None
) -> Choice:
    """The micro-batch of a run: by trial on a GPU, by estimate elsewhere.

    All processes must call this and get the same result. lineage: as for `plan.plan`.

    Raises:
        ValueError: None fits.
    """
    if device.type == "cuda":
        return by_trial(cfg, dataset, device, lineage)
    G, D = plan.plan(cfg, dataset, lineage=lineage)
    return by_estimate(cfg, G, *plan.parameter_counts(D), device)
