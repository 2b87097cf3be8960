# SPDX-License-Identifier: Apache-2.0
"""Statistics of a run, per tick: printed, appended to stats.jsonl and sent to the trackers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from dnnlib.util import format_time
from torch_utils import distributed, memory, training_stats
from training import run_folder
from training.run.clock import Clock, Tick
from training.run.trackers import Trackers
from training.state import Progress


class Statistics:
    """Every process collects; the first one writes."""

    def __init__(self, run_dir: Path, device: torch.device, trackers: Trackers) -> None:
        self.run_dir, self.device, self.trackers = run_dir, device, trackers
        self.collector = training_stats.Collector()

    def begin(self, progress: Progress, collected: dict[str, Any] | None) -> None:
        """Resume with what was `collected` of a tick; drop lines that were written after the checkpoint."""
        if collected is not None:
            self.collector.load_state_dict(collected)
        if distributed.is_main():
            run_folder.drop_lines_after(self.run_dir / run_folder.STATS_FILE, progress.nimg / 1000)

    def report(self, progress: Progress, tick: Tick, maintenance: float, mfu: float | None) -> None:
        """Report what is known of the tick beside its losses. All processes call it.

        Args:
            progress: of the run.
            tick: its time and images.
            maintenance: seconds after the tick before.
            mfu: share of the GPU's peak arithmetic, of process 0; None = unknown.
        """
        training_stats.report0("Progress/tick", progress.tick)
        training_stats.report0("Progress/kimg", progress.nimg / 1000)
        training_stats.report0("Timing/sec_per_tick", tick.seconds)
        training_stats.report0("Timing/sec_per_kimg", tick.sec_per_kimg)
        training_stats.report0("Timing/images_per_sec", tick.images_per_sec)
        training_stats.report0("Timing/maintenance_sec", maintenance)
        training_stats.report0("Timing/total_sec", progress.seconds)
        if mfu is not None:
            training_stats.report0("Timing/mfu", mfu)
        if (resident := memory.peak_bytes()) is not None:
            training_stats.report("Resources/peak_cpu_mem_gb", resident / 2**30)
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / 2**30
            training_stats.report0("Resources/peak_gpu_mem_gb", peak)
            torch.cuda.reset_peak_memory_stats(self.device)

    def collect(self, progress: Progress) -> dict[str, Any]:
        """The tick's record, of all processes. All processes must call it."""
        self.collector.update()
        return {"kimg": progress.nimg / 1000, **self.collector.as_dict()}

    def write(self, record: dict[str, Any], progress: Progress) -> None:
        """Append the tick's record to stats.jsonl and send it to the trackers. Main process."""
        # Before the checkpoint: a run that dies in between resumes from the one before and writes this line
        # again.
        run_folder.append_jsonl(self.run_dir / run_folder.STATS_FILE, {**record, "timestamp": time.time()})
        means = {name: value["mean"] for name, value in record.items() if isinstance(value, dict)}
        self.trackers.scalars(means, progress.nimg)
        for name, x in training_stats.samples().items():
            self.trackers.histogram(name, x.float().cpu().numpy(), progress.nimg)

    def status_line(self, progress: Progress, tick: Tick, clock: Clock) -> str:
        """The line that a tick prints."""
        mean = self.collector.mean
        fields = [
            f"tick {progress.tick:<5d}",
            f"kimg {run_folder.kimg_text(progress.nimg / 1000):<8s}",
            f"trained {format_time(progress.seconds):<12s}",
            f"eta {clock.eta(progress):<12s}",
            f"sec/kimg {tick.sec_per_kimg:<8.2f}",
            f"img/s {tick.images_per_sec:<8.1f}",
            f"maintenance {clock.maintenance:<6.1f}",
            f"D fun {mean('Loss/D/fun'):<7.2f}",
            f"dir {mean('Loss/D/dir'):<7.2f}",
            f"sign real {mean('Loss/signs/real'):<6.2f}",
            f"fake {mean('Loss/signs/fake'):<6.2f}",
        ]
        if self.collector.num("Variety/within"):
            fields.append(f"variety {mean('Variety/within'):<5.2f}")
        if self.collector.num("Variety/recall"):
            fields.append(f"recall {mean('Variety/recall'):<5.2f}")
        if self.device.type == "cuda":
            fields.append(f"gpumem {mean('Resources/peak_gpu_mem_gb'):<6.2f}")
        return " ".join(fields)
