# SPDX-License-Identifier: Apache-2.0
"""The time that a run takes: seconds of a tick and of its maintenance, the time left, the progress bar on a terminal."""

from __future__ import annotations

import sys
import time
from typing import NamedTuple

from dnnlib.util import format_time
from training.config import TrainConfig
from training.state import Progress

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
    """Measures ticks and says how long the run still takes.

    maintenance: seconds that the end of the last tick took (snapshot, evaluation, report).
    """

    def __init__(self, cfg: TrainConfig, progress: Progress) -> None:
        self.images, self.images_per_tick = cfg.run.kimg * 1000, cfg.run.tick * 1000
        self.start_nimg = progress.nimg
        self.started = self.tick_started = self.bar_drawn = time.monotonic()
        self.maintenance = 0.0

    def begin(self, seconds: float) -> None:
        """Go on with a tick that has taken `seconds` before a restart."""
        self.tick_started -= seconds

    def tick_so_far(self, progress: Progress) -> Tick:
        """The current tick until now."""
        return Tick(time.monotonic() - self.tick_started, progress.nimg - progress.tick_start_nimg)

    def next_tick(self, finished: Tick) -> None:
        """The next tick begins now: what has passed since the end of the `finished` one was maintenance."""
        ended = self.tick_started + finished.seconds
        self.tick_started = time.monotonic()
        self.maintenance = self.tick_started - ended

    def eta(self, progress: Progress) -> str:
        """The time left until --kimg at the mean speed of this process; '?' before its first step."""
        shown = progress.nimg - self.start_nimg
        left = max(self.images - progress.nimg, 0)
        return format_time(left * (time.monotonic() - self.started) / shown) if shown else "?"

    def bar(self, progress: Progress) -> None:
        """Progress within the tick, on a terminal only."""
        now, terminal = time.monotonic(), sys.__stdout__  # not the log file
        if terminal is None or not sys.stdout.isatty() or now - self.bar_drawn < BAR_SECONDS:
            return
        self.bar_drawn = now
        tick = self.tick_so_far(progress)
        fraction = min(tick.shown / self.images_per_tick, 1.0)
        filled = int(fraction * BAR_WIDTH)
        line = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {fraction:4.0%} of the tick, {tick.images_per_sec:.1f} img/s"
        terminal.write(f"\r  {line}, eta {self.eta(progress)}   \r")
        terminal.flush()
