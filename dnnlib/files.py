# SPDX-License-Identifier: Apache-2.0
"""Robust files: temporary files that name their process, and retries after I/O errors.

The name of a temporary file contains the machine and process that writes it. So leftovers of a killed process
can be told apart from files that a running process is writing.
"""

import contextlib
import errno
import hashlib
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each retry of a failed read
# Bytes of the target's name in the name of its temporary file; file systems allow 255 in total.
_LONGEST_NAME = 200
# .NAME.<machine>-<process>-<random>.tmp
_TEMPORARY = re.compile(r"\.(?P<target>.+)\.(?P<owner>[0-9a-f]{8}-\d+)-[a-z0-9_]+\.tmp")
# Names that version 0.1 wrote: without the process; for checkpoints and copied networks with the process but
# without the machine.
_OLD_TEMPORARY = re.compile(
    r"\.(?P<target>.+)\.[a-z0-9_]{8}\.tmp|\.(?P<checkpoint>checkpoint-\d{12})-\d+\.tmp|\.(?P<copy>.+\.pkl)\.\d+"
)


def owner_name(pid: int | None = None, host: str | None = None) -> str:
    """The name of a process in temporary file names; the current process by default."""
    machine = hashlib.sha256((host or platform.node()).encode()).hexdigest()[:8]
    return f"{machine}-{os.getpid() if pid is None else pid}"


def temporary_prefix(target: str | os.PathLike[str]) -> str:
    """The prefix of this process's temporary files for `target`; random letters and ".tmp" follow."""
    name = Path(target).name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return f".{name}.{owner_name()}-"


def remove_temporaries(
    folder: str | os.PathLike[str], owners: Collection[str] = (), old: bool = False
) -> list[Path]:
    """Remove the temporary files in a folder that no running process writes.

    A file is removed if its process is one of `owners`, or ran on this machine and has ended. Files that
    cannot be removed are skipped.

    Args:
        folder: the folder.
        owners: processes known to be dead (`owner_name`), on any machine.
        old: also remove the files of version 0.1, whose names do not contain the process. Use it only for a
            folder in which no other process writes.

    Returns:
        The paths of the removed files.
    """
    removed = []
    try:
        names = os.listdir(folder)
    except OSError:  # this is cleanup: not worth stopping for
        return []
    for name in names:
        match = _TEMPORARY.fullmatch(name)
        if match is not None:
            dead = match["owner"] in owners or _is_dead(match["owner"])
        else:
            dead = old and _OLD_TEMPORARY.fullmatch(name) is not None
        if dead:
            with contextlib.suppress(OSError):
                os.unlink(Path(folder) / name)
                removed.append(Path(folder) / name)
    return removed


def _is_dead(owner: str) -> bool:
    """Whether a process of this machine has ended; False for other machines, which cannot be checked."""
    pid = int(owner.rpartition("-")[2])
    if owner != owner_name(pid) or os.name == "nt":  # on Windows, signal 0 would end the process
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False  # it runs, and belongs to another user
    return False


NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # not every platform has quotas
_WRITE_ERRORS = (*NO_SPACE, errno.EFBIG, errno.EIO)


@contextlib.contextmanager
def names_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the name `path` to write errors (disk full, broken disk) inside the block that name no file."""
    try:
        yield
    except OSError as error:
        if error.errno in _WRITE_ERRORS and error.filename is None:
            error.filename = str(path)
        raise


# Errors that a retry does not cure.
_CERTAIN = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError)


def retry_io(action: Callable[[], T], what: str | os.PathLike[str]) -> T:
    """Call action(), and retry after I/O errors with growing pauses (network disks can fail briefly).

    Args:
        action: the function to call.
        what: the file, for the warning on stderr and for the final error, which may not name it.

    Raises:
        OSError: naming `what`, after the last attempt; immediately for a missing file or missing permission.
    """
    for pause in PAUSES:
        try:
            return action()
        except _CERTAIN:
            raise
        except OSError as error:
            print(f"{what}: {error.strerror or error}; retrying in {pause:g} s", file=sys.stderr, flush=True)
            time.sleep(pause)
    try:
        return action()
    except _CERTAIN:
        raise
    except OSError as error:
        reason = f"{error.strerror or error}, after {len(PAUSES) + 1} attempts"
        raise OSError(error.errno, reason, str(what)) from None
