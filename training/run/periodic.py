# SPDX-License-Identifier: Apache-2.0
"""What happens between steps: status line, stats, curves, grids, snapshots, evaluation, stop requests.

Files of a run folder: stats.jsonl (a line per tick), TensorBoard events, curves.png, report.html, contact-sheet.png and contact/, alarms.jsonl,
about.json, reals.png, fakes_init.png, fakesNNNNNN.png (NNNNNN = kimg), network-snapshot-NNNNNN.pkl, network-snapshot.pkl (the newest),
best_model.pkl and best_nimg.txt (best by the first metric), metric-NAME.jsonl, checkpoints/, status.json.
"""

from __future__ import annotations

import datetime
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.util import atomic_write, format_time
from torch_utils import checkpoint, distributed, images, persistence, rng, training_stats
from training.build import training_set_kwargs
from training.bundle import bundle
from training.config import TrainConfig, to_json
from training.data.class_names import spaced_labels
from training.data.dataset import ImageDataset
from training.generator import Generator
from training.run_folder import append_jsonl, drop_lines_after, replace_with_copy, write_json
from training.state import TrainState
from training.watch.grids import grid_shape
from training.watch.watch import Watch


@dataclass
class Score:
    """One evaluated metric."""

    name: str
    value: float
    lower_is_better: bool = True
    record: dict[str, Any] | None = None  # what metric-NAME.jsonl keeps beside name and value


Evaluate = Callable[[Generator], list[Score]]


