# SPDX-License-Identifier: Apache-2.0
"""Phases and their seconds; which process the watchdog names. The loop of its thread runs in e2e tests."""

import json
import threading

import pytest
import torch

from torch_utils import distributed, watchdog


@pytest.fixture
def clock(monkeypatch):
    """The time, in a list."""
    now = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watchdog, "_work", watchdog._Work())
    return now


@pytest.fixture
def dog(clock, tmp_path, monkeypatch):
    """Of process 1 of 3."""
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    return watchdog.Watchdog(tmp_path / "ranks", 60, pytest.fail)


def test_seconds_of_phases_are_without_those_that_the_process_waits(clock, monkeypatch):
    waited = [0.0]
    monkeypatch.setattr(distributed, "seconds_waited", lambda: waited[0])
    watchdog.phase("data", step=1)
    clock[0] += 3
    watchdog.phase("G")
    clock[0] += 10
    waited[0] += 4
    watchdog.phase("data", step=2)
    clock[0] += 1
    seconds = watchdog.take_seconds()
    assert (seconds["data"], seconds["G"], seconds["waiting"]) == (4, 6, 4)
    assert sum(watchdog.take_seconds().values()) == 0


def test_seconds_of_parts_of_one_phase_are_its_own(clock):
    watchdog.phase("statistics")
    with watchdog.one_phase():
        clock[0] += 2
        watchdog.phase("G")
        clock[0] += 3
    clock[0] += 1
    watchdog.phase("report")
    assert watchdog.take_seconds()["statistics"] == 6


def test_a_process_without_progress_names_itself(dog):
    store = torch.distributed.HashStore()
    watchdog.phase("G", step=7)
    assert dog._self_hangs(store, 0) == ""
    assert dog._self_hangs(store, 59) == ""
    watchdog.progress()
    assert dog._self_hangs(store, 59) == ""
    verdict = dog._self_hangs(store, 61)
    assert verdict.startswith("process 1 (") and "no progress for 61 s in step 7, G" in verdict


def test_the_first_step_has_more_time(dog):
    store = torch.distributed.HashStore()
    watchdog.phase("build")
    dog._self_hangs(store, 0)
    assert dog._self_hangs(store, 300) == "" != dog._self_hangs(store, 61)


def test_a_process_that_waits_for_others_does_not_hang(dog, monkeypatch):
    monkeypatch.setattr(distributed, "waiting_in", lambda: "all-reduce")
    watchdog.phase("G", step=7)
    assert [dog._self_hangs(torch.distributed.HashStore(), 100) for _ in range(9)] == [""] * 9


def test_where_the_host_does_not_know_that_it_waits_the_process_that_did_least_is_named(dog):
    store = torch.distributed.HashStore()
    for rank, count in ((0, 9), (2, 5)):
        seen = {"ticks": 1, "count": count, "where": f"host{rank}", "does": f"step {count}"}
        store.set(f"watchdog/{rank}", json.dumps(seen))
    for step in range(9):
        watchdog.phase("G", step=step)
    store.set("watchdog/1", json.dumps(dog._here(1)))
    dog._self_hangs(store, 0)
    assert dog._self_hangs(store, 61).startswith("process 2 (host2) has made no progress")


def test_the_next_process_is_missed_when_it_does_not_run(dog):
    store = torch.distributed.HashStore()
    seen = {"ticks": 4, "count": 5, "where": "host2, pid 7", "does": "step 3, D"}
    assert dog._next_hangs(store, 300) == ""
    assert dog._next_hangs(store, 61) == "process 2 of 3 has not begun for 361 s"
    store.set("watchdog/2", json.dumps(seen))
    assert dog._next_hangs(store, 61) == ""
    store.set("watchdog/2", json.dumps({**seen, "ticks": 5}))
    assert dog._next_hangs(store, 61) == "" == dog._next_hangs(store, 59)
    assert dog._next_hangs(store, 2) == "process 2 (host2, pid 7) has not run for 61 s, since step 3, D"
    store.set("watchdog/2", "{}")  # it has finished
    assert [dog._next_hangs(store, 61) for _ in range(3)] == [""] * 3


@pytest.mark.parametrize("variable", ["TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"])
def test_the_flight_recorder_is_written_next_to_the_stacks_if_enabled(variable, dog, monkeypatch):
    """With a stand-in for torch's function, which records collectives of NCCL only."""
    said: list[str] = []
    dog.fail = said.append
    monkeypatch.setattr(torch._C._distributed_c10d, "_dump_nccl_trace", lambda: b"trace", raising=False)
    for value in ("", "0"):
        monkeypatch.setenv(variable, value)
        dog._end("process 2 hangs")
    assert [path.name for path in dog.folder.iterdir()] == ["001-stacks.txt"]
    monkeypatch.setenv(variable, "2000")
    dog._end("process 2 hangs")
    assert (dog.folder / "flight-recorder-1").read_bytes() == b"trace" and len(said) == 3
    assert len(list(dog.folder.iterdir())) == 2


@pytest.mark.parametrize("failure", ["raises", "hangs", "absent"])
def test_a_flight_recorder_that_fails_does_not_hide_the_hang(failure, dog, monkeypatch):
    over = threading.Event()

    def dump() -> bytes:
        if failure == "hangs":
            over.wait()
        raise RuntimeError("no recorder")

    monkeypatch.setattr(watchdog, "RECORDER_SECONDS", 0.01)
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "2000")
    monkeypatch.setattr(torch._C._distributed_c10d, "_dump_nccl_trace", dump, raising=False)
    if failure == "absent":
        monkeypatch.delattr(torch._C._distributed_c10d, "_dump_nccl_trace")
    said: list[str] = []
    dog.fail = said.append
    dog._end("process 2 hangs")
    over.set()
    assert said == [f"process 2 hangs; stacks of the others are in {dog.folder}"]
    assert [path.name for path in dog.folder.iterdir()] == ["001-stacks.txt"]


def test_a_store_that_cannot_be_reached_does_not_delay_the_end_of_a_process(dog, monkeypatch):
    """As when the link to another machine is lost: an operation of the store waits for its time-out."""
    waits, over = threading.Event(), threading.Event()

    class Unreachable:
        def set(self, key: str, value: str) -> None:
            waits.set()
            over.wait()
            raise RuntimeError("timed out")

    monkeypatch.setattr(watchdog, "EXIT_SECONDS", 0.01)
    monkeypatch.setattr(distributed, "new_store", lambda seconds: Unreachable())
    dog.interval = 0.0
    with dog:
        waits.wait()
    alive = dog.thread.is_alive()
    over.set()
    dog.thread.join()
    assert alive
