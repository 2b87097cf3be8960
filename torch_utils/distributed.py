# SPDX-License-Identifier: Apache-2.0
"""Communication between processes. Together with launcher.py, the only file that imports torch.distributed.

Every function works, as a no-op or the identity, in a single process. torchrun or `launcher.launch` starts
the processes and sets the environment; each calls `init` first and `shutdown` last.
"""

import contextlib
import datetime
import multiprocessing
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

# Limit of one collective: the others wait in it while process 0 writes files or computes class embeddings. A
# process that died is noticed at once, by the launcher, torchrun or the lost connection.
TIMEOUT_MINUTES = 120
LEAVE_SECONDS = 120  # to save and leave after the launching process is gone
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_RECORDER_SIZES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_MEET_SECONDS = 0.05  # between two looks into the store while processes meet
_alone = False  # within alone()
_waiting = ""  # the collective that the process is in
_waited = 0.0  # seconds in collectives
_traffic: dict[str, list[int]] = {}  # by collective: calls, bytes
_start = ""  # the name of this start of the processes, as they met
STORE_ERRORS = (dist.DistError, RuntimeError)  # of new_store and its methods, when the store is gone


class PeerLost(ConnectionError):
    """A collective failed because another process is gone or did not take part in time."""


def under_torchrun() -> bool:
    """Whether torchrun or the launcher, which set the same four variables, started this process."""
    return all(name in os.environ for name in _TORCHRUN)


def started_processes() -> int | None:
    """Number of processes that torchrun or the launcher started on all machines; None if neither did."""
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
    """Within, this process is a group of one: every collective is the identity."""
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
    """Join the group of processes, if there is one.

    Args:
        device_type: 'cuda' (NCCL, one GPU per process), 'cpu' or 'mps' (gloo).
        timeout_minutes: of one collective.

    Returns:
        The device of this process.

    Raises:
        ValueError: this machine has too few GPUs.
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
        _leave_with_agent()
        timeout = datetime.timedelta(minutes=timeout_minutes)
        global _start
        store = _store(index, timeout)
        _start = _meet(store, index, world, timeout)
        dist.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            store=PrefixStore(_start, store),
            rank=index,
            world_size=world,
            timeout=timeout,
        )
    return torch.device(device_type, local_rank()) if device_type == "cuda" else torch.device(device_type)


def _store(index: int, timeout: datetime.timedelta) -> Store:
    """The store at MASTER_ADDR: of the agent or launcher if it keeps one, else of process 0."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=index == 0 and not kept,
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
    )


def new_store(seconds: float) -> Store:
    """A connection of its own, for a thread, to what the processes of this start share. After `init`.

    It has set(), get(), check(), compare_set(). seconds: limit of one of them.
    """
    timeout = datetime.timedelta(seconds=max(seconds, 1.0))
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timeout,
        wait_for_workers=False,
    )
    return PrefixStore(_start, store)


def _meet(store: Store, index: int, world: int, timeout: datetime.timedelta) -> str:
    """A name, for the part of the store that belongs to this start of the processes alone.

    An agent keeps its store when it starts the processes again, and torch (2.14) leaves the addresses of the
    dead processes in it, to which the new ones would connect. The agents' numbers of restarts do not tell two
    starts apart: each counts its own. So process 0 names the start and lists the processes that it met; who
    finds itself in the list has met the others.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    me = uuid.uuid4().hex
    if index == 0:
        store.set("start", me)
    while True:
        start = me if index == 0 else store.get("start").decode()
        if index > 0:
            store.set(f"{start}/{index}", me)
            met = store.get(f"{start}/all").decode() if store.check([f"{start}/all"]) else ""
            if me in met.split():
                return str(start)
        elif store.check([f"{start}/{i}" for i in range(1, world)]):
            names = [store.get(f"{start}/{i}").decode() for i in range(1, world)]
            store.set(f"{start}/all", " ".join([me, *names]))
            return me
        if time.monotonic() > deadline:
            raise PeerLost(f"process {index} did not meet the other {world - 1} in {timeout}")
        time.sleep(_MEET_SECONDS)


def shutdown() -> None:
    """Leave the group, if there is one."""
    if _active():
        dist.destroy_process_group()


# The process that started this one.


def agent() -> str | None:
    """Identity of the torchrun that started this process; None without one.

    It is the same for all processes and restarts of one command on one machine, and of no other command's.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    pid = os.getppid()
    started = ""
    with contextlib.suppress(OSError, IndexError):  # Linux; elsewhere the process id must do
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        started = f"{boot}:{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    return f"{platform.node()}:{pid}:{started}"