class Periodic:
    """Everything a run writes, by one process; evaluation and collective counters run in all of them."""

    def __init__(self, cfg: TrainConfig, run_dir: str, dataset: ImageDataset, state: TrainState, evaluate: Evaluate | None) -> None:
        self.cfg, self.run_dir, self.dataset, self.evaluate = cfg, Path(run_dir), dataset, evaluate
        self.device = state.pl_mean.device
        self.main = distributed.is_main()
        self.columns, self.rows = grid_shape(cfg.run, dataset.resolution, dataset.label_dim)
        self.collector = training_stats.Collector()
        self.started = self.tick_time = self.bar_time = self.saved_time = time.monotonic()
        self.maintenance = 0.0
        self.start_nimg = state.progress.nimg
        self.writer = self._tensorboard(state) if self.main else None
        self.watch = Watch(cfg, run_dir, dataset, state)

    def _tensorboard(self, state: TrainState) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print("TensorBoard is not installed: no event files (pip install tensorboard)")
            return None
        return SummaryWriter(str(self.run_dir), purge_step=state.progress.nimg // 1000 + 1 if state.progress.nimg else None)

    def begin(self, state: TrainState, running: dict[str, Any] | None = None) -> None:
        """At the start of a run: reals.png and fakes_init.png. At a resume: drop what was written after the checkpoint, make up for a lost score.

        running: what `running` returned when the checkpoint was written; the tick goes on with it.
        """
        p = state.progress
        if running is not None:
            self.collector.load_state_dict(running["statistics"])
            self.tick_time -= running["tick_seconds"]
        if self.main:
            drop_lines_after(self.run_dir / "stats.jsonl", p.nimg / 1000)
            for path in self.run_dir.glob("metric-*.jsonl"):
                drop_lines_after(path, p.nimg / 1000, and_at=p.unscored)
            self.watch.begin(state, self.rows)
            if p.nimg == 0:
                if state.started_from is not None:
                    write_json(self.run_dir / "init_from.json", state.started_from)
                images.save_png(images.grid(self._real_grid(), self.columns), str(self.run_dir / "reals.png"))
                self.save_fakes(state.G_ema, "fakes_init.png")
        if p.unscored:
            self.score(state)

    def _real_grid(self) -> torch.Tensor:
        n, labels = len(self.dataset), self.dataset.labels
        order = rng.permutation(self.cfg.run.seed, "grid/reals", 0, n)
        picks: list[int] = []
        if labels is not None and self.dataset.label_dim > 0:
            for label in spaced_labels(self.dataset.label_dim, self.rows):
                of_class = order[labels[order] == label]
                picks += [int(i) for i in np.resize(of_class if len(of_class) else order, self.columns)]
        else:
            picks = [int(i) for i in np.resize(order, self.columns * self.rows)]
        return torch.stack([torch.from_numpy(np.array(self.dataset[i][0])) for i in picks])

    @torch.no_grad()
    def save_fakes(self, G: Generator, name: str) -> None:
        """A grid of the same latents every time; with classes, a row per class."""
        total = self.columns * self.rows
        z = rng.normal(self.cfg.run.seed, "grid/z", 0, range(total), (G.z_dim,))
        labels = None
        if G.c_dim > 0:
            labels = torch.tensor(spaced_labels(G.c_dim, self.rows)).repeat_interleave(self.columns)
        batch = max(self.cfg.batch_gpu, 8)
        parts = []
        for i in range(0, total, batch):
            c = None if labels is None else labels[i : i + batch].to(self.device)
            parts.append(images.to_uint8(G(z[i : i + batch].to(self.device), c)).cpu())
        images.save_png(images.grid(torch.cat(parts), self.columns), str(self.run_dir / name))

    def bar(self, state: TrainState) -> None:
        """Progress within a tick, on a terminal only."""
        now = time.monotonic()
        if not (self.main and sys.stdout.isatty()) or now - self.bar_time < 0.5:
            return
        self.bar_time = now
        shown = state.progress.nimg - state.progress.tick_start_nimg
        fraction = min(shown / (self.cfg.run.tick * 1000), 1.0)
        rate = shown / max(now - self.tick_time, 1e-9)
        filled = int(fraction * 24)
        terminal = sys.__stdout__  # not the log file
        if terminal is None:
            return
        terminal.write(f"\r  [{'#' * filled}{'.' * (24 - filled)}] {fraction:4.0%} of the tick, {rate:.1f} img/s, eta {self._eta(state)}   \r")
        terminal.flush()

    def _eta(self, state: TrainState) -> str:
        shown = state.progress.nimg - self.start_nimg
        left = self.cfg.run.kimg * 1000 - state.progress.nimg
        return format_time(max(left, 0) * (time.monotonic() - self.started) / shown) if shown else "?"

    def tick(self, state: TrainState, done: bool) -> None:
        """Called when a tick is complete: status line, stats, curves and, when it is time, snapshot and evaluation."""
        now = time.monotonic()
        p = state.progress
        seconds, shown = now - self.tick_time, p.nimg - p.tick_start_nimg
        p.tick += 1
        p.tick_start_nimg = p.nimg
        stats = self._collect(state, seconds, shown)
        if self.main:
            self._status_line(state, seconds, shown)
            # Before the checkpoint: a run that dies in between goes on from the one before and writes this line again.
            append_jsonl(self.run_dir / "stats.jsonl", {**stats, "timestamp": time.time()})
            self._log_scalars(stats, p.nimg)
            self.watch.alarm(stats)
        due = done or p.tick % self.cfg.run.snap == 0
        if due:
            p.unscored = self.evaluate is not None
            self.snapshot(state)
            self.score(state)
        if self.main:
            self.watch.redraw(page=due)
        self.tick_time = time.monotonic()
        self.maintenance = self.tick_time - now

    def _collect(self, state: TrainState, seconds: float, shown: int) -> dict[str, Any]:
        p = state.progress
        training_stats.report0("Progress/tick", p.tick)
        training_stats.report0("Progress/kimg", p.nimg / 1000)
        training_stats.report0("Timing/sec_per_tick", seconds)
        training_stats.report0("Timing/sec_per_kimg", seconds / max(shown, 1) * 1000)
        training_stats.report0("Timing/images_per_sec", shown / max(seconds, 1e-9))
        training_stats.report0("Timing/maintenance_sec", self.maintenance)
        training_stats.report0("Timing/total_sec", p.seconds)
        if self.device.type == "cuda":
            training_stats.report0("Resources/peak_gpu_mem_gb", torch.cuda.max_memory_allocated(self.device) / 2**30)
            torch.cuda.reset_peak_memory_stats(self.device)
        self.watch.measure(state.G_ema)
        self.collector.update()
        return {"kimg": p.nimg / 1000, **self.collector.as_dict()}

    def _status_line(self, state: TrainState, seconds: float, shown: int) -> None:
        p, mean = state.progress, self.collector.mean
        fields = [
            f"tick {p.tick:<5d}",
            f"kimg {p.nimg / 1000:<8.1f}",
            f"trained {format_time(p.seconds):<12s}",
            f"eta {self._eta(state):<12s}",
            f"sec/kimg {seconds / max(shown, 1) * 1000:<8.2f}",
            f"img/s {shown / max(seconds, 1e-9):<8.1f}",
            f"maintenance {self.maintenance:<6.1f}",
            f"D fun {mean('Loss/D/fun'):<7.2f}",
            f"dir {mean('Loss/D/dir'):<7.2f}",
            f"sign real {mean('Loss/signs/real'):<6.2f}",
            f"fake {mean('Loss/signs/fake'):<6.2f}",
        ]
        if self.watch.variety is not None:
            fields.append(f"variety {mean('Variety/within'):<5.2f}")
        if self.device.type == "cuda":
            fields.append(f"gpumem {self.collector.mean('Resources/peak_gpu_mem_gb'):<6.2f}")
        print(" ".join(fields), flush=True)

    def _log_scalars(self, stats: dict[str, Any], nimg: int) -> None:
        if self.writer is None:
            return
        for name, value in stats.items():
            if isinstance(value, dict):
                self.writer.add_scalar(name, value["mean"], global_step=nimg // 1000)
        self.writer.flush()

    def snapshot(self, state: TrainState) -> None:
        """Fake grid, network pickle, checkpoint. All processes must call it."""
        if self.main:
            kimg = state.progress.nimg // 1000
            self.save_fakes(state.G_ema, f"fakes{kimg:06d}.png")
            self.watch.column(state)
            path = self.run_dir / f"network-snapshot-{kimg:06d}.pkl"
            persistence.save_network_pickle(str(path), self._network_pickle(state))
            replace_with_copy(path, self.run_dir / "network-snapshot.pkl")
            if self.cfg.run.keep_snapshots > 0:
                for old in sorted(self.run_dir.glob("network-snapshot-*.pkl"))[: -self.cfg.run.keep_snapshots]:
                    old.unlink()
        self.save_checkpoint(state)

    def _network_pickle(self, state: TrainState) -> dict[str, Any]:
        return {
            "G": state.G,
            "D": bundle(state.D.saved_state_dict()),
            "G_ema": state.G_ema,
            "augment_pipe": None,
            "training_set_kwargs": training_set_kwargs(self.cfg, self.dataset),
            "provenance": self.provenance(state),
        }

    def provenance(self, state: TrainState) -> dict[str, Any]:
        """Where a snapshot comes from: config, data, images shown, versions."""
        return {
            "project": "StyleSAN-XL",
            "nimg": state.progress.nimg,
            "config": to_json(self.cfg),
            "lineage": state.lineage.provenance(),
            "class_names": self.dataset.class_names,
            "data": {"name": self.dataset.name, "hash": self.dataset.content_hash(), "images": len(self.dataset), "metadata": self.dataset.metadata},
            "backbones": {name: network.sha256 for name, network in state.D.feature_networks.items()},
            "init_from": state.started_from,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def running(self, state: TrainState) -> dict[str, Any]:
        """Statistics and seconds of the tick that has begun. All processes must call it."""
        begun = state.progress.nimg > state.progress.tick_start_nimg
        return {"statistics": self.collector.state_dict(), "tick_seconds": time.monotonic() - self.tick_time if begun else 0.0}

    def save_checkpoint(self, state: TrainState) -> None:
        """All that resume needs, atomically. All processes must call it."""
        running = self.running(state)
        if self.main:
            saved = {"train": state.state_dict(), "running": running, "data_hash": self.dataset.content_hash()}
            saved["lineage"] = vars(state.lineage)
            checkpoint.save(str(self.run_dir / "checkpoints"), state.progress.nimg, saved, keep=self.cfg.run.keep_checkpoints)
        self.saved_time = time.monotonic()

    def checkpoint_is_due(self) -> bool:
        """True when --checkpoint-minutes have passed since the last one."""
        return time.monotonic() - self.saved_time > self.cfg.run.checkpoint_minutes * 60

    def score(self, state: TrainState) -> None:
        """Evaluate G_ema, keep the best network by the first metric, remember in the checkpoint that it is done."""
        if self.evaluate is None:
            return
        scores = self.evaluate(state.G_ema)
        p = state.progress
        for i, s in enumerate(scores):
            best = s.value if s.lower_is_better else -s.value
            improved = i == 0 and (p.best_metric is None or best < p.best_metric)
            if improved:
                p.best_metric, p.best_nimg = best, p.nimg
            if i == 0:
                p.stale = 0 if improved else p.stale + 1
            if not self.main:
                continue
            print(f"  {s.name} {s.value:.4f}" + ("  (best so far)" if improved else ""), flush=True)
            head = {"metric": s.name, "results": {s.name: s.value}, "lower_is_better": s.lower_is_better}
            line = {**head, "kimg": p.nimg / 1000, **(s.record or {})}
            line["snapshot_pkl"] = f"network-snapshot-{p.nimg // 1000:06d}.pkl"
            append_jsonl(self.run_dir / f"metric-{s.name}.jsonl", line)
            if self.writer is not None:
                self.writer.add_scalar(f"Metrics/{s.name}", s.value, global_step=p.nimg // 1000)
            if improved:
                replace_with_copy(self.run_dir / f"network-snapshot-{p.nimg // 1000:06d}.pkl", self.run_dir / "best_model.pkl")
                with atomic_write(str(self.run_dir / "best_nimg.txt"), "w") as f:
                    f.write(f"{p.nimg}\n")
        p.unscored = False
        self.save_checkpoint(state)

    def end(self, state: TrainState, outcome: str) -> None:
        """Record how the run ended: finished, interrupted or restart."""
        if self.main:
            write_json(self.run_dir / "status.json", {"outcome": outcome, "nimg": state.progress.nimg})
            self.watch.redraw(page=True)
            if self.writer is not None:
                self.writer.close()
