# SPDX-License-Identifier: Apache-2.0
"""Several processes: launching them and talking between them. The only file that imports torch.distributed.

Every function works, as a no-op or the identity, in a single process. Two ways to start: launch(fn, n) spawns
n processes on this machine; torchrun starts them itself and is recognised by its environment. In both, fn
begins with init() and ends with shutdown().
"""

import contextlib
import datetime
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from dnnlib import util

# Of one collective: the others wait in it while process 0 writes files or computes class embeddings. A
# process that died is noticed at once, by launch(), torchrun or the lost connection.
TIMEOUT_MINUTES = 120
_SIGNAL_GRACE = (
    120  # seconds that processes have, after Ctrl-C or SIGTERM, to save and leave before they are killed
)
_FAILURE_GRACE = 10  # the same after one of them failed: what they could save would be half of a step
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PARENT_STORE = (
    "STYLESAN_PARENT_STORE"  # set by launch(): the launching process holds the rendezvous, process 0 need not
)
_alone = False  # within alone()


def under_torchrun() -> bool:
    """Whether this process is one of a group, started by torchrun or by launch() (both set the same four
    variables).
    """
    return all(name in os.environ for name in _TORCHRUN)


def started_processes() -> int | None:
    """How many processes torchrun (or launch()) has started, on all machines together; None if neither
    started this one.
    """
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else None


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Index of this process among all processes."""
    return dist.get_rank() if _active() and not _alone else 0


def local_rank() -> int:
    """Index of this process among those of its machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", rank())) if _active() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _active() and not _alone else 1


def processes_here(world: int) -> int:
    """How many of a group of `world` processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world)) if under_torchrun() else world


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, this process is a group of its own: every collective is the identity, so that the others need
    not take part.
    """
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def is_main() -> bool:
    """Whether this is process 0, the one that writes files and prints."""
    return rank() == 0


def init(device_type: str = "cpu", timeout_minutes: float = TIMEOUT_MINUTES) -> torch.device:
    """Joins the group that launch() or torchrun made (alone: joins nothing) and returns this process's
    device.

    device_type: 'cuda' (NCCL, one GPU per process), 'cpu' or 'mps' (gloo). Raises ValueError when this
    machine has too few GPUs.
    """
    if not _active() and under_torchrun() and int(os.environ["WORLD_SIZE"]) > 1:
        index, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if device_type == "cuda":
            gpu = int(os.environ.get("LOCAL_RANK", index))
            if gpu >= torch.cuda.device_count():
                raise ValueError(
                    f"process {gpu} of this machine needs a GPU of its own, found "
                    f"{torch.cuda.device_count()}: start fewer processes"
                )
            torch.cuda.set_device(gpu)
        timeout = datetime.timedelta(minutes=timeout_minutes)
        store = None
        if _PARENT_STORE in os.environ:
            store = dist.TCPStore(
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout
            )
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            init_method=None if store else "env://",
            store=store,
            rank=index,
            world_size=world,
            timeout=timeout,
        )
    return torch.device(device_type, local_rank()) if device_type == "cuda" else torch.device(device_type)


def shutdown() -> None:
    """Leaves the group, if there is one."""
    if _active():
        dist.destroy_process_group()


# Launching.

MIN_MOST_PROCESSES = 32  # may be asked for on any machine


class _RemoteTraceback(Exception):
    """The traceback of an exception in another process, as the cause of its copy in this one."""

    def __str__(self) -> str:
        return self.args[0]


def check_local(num_processes: int) -> None:
    """Raises ValueError for more processes than this machine could be of use to. Under torchrun they are
    there already, and all is well.
    """
    most = max(MIN_MOST_PROCESSES, 4 * (os.cpu_count() or 1), 2 * torch.cuda.device_count())
    if not under_torchrun() and num_processes > most:
        where = f"this machine, which has {os.cpu_count()} cores"
        raise ValueError(
            f"{num_processes} processes on {where}: at most {most}; on several machines torchrun starts them"
        )


