# SPDX-License-Identifier: Apache-2.0
"""How much memory is free, and which errors mean that there was none left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from dnnlib import util

# Beside torch.OutOfMemoryError: what libraries, the CUDA runtime, torch's CPU allocator and Metal say of the
# same thing.
_SIGNS = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextlib.contextmanager
def shortage_named(where: object, remedy: str) -> Iterator[None]:
    """Within, running out of memory raises ValueError in one line. where: the device. remedy: what to change,
    such as 'lower --batch (now 32)'.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = util.reason(error)
        raise ValueError(f"out of memory on {where}: {remedy} ({reason[:160]})") from None


def free_bytes(device: torch.device) -> int:
    """Bytes that a process could still allocate on a device: a GPU's free memory; elsewhere the host's,
    within the limits of its control group.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return host_free_bytes()


def host_free_bytes(root: str | os.PathLike[str] = "/") -> int:
    """Available memory of this machine, or of the container or job (control groups 1 and 2) if that is less.
    root: of the file system, for tests.

    Where the system does not say what is available (macOS), all of its memory counts.
    """
    top = Path(root)
    limits = [_meminfo_bytes(top / "proc/meminfo"), *_cgroup_bytes(top)]
    known = [value for value in limits if value is not None]
    return max(min(known), 0) if known else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _meminfo_bytes(path: Path) -> int | None:
    for line in _text(path).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_bytes(top: Path) -> list[int]:
    """What each control group above this process leaves it: limit less use, where pages of files that can be
    dropped are no use.
    """
    found = []
    for line in _text(top / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            base, limit, use, droppable = (
                top / "sys/fs/cgroup",
                "memory.max",
                "memory.current",
                "inactive_file",
            )
        elif "memory" in controllers.split(","):
            base, limit, use, droppable = (
                top / "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        folder = base / name.lstrip("/")
        # Inside a container the name may be the host's, where no such folder is seen: its own group is then
        # the mounted top.
        for group in (folder, *folder.parents) if folder.is_dir() else (base,):
            most, now = _text(group / limit).strip(), _text(group / use).strip()
            if most.isdigit() and now.isdigit():
                found.append(int(most) - int(now) + _statistic(group / "memory.stat", droppable))
            if group == base:
                break
    return found


def _statistic(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in _text(path).splitlines() if line.startswith(f"{name} ")), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
