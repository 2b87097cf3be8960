# SPDX-License-Identifier: Apache-2.0
"""Free memory of a device, and recognition of out-of-memory errors."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from dnnlib import util

# Out-of-memory messages of libraries, the CUDA runtime, torch's CPU allocator and Metal, which raise other
# errors than torch.OutOfMemoryError.
_SIGNS = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory")


# Parameters of glibc's mallopt, and a size that no tensor of a detector reaches.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGE = -1, -3, 2**30


def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory for large tensors on the CPU, for the rest of this process.

    By default it maps each large block and unmaps it when freed, and the kernel clears its pages at each
    use: half of the CPU time of lite0 on batches of 32. The process keeps its peak memory instead.

    Returns:
        False where the C library is another one; nothing changes there.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))


def peak_bytes() -> int | None:
    """Return the largest resident memory of this process so far; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that an allocation failed, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextlib.contextmanager
def out_of_memory_hint(where: object, remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error in this context into a one-line ValueError.

    Args:
        where: the device.
        remedy: what to change, such as 'lower --batch (now 32)'.

    Raises:
        ValueError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = util.reason(error)
        raise ValueError(f"out of memory on {where}: {remedy} ({reason[:160]})") from None


def free_bytes(device: torch.device) -> int:
    """Return the bytes that a process can still allocate on a device.

    For a GPU this is its free memory; for other devices it is the host's, within the limits of the control
    group.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return host_free_bytes()


def host_free_bytes(root: str | os.PathLike[str] = "/") -> int:
    """Return the available memory in bytes of this machine, or of its container or job if that is less.

    Control groups of versions 1 and 2 are supported. On systems that do not publish the available memory
    (macOS), the total memory is returned.

    Args:
        root: root of the file system; tests pass another one.
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
    """Return the memory that each control group of this process leaves: limit - usage.

    Cached pages of files that the kernel can drop do not count as usage.
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
        # In a container the name can be the host's, and the folder is then not visible. The container's own
        # group is mounted at the base in that case.
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
