# SPDX-License-Identifier: Apache-2.0
"""Alarms: healthy series raise none, each kind of collapse raises its own, once."""

import itertools
from dataclasses import asdict

import numpy as np
import pytest

from training.config import TrainConfig
from training.watch import alarms

CFG = TrainConfig().override({"run.batch": 32, "data.cond": True})


def _stats(n=100, **curves):
    """n ticks of 1 kimg; curves by statistic, as functions of the tick. Noise as real runs have it."""
    noise = np.random.RandomState(0)
    healthy = {
        "Variety/within": lambda t: 0.85 - 0.4 * np.exp(-t / 10),
        "Variety/recall": lambda t: 0.6 - 0.5 * np.exp(-t / 10),
        "Variety/between": lambda t: 0.95 - 0.6 * np.exp(-t / 15),
        "Loss/signs/real": lambda t: 0.6,
        "Loss/signs/fake": lambda t: -0.6,
        "Loss/D/fun": lambda t: 8.0 + 5 * np.exp(-t / 10),
    }
    lines = []
    for t in range(1, n + 1):
        line = {"kimg": float(t), "Progress/tick": {"num": 1, "mean": float(t), "std": 0.0}}
        for name, curve in {**healthy, **curves}.items():
            line[name] = {
                "num": 1,
                "mean": float(curve(t)) * (1 + 0.05 * noise.randn() * (name[0] == "V")),
                "std": 0.0,
            }
        lines.append(line)
    return lines


def _told(stats, metrics=(), cfg=CFG, best="min"):
    """All alarms that a run with these statistics tells, in order."""
    told = []
    for i in range(1, len(stats) + 1):
        upto = [m for m in metrics if m[0] <= stats[i - 1]["kimg"]]
        told += [
            asdict(a) for a in alarms.new_alarms(alarms.find(stats[:i], upto, cfg, "fid50k_full", best), told)
        ]
    return told


def test_healthy_runs_raise_none():
    assert _told(_stats(), [(8.0 * i, 50 / i + 3) for i in range(1, 13)]) == []
    assert (
        _told(_stats(**{"Variety/within": lambda t: 2.0 * np.exp(-t / 5) + 0.8})) == []
    )  # artefacts of the first ticks vary, too
    strong = {
        "Loss/signs/real": lambda t: 0.99,
        "Loss/signs/fake": lambda t: -0.99,
        "Loss/D/fun": lambda t: 3.0,
    }
    assert _told(_stats(**strong)) == []  # a strong discriminator whose loss still teaches


@pytest.mark.parametrize(
    "cause, curves, words",
    [
        ("variety", {"Variety/within": lambda t: 0.9 if t < 60 else 0.2}, "samples of a class look alike"),
        ("variety", {"Variety/within": lambda t: 0.9 if t < 60 else 0.5}, "samples of a class look alike"),
        ("variety", {"Variety/within": lambda t: 0.3}, "samples of a class look alike"),
        ("shapes", {"Variety/recall": lambda t: 0.6 if t < 60 else 0.25}, "samples of a class miss kinds"),
        ("shapes", {"Variety/recall": lambda t: 0.04}, "recall is 0.04 of the data's"),
        ("classes", {"Variety/between": lambda t: 0.9 - 0.8 * (t > 60)}, "the classes look alike"),
        (
            "saturated",
            {
                "Loss/signs/real": lambda t: 0.5 + 0.5 * (t > 50),
                "Loss/signs/fake": lambda t: -0.5 - 0.5 * (t > 50),
                "Loss/D/fun": lambda t: 9.0 * (t < 50),
            },
            "separates all images",
        ),
    ],
)
def test_each_collapse_raises_its_own(cause, curves, words):
    told = _told(_stats(**curves))
    assert {a["cause"] for a in told} == {cause}
    assert [b["tick"] - a["tick"] for a, b in itertools.pairwise(told)] == [alarms.AGAIN_AFTER] * (
        len(told) - 1
    )
    first = told[0]
    assert words in first["seen"] and first["since_kimg"] <= first["kimg"] <= first["since_kimg"] + 30
    line = alarms.Alarm(**first).line
    assert "since" in line and "--glr=0.00125" in line and "best_model.pkl" in line and "\n" not in line


