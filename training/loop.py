# SPDX-License-Identifier: Apache-2.0
"""The training loop: build -> resume -> while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from torch_utils import agreement, devices, distributed, training_stats, watchdog
from training import build, compiled, energy, steps
from training.config import TrainConfig, to_json
from training.data.dataset import ImageDataset, Loader
from training.inputs import InputSource
from training.run import restore
from training.run.periodic import Evaluate, Periodic, check_agreement
from training.run.stop import Stopped, StopRequest, pause
from training.run_folder import FINISHED, INTERRUPTED, RESTART, record_start, write_status
from training.state import TrainState

ROOT = Path(__file__).resolve().parents[1]  # of the project


def train(
    cfg: TrainConfig,
    run_dir: str,
    device: torch.device,
    evaluate: Evaluate | None = None,
    record: dict[str, Any] | None = None,
) -> str:
    """Train from the newest checkpoint in `run_dir`, or from the start, until the run ends or is stopped.

    Args:
        cfg: the options.
        run_dir: the run folder.
        device: of this process.
        evaluate: measures G_ema; None = no metrics.
        record: what to write to training_options.json once the state is made; None = nothing.

    Returns:
        "finished" (--kimg or --patience), "interrupted" (a signal) or "restart" (--restart_every).

    Raises:
        guard.NonFiniteError: a gradient is not finite; the last checkpoint is intact.
        ValueError: data set or options differ from those of the checkpoint, or between processes.
    """
    configure(cfg, device)
    stop = StopRequest(cfg.run.restart_every)
    try:
        return train_until_stopped(cfg, run_dir, device, evaluate, record, stop)
    finally:
        stop.close()


def train_until_stopped(
    cfg: TrainConfig,
    run_dir: str,
    device: torch.device,
    evaluate: Evaluate | None,
    record: dict[str, Any] | None,
    stop: StopRequest,
) -> str:
    """As `train`, whose arguments these are."""
    watchdog.phase("build")
    dataset = build.make_dataset(cfg.data, cfg.run.seed)
    check_same_start(cfg, dataset, device)
    try:
        state, running = restore.make_state(cfg, dataset, device, run_dir)
    except Stopped:  # in the class embeddings: there is nothing to save
        if distributed.is_main():
            write_status(Path(run_dir), INTERRUPTED, 0)
        return INTERRUPTED
    check_agreement(state)
    if distributed.is_main():
        record_start(Path(run_dir), record)
    chosen = build.describe_precision(cfg, device)
    if chosen is not None and distributed.is_main():
        print(chosen)
    compiled.compile_step(state, cfg.run.compile)
    classifier = build.classifier_on(device, cfg, dataset)
    world, rank, alpha = distributed.world_size(), distributed.rank(), dataset.num_channels == 4
    inputs = InputSource.of(cfg, dataset.labels, state.G.z_dim, device, world, rank, alpha)
    periodic = Periodic(cfg, run_dir, dataset, state, evaluate)
    indices = inputs.real_indices(state.progress.nimg, len(dataset))
    with Loader(
        dataset,
        indices,
        workers=cfg.data.workers,
        cache_mb=cfg.data.cache_mb,
        pinned=device.type == "cuda",
        kind=cfg.data.workers_kind,
    ) as loader:
        kind = cfg.data.workers_kind
        if loader.kind != kind and cfg.data.workers and distributed.is_main():
            print(f"--workers-kind={kind}: all images fit in --cache-mb: threads decode them")
        try:
            reals = build.make_reals(cfg, dataset, device, pause)
            periodic.begin(state, running)
            outcome = run(cfg, state, inputs, loader, classifier, reals, periodic, stop)
        except Stopped:  # in an evaluation: the checkpoint before it says that the score is missing
            outcome = INTERRUPTED
        except BaseException:
            periodic.abandon()
            raise
    periodic.end(state, outcome)
    distributed.barrier()
    return outcome


def run(
    cfg: TrainConfig,
    state: TrainState,
    inputs: InputSource,
    loader: Iterator[Any],
    classifier: steps.Classifier | None,
    reals: energy.Reals | None,
    periodic: Periodic,
    stop: StopRequest,
) -> str:
    """Steps and ticks until the run is over or is stopped. Returns the outcome; everything is saved."""
    while not is_over(cfg, state):
        agreed = stop.ask(periodic.checkpoint_is_due)
        one_step(cfg, state, inputs, loader, classifier, reals)
        periodic.after_step(state)
        done = state.progress.nimg >= cfg.run.kimg * 1000
        if done or state.progress.nimg >= state.progress.tick_start_nimg + cfg.run.tick * 1000:
            wait_for_device(state)
            periodic.tick(state, done)
        request = agreed()
        if request != stop.GO_ON and not is_over(cfg, state):
            wait_for_device(state)
            periodic.save_between_ticks(state)
            if request != stop.SAVE:
                return INTERRUPTED if request == stop.INTERRUPTED else RESTART
    periodic.finish(state)
    return FINISHED


def configure(cfg: TrainConfig, device: torch.device) -> None:
    """Process-wide switches."""
    training_stats.init_multiprocessing(distributed.rank(), device if distributed.world_size() > 1 else None)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not cfg.run.nobench
        torch.backends.cuda.matmul.allow_tf32 = cfg.run.allow_tf32
        torch.backends.cudnn.allow_tf32 = cfg.run.allow_tf32


def check_same_start(cfg: TrainConfig, dataset: ImageDataset, device: torch.device) -> None:
    """Check that all processes train with the same options, data and code.

    Raises:
        agreement.Disagreement: naming what differs, and the processes.
    """
    if distributed.world_size() > 1:
        options = to_json(
            cfg.override({"run.restart_every": 0.0})
        )  # of a recipe's stages: what is left of it
        values = {f"option {s}.{key}": x for s, section in options.items() for key, x in section.items()}
        values["the content of --data"] = dataset.content_hash()
        values["the code"] = agreement.code_version(ROOT, ("dnnlib", "torch_utils", "training", "san"))
        values["option run.precision, as measured"] = str(devices.pick_precision(cfg.run.precision, device))
        values["option discriminator.precision, as measured"] = str(
            devices.pick_discriminator_precision(cfg.discriminator.precision, device)
        )
        values["the version of torch"] = str(torch.__version__)
        agreement.check_values(values)


def is_over(cfg: TrainConfig, state: TrainState) -> bool:
    """Whether the run has spent its images, or its first metric has stopped improving."""
    return state.progress.nimg >= cfg.run.kimg * 1000 or 0 < cfg.run.patience <= state.progress.stale


def one_step(
    cfg: TrainConfig,
    state: TrainState,
    inputs: InputSource,
    loader: Iterator[Any],
    classifier: steps.Classifier | None,
    reals: energy.Reals | None,
) -> None:
    """One training step on the loader's next images, and its seconds."""
    started = time.monotonic()
    watchdog.phase("data", step=state.progress.step + 1)
    pixels, labels = next(loader)
    training_stats.report("Timing/data_wait_sec", time.monotonic() - started)
    steps.train_step(state, inputs, cfg, pixels, labels, classifier, reals_of_classes=reals)
    state.progress.seconds += time.monotonic() - started


def wait_for_device(state: TrainState) -> None:
    """Wait until the steps so far are computed, and count the seconds as theirs.

    Raises:
        guard.NonFiniteError: one of them had a gradient that is not finite.
    """
    started = time.monotonic()
    state.guard.check()
    state.progress.seconds += time.monotonic() - started
