# SPDX-License-Identifier: Apache-2.0
"""How many processes a run has under torchrun. Runs are started in e2e tests."""

import signal

import pytest

from tests.toy_runs import config
from training import launch, run_folder


@pytest.fixture
def torchrun(monkeypatch):
    """Pretend that torchrun has started so many processes."""

    def start(number):
        for name in ("RANK", "MASTER_PORT", "MASTER_ADDR"):
            monkeypatch.setenv(name, "0")
        monkeypatch.setenv("WORLD_SIZE", str(number))

    return start


def test_without_elastic_the_number_of_processes_must_agree(torchrun):
    torchrun(4)
    with pytest.raises(ValueError, match="--gpus=2, but torchrun started 4 processes"):
        launch.check_processes(config("x", run__gpus=2))


def test_elastic_runs_take_what_torchrun_starts_and_keep_the_batch(torchrun):
    cfg = config("x", run__gpus=4, run__batch=24, run__batch_gpu=6, run__elastic=True)
    assert launch.fit_processes(cfg) == cfg  # without torchrun
    for number, micro_batch in ((4, 6), (3, 4), (2, 6), (8, 3)):
        torchrun(number)
        launch.check_processes(cfg)
        run = launch.fit_processes(cfg).run
        assert (run.gpus, run.batch, run.batch_gpu) == (number, 24, micro_batch)
    whole = cfg.override({"run.batch_gpu": 0})
    assert launch.fit_processes(whole).run.batch_gpu == 0


def test_micro_batches_of_elastic_runs_consist_of_whole_class_runs(torchrun):
    cfg = config(
        "x",
        run__gpus=2,
        run__batch=24,
        run__batch_gpu=4,
        run__elastic=True,
        data__cond=True,
        data__class_run=2,
    )
    torchrun(4)
    assert launch.fit_processes(cfg).run.batch_gpu == 2
    torchrun(8)
    with pytest.raises(ValueError, match="--class-run=2: a micro-batch must consist of whole runs"):
        launch.check_processes(cfg)


def test_a_batch_that_cannot_be_divided_names_the_numbers_that_can(torchrun):
    torchrun(5)
    with pytest.raises(ValueError, match=r"--batch=8 cannot be divided among the 5 .* 1, 2, 4, 8$"):
        launch.check_processes(config("x", run__gpus=4, run__elastic=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_search_for_a_micro_batch_ends_it_in_one_line(
    number, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(launch, "settle_batch_gpu", lambda *_: signal.raise_signal(number))
    outcome = launch.start(config("x", run__batch_gpu="auto"), None, str(tmp_path), "x", None)
    assert outcome == run_folder.INTERRUPTED and not list(tmp_path.iterdir())
    assert capsys.readouterr().out == "Stopped. Start again: nothing is recorded yet\n"


def test_a_recorded_micro_batch_is_kept_if_the_options_allow_it(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.launcher, "launch", lambda *_: launch.auto_batch.Choice(4, "found"))
    recorded = config("x", run__batch_gpu=1)
    run_folder.write_json(tmp_path / run_folder.OPTIONS_FILE, {"config": launch.to_json(recorded)})
    auto = config("x", run__batch_gpu="auto")
    for changes, found in (({}, 1), ({"loss.energy_weight": 1.0}, 4), ({"data.class_run": 2}, 4)):
        assert launch.settle_batch_gpu(auto.override(changes), tmp_path, again=False).run.batch_gpu == found
