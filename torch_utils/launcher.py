# SPDX-License-Identifier: Apache-2.0
"""Start several processes on this machine, with the engine of torchrun (torch.distributed.elastic).

The engine starts the processes, sets the environment that torchrun would set, and collects what they return.
What it lacks is here: signals that let every process save, the exception of a failed process with its own
type, and a decision for each failure whether a restart can help.
"""

import contextlib
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed.elastic.multiprocessing import (
    DefaultLogsSpecs,
    PContext,
    SignalException,
    start_processes,
)

from dnnlib import util
from torch_utils import distributed

MIN_MOST_PROCESSES = 32  # may be asked for on any machine
# What asks processes to save and leave: the user, the system, a terminal that closes, and a queue whose users
# choose the signal that announces the end.
STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
_SIGNAL_GRACE = 120  # seconds to save and leave after one of them, before SIGKILL
_FAILURE_GRACE = 10  # the same after another process failed: there is nothing consistent left to save
_POLL_SECONDS = 0.1
# They log every failure with a traceback; launch() raises it instead.
_TORCH_LOGGERS = ("torch.distributed.elastic.multiprocessing.api", "torch.multiprocessing.spawn")

_report_to: tuple[str, int] | None = None  # of a process that the launcher started: folder, rank
Restart = Callable[[Exception, int], bool]


class ProcessDied(ChildProcessError):
    """A process ended without an exception: killed by a signal, or by the system for lack of memory."""


class ProcessHung(ProcessDied):
    """A process makes no progress, and was ended with all others."""


