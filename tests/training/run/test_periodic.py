# SPDX-License-Identifier: Apache-2.0
"""What a run writes between steps: statistics, snapshots, checkpoints, scores."""

import json

import pytest
import torch

from tests.toy_runs import config
from torch_utils import checkpoint
from training import build, run_folder
from training.run import restore
from training.run.periodic import Periodic, Score


@pytest.fixture
def made(toy_zip, tmp_path):
    """(periodic, state, run folder, scores to come) of a run with a snapshot every second tick."""
    cfg = config(toy_zip, run__snap=2, run__metrics=["fd_lite0_10"])
    dataset = build.make_dataset(cfg.data, 0)
    state = restore.fresh_state(cfg, dataset, torch.device("cpu"))
    scores = [3.0, 2.0, 4.0]
    periodic = Periodic(cfg, str(tmp_path), dataset, state, lambda G: [Score("fd_lite0_10", scores.pop(0))])
    return periodic, state, tmp_path, scores


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ticks_snapshots_checkpoints_and_scores(made, monkeypatch):
    periodic, state, folder, scores = made
    periodic.begin(state)
    assert (folder / "reals.png").exists() and (folder / "fakes_init.png").exists()
    for nimg, done in ((16, False), (32, False), (48, True)):
        state.progress.nimg = nimg
        if done:  # the GPU is known
            monkeypatch.setattr(periodic.utilization, "of", lambda images_per_sec, lineage: 0.25)
        periodic.tick(state, done)
        assert (state.progress.tick_start_nimg, state.progress.unscored) == (nimg, False)
    periodic.end(state, run_folder.FINISHED)
    stats = lines(folder / "stats.jsonl")
    assert [line["kimg"] for line in stats] == [0.016, 0.032, 0.048]
    assert ["Timing/mfu" in line for line in stats] == [False, False, True]
    assert stats[-1]["Timing/mfu"]["mean"] == 0.25
    assert [line["kimg"] for line in lines(folder / "metric-fd_lite0_10.jsonl")] == [0.032, 0.048]
    assert (len(scores), state.progress.best_metric, state.progress.best_nimg) == (1, 2.0, 48)
    newest = checkpoint.latest(run_folder.checkpoint_folder(folder))
    saved = checkpoint.load(newest)
    assert saved["train"]["progress"]["nimg"] == 48 and saved["train"]["progress"]["unscored"] is False
    assert json.loads((folder / "status.json").read_text()) == {"outcome": "finished", "nimg": 48}
    best = (folder / "best_model.pkl").read_bytes()
    assert best == (folder / "network-snapshot.pkl").read_bytes()


def test_a_run_that_is_over_when_it_resumes_has_a_snapshot_of_its_last_state(made):
    """As with a --kimg below that of a checkpoint between two snapshots."""
    periodic, state, folder, scores = made
    periodic.begin(state)
    state.progress.nimg = 16
    periodic.tick(state, done=False)
    assert not run_folder.snapshot_files(folder)
    for _ in range(2):
        periodic.finish(state)
        (snapshot,) = run_folder.snapshot_files(folder)
        assert snapshot.read_bytes() == (folder / "best_model.pkl").read_bytes() and len(scores) == 2
    periodic.end(state, run_folder.FINISHED)
    newest = checkpoint.load(checkpoint.latest(run_folder.checkpoint_folder(folder)))
    assert newest["running"]["snapshot"]["nimg"] == 16 and not newest["train"]["progress"]["unscored"]


def test_the_report_of_a_finished_run_is_drawn_before_its_status(made, monkeypatch):
    """A kill between the two must not leave a stage that is done with the report of one that runs."""
    periodic, state, folder, _ = made
    periodic.begin(state)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "write_status", killed)
    with pytest.raises(KeyboardInterrupt):
        periodic.end(state, run_folder.FINISHED)
    assert run_folder.recorded_outcome(folder) is None
    assert "finished" in (folder / "report.html").read_text()


def test_a_score_that_a_killed_run_lost_is_made_up_for(made):
    periodic, state, folder, scores = made
    state.progress.nimg = state.progress.tick_start_nimg = 16
    state.progress.unscored = True
    periodic.begin(
        state, {"tick_seconds": 0.0, "statistics": None, "snapshot": {"nimg": 16, "number": "000000"}}
    )
    assert len(scores) == 2 and not state.progress.unscored
    (line,) = lines(folder / "metric-fd_lite0_10.jsonl")
    assert (line["kimg"], line["snapshot_pkl"]) == (0.016, "network-snapshot-000000.pkl")