def launch(fn: Callable[..., Any], num_processes: int, *args: Any) -> Any:
    """Runs fn(*args) in num_processes processes on this machine; in this very process when that is one, or
    under torchrun.

    Returns what fn returns: of several processes that of process 0, which must be picklable and small. fn and
    args must be picklable too (a function of a module or script). The first failure stops all and is raised
    here, with its own type where it can be pickled and the other process's traceback as its cause. SIGINT and
    SIGTERM are handed to every process; when one leaves by SystemExit (an agreed exit code), so does the
    caller. Raises ValueError when torchrun's number of processes is another.
    """
    if num_processes < 1:
        raise ValueError(f"the number of processes must be at least 1, got {num_processes}")
    if under_torchrun():
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
    # The store lives here with a port the system chose, so that no port is announced before it is bound and
    # none can be taken in between.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    children, pipes = [], []
    for index in range(num_processes):
        receiver, sender = context.Pipe(duplex=False)
        children.append(
            context.Process(
                target=_child, args=(index, num_processes, store.port, sender, fn, args), name=f"rank{index}"
            )
        )
        pipes.append((receiver, sender))
    with _forwarded_signals(children) as signals:
        try:
            for child in children:
                child.start()
            for _, sender in pipes:
                sender.close()  # the child's copy is then the only one, and its end is seen here
            by_itself = _wait(children, signals)
        finally:
            _stop(children)
    reports = [_receive(receiver) for receiver, _ in pipes]
    _raise_failure(
        children,
        [report if report and report[2] is not None else None for report in reports],
        by_itself,
        signals,
    )
    return reports[0][1] if reports[0] else None


def _child(index: int, num_processes: int, port: int, sender, fn: Callable[..., Any], args: tuple) -> None:
    os.environ.update(
        {
            "RANK": str(index),
            "LOCAL_RANK": str(index),
            "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            _PARENT_STORE: "1",
        }
    )
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C then reaches this process once, through the parent, instead of twice
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    util.plain_warnings()
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // num_processes))
    try:
        value = fn(*args)
        shutdown()
        if index == 0:
            sender.send((time.monotonic(), pickle.dumps(value), None))
        return
    except KeyboardInterrupt:
        code = 130
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str):
            sender.send((time.monotonic(), pickle.dumps(e), traceback.format_exc()))
    except BaseException as e:
        code = 1
        sender.send((time.monotonic(), _pickled(e), traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a regular end could wait for ever in a destructor for processes that are gone


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # save and leave, as if the user had asked
    time.sleep(_SIGNAL_GRACE)
    os._exit(1)


def _pickled(e: BaseException) -> bytes:
    try:
        data = pickle.dumps(e)
        pickle.loads(data)
        return data
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(e).__name__}: {e}"))


def _receive(receiver) -> tuple[float, Any, str | None] | None:
    """(when, what fn returned, None) or (when, exception, traceback); None for a process that said
    nothing.
    """
    try:
        if not receiver.poll():
            return None
        when, data, text = receiver.recv()
        return when, pickle.loads(data), text
    except EOFError:
        return None
    finally:
        receiver.close()


@contextlib.contextmanager
def _forwarded_signals(children: Sequence[Any]):
    """Within, SIGINT and SIGTERM go to every child and are listed as (signal, time) in the yielded list."""
    received: list[tuple[int, float]] = []

    def forward(number: int, frame: Any) -> None:
        received.append((number, time.monotonic()))
        for child in children:
            if child.pid is not None and child.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return
    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[Any], signals: list[tuple[int, float]]) -> set[int]:
    """Until all children have left, one has failed and the others had their time, or a signal's time is up:
    the indices that left by themselves.
    """
    failed_at = None
    while True:
        running = [child for child in children if child.exitcode is None]
        now = time.monotonic()
        if failed_at is None and any(child.exitcode for child in children):
            failed_at = now
        overdue = failed_at is not None and now - failed_at > _FAILURE_GRACE
        ignored = bool(signals) and now - signals[0][1] > _SIGNAL_GRACE
        if not running or overdue or ignored or len(signals) > 2:  # the third signal: the user means it
            return {i for i, child in enumerate(children) if child.exitcode is not None}
        multiprocessing.connection.wait([child.sentinel for child in running], timeout=1)


def _stop(children: Sequence[Any]) -> None:
    for child in children:
        if child.pid is not None and child.exitcode is None:
            child.kill()
    for child in children:
        if child.pid is not None:
            child.join()


