# SPDX-License-Identifier: Apache-2.0
"""Estimate the duration of a run and the remaining time: training, and the maintenance between ticks.

The status line, the report and the --dry-run plan all use these functions. Maintenance is what a run does
besides training: the statistics of every tick, and at every snapshot the grid, the network file, the
checkpoint, the evaluation and the report.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.config import RunConfig
from training.watch.ticks import number

RECENT = 9  # medians are over this many ticks or snapshots, because the load of machines varies
_NAMES = ("kimg", "Progress/tick", "Timing/sec_per_kimg", "Timing/maintenance_sec")


@dataclass(frozen=True)
class Pace:
    """Seconds per thousand images shown, and of maintenance after a tick without and with a snapshot."""

    sec_per_kimg: float
    sec_per_tick: float = 0.0
    sec_per_snapshot: float = 0.0

    def seconds(self, run: RunConfig, kimg: float = 0.0, tick: int = 0) -> float:
        """Seconds from `kimg`, with `tick` ticks complete, to the end of the run and its last snapshot."""
        left = max(run.kimg - kimg, 0.0)
        if left == 0:
            return 0.0
        ticks, snapshots = ticks_and_snapshots(run, kimg, tick)
        return (
            left * self.sec_per_kimg
            + (ticks - snapshots) * self.sec_per_tick
            + snapshots * self.sec_per_snapshot
        )


def ticks_and_snapshots(run: RunConfig, kimg: float = 0.0, tick: int = 0) -> tuple[int, int]:
    """The numbers of ticks and snapshots from `kimg`, with `tick` ticks complete, to the end of the run."""
    step = run.batch / 1000
    tick_kimg = math.ceil(run.tick / step - 1e-9) * step  # a tick ends with a whole step
    ticks = math.ceil(max(run.kimg - kimg, 0.0) / tick_kimg - 1e-9)
    last = tick + ticks
    every = last // run.snap - tick // run.snap
    return ticks, every + (ticks > 0 and last % run.snap != 0)  # the last tick always makes a snapshot


def excerpt(record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a line of stats.jsonl that `measured` needs."""
    return {name: number(record.get(name)) for name in _NAMES}


def measured(stats: Sequence[Mapping[str, Any]], run: RunConfig) -> Pace | None:
    """The pace of a run from the lines of its stats.jsonl; None before its first tick.

    The line of a tick contains the duration of the maintenance after the previous tick. Before the first
    snapshot, its maintenance is assumed to take as long as that of any tick.
    """
    speeds = [v for line in stats if (v := number(line.get("Timing/sec_per_kimg"))) > 0]
    if not speeds:
        return None
    plain: list[float] = []
    snapshots: list[float] = []
    for line in stats:
        tick, seconds = number(line.get("Progress/tick")), number(line.get("Timing/maintenance_sec"))
        if seconds > 0 and tick >= 2:  # 0 for the first tick of a process, which no maintenance precedes
            (snapshots if (tick - 1) % run.snap == 0 else plain).append(seconds)
    per_tick = _typical(plain) if plain else 0.0
    return Pace(_typical(speeds), per_tick, _typical(snapshots) if snapshots else per_tick)


def seconds_left(stats: Sequence[Mapping[str, Any]], run: RunConfig) -> float:
    """Seconds to the end of the run, from the lines of its stats.jsonl; NaN if unknown."""
    pace = measured(stats, run)
    newest = next((line for line in reversed(stats) if math.isfinite(number(line.get("kimg")))), None)
    if pace is None or newest is None:
        return math.nan
    tick = number(newest.get("Progress/tick"))
    return pace.seconds(run, number(newest.get("kimg")), int(tick) if math.isfinite(tick) else len(stats))


def _typical(values: Sequence[float]) -> float:
    return statistics.median_low(values[-RECENT:])
