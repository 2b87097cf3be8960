# SPDX-License-Identifier: Apache-2.0
"""Waiting by progress, not by the clock: a slow or busy machine is no failure, a standstill is one.

Progress is CPU time of the processes that are waited for and of all their descendants, and descendants that
come or go. A wait is given up after IDLE_SECONDS without any, counted while this process was running itself.
A loop without end makes progress for ever: such a test is ended, with the stacks of its threads, by
pytest-timeout (pyproject.toml).
"""

import multiprocessing.process
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import psutil

from tests.quick_processes import Script

IDLE_SECONDS = 600.0
_LOOK_SECONDS = 1.0  # between two looks at the processes

T = TypeVar("T")
Process = subprocess.Popen | Script | multiprocessing.process.BaseProcess | int  # or a process id
Outputs = list[tuple[Any, Any]]


class StandstillError(AssertionError):
    """What was waited for makes no progress."""


def _work(pids: Iterable[int]) -> dict[int, float]:
    """CPU seconds of these processes and of their descendants, of those that have ended and were waited for,
    too.
    """
    found = {}
    for pid in pids:
        try:
            root = psutil.Process(pid)
            family = [root, *root.children(recursive=True)]
        except psutil.Error:
            continue
        for member in family:
            try:
                found[member.pid] = sum(member.cpu_times()[:4])  # user and system, own and of ended children
            except psutil.Error:
                continue
    return found


class _Watch:
    """Adds up the time during which none of some processes makes progress."""

    def __init__(self, pids: Iterable[int], idle: float) -> None:
        self.pids, self.idle = list(pids), idle
        self.work, self.looked, self.still = _work(self.pids), time.monotonic(), 0.0

    def look(self) -> None:
        """Raises StandstillError once nothing has moved for long enough."""
        passed = time.monotonic() - self.looked
        if passed < min(_LOOK_SECONDS, self.idle):
            return
        work, self.looked = _work(self.pids), time.monotonic()
        # While the machine slept or left no time for this process, the others had none, either.
        self.still = self.still + min(passed, 2 * _LOOK_SECONDS) if work == self.work else 0.0
        self.work = work
        if self.still > self.idle:
            raise StandstillError(
                f"processes {sorted(self.pids)} made no progress for {self.still:.0f} seconds"
            )


def _pid(process: Process) -> int:
    pid = process if isinstance(process, int) else process.pid
    assert pid is not None, "the process has not been started"
    return pid


def _status(process: Process) -> int | None:
    """Exit status; None of a process that runs or is known by its id alone."""
    if isinstance(process, int):
        return None
    return process.poll() if hasattr(process, "poll") else process.exitcode


def until(
    condition: Callable[[], T], *processes: Process, poll: float = 0.02, idle: float = IDLE_SECONDS
) -> T:
    """The first value of `condition()` that is true.

    Args:
        processes: what is to make it true. Their ids will do, too.
        poll: seconds between two calls. idle: how long none of the processes may make progress.

    Raises:
        StandstillError: they make none; the processes are left as they are.
        AssertionError: they have all ended, or one has failed, and the condition is still not true.
    """
    watch, pause = (
        _Watch(map(_pid, processes), idle),
        threading.Event(),
    )  # not time.sleep, which tests replace
    while True:
        ends = [_status(process) for process in processes]
        if value := condition():
            return value
        over = bool(ends) and None not in ends
        assert not over and not any(ends), (
            f"processes ended with {ends}, and what was waited for has not come"
        )
        watch.look()
        pause.wait(poll)


def join(*processes: multiprocessing.process.BaseProcess, idle: float = IDLE_SECONDS) -> None:
    """Waits for the end of all; kills them if they make no progress (StandstillError)."""
    try:
        until(
            lambda: all(process.exitcode is not None for process in processes),
            *map(_pid, processes),
            idle=idle,
        )
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def kill(*processes: subprocess.Popen | Script) -> None:
    """Kills processes and their descendants."""
    for process in processes:
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.Error:
            family = []
        process.kill()
        for member in family:
            try:
                member.kill()
            except psutil.Error:
                continue


def finish(*processes: subprocess.Popen | Script, idle: float = IDLE_SECONDS) -> Outputs:
    """Reads the pipes of all to their ends and waits: (stdout, stderr) of each, as `Popen.communicate`.

    If they make no progress, or this wait is interrupted, they and their descendants are killed;
    StandstillError tells what they had written.
    """
    outputs: Outputs = [(None, None)] * len(processes)

    def read(i: int) -> None:
        outputs[i] = processes[i].communicate()

    threads = [threading.Thread(target=read, args=(i,), daemon=True) for i in range(len(processes))]
    for thread in threads:
        thread.start()
    try:
        until(
            lambda: not any(thread.is_alive() for thread in threads), *(p.pid for p in processes), idle=idle
        )
    except BaseException as error:
        kill(*processes)
        for thread in threads:
            thread.join(_LOOK_SECONDS)
        if isinstance(error, StandstillError):
            raise StandstillError(f"{error}; they wrote: {outputs}") from None
        raise
    return outputs


def run(
    command: list[str], *, idle: float = IDLE_SECONDS, check: bool = False, **options: Any
) -> subprocess.CompletedProcess:
    """`subprocess.run` of a command whose output is captured as text, with a limit on idleness in place of
    time.
    """
    options = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        **options,
    }
    with subprocess.Popen(command, **options) as process:
        ((out, err),) = finish(process, idle=idle)
    assert not check or process.returncode == 0, f"exit status {process.returncode}: {out}{err}"
    return subprocess.CompletedProcess(command, process.returncode, out, err)
