# SPDX-License-Identifier: Apache-2.0
"""How groups of processes fail, stop and start again. Two gloo processes, four launches."""

import os
import signal
import threading

import click
import pytest

from tests.support import enter_torchrun
from torch_utils import distributed, launcher, watchdog


def _one_fails(folder):
    distributed.init("cpu")
    if distributed.rank() == 1:
        raise click.ClickException("--batch 7: cannot be shared by 2 processes")
    try:
        distributed.barrier()
        (folder / "unreachable").touch()
    finally:
        threading.Event().wait()  # until it is stopped


def test_one_failure_stops_all_and_keeps_its_type(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(launcher, "_FAILURE_GRACE", 1)  # the other process waits for ever
    with pytest.raises(click.ClickException, match="--batch 7") as e:
        launcher.launch(_one_fails, 2, tmp_path)
    assert not list(tmp_path.iterdir())
    assert "in _one_fails" in str(e.value.__cause__)  # where it happened
    assert "Traceback" not in capfd.readouterr().err  # told once: by the exception


def _saves_when_asked(folder):
    distributed.init("cpu")
    asked = []
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda *_: asked.append(1))
    (folder / f"up{distributed.rank()}").touch()
    while not asked:
        threading.Event().wait(0.02)
    threading.Event().wait(0.2)  # for a second signal, which must not come
    distributed.barrier()
    (folder / f"saved{distributed.rank()}-{len(asked)}").touch()


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1"])
def test_a_signal_lets_every_process_save_once(name, tmp_path):
    number, over = getattr(signal, name), threading.Event()

    def press():
        while not over.wait(0.02):
            if len(list(tmp_path.glob("up*"))) == 2:
                return os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        launcher.launch(_saves_when_asked, 2, tmp_path)  # they leave well, so it returns
    finally:
        over.set()
        thread.join()
    assert sorted(p.name for p in tmp_path.glob("saved*")) == ["saved0-1", "saved1-1"]
    assert signal.getsignal(number) is before


def test_the_first_cause_of_a_failure_is_raised():
    lost = launcher._Report(3.0, distributed.PeerLost("process 0 lost another process"), "")
    later, cause = (launcher._Report(t, ValueError(text), "") for t, text in ((5.0, "later"), (4.0, "cause")))
    with pytest.raises(ValueError, match="cause"):
        launcher.raise_failure([1, 1], [later, cause], {0, 1}, [])
    with pytest.raises(ValueError, match="cause"):  # a lost connection is a consequence, even an earlier one
        launcher.raise_failure([1, 1], [lost, cause], {0, 1}, [])
    with pytest.raises(
        launcher.ProcessDied, match=r"process 1 of 2 was ended by SIGKILL \(out of memory\?\)"
    ):
        launcher.raise_failure([1, -9], [cause, None], {0, 1}, [])
    with pytest.raises(ValueError, match="cause"):  # unless the launcher killed it
        launcher.raise_failure([-9, 1], [None, cause], {1}, [])
    with pytest.raises(KeyboardInterrupt):
        launcher.raise_failure([130, 130], [None, None], {0, 1}, [(signal.SIGINT, 0.0)])
    with pytest.raises(SystemExit) as e:
        launcher.raise_failure([-15, -15], [None, None], {0, 1}, [(signal.SIGTERM, 0.0)])
    assert e.value.code == 143


def _dies_once(folder):
    distributed.init("cpu")
    first = not (folder / "died").exists()
    distributed.barrier()
    if first and distributed.rank() == 1:
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()
    return distributed.rank(), distributed.world_size()


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_killed_process_is_started_again(tmp_path, capfd):
    told = []

    def restart(error, attempt):
        told.append((str(error), attempt))
        return True

    assert launcher.launch(_dies_once, 2, tmp_path, restart=restart) == (0, 2)
    assert told == [("process 1 of 2 was ended by SIGKILL (out of memory?)", 0)]
    assert capfd.readouterr().err == ""  # neither torch's tracebacks nor those of the other process


def _sleeps(folder):
    distributed.init("cpu")
    distributed.barrier()

    def end(line):
        launcher.end_process(launcher.ProcessHung(line))

    with watchdog.Watchdog(folder / "ranks", 5, end):
        watchdog.phase("G", step=7)
        distributed.barrier()
        if distributed.rank() == 1:
            store = distributed.new_store(60)
            while not store.check(["watchdog/1"]):  # its watchdog has begun
                threading.Event().wait(0.02)
            os.kill(os.getpid(), signal.SIGSTOP)
        distributed.barrier()


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_stopped_process_is_found_and_ended(tmp_path):
    with pytest.raises(launcher.ProcessHung, match=r"process 1 \(.*\) has not run for .* since step 7, G"):
        launcher.launch(_sleeps, 2, tmp_path)
    (stacks,) = (tmp_path / "ranks").iterdir()
    assert stacks.name == "000-stacks.txt" and "in _sleeps" in stacks.read_text()


def test_torchrun_is_recognised(monkeypatch):
    enter_torchrun(monkeypatch)
    calls = []
    for n in (1, 2, 4):
        launcher.launch(calls.append, n, n)
    assert calls == [1, 2, 4]
    with pytest.raises(ValueError, match="3 processes asked for, but torchrun started 4"):
        launcher.launch(calls.append, 3, 3)


def test_one_process_is_this_one(monkeypatch):
    for name in distributed._TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    calls = []
    launcher.launch(calls.append, 1, "here")
    assert calls == ["here"]
    with pytest.raises(ValueError, match="at least 1"):
        launcher.launch(calls.append, 0, "x")
