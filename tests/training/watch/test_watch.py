# SPDX-License-Identifier: Apache-2.0
"""What a run watches: one warning per cause, kept across resumes as the statistics are."""

import json
from types import SimpleNamespace

import pytest
import torch

from tests.toy_data import write_dataset
from training import run_folder
from training.config import TrainConfig
from training.data.dataset import ImageDataset
from training.watch import alarms
from training.watch.watch import Watch


class _Black(torch.nn.Module):
    """In a generator's place."""

    z_dim = 4

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z, c=None):
        return torch.full((len(z), 3, 16, 16), -1.0)


@pytest.fixture
def make(tmp_path):
    data = write_dataset(tmp_path / "d.zip", 12, class_names=["<i>a</i>", "b"])
    dataset = ImageDataset(str(data), use_labels=True)
    cfg = TrainConfig().override(
        {"data.cond": True, "run.batch": 8, "run.variety": 0, "run.metrics": ["fd_lite0_500"]}
    )
    G = _Black()
    G.c_dim = 2

    def begin(nimg):
        watch = Watch(cfg, str(tmp_path), dataset, None)
        state = SimpleNamespace(
            progress=SimpleNamespace(nimg=nimg),
            G=G,
            G_ema=G,
            g_params=dict(G.named_parameters()),
            d_params={},
        )
        watch.begin(state, grid_rows=2)
        return watch

    return begin


def _tick(t, within):
    return {"kimg": float(t), "Progress/tick": {"mean": float(t)}, "Variety/within": {"mean": within}}


def _run(watch, folder, ticks):
    """As Periodic: the line, then the look at it."""
    for t in ticks:
        line = _tick(t, 0.9 if t < 60 else 0.1)
        with open(folder / "stats.jsonl", "a") as f:
            f.write(json.dumps(line) + "\n")
        watch.alarm(line)


def _told(folder):
    path = folder / run_folder.ALARMS_FILE
    return [json.loads(line)["tick"] for line in path.read_text().splitlines()] if path.exists() else []


def test_one_warning_and_a_resume(make, tmp_path, capsys):
    watch = make(0)
    _run(watch, tmp_path, range(1, 60))
    assert _told(tmp_path) == [] and capsys.readouterr().out == ""
    _run(watch, tmp_path, range(60, 80))
    (first,) = _told(tmp_path)
    out = capsys.readouterr().out
    assert (
        out.startswith("WARNING: samples of a class look alike") and out.count("\n") == 1 and 60 < first < 70
    )
    # A kill: the run goes on from the checkpoint at 61 kimg, where nothing had been told yet.
    lines = (tmp_path / "stats.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "stats.jsonl").write_text("".join(lines[:61]))
    watch = make(61_000)
    assert _told(tmp_path) == []
    _run(watch, tmp_path, range(62, 125))
    assert _told(tmp_path) == [first, first + alarms.AGAIN_AFTER]


def test_what_the_report_reads(make, tmp_path):
    watch = make(0)
    about = json.loads((tmp_path / run_folder.ABOUT_FILE).read_text())
    assert about["grid_rows"] == ["<i>a</i>", "b"] and about["images"] == 12 and about["g_parameters"] == 1
    assert (tmp_path / "contact-sheet.png").exists() and (tmp_path / "contact" / "000000000.png").exists()
    watch.redraw(page=True)
    page = (tmp_path / run_folder.REPORT_FILE).read_text()
    assert "<i>a</i>" not in page
    watch.measure(None)  # switched off: nothing is drawn
