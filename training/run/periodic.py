# SPDX-License-Identifier: Apache-2.0
"""What happens between steps, in order: the tick's statistics, snapshot, checkpoint, evaluation, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from torch_utils import agreement, distributed, watchdog
from training import run_folder
from training.config import TrainConfig, to_json
from training.data.dataset import ImageDataset
from training.run import roofline
from training.run.checkpoints import Checkpoints
from training.run.clock import Clock
from training.run.evaluation import Evaluate, Evaluation, Score
from training.run.snapshots import Snapshots
from training.run.statistics import Statistics
from training.run.trackers import Trackers
from training.state import TrainState
from training.watch.grids import Grids
from training.watch.watch import Watch

__all__ = ["Evaluate", "Periodic", "Score"]


def check_agreement(state: TrainState) -> None:
    """Check that all processes hold the same state, bit for bit. All processes must call it.

    Raises:
        agreement.Disagreement: naming the first tensor that differs, and the processes.
    """
    agreement.check_tensors(state.tensors(), f"at {state.progress.nimg} images")


def rank_seconds() -> dict[str, Any]:
    """Ranks/PHASE: seconds of the processes in each phase of the tick, and the slowest process.

    Waiting is a phase of its own: the process that waits least is the one that the others wait for. All
    processes must call it; nothing in a single process.
    """
    everyone = distributed.all_gather_object(watchdog.take_seconds())
    if len(everyone) == 1:
        return {}
    record = {}
    for name in sorted({name for seconds in everyone for name in seconds}):
        x = torch.tensor([seconds.get(name, 0.0) for seconds in everyone], dtype=torch.float64)
        slowest = int(x.argmin() if name == "waiting" else x.argmax())
        spread = {"std": float(x.std(correction=0)), "max": float(x.max()), "slowest": slowest}
        record[f"Ranks/{name}"] = {"num": len(x), "mean": float(x.mean()), **spread}
    return record


class Periodic:
    """Everything a run writes, by one process; evaluation and collective counters run in all of them."""

    def __init__(
        self,
        cfg: TrainConfig,
        run_dir: str,
        dataset: ImageDataset,
        state: TrainState,
        evaluate: Evaluate | None,
    ) -> None:
        folder, device = Path(run_dir), state.pl_mean.device
        self.cfg, self.run_dir, self.main = cfg, folder, distributed.is_main()
        self.clock = Clock(cfg)
        nimg, options = state.progress.nimg, {**to_json(cfg), "lineage": state.lineage.stems}
        self.trackers = Trackers(cfg.run.tracker if self.main else (), folder, options, nimg)
        self.statistics = Statistics(folder, device, self.trackers)
        self.utilization = roofline.Utilization(cfg, dataset, device)
        self.grids = Grids(cfg, folder, dataset, device)
        self.snapshots = Snapshots(cfg, folder, dataset)
        self.evaluation = Evaluation(folder, evaluate, self.snapshots, self.trackers, cfg.run)
        self.checkpoints = Checkpoints(cfg, folder, dataset)
        self.watch = Watch(cfg, run_dir, dataset, state)

    def begin(self, state: TrainState, running: dict[str, Any] | None = None) -> None:
        """Begin a run with reals.png and fakes_init.png, or resume it.

        When it resumes, what was written after the checkpoint is dropped, and a missing score is measured.

        Args:
            state: of the run.
            running: what `running` returned when the checkpoint was written: the tick continues with it.
        """
        p = state.progress
        self.clock.begin(running["tick_seconds"] if running else 0.0)
        self.statistics.begin(p, running["statistics"] if running else None)
        self.snapshots.begin(p, running)
        if self.main:
            self.evaluation.begin(p)
            self.watch.begin(state, self.grids.rows)
            self.clock.learn(self.watch.stats)
            if p.nimg == 0:
                if state.started_from is not None:
                    run_folder.write_json(self.run_dir / run_folder.INIT_FROM_FILE, state.started_from)
                self.grids.begin(state.G_ema)
        if p.unscored:
            self.score(state)

    def after_step(self, state: TrainState) -> None:
        """Progress within a tick, on a terminal only.

        Raises:
            OSError: the run folder is gone, or a checkpoint could not be written.
        """
        if self.main:
            self.clock.bar(state.progress)
            self.checkpoints.check_folder(state.progress.nimg)
            self.checkpoints.writer.check()

    def tick(self, state: TrainState, done: bool) -> None:
        """End a tick: status line, statistics, curves and, every --snap ticks, snapshot and evaluation."""
        watchdog.phase("statistics")
        check_agreement(state)
        p = state.progress
        tick = self.clock.tick_so_far(p)
        p.tick += 1
        p.tick_start_nimg = p.nimg
        speed = tick.images_per_sec / distributed.world_size()
        mfu = self.utilization.of(speed, state.lineage) if self.main else None
        self.statistics.report(p, tick, self.clock.maintenance, mfu)
        self.watch.measure(state.G_ema)
        record = self.statistics.collect(p) | rank_seconds()
        if self.main:
            self.clock.learn([*self.watch.stats, record])
            print(self.statistics.status_line(p, tick, self.clock), flush=True)
            self.statistics.write(record, p)
            for line in self.watch.alarm(record):
                self.trackers.alarm(line, p.nimg)
        due = done or p.tick % self.cfg.run.snap == 0
        if due:
            self.snapshot_and_score(state)
        watchdog.phase("report")
        if self.main:
            self.watch.redraw(page=due)
        self.clock.next_tick(tick)

    def finish(self, state: TrainState) -> None:
        """Make the last snapshot, if there is none: a run that resumes may be over at once.

        --kimg or --patience may have been lowered, below what a checkpoint between snapshots has.
        """
        if self.snapshots.newest_nimg != state.progress.nimg:
            self.snapshot_and_score(state)

    def snapshot_and_score(self, state: TrainState) -> None:
        """Make a snapshot and evaluate it. All processes must call it."""
        state.progress.unscored = self.evaluation.evaluate is not None
        self.snapshot(state)
        self.score(state)

    def snapshot(self, state: TrainState) -> None:
        """Network pickle, fake grid, contact sheet, checkpoint. All processes must call it."""
        watchdog.phase("snapshot")
        number = self.snapshots.number(state.progress.nimg)
        if self.main:
            about = self.snapshots.save(state)
            self.grids.fakes(state.G_ema, number, about)
            grid = run_folder.fakes_file(self.run_dir, number)
            self.trackers.image("Images/generated", grid, state.progress.nimg)
            self.watch.column(state, about["network"])
        self.save_checkpoint(state)

    def score(self, state: TrainState) -> None:
        """Evaluate G_ema, and remember in the checkpoint that it is done."""
        watchdog.phase("evaluation")
        if self.evaluation.score(state):
            self.save_checkpoint(state)

    def running(self, state: TrainState) -> dict[str, Any]:
        """Statistics and seconds of the tick that has begun; the newest snapshot. All processes call it."""
        tick = self.clock.tick_so_far(state.progress)
        statistics = self.statistics.collector.state_dict()
        seconds = tick.seconds if tick.shown > 0 else 0.0
        return {"statistics": statistics, "tick_seconds": seconds, "snapshot": self.snapshots.newest}

    def save_checkpoint(self, state: TrainState) -> None:
        """All that resume needs, atomically. All processes must call it."""
        self.checkpoints.save(state, self.running(state))

    def save_between_ticks(self, state: TrainState) -> None:
        """As `save_checkpoint`, after a check that all processes agree."""
        watchdog.phase("checkpoint")
        check_agreement(state)
        self.save_checkpoint(state)

    def checkpoint_is_due(self) -> bool:
        """True when --checkpoint-minutes have passed since the last one."""
        return self.checkpoints.is_due()

    def abandon(self) -> None:
        """The run fails: let the checkpoint that is being written be finished."""
        if self.main:
            try:
                self.checkpoints.writer.wait()
            except (OSError, ValueError) as error:
                print(f"WARNING: {error}", file=sys.stderr, flush=True)

    def end(self, state: TrainState, outcome: str) -> None:
        """Record how the run ended: finished, interrupted or restart."""
        watchdog.phase("end")
        self.checkpoints.end(outcome)
        if self.main:
            self.watch.redraw(page=True, outcome=outcome)
            # last, because a stage of a recipe whose status is finished is not entered again
            run_folder.write_status(self.run_dir, outcome, state.progress.nimg)
            self.trackers.close()
