# SPDX-License-Identifier: Apache-2.0
"""Times of a run: seconds per tick and of maintenance, the time left, the progress bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dnnlib.util import format_time
from training.config import TrainConfig
from training.state import Progress
from training.watch import estimate
from training.watch.estimate import Pace

BAR_SECONDS, BAR_WIDTH = 0.5, 24  # between two drawings; characters


class Tick(NamedTuple):
    """The speed of one tick: its seconds and the images shown in it."""

    seconds: float
    shown: int

    @property
    def sec_per_kimg(self) -> float:
        """Seconds per thousand images."""
        return self.seconds / max(self.shown, 1) * 1000

    @property
    def images_per_sec(self) -> float:
        """Images per second."""
        return self.shown / max(self.seconds, 1e-9)


class Clock:
    """Measures ticks and says how long the run still takes (`training.watch.estimate`).

    maintenance: seconds that the end of the last tick took (snapshot, evaluation, report).
    """

    def __init__(self, cfg: TrainConfig) -> None:
        self.run, self.images_per_tick = cfg.run, cfg.run.tick * 1000
        self.tick_started = self.bar_drawn = time.monotonic()
        self.maintenance = 0.0
        self.pace: Pace | None = None

    def begin(self, seconds: float) -> None:
        """Resume a tick that took `seconds` before the restart."""
        self.tick_started -= seconds

    def tick_so_far(self, progress: Progress) -> Tick:
        """The current tick until now."""
        return Tick(time.monotonic() - self.tick_started, progress.nimg - progress.tick_start_nimg)

    def next_tick(self, finished: Tick) -> None:
        """The next tick begins now: what has passed since the end of the `finished` one was maintenance."""
        ended = self.tick_started + finished.seconds
        self.tick_started = time.monotonic()
        self.maintenance = self.tick_started - ended

    def learn(self, stats: Sequence[Mapping[str, Any]]) -> None:
        """The pace of the run so far, from the lines of its stats.jsonl."""
        self.pace = estimate.measured(stats, self.run)

    def eta(self, progress: Progress) -> str:
        """The time left, maintenance included; '?' before the first step."""
        tick = self.tick_so_far(progress)
        pace = self.pace or (Pace(tick.sec_per_kimg) if tick.shown else None)
        return format_time(pace.seconds(self.run, progress.nimg / 1000, progress.tick)) if pace else "?"

    def bar(self, progress: Progress) -> None:
        """Progress within the tick, on a terminal only."""
        now, terminal = time.monotonic(), sys.__stdout__  # not the log file
        if terminal is None or not sys.stdout.isatty() or now - self.bar_drawn < BAR_SECONDS:
            return
        self.bar_drawn = now
        tick = self.tick_so_far(progress)
        fraction = min(tick.shown / self.images_per_tick, 1.0)
        filled = int(fraction * BAR_WIDTH)
        line = (
            f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {fraction:4.0%} of the tick, "
            f"{tick.images_per_sec:.1f} img/s"
        )
        terminal.write(f"\r  {line}, eta {self.eta(progress)}   \r")
        terminal.flush()
