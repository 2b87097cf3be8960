# SPDX-License-Identifier: Apache-2.0
"""Files that survive kills and disks that are away for a moment: written whole or not at all, read again
after an I/O error.

A temporary file's name says which process of which machine writes it, so that what a killed process left can
be told from what a live one is writing.
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

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before a failed reading is tried again
_LONGEST_NAME = (
    200  # bytes of the target's name in that of its temporary; file systems allow 255 for all of it
)
# .NAME.<machine>-<process>-<random>.tmp
_TEMPORARY = re.compile(r"\.(?P<target>.+)\.(?P<owner>[0-9a-f]{8}-\d+)-[a-z0-9_]+\.tmp")
# What version 0.1 wrote: without its process; a checkpoint's and a copied network's with it, but without its
# machine.
_OLD_TEMPORARY = re.compile(
    r"\.(?P<target>.+)\.[a-z0-9_]{8}\.tmp|\.(?P<checkpoint>checkpoint-\d{12})-\d+\.tmp|\.(?P<copy>.+\.pkl)\.\d+"
)


def owner_name(pid: int | None = None, host: str | None = None) -> str:
    """How temporaries name a process; without arguments, this one."""
    machine = hashlib.sha256((host or platform.node()).encode()).hexdigest()[:8]
    return f"{machine}-{os.getpid() if pid is None else pid}"


def temporary_prefix(target: str | os.PathLike[str]) -> str:
    """The beginning of the name of this process's temporaries for a file; random letters and ".tmp"
    follow.
    """
    name = Path(target).name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return f".{name}.{owner_name()}-"


def remove_temporaries(
    folder: str | os.PathLike[str], owners: Collection[str] = (), old: bool = False
) -> list[Path]:
    """Removes the temporaries in a folder that nobody writes any more, and returns their paths.

    A temporary is removed if its process is one of `owners`, or was one of this machine and does not run any
    more. What cannot be removed stays.

    Args:
        owners: processes known to be dead (`owner_name`), of any machine.
        old: also what version 0.1 left, whose names do not tell; only for a folder in which nobody else
        writes.
    """
    removed = []
    try:
        names = os.listdir(folder)
    except OSError:  # housekeeping: no reason to stop
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
    """Whether a process of this machine has ended; False for another machine's, of which nothing is known
    here.
    """
    pid = int(owner.rpartition("-")[2])
    if owner != owner_name(pid) or os.name == "nt":  # there, signal 0 is not a question
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False  # another user's
    return False


_WRITE_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", None))


@contextlib.contextmanager
def names_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within, an error of writing (no space left, a broken disk) that does not say which file it is about
    names `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _WRITE_ERRORS and error.filename is None:
            error.filename = str(path)
        raise


# Not cured by waiting.
_CERTAIN = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError)


def patiently(action: Callable[[], T], what: str | os.PathLike[str]) -> T:
    """action(), tried again after I/O errors with growing pauses (`PAUSES`): a network disk may be away for a
    moment.

    Args:
        what: the file, for the line on stderr that says so, and for the last error, which need not name it.

    Raises:
        OSError: naming `what`, after the last attempt; at once if there is no such file or no permission.
    """
    for pause in PAUSES:
        try:
            return action()
        except _CERTAIN:
            raise
        except OSError as error:
            print(
                f"{what}: {error.strerror or error}; trying again in {pause:g} s", file=sys.stderr, flush=True
            )
            time.sleep(pause)
    try:
        return action()
    except _CERTAIN:
        raise
    except OSError as error:
        reason = f"{error.strerror or error}, {len(PAUSES) + 1} times"
        raise OSError(error.errno, reason, str(what)) from None