def restarted_by_agent() -> bool:
    """Whether torchrun starts processes again that end with an exit code other than 0."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0


def leave_after(wait: Callable[[], Any]) -> None:
    """Save and leave, as after SIGTERM, once `wait` returns; it is called in a thread."""

    def watch() -> None:
        wait()
        time.sleep(1.0)  # the system may have sent SIGINT: twice would mean "at once"
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LEAVE_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="leave-after").start()


def _leave_with_agent() -> None:
    """Leave when torchrun is gone: killed, it cannot stop its processes, which would train on without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or multiprocessing.parent_process() is not None:
        return
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)

    leave_after(wait)


def flight_recorder() -> bytes:
    """What torch's flight recorder has recorded, for `torchfrtrace`; empty if it is disabled.

    TORCH_FR_BUFFER_SIZE enables it (TORCH_NCCL_TRACE_BUFFER_SIZE in older versions of torch). It records
    collectives of NCCL. Not tested with NCCL.
    """
    sizes = [os.environ.get(name, "") for name in _RECORDER_SIZES]
    dump = getattr(torch._C._distributed_c10d, "_dump_nccl_trace", None)
    return bytes(dump()) if dump is not None and any(size.strip("0") for size in sizes) else b""


# Communication.


def comm_device() -> torch.device:
    """Where tensors must be for a collective."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if dist.get_backend() == "nccl"
        else torch.device("cpu")
    )


def _count(name: str, sent: int = 0) -> str:
    """Count a collective for `take_traffic`, with the bytes of this process. Returns its name."""
    counted = _traffic.setdefault(name, [0, 0])
    counted[0] += 1
    counted[1] += sent
    return name


@contextlib.contextmanager
def _collective(name: str) -> Iterator[None]:
    """Within, this process waits for the others, and a failure of torch.distributed is one line.

    Raises:
        PeerLost: another process is gone, or did not take part within the time of `init`.
    """
    global _waiting, _waited
    _waiting, began = name, time.monotonic()
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())
        raise PeerLost(f"process {dist.get_rank()} lost another process in {name}: {reason[:300]}") from error
    finally:
        _waiting, _waited = "", _waited + time.monotonic() - began


class Pending:
    """A collective that has begun. All processes must begin the same ones, in the same order."""

    def __init__(self, name: str, begin: Callable[[], dist.Work | None]) -> None:
        self.name = name
        with _collective(name):
            self.work = begin()

    def wait(self) -> None:
        """Wait until the result is there: in this process with gloo, on the GPU with NCCL."""
        if self.work is not None:
            with _collective(self.name):
                self.work.wait()


def take_traffic() -> dict[str, tuple[int, int]]:
    """Calls and bytes of this process by collective, since the last call; bytes of tensors only."""
    found = {name: (calls, sent) for name, (calls, sent) in _traffic.items()}
    _traffic.clear()
    return found


def waiting_in() -> str:
    """The collective that this process waits in; "" outside of one."""
    return _waiting


def seconds_waited() -> float:
    """Seconds that this process has spent in collectives."""
    return _waited


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        with _collective(_count("barrier")):
            dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """The memory of x as uint8 [bytes] on the device that communicates."""
    return x.detach().to(comm_device()).contiguous().reshape(-1).view(torch.uint8)


@torch.no_grad()
def broadcast_(tensors: Iterable[torch.Tensor], src: int = 0) -> None:
    """Overwrite each tensor, in place and bit for bit, with that of process `src`. One collective.

    The number of tensors, their shapes and dtypes must be the same everywhere.
    """
    targets = list(tensors)
    if world_size() == 1 or not targets:
        return
    flat = torch.cat([_bytes(x) for x in targets])
    with _collective(_count("broadcast", flat.nbytes)):
        dist.broadcast(flat, src)
    sizes = [x.numel() * x.element_size() for x in targets]
    for x, data in zip(targets, flat.split(sizes), strict=True):
        x.copy_(
            data.clone().view(x.dtype).reshape(x.shape)
        )  # clone: a slice may lie at an address the dtype cannot start at


def broadcast_object(obj: Any, src: int = 0) -> Any:
    """The picklable `obj` of process `src`."""
    if world_size() == 1:
        return obj
    box = [obj]
    with _collective(_count("broadcast")):
        dist.broadcast_object_list(box, src)
    return box[0]


def start_sum_(x: torch.Tensor) -> Pending:
    """Begin to overwrite x, which lies on `comm_device`, with its sum over processes."""
    return Pending(_count("all-reduce", x.nbytes), lambda: dist.all_reduce(x, async_op=True))


@torch.no_grad()
def start_all_gather(tensors: Iterable[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    """Begin one collective that gathers tensors; what it returns waits, and returns them.

    Each [n, ...] of every process becomes [world * n, ...] in the order of ranks, bit for bit. The number of
    tensors and their shapes must be the same everywhere.
    """
    mine = list(tensors)
    if world_size() == 1 or not mine:
        return lambda: mine
    flat = torch.cat([_bytes(x) for x in mine])
    parts = [torch.empty_like(flat) for _ in range(world_size())]
    pending = Pending(_count("all-gather", flat.nbytes), lambda: dist.all_gather(parts, flat, async_op=True))

    def finish() -> list[torch.Tensor]:
        pending.wait()
        columns = zip(*(part.split([x.nbytes for x in mine]) for part in parts), strict=True)
        return [
            torch.cat([data.clone().view(x.dtype).reshape(x.shape) for data in column]).to(x.device)
            for x, column in zip(mine, columns, strict=True)
        ]

    return finish


def all_gather_cat(x: torch.Tensor) -> torch.Tensor:
    """As `start_all_gather`, of one tensor, and waits."""
    return start_all_gather([x])()[0]


def start_highest(number: int) -> Callable[[], int]:
    """Begin to compare a number over processes; what it returns waits, and returns the highest.

    With NCCL the answer is copied to the host by then, if the host has waited for the GPU in between.
    """
    if world_size() == 1:
        return lambda: number
    x = torch.tensor([number], device=comm_device())
    pending = Pending(
        _count("all-reduce", x.nbytes), lambda: dist.all_reduce(x, dist.ReduceOp.MAX, async_op=True)
    )
    if x.is_cuda:  # the copy follows the collective on the GPU's own stream
        pending.wait()
        host = torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)
        wait = torch.cuda.current_stream().record_event().synchronize
    else:
        host, wait = x, pending.wait

    def finish() -> int:
        wait()
        return int(host)

    return finish


def all_gather_object(obj: Any) -> list[Any]:
    """The picklable `obj` of every process, in the order of ranks."""
    if world_size() == 1:
        return [obj]
    objects: list[Any] = [None] * world_size()
    with _collective(_count("all-gather")):
        dist.all_gather_object(objects, obj)
    return objects


def on_main(compute: Callable[[], Any], share: bool = True) -> Any:
    """Call compute() in process 0; all return its result or raise its exception.

    Without `share`, the others return None.
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
