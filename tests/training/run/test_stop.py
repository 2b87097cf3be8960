# SPDX-License-Identifier: Apache-2.0
"""A stop request is answered between steps and in the middle of long work, by all processes, and nothing is
lost.
"""

import json
import os
import signal

import pytest
import torch

from tests.toy_runs import config, final_state
from torch_utils import distributed, launcher
from training import build, energy, loop, run_folder
from training.run.periodic import Score
from training.run.stop import Stopped, StopRequest, pause, terminated_as_interrupted, was_asked


@pytest.fixture(scope="module")
def data(toy_zip) -> str:
    return toy_zip


def ask_to_stop(number: int = signal.SIGTERM) -> None:
    """As the system does; the handler runs before this returns."""
    signal.raise_signal(number)


def test_a_pause_raises_after_a_signal_alone():
    pause()
    pause(alone=True)
    stop = StopRequest(restart_every=-1)  # the deadline is over: that is answered between steps
    try:
        pause()
        ask_to_stop(signal.SIGINT)
        for alone in (False, True):
            with pytest.raises(Stopped):
                pause(alone)
        with pytest.raises(KeyboardInterrupt):
            ask_to_stop(signal.SIGINT)
    finally:
        stop.close()
    pause()
    assert was_asked()
    StopRequest(restart_every=1e9).close()
    assert not was_asked()


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_signals_of_users_terminals_and_queues_ask_a_run_to_stop(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        stop = StopRequest(restart_every=1e9)
        try:
            ask_to_stop(number)
            assert stop.ask(lambda: False)() == stop.INTERRUPTED
        finally:
            stop.close()
        with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
            ask_to_stop(number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest(restart_every=1e9)
        try:
            ask_to_stop(signal.SIGHUP)
            assert not stop.signalled and signal.SIGHUP not in launcher.answered()
        finally:
            stop.close()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.e2e
def test_a_signal_during_an_evaluation_ends_it_and_the_score_is_made_up_for(data, tmp_path):
    cfg = config(data, run__kimg=0.032, run__metrics=["fd_lite0_10"])
    evaluated = []

    def evaluate(generator):
        evaluated.append(len(evaluated))
        if len(evaluated) == 2:
            ask_to_stop()
        pause()
        return [Score("fd_lite0_10", float(len(evaluated)))]

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    assert loop.train(cfg, str(run_dir), torch.device("cpu"), evaluate) == run_folder.INTERRUPTED
    assert json.loads((run_dir / "status.json").read_text()) == {"outcome": "interrupted", "nimg": 32}
    assert final_state(run_dir)["progress"]["unscored"]
    assert loop.train(cfg, str(run_dir), torch.device("cpu"), evaluate) == run_folder.FINISHED
    lines = [json.loads(line) for line in (run_dir / "metric-fd_lite0_10.jsonl").read_text().splitlines()]
    assert [(line["kimg"], line["results"]["fd_lite0_10"]) for line in lines] == [(0.016, 1.0), (0.032, 3.0)]
    assert all(line["lower_is_better"] for line in lines)


@pytest.mark.e2e
@pytest.mark.parametrize(("module", "name"), [(build, "make_class_embedding"), (energy, "choose")])
def test_a_signal_during_the_preparation_leaves_a_run_that_can_begin(
    module, name, data, tmp_path, monkeypatch
):
    """Class embeddings, and the real images of the energy distance."""
    cfg = config(data, run__kimg=0.008, loss__energy_weight=1.0)
    compute = getattr(module, name)

    def interrupted(*args):
        ask_to_stop()
        args[-1]()

    monkeypatch.setattr(module, name, interrupted)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    assert loop.train(cfg, str(run_dir), torch.device("cpu")) == run_folder.INTERRUPTED
    assert json.loads((run_dir / "status.json").read_text()) == {"outcome": "interrupted", "nimg": 0}
    monkeypatch.setattr(module, name, compute)
    assert loop.train(cfg, str(run_dir), torch.device("cpu")) == run_folder.FINISHED
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def _one_is_asked(folder: str) -> None:
    distributed.init("cpu")
    stop = StopRequest(restart_every=1e9)
    told = []
    for step in range(3):
        if step == 1 and distributed.rank() == 1:
            ask_to_stop()
        try:
            pause()
        except Stopped:
            told.append(step)
    with open(f"{folder}/{distributed.rank()}.json", "w") as f:
        json.dump(told, f)
    stop.close()
    distributed.shutdown()


@pytest.mark.e2e
def test_a_signal_to_one_process_stops_all(tmp_path):
    launcher.launch(_one_is_asked, 2, str(tmp_path))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [[1, 2], [1, 2]]
    assert sorted(os.listdir(tmp_path)) == ["0.json", "1.json"]
