# SPDX-License-Identifier: Apache-2.0
"""The one estimate of time: what a run's lines say, what a simulated run takes, and that everybody shows the
same number.
"""

import math

import pytest

from training.config import RunConfig
from training.watch import estimate
from training.watch.estimate import Pace, measured, seconds_left


def simulate(run: RunConfig, pace: Pace) -> tuple[list[dict], list[float]]:
    """Lines of stats.jsonl and, for each, the seconds from the end of its tick's maintenance to the end of
    the run, by going through it.
    """
    nimg = start = 0
    now, tick, maintenance = 0.0, 0, 0.0
    lines, ends = [], []
    while nimg < run.kimg * 1000:
        nimg += run.batch
        now += run.batch / 1000 * pace.sec_per_kimg
        done = nimg >= run.kimg * 1000
        if done or nimg >= start + run.tick * 1000:
            tick, start = tick + 1, nimg
            line = {
                "kimg": nimg / 1000,
                "Progress/tick": {"mean": float(tick)},
                "Timing/sec_per_kimg": {"mean": pace.sec_per_kimg},
            }
            lines.append({**line, "Timing/maintenance_sec": {"mean": maintenance}})
            maintenance = pace.sec_per_snapshot if done or tick % run.snap == 0 else pace.sec_per_tick
            now += maintenance
            ends.append(now)
    return lines, [now - end for end in ends]


@pytest.mark.parametrize(
    ("kimg", "tick", "snap", "batch"),
    [(10, 0.5, 4, 16), (7.3, 1, 3, 64), (1, 4, 50, 8), (100, 4, 5, 2048), (3, 0.001, 1, 32)],
)
def test_the_estimate_is_what_a_run_takes(kimg, tick, snap, batch):
    run, pace = RunConfig(kimg=kimg, tick=tick, snap=snap, batch=batch), Pace(12.0, 0.7, 55.0)
    lines, left = simulate(run, pace)
    steps = math.ceil(kimg * 1000 / batch)
    whole = RunConfig(
        kimg=steps * batch / 1000, tick=tick, snap=snap, batch=batch
    )  # a run ends with a whole step
    total = (
        left[0]
        + lines[0]["kimg"] * pace.sec_per_kimg
        + (pace.sec_per_snapshot if 1 % snap == 0 or len(lines) == 1 else pace.sec_per_tick)
    )
    assert pace.seconds(whole) == pytest.approx(total)
    for line, seconds in zip(lines, left, strict=True):
        assert pace.seconds(whole, line["kimg"], int(line["Progress/tick"]["mean"])) == pytest.approx(
            seconds, abs=1e-6
        )


def test_the_pace_is_read_from_the_lines():
    run, pace = RunConfig(kimg=20, tick=1, snap=4, batch=100), Pace(12.0, 0.7, 55.0)
    lines, left = simulate(run, pace)
    assert measured([], run) is None and math.isnan(seconds_left([], run))
    assert measured(lines[:1], run) == Pace(12.0) and measured(lines[:3], run) == Pace(12.0, 0.7, 0.7)
    for count in range(5, 20):  # from the first snapshot on
        assert measured(lines[:count], run) == pace
        assert seconds_left(lines[:count], run) == pytest.approx(left[count - 1])
    assert seconds_left(lines, run) == 0


def test_one_slow_tick_and_damaged_lines_do_not_count():
    run = RunConfig(kimg=20, tick=1, snap=100, batch=100)
    lines, _left = simulate(run, Pace(10.0, 1.0))
    lines[7]["Timing/sec_per_kimg"] = 400.0
    lines[8]["Timing/maintenance_sec"] = {"mean": 900.0}
    lines[9]["Timing/sec_per_kimg"] = {"mean": math.nan}
    lines[5] = {"kimg": 6.0, "Timing/maintenance_sec": "slow"}
    assert measured(lines[:12], run) == Pace(10.0, 1.0, 1.0)


def test_the_first_tick_of_a_resumed_process_says_nothing_of_maintenance():
    run = RunConfig(kimg=20, tick=1, snap=2, batch=100)
    lines, _ = simulate(run, Pace(10.0, 1.0, 30.0))
    lines[6]["Timing/maintenance_sec"] = {"mean": 0.0}
    assert measured(lines[:9], run) == Pace(10.0, 1.0, 30.0)


def test_recent_values_count():
    run = RunConfig(kimg=100, tick=1, snap=100, batch=100)
    slow, fast = simulate(run, Pace(20.0, 2.0))[0], simulate(run, Pace(5.0, 1.0))[0]
    assert measured(slow[:20] + fast[20 : 21 + estimate.RECENT], run).sec_per_kimg == 5.0
