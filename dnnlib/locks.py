# SPDX-License-Identifier: Apache-2.0
"""Locks between processes, of the `filelock` library: the system lets go when a process ends, however it
ends.

A lock is a small file that names its last holder. Where the file system has no locks (some network disks),
there is one warning, and the work goes on without.
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

TELL_SECONDS = 10.0  # of waiting, after which a line says for whom
_NOT_SUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


class Holder(NamedTuple):
    """A process and its machine."""

    pid: int
    host: str


class Lock:
    """One process at a time. Not held after construction.

    path: of the lock's file, which stays.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        # A soft lock outlives a killed process: never one of those.
        self._lock = filelock.FileLock(
            self.path, thread_local=False, poll_interval=0.1, fallback_to_soft=False
        )
        self.supported = True  # False: the file system has no locks

    def acquire(self, patience: float = 0.0) -> bool:
        """Try for `patience` seconds (inf: until it is free). True if the lock is held, or if the file system
        has no locks.

        Raises:
            OSError: the lock's file cannot be written.
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
                f"WARNING: the file system of {self.path.parent} has no locks ({error.strerror}): going on "
                "without, "
                "take care that no second process works there"
            )
        return True

    def holder_text(self) -> str:
        """The process that holds it, or held it last, in words."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace").strip()[:200] or "another process"
        except OSError:
            return "another process"

    def last_holder(self) -> Holder | None:
        """The process that held it last; None if its file does not say."""
        match = re.fullmatch(r"process (\d{1,9}) on (\S+)", self.holder_text())
        return Holder(int(match[1]), match[2]) if match else None

    def sign(self) -> None:
        """Write this process into the lock's file."""
        with contextlib.suppress(OSError):  # for eyes only
            self.path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")

    def release(self) -> None:
        """Let go; a second time has no effect."""
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
    """Within, one process at a time, as far as the file system can lock. After ten seconds of waiting a line
    on stderr says for whom.

    Args:
        path: of the lock, a small file that stays. doing: what the owner does, for that line: "builds the
        CUDA kernels". patience: seconds to wait for a live owner before going ahead without the lock. remove:
        the lock's file is removed at the end.

    Yields whether the lock is held: False after `patience`, and where locks do not work.

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
        lock.sign()
    try:
        yield held
    finally:
        if remove and held:
            with contextlib.suppress(OSError):  # Windows keeps open files; who waits notices that it is gone
                lock.path.unlink()
        lock.release()
