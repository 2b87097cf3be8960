# SPDX-License-Identifier: Apache-2.0
"""Phases of the work of a process: how long each takes, and a watchdog that finds the process that hangs.

A process that hangs makes the others wait in their next collective, for hours by default, and the error then
names one of those. So every process says what it works on (`phase`), and a thread in each looks at that.
"""

import contextlib
import faulthandler
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dnnlib.util import atomic_write
from torch_utils import distributed

RECORDER_PREFIX = "flight-recorder-"  # the rank follows: torchfrtrace expects it at the end
RECORDER_SECONDS = 10.0  # to write it
EXIT_SECONDS = 10.0  # to leave; the thread waits much longer for a store whose machine cannot be reached
FIRST_PATIENCE = 6  # times the limit, until the first full step: kernels are compiled and caches are filled

Fail = Callable[[str], None]


class _Work:
    """What this process does now, and how long it did what."""

    def __init__(self) -> None:
        self.name, self.step, self.count = "start", 0, 0
        self.since = time.monotonic()
        self.waited = 0.0  # seconds in collectives when the phase began
        self.seconds: dict[str, float] = {}
        self.fixed = False  # within one_phase()

    def enter(self, name: str, step: int | None) -> None:
        now, waited = time.monotonic(), distributed.seconds_waited()
        for key, seconds in (
            (self.name, now - self.since - (waited - self.waited)),
            ("waiting", waited - self.waited),
        ):
            self.seconds[key] = self.seconds.get(key, 0.0) + seconds
        self.since, self.waited, self.count = now, waited, self.count + 1
        if not self.fixed:
            self.name, self.step = name, self.step if step is None else step


_work = _Work()


def phase(name: str, step: int | None = None) -> None:
    """This process begins a phase of its work, or the next part of the same phase: it does not hang."""
    _work.enter(name, step)


def progress() -> None:
    """The present phase makes progress."""
    _work.enter(_work.name, None)


@contextlib.contextmanager
def one_phase() -> Iterator[None]:
    """Within, new phases are progress of the present one, which their seconds belong to."""
    _work.fixed = True
    try:
        yield
    finally:
        progress()
        _work.fixed = False


def take_seconds() -> dict[str, float]:
    """Seconds of this process in each phase since the last call; "waiting" is for the other processes."""
    _work.enter(_work.name, None)
    seconds, _work.seconds = _work.seconds, {}
    return seconds


class Watchdog:
    """Within, a process that hangs is found, in whichever process.

    Every process looks at its own work, and at the process after it, which may not run at all (stopped, or
    its machine is gone). A process that waits in a collective does not hang: another one does. Who finds a
    hang tells all; each writes the stacks of its threads to `folder`/NNN-stacks.txt, and torch's flight
    recorder, if it is enabled, to `folder`/flight-recorder-N, and calls `fail`.

    Args:
        folder: for the stacks.
        seconds: without progress until a process hangs; 0 = never.
        fail: called in a thread, in every process, with one line that names the process; it does not return.
    """

    def __init__(self, folder: Path, seconds: float, fail: Fail) -> None:
        self.folder, self.seconds, self.fail = folder, seconds, fail
        self.rank, self.world = distributed.rank(), distributed.world_size()
        self.interval = min(seconds / 10, 10.0)
        self.over = threading.Event()
        self.next = _Seen()
        self.own = _Seen()
        self.thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        if self.seconds > 0 and self.world > 1:
            self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        if self.thread.is_alive():
            self.thread.join(EXIT_SECONDS)

    def _watch(self) -> None:
        looked = time.monotonic()
        with contextlib.suppress(*distributed.STORE_ERRORS):  # the store is gone, and with it the launcher
            store = distributed.new_store(self.seconds)
            ticks = 0
            while not self.over.wait(self.interval):
                now = time.monotonic()
                # A machine that slept, or had no time for this thread, had none for the others either.
                passed, looked, ticks = min(now - looked, 2 * self.interval), now, ticks + 1
                store.set(f"watchdog/{self.rank}", json.dumps(self._here(ticks)))
                if store.check(["watchdog/hang"]):
                    self._end(store.get("watchdog/hang").decode())
                verdict = self._self_hangs(store, passed) or self._next_hangs(store, passed)
                if verdict:
                    self._end(store.compare_set("watchdog/hang", "", verdict).decode())
            store.set(f"watchdog/{self.rank}", "{}")  # it has finished, and is not missed

    def _here(self, ticks: int) -> dict[str, Any]:
        return {
            "ticks": ticks,
            "count": _work.count,
            "where": f"{platform.node()}, pid {os.getpid()}",
            "does": _doing(),
        }

    def _self_hangs(self, store: Any, passed: float) -> str:
        still = self.own.still((_work.count, distributed.waiting_in()), passed)
        limit = self.seconds * (FIRST_PATIENCE if _work.step == 0 else 1)
        if distributed.waiting_in() or still <= limit:
            return ""
        # With NCCL the host waits for the GPU, in no collective that it knows of: it may wait for another
        # process, which then has done less.
        everyone = {i: self._read(store, i) for i in range(self.world)}
        counts = {i: seen["count"] for i, seen in everyone.items() if seen}
        last = min(counts, key=lambda i: (counts[i], i != self.rank), default=self.rank)
        seen = everyone[last] or self._here(0)
        return f"process {last} ({seen['where']}) has made no progress for {still:.0f} s in {seen['does']}"

    def _read(self, store: Any, rank: int) -> dict[str, Any] | None:
        """What a process last said; None before it said anything, {} after it has finished."""
        key = f"watchdog/{rank}"
        return json.loads(store.get(key).decode()) if store.check([key]) else None

    def _next_hangs(self, store: Any, passed: float) -> str:
        other = (self.rank + 1) % self.world
        seen = self._read(store, other)
        if seen is None:  # its watchdog starts with this one
            still = self.next.still(None, passed)
            late = still > self.seconds * FIRST_PATIENCE
            return f"process {other} of {self.world} has not begun for {still:.0f} s" if late else ""
        still = self.next.still(seen.get("ticks"), passed)
        if not seen or still <= self.seconds:
            return ""
        return f"process {other} ({seen['where']}) has not run for {still:.0f} s, since {seen['does']}"

    def _end(self, verdict: str) -> None:
        with contextlib.suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            with open(self.folder / f"{self.rank:03d}-stacks.txt", "w", encoding="utf-8") as f:
                f.write(f"process {self.rank}, {_doing()}. {verdict}\n\n")
                f.flush()
                faulthandler.dump_traceback(f, all_threads=True)
        recorder = threading.Thread(target=self._dump_recorder, daemon=True, name="flight-recorder")
        recorder.start()
        recorder.join(RECORDER_SECONDS)  # it may hang too
        self.fail(f"{verdict}; stacks of the others are in {self.folder}")

    def _dump_recorder(self) -> None:
        with contextlib.suppress(Exception):  # whatever torch raises: the hang is the message
            if record := distributed.flight_recorder():
                with atomic_write(self.folder / f"{RECORDER_PREFIX}{self.rank}", "wb") as f:
                    f.write(record)


class _Seen:
    """A value that should change, and for how long it has not."""

    def __init__(self) -> None:
        self.value: Any = None
        self.seconds = 0.0

    def still(self, value: Any, passed: float) -> float:
        """Seconds since the value changed. passed: since the last call."""
        self.seconds = self.seconds + passed if value == self.value else 0.0
        self.value = value
        return self.seconds


def _doing() -> str:
    waiting = distributed.waiting_in()
    return f"step {_work.step}, {_work.name}" + (f", waiting in {waiting}" if waiting else "")