class _RemoteTraceback(Exception):
    """The traceback of an exception in another process, as the cause of its copy in this one."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass
class _Report:
    """The exception that ended a process, as it writes it for the launching process."""

    time: float  # of time.monotonic(), which processes of one machine share
    error: BaseException
    text: str  # the traceback


def check_local(num_processes: int) -> None:
    """Check that this machine can reasonably run so many processes. Under torchrun they already run.

    Raises:
        ValueError: too many.
    """
    most = max(MIN_MOST_PROCESSES, 4 * (os.cpu_count() or 1), 2 * torch.cuda.device_count())
    if not distributed.under_torchrun() and num_processes > most:
        where = f"this machine, which has {os.cpu_count()} cores"
        raise ValueError(
            f"{num_processes} processes on {where}: at most {most}; on several machines torchrun starts them"
        )


def launch(fn: Callable[..., Any], num_processes: int, *args: Any, restart: Restart | None = None) -> Any:
    """Run fn(*args) in `num_processes` processes on this machine.

    With one process, or under torchrun, fn runs in this process. Otherwise STOP_SIGNALS are forwarded to all
    processes, and the first failure ends all of them. When a process leaves by SystemExit (an agreed
    exit code), so does the caller.

    Args:
        fn: a function of a module or script; it and `args` must be picklable.
        num_processes: on this machine.
        *args: of fn.
        restart: called with the exception and the number of earlier restarts; if it returns True, all
            processes are started again. None = never.

    Returns:
        What fn returns in process 0, which must be picklable and small.

    Raises:
        ValueError: torchrun started another number of processes.
        ProcessDied: a signal ended a process.
        Exception: of the process that failed first, with its own type if it can be pickled, and the traceback
            of that process as its cause.
    """
    if num_processes < 1:
        raise ValueError(f"the number of processes must be at least 1, got {num_processes}")
    if distributed.under_torchrun():
        started = {int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE") if name in os.environ}
        if num_processes not in started | {1}:
            raise ValueError(
                f"{num_processes} processes asked for, but torchrun started {max(started)}: make the two "
                "agree"
            )
        return fn(*args)
    check_local(num_processes)
    if num_processes == 1:
        return fn(*args)
    for attempt in itertools.count():
        try:
            with _quiet(), _Signals() as signals, tempfile.TemporaryDirectory(prefix="launch-") as folder:
                return _Attempt(Path(folder), num_processes, signals).run(fn, args)
        except Exception as error:
            if restart is None or not restart(error, attempt):
                raise
    raise AssertionError("unreachable")


class _Attempt:
    """One start of all processes, until they have ended."""

    def __init__(self, folder: Path, num_processes: int, signals: "_Signals") -> None:
        self.folder, self.world, self.signals = folder, num_processes, signals
        self.children: list[multiprocessing.process.BaseProcess | None] = [None] * num_processes

    def run(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """As `launch`."""
        # The store lives here, with a port that the system chose: it is bound before anyone is told of it.
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            "WORLD_SIZE": str(self.world),
            "LOCAL_WORLD_SIZE": str(self.world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": str(True),
        }
        ranks = range(self.world)
        others = set(multiprocessing.active_children())
        try:
            context = start_processes(
                name="rank",
                entrypoint=_child,
                args={i: (str(self.folder), fn, args) for i in ranks},
                envs={i: {**shared, "RANK": str(i), "LOCAL_RANK": str(i)} for i in ranks},
                logs_specs=DefaultLogsSpecs(log_dir=str(self.folder / "torch")),
            )
        except SignalException as stop:  # before all have started: nothing to save
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
            raise (
                KeyboardInterrupt if stop.sigval == signal.SIGINT else SystemExit(128 + stop.sigval)
            ) from None
        try:
            family = {child.pid: child for child in multiprocessing.active_children()}
            self.children = [family.get(context.pids()[i]) for i in ranks]
            self.signals.forward_to([child for child in self.children if child is not None])
            returned, by_themselves = self._wait(context)
        finally:
            context.close(signal.SIGKILL)
        if returned is not None:
            return returned[0]
        reports = [_read_report(self.folder, i) for i in ranks]
        raise_failure(self.codes(), reports, by_themselves, self.signals.received)

    def codes(self) -> list[int | None]:
        """Exit codes; None of a process that runs, or was gone before it could be seen."""
        return [None if child is None else child.exitcode for child in self.children]

    def _wait(self, context: PContext) -> tuple[dict[int, Any] | None, set[int]]:
        """Wait until all processes have returned, one has failed, or a signal's time is up.

        Returns:
            What the processes returned, None after a failure; the processes that ended by themselves.
        """
        failed_at = None
        while True:
            codes, now = self.codes(), time.monotonic()
            failed_at = now if failed_at is None and any(codes) else failed_at
            by_themselves = {i for i, code in enumerate(codes) if code is not None}
            overdue = failed_at is not None and now - failed_at > _FAILURE_GRACE
            if overdue or self.signals.overdue():
                context.close(signal.SIGKILL)
                return None, by_themselves
            if failed_at is None or len(by_themselves) == self.world:
                result = context.wait(0)  # ends all processes when it sees a failure
                if result is not None:
                    returned = None if result.is_failed() else result.return_values
                    return returned, by_themselves | set(result.failures)
            running = [child for child in self.children if child and child.exitcode is None]
            ended = multiprocessing.connection.wait([c.sentinel for c in running], timeout=_POLL_SECONDS)
            for child in running:
                if child.sentinel in ended:
                    child.join()  # the sentinel is ready a little earlier than the exit code


def _child(folder: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """One of the processes."""
    index, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C then reaches this process once, through the parent, instead of twice
    parent = multiprocessing.parent_process()
    assert parent is not None
    global _report_to
    _report_to = folder, index
    distributed.leave_after(parent.join)
    util.plain_warnings()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, util.available_cores() // world))
    code = 0
    try:
        value = fn(*args)
        distributed.shutdown()
        if parent.is_alive():
            return value if index == 0 else None
    except KeyboardInterrupt:
        code = 130
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str):
            _write_report(folder, index, e)
    except BaseException as e:
        code = 1
        _write_report(folder, index, e)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a regular end could wait for ever in a destructor for processes that are gone


def end_process(error: Exception) -> NoReturn:
    """End this process at once because of `error`, from any of its threads, for `launch` to raise."""
    if _report_to is not None:
        _write_report(*_report_to, error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _write_report(folder: str, index: int, error: BaseException) -> None:
    now, text = time.monotonic(), traceback.format_exc()
    with contextlib.suppress(OSError):  # the parent and its folder are gone
        Path(folder, f"{index}.pickle").write_bytes(pickle.dumps((now, util.pickled_error(error), text)))


def _read_report(folder: Path, index: int) -> _Report | None:
    try:
        when, data, text = pickle.loads((folder / f"{index}.pickle").read_bytes())
        return _Report(when, pickle.loads(data), text)
    except (OSError, EOFError, pickle.UnpicklingError):  # none, or the process was killed while it wrote
        return None


def raise_failure(
    codes: list[int | None],
    reports: list[_Report | None],
    by_themselves: set[int],
    signals: list[tuple[int, float]],
) -> Any:
    """Raise what ended a group of processes.

    Args:
        codes: exit codes.
        reports: of the processes that wrote one.
        by_themselves: processes that ended before the launcher killed any.
        signals: (number, time) of the signals that were forwarded to all.
    """
    asked = {-number for number, _ in signals}
    silent = [i for i in sorted(by_themselves) if (codes[i] or 0) < 0 and codes[i] not in asked]
    if silent:  # the others' errors about a lost connection are its consequence
        name = signal.Signals(-(codes[silent[0]] or 0)).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise ProcessDied(f"process {silent[0]} of {len(codes)} was ended by {name}{hint}")
    written = [report for report in reports if report is not None]
    if written:
        first = min(written, key=lambda report: (isinstance(report.error, distributed.PeerLost), report.time))
        raise first.error from _RemoteTraceback(f"\n\n{first.text}")
    if signals and codes[0] in (None, 0, 130, -signals[0][0], -signal.SIGKILL):
        if signals[0][0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signals[0][0])
    failed = [code for i, code in enumerate(codes) if code and i in by_themselves]
    if not failed:
        raise ProcessDied(f"one of {len(codes)} processes ended while it was started")
    raise SystemExit(failed[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within, torch's loggers of the names above are silent."""
    loggers = [logging.getLogger(name) for name in _TORCH_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def answered() -> list[int]:
    """STOP_SIGNALS without those that this process ignores from its start, such as SIGHUP after nohup.

    SIGINT and SIGTERM are always among them.
    """
    always = (signal.SIGINT, signal.SIGTERM)
    return [n for n in STOP_SIGNALS if n in always or signal.getsignal(n) not in (signal.SIG_IGN, None)]


class _Signals:
    """Within, the `answered` signals are forwarded to every process, once there are some.

    torch's own handlers, which start_processes sets, raise an exception wherever they interrupt the launcher
    and kill processes that save; they are replaced.
    """

    def __init__(self) -> None:
        self.received: list[tuple[int, float]] = []  # (number, time.monotonic())
        self.before: dict[int, Any] = {}
        self.answered = answered()

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")  # those of start_processes
            numbers = {*self.answered, *(getattr(signal, name) for name in names if hasattr(signal, name))}
            self.before = {number: signal.getsignal(number) for number in numbers}
        return self

    def forward_to(self, children: list[multiprocessing.process.BaseProcess]) -> None:
        """Forward signals to `children` from now on."""

        def forward(number: int, frame: Any) -> None:
            self.received.append((number, time.monotonic()))
            for child in children:
                if child.pid is not None and child.exitcode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.pid, number)

        for number, handler in self.before.items():
            signal.signal(number, forward if number in self.answered else handler)

    def overdue(self) -> bool:
        """Whether the time to leave is up, or the user has asked three times."""
        late = bool(self.received) and time.monotonic() - self.received[0][1] > _SIGNAL_GRACE
        return late or len(self.received) > 2

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