# A run of the demo's network on digits, without DiffAugment: 28 ticks of 1,000 images, batch 16. Variety was
# measured at its snapshots.
REAL = {
    "Loss/signs/real": [
        0.88,
        0.96,
        0.98,
        0.93,
        0.89,
        0.85,
        0.84,
        0.88,
        0.89,
        0.89,
        0.86,
        0.86,
        0.87,
        0.81,
        0.83,
        0.82,
        0.83,
        0.82,
        0.79,
        0.79,
        0.79,
        0.78,
        0.77,
        0.77,
        0.78,
        0.71,
        0.75,
        0.75,
    ],
    "Loss/signs/fake": [
        -0.87,
        -0.96,
        -0.98,
        -0.92,
        -0.87,
        -0.86,
        -0.85,
        -0.90,
        -0.90,
        -0.91,
        -0.89,
        -0.89,
        -0.88,
        -0.85,
        -0.86,
        -0.85,
        -0.85,
        -0.85,
        -0.82,
        -0.82,
        -0.83,
        -0.82,
        -0.83,
        -0.84,
        -0.83,
        -0.77,
        -0.81,
        -0.80,
    ],
    "Loss/D/fun": [
        3.61,
        1.32,
        0.46,
        2.14,
        2.67,
        3.28,
        3.28,
        2.46,
        2.43,
        2.20,
        2.73,
        2.84,
        2.68,
        3.61,
        3.29,
        3.49,
        3.22,
        3.60,
        4.14,
        3.99,
        4.03,
        4.01,
        4.05,
        4.18,
        3.90,
        5.27,
        4.39,
        4.59,
    ],
    "Variety/within": np.interp(
        range(1, 29), range(4, 29, 4), [0.951, 0.818, 0.739, 0.738, 0.695, 0.613, 0.677]
    ),
    "Variety/between": np.interp(
        range(1, 29), range(4, 29, 4), [0.910, 0.957, 1.073, 1.285, 1.406, 1.405, 1.339]
    ),
}


def _real(**replaced):
    series = {**REAL, **replaced}
    return [
        {"kimg": t + 1.0, "Progress/tick": t + 1.0, **{name: float(y[t]) for name, y in series.items()}}
        for t in range(28)
    ]


def test_a_real_run_raises_none_until_it_collapses():
    cfg = CFG.override({"run.batch": 16})
    assert _told(_real(), cfg=cfg) == []
    truncated = np.where(
        np.arange(28) < 20, REAL["Variety/within"], 0.343
    )  # what the last network gives at psi = 0.4
    (alarm,) = _told(_real(**{"Variety/within": truncated}), cfg=cfg)
    assert alarm["cause"] == "variety" and 21 <= alarm["since_kimg"] <= 23 and alarm["kimg"] <= 26


def test_since_when():
    (alarm,) = alarms.find(_stats(**{"Variety/within": lambda t: 0.9 if t < 60 else 0.1}), [], CFG)
    assert 60 <= alarm.since_kimg <= 64 and alarm.kimg == 100 and "0.10 of the data's" in alarm.seen


def test_advice_names_what_is_off():
    off = CFG.override({"discriminator.augment": False})
    low = _stats(**{"Variety/within": lambda t: 0.1})
    assert (
        "--augment=True" in alarms.find(low, [], off)[0].advice
        and "--augment" not in alarms.find(low, [], CFG)[0].advice
    )
    unconditional = CFG.override({"data.cond": False})
    assert alarms.find(low, [], unconditional)[0].seen.startswith("the images look alike")


def test_advice_on_images_that_look_alike_is_what_is_not_on_yet():
    low = _stats(**{"Variety/within": lambda t: 0.1})
    assert alarms.find(low, [], CFG)[0].advice.startswith("--energy-weight=100 --class-run=4")
    on = CFG.override({"loss.energy_weight": 10.0})
    assert alarms.find(low, [], on)[0].advice.startswith("a new run with --mbstd=True")
    both = on.override({"discriminator.mbstd": True})
    assert alarms.find(low, [], both)[0].advice.startswith("more images per class")


def test_a_rising_metric():
    falls = [(8.0 * i, 40.0 / i) for i in range(1, 6)]
    rises = falls + [(40 + 8.0 * i, 8.0 + 1.5 * i) for i in range(1, 7)]
    told = _told(_stats(), rises)
    assert (
        [a["cause"] for a in told] == ["metric"]
        and "fid50k_full gets worse" in told[0]["seen"]
        and told[0]["since_kimg"] == 40
    )
    assert (
        _told(_stats(), falls + [(40 + 8.0 * i, 8.2) for i in range(1, 7)]) == []
    )  # no progress is no collapse
    assert [a["cause"] for a in _told(_stats(), [(k, 100 / v) for k, v in rises], best="max")] == ["metric"]


def test_young_runs_are_left_alone():
    low = {"Variety/within": lambda t: 0.1}
    assert alarms.find(_stats(alarms.WARM_UP_TICKS - 1, **low), [], CFG) == []
    assert alarms.find(_stats(100, **low), [], CFG.override({"run.batch": 2048})) == []  # 49 steps


def test_missing_and_odd_values_are_passed_over():
    stats = _stats(**{"Variety/within": lambda t: 0.1})
    for i, odd in enumerate((None, "x", float("nan"), {"mean": None}, True)):
        stats[40 + i]["Variety/within"] = odd
        stats[-1 - i].pop("Loss/D/fun")
    assert [a.cause for a in alarms.find(stats, [(float("nan"), 1.0)], CFG)] == ["variety"]
    assert alarms.find([{k: v for k, v in s.items() if "Variety" not in k} for s in _stats()], [], CFG) == []
    kept = [alarms.excerpt(s) for s in stats]
    assert [asdict(a) for a in alarms.find(kept, [], CFG)] == [asdict(a) for a in alarms.find(stats, [], CFG)]
