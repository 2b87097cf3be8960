# SPDX-License-Identifier: Apache-2.0
"""Locks between processes, based on `filelock`. The system releases a lock when its process ends.

A lock is a small file that contains the name of its last holder. If the file system does not support locks
(some network disks), a warning is printed once and the work continues without a lock.
"""

import contextlib
import errno
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import filelock

TELL_SECONDS = 10.0  # after waiting this long, print which process holds the lock
_NOT_SUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


class Holder(NamedTuple):
    """A process and the machine it runs on."""

    pid: int
    host: str


class Lock:
    """A lock that one process can hold at a time. A new object does not hold it.

    Args:
        path: the lock file, which is never removed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        # Never use a soft lock: it would outlive a killed process.
        self._lock = filelock.FileLock(
            self.path, thread_local=False, poll_interval=0.1, fallback_to_soft=False
        )
        self.supported = True  # False: the file system does not support locks

    def acquire(self, patience: float = 0.0) -> bool:
        """Try to acquire the lock for `patience` seconds (inf: without limit).

        Returns:
            True if the lock is held, or if the file system does not support locks.

        Raises:
            OSError: the lock file cannot be written.
        """
        try:
            self._lock.acquire(timeout=-1 if patience == float("inf") else patience)
        except filelock.Timeout:
            return False
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            self.supported = False
            _warn_once(
                f"WARNING: the file system of {self.path.parent} does not support locks ({error.strerror}). "
                "Continuing without; make sure that no second process works there"
            )
        return True

    def holder_text(self) -> str:
        """A description of the process that holds the lock, or held it last."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace").strip()[:200] or "another process"
        except OSError:
            return "another process"

    def last_holder(self) -> Holder | None:
        """The process that held the lock last; None if the lock file does not name one."""
        match = re.fullmatch(r"process (\d{1,9}) on (\S+)", self.holder_text())
        return Holder(int(match[1]), match[2]) if match else None

    def write_holder(self) -> None:
        """Write the name of this process into the lock file."""
        with contextlib.suppress(OSError):  # only for information
            self.path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")

    def release(self) -> None:
        """Release the lock. Calling it twice is allowed."""
        self._lock.release(force=True)


_told: set[str] = set()


def _warn_once(line: str) -> None:
    if line not in _told:
        _told.add(line)
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def file_lock(
    path: str | os.PathLike[str], doing: str, patience: float = float("inf"), remove: bool = False
) -> Iterator[bool]:
    """Run the block in one process at a time, if the file system supports locks.

    After ten seconds of waiting, a line on stderr names the process that holds the lock.

    Args:
        path: the lock, a small file that stays.
        doing: what the holder does, for that line: "builds the CUDA kernels".
        patience: seconds to wait for a running holder before continuing without the lock.
        remove: remove the lock file at the end.

    Yields:
        Whether the lock is held: False after `patience`, or if locks are not supported.

    Raises:
        OSError: `path` cannot be opened for writing.
    """
    lock = Lock(path)
    free = lock.acquire(min(patience, TELL_SECONDS))
    if not free and patience > TELL_SECONDS:
        print(f"waiting for {lock.holder_text()}, which {doing}", file=sys.stderr, flush=True)
        free = lock.acquire(patience - TELL_SECONDS)
    held = free and lock.supported
    if held:
        lock.write_holder()
    try:
        yield held
    finally:
        if remove and held:
            with contextlib.suppress(
                OSError
            ):  # fails on Windows while open; waiting processes notice the removal
                lock.path.unlink()
        lock.release()