def _raise_failure(
    children: Sequence[Any], reports: list, by_itself: set[int], signals: list[tuple[int, float]]
) -> None:
    codes = [child.exitcode for child in children]
    if not any(codes):
        return
    asked = {-number for number, _ in signals}
    silent = [i for i in sorted(by_itself) if codes[i] < 0 and codes[i] not in asked]
    if silent:  # the complaints of the others about a lost connection are its consequence
        i = silent[0]
        hint = " (out of memory?)" if codes[i] == -signal.SIGKILL else ""
        raise RuntimeError(f"process {i} of {len(codes)} was ended by {signal.Signals(-codes[i]).name}{hint}")
    told = [report for report in reports if report is not None]
    if told:
        _, error, text = min(told, key=lambda report: report[0])
        raise error from _RemoteTraceback(f"\n\n{text}")
    if signals and codes[0] in (130, -signals[0][0], -signal.SIGKILL):
        if signals[0][0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signals[0][0])
    raise SystemExit(next(codes[i] for i in sorted(by_itself) if codes[i]))


# Communication.


def _comm_device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if dist.get_backend() == "nccl"
        else torch.device("cpu")
    )


def barrier() -> None:
    """Waits until every process is here."""
    if world_size() > 1:
        dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """The memory of x as uint8 [bytes] on the device that communicates."""
    return x.detach().to(_comm_device()).contiguous().reshape(-1).view(torch.uint8)


@torch.no_grad()
def broadcast_(tensors: Iterable[torch.Tensor], src: int = 0) -> None:
    """Overwrites each tensor, in place and bit for bit, with process src's; same number, shapes and dtypes
    everywhere. One collective.
    """
    targets = list(tensors)
    if world_size() == 1 or not targets:
        return
    flat = torch.cat([_bytes(x) for x in targets])
    dist.broadcast(flat, src)
    sizes = [x.numel() * x.element_size() for x in targets]
    for x, data in zip(targets, flat.split(sizes), strict=True):
        x.copy_(
            data.clone().view(x.dtype).reshape(x.shape)
        )  # clone: a slice may lie at an address the dtype cannot start at


def broadcast_object(obj: Any, src: int = 0) -> Any:
    """Process src's obj (picklable)."""
    if world_size() == 1:
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src)
    return box[0]


@torch.no_grad()
def all_reduce_mean_(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrites each tensor with its mean over processes: one flat buffer and one collective per (dtype,
    device), same order everywhere.
    """
    groups: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for x in tensors:
        if not x.is_floating_point():
            raise ValueError(f"the mean over processes needs floating-point tensors, got {x.dtype}")
        groups.setdefault((x.dtype, x.device), []).append(x)
    if world_size() == 1:
        return
    for (dtype, _), group in groups.items():
        # Half precision travels as float32: the sum must not be rounded at every hop.
        wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        flat = torch.cat([x.reshape(-1) for x in group]).to(_comm_device(), wide)
        dist.all_reduce(flat)
        flat /= world_size()
        for x, data in zip(group, flat.split([x.numel() for x in group]), strict=True):
            x.copy_(data.reshape(x.shape))


@torch.no_grad()
def all_gather_cat(x: torch.Tensor) -> torch.Tensor:
    """[n, ...] of every process -> [world * n, ...] in the order of ranks, bit for bit; the shape must be the
    same everywhere.
    """
    if world_size() == 1:
        return x
    mine = _bytes(x)
    parts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(parts, mine)
    return torch.cat([part.view(x.dtype).reshape(x.shape) for part in parts]).to(x.device)


def all_gather_object(obj: Any) -> list[Any]:
    """Every process's obj (picklable), in the order of ranks."""
    if world_size() == 1:
        return [obj]
    objects: list[Any] = [None] * world_size()
    dist.all_gather_object(objects, obj)
    return objects


def on_main(compute: Callable[[], Any], share: bool = True) -> Any:
    """compute() on process 0; its result, if `share`, and its exception in any case, on all. Without `share`
    the others get None.
    """
    result: Any = None
    error: Exception | None = None
    if is_main():
        try:
            result = compute()
        except Exception as e:
            error = e
    error, shared = broadcast_object((error, result if share else None))
    if error is not None:
        raise error
    return result if is_main() else shared
