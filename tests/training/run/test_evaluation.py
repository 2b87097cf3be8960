# SPDX-License-Identifier: Apache-2.0
"""The share of time that metrics may take, and the best network of each metric, with injected times."""

import json
import math
from types import SimpleNamespace

import pytest

from training import run_folder
from training.config import RunConfig
from training.run.evaluation import Evaluation, Score, metric_share
from training.run.snapshots import Snapshots
from training.run.trackers import Trackers
from training.state import Progress


class Run:
    """A run without networks: every snapshot is a text file, every evaluation takes `cost` seconds."""

    def __init__(self, folder, values, cost=10.0, **options):
        self.folder, self.values, self.cost, self.time = folder, iter(values), cost, 0.0
        self.state = SimpleNamespace(progress=Progress(), G_ema=None)
        self.snapshots = Snapshots(None, folder, None)
        run = RunConfig(kimg=8.0, **options)
        trackers = Trackers((), folder, {}, 0)
        self.evaluation = Evaluation(folder, self.evaluate, self.snapshots, trackers, run, lambda: self.time)
        self.evaluated = []

    def evaluate(self, generator):
        self.time += self.cost
        self.evaluated.append(self.state.progress.nimg)
        fid, score = next(self.values)
        return [Score("fid50k_full", fid), Score("is50k", score, lower_is_better=False)]

    def train(self, kimg, seconds=100.0):
        progress = self.state.progress
        progress.nimg += int(kimg * 1000)
        progress.seconds += seconds
        progress.unscored = True
        self.snapshots.path(progress.nimg).write_text(str(progress.nimg))
        assert self.evaluation.score(self.state) and not progress.unscored


def test_evaluations_are_skipped_while_metrics_exceed_their_share(tmp_path, capsys):
    run = Run(tmp_path, [(3.0, 1.0)] * 8, cost=30.0, metric_share=0.1)
    for _ in range(8):
        run.train(1)
    # 30 of 230 s at the second snapshot, 30 of 330 s, less than a tenth, at the third, and so on
    assert run.evaluated == [1000, 3000, 6000, 8000]
    printed = capsys.readouterr().out
    assert printed.count("metrics: skipped") == 4
    assert "metrics: skipped, they have taken 13.0% of the run's time (--metric-share=0.1)" in printed
    lines = [json.loads(line) for line in (tmp_path / "metric-is50k.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [1, 3, 6, 8]


def test_a_resumed_run_knows_the_time_spent_on_metrics(tmp_path):
    run = Run(tmp_path, [(3.0, 1.0)] * 3, cost=30.0, metric_share=0.1)
    run.train(1)
    resumed = Run(tmp_path, [(2.0, 2.0)], cost=30.0, metric_share=0.1)
    resumed.state.progress = Progress(**json.loads(json.dumps(vars(run.state.progress))))
    assert metric_share(resumed.state.progress) == pytest.approx(30 / 130)
    resumed.train(1)
    assert resumed.evaluated == []


def test_every_evaluation_runs_by_default(tmp_path):
    run = Run(tmp_path, [(3.0, 1.0)] * 3, cost=1e6)
    for _ in range(3):
        run.train(1, seconds=0.001)
    assert run.evaluated == [1000, 2000, 3000]


def test_each_metric_keeps_its_best_network(tmp_path):
    run = Run(tmp_path, [(3.0, 1.0), (2.0, 5.0), (4.0, 9.0), (1.5, 2.0)])
    for _ in range(4):
        run.train(1)
    first, other = run_folder.best_file(tmp_path), run_folder.best_file(tmp_path, "is50k")
    assert (first.name, other.name) == ("best_model.pkl", "best-is50k.pkl")
    assert (first.read_text(), other.read_text()) == ("4000", "3000")
    assert run_folder.best_nimg(tmp_path) == 4000
    assert run.state.progress.best_others == {"is50k": -9.0}
    assert not list(tmp_path.glob("best-fid*"))


def test_a_score_that_is_no_number_is_not_the_best(tmp_path):
    run = Run(tmp_path, [(math.nan, 1.0), (3.0, 1.0), (math.nan, 1.0)])
    for best in (None, "2000", "2000"):
        run.train(1)
        first = run_folder.best_file(tmp_path)
        assert (first.read_text() if first.exists() else None) == best
    assert (run.state.progress.best_metric, run.state.progress.stale) == (3.0, 1)


@pytest.mark.parametrize("known", [True, False])
def test_another_first_metric_has_its_own_best_network(known, tmp_path):
    """A score of one metric is not compared with scores of another, and no best network is lost."""
    run = Run(tmp_path, [(3.0, 1.0), (2.0, 9.0), (4.0, 5.0)])
    for _ in range(3):
        run.train(1)
    resumed = Run(tmp_path, [(1.5, 8.0), (9.0, 10.0)])
    resumed.state.progress = Progress(**json.loads(json.dumps(vars(run.state.progress))))
    if not known:  # it was not measured before
        resumed.state.progress.best_others.clear()
        run_folder.best_file(tmp_path, "is50k").unlink()
        run_folder.metric_file(tmp_path, "is50k").unlink()
    scores = resumed.evaluation.evaluate
    resumed.evaluation.evaluate = lambda generator: scores(generator)[::-1]
    resumed.train(1)
    progress = resumed.state.progress
    best = run_folder.best_file(tmp_path)
    expected = ("2000", -9.0, 2000, 1) if known else ("4000", -8.0, 4000, 0)
    assert (best.read_text(), progress.best_metric, progress.best_nimg, progress.stale) == expected
    assert run_folder.best_nimg(tmp_path) == expected[2]
    assert run_folder.best_file(tmp_path, "fid50k_full").read_text() == "4000"
    assert progress.best_others == {"fid50k_full": 1.5}
    assert not run_folder.best_file(tmp_path, "is50k").exists()
    resumed.snapshots.change_first("fid50k_full", "is50k", progress.best_nimg)  # killed before a checkpoint
    assert run_folder.best_file(tmp_path, "fid50k_full").read_text() == "4000"
    resumed.train(1)
    assert (best.read_text(), progress.best_metric, progress.stale) == ("5000", -10.0, 0)
    assert run_folder.best_file(tmp_path, "fid50k_full").read_text() == "4000"


def test_a_resumed_run_does_not_replace_a_better_network(tmp_path):
    run = Run(tmp_path, [(3.0, 5.0)])
    run.train(1)
    resumed = Run(tmp_path, [(4.0, 4.0)])
    resumed.state.progress = Progress(**json.loads(json.dumps(vars(run.state.progress))))
    resumed.train(1)
    assert run_folder.best_file(tmp_path, "is50k").read_text() == "1000"
    assert resumed.state.progress.stale == 1
