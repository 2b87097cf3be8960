# SPDX-License-Identifier: Apache-2.0
"""Decide from which paths code may be loaded: only those that nobody except this user and root can change.

Whoever can write to a compiled library, or to a folder on its path, controls what this process runs (ssh
checks its keys for the same reason). So every folder, link and file that a path passes through is checked
from the root down: it must belong to this user or to root, and nobody else may have write permission. Folders
above the last one may be writable if they have the sticky bit (/tmp), because then other users cannot replace
files that they do not own.

The order prevents races: once a folder is known to be closed to others, nobody else can change its contents.
The returned path contains no links. On Windows, which manages permissions differently, every path is
accepted.
"""

import errno
import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_MAX_LINKS = 40
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Distrusted(OSError):
    """Code must not be loaded from this path; the message gives the reason."""


def make_private(folder: str | os.PathLike[str], mode: int = 0o700) -> None:
    """Create a folder and its missing parents, independent of the umask. An existing folder is not changed.

    Args:
        folder: the folder.
        mode: permissions of new folders; by default only this user has access.
    """
    missing = []
    path = Path(folder)
    while not path.is_dir():
        missing.append(path)
        if path.parent == path:
            break
        path = path.parent
    for path in reversed(missing):
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if not path.is_dir():
                raise


def untrusted_reason(path: str | os.PathLike[str]) -> str:
    """The reason why code must not be loaded from a file or folder.

    Returns:
        '' if the path is trusted, or if it does not exist but its existing parents are trusted.
    """
    try:
        trusted_path(path)
    except FileNotFoundError:
        return ""
    except Distrusted as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or path}: {error.strerror or error}"
    return ""


def trusted_path(path: str | os.PathLike[str]) -> Path:
    """Resolve a path, and check that nobody except this user and root can change what it refers to.

    Raises:
        Distrusted: someone else could change it.
        FileNotFoundError: the path does not exist (its existing parents are trusted).
        OSError: the path cannot be examined.
    """
    if not hasattr(os, "geteuid"):
        return Path(path).resolve(strict=True)
    place, status = "/", os.lstat("/")
    for place, status in _steps(path):
        _check(place, status, last=False)
    _check(place, status, last=True)
    if not stat.S_ISDIR(status.st_mode):
        folder = os.path.dirname(place)
        _check(folder, os.lstat(folder), last=True)
    return Path(place)


def _steps(path: str | os.PathLike[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Everything that the system passes through when it opens a path, from the root down.

    Yields:
        (path without links above its last part, its lstat).
    """
    place, links = "/", 0
    todo = os.path.join(os.getcwd(), os.fspath(path)).split("/")[::-1]
    yield place, os.lstat(place)
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            place = os.path.dirname(place)
            continue
        here = os.path.join(place, name)
        status = os.lstat(here)
        yield here, status
        if not stat.S_ISLNK(status.st_mode):
            place = here
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
        target = os.readlink(here)
        place = "/" if target.startswith("/") else place
        todo += target.split("/")[::-1]
    yield place, os.lstat(place)  # after a link or '..' the last item was not the final place


def _check(place: str, status: os.stat_result, last: bool) -> None:
    """Raise Distrusted if others can change `place`. `last` marks the file and its folder: no exceptions."""
    _check_owner(place, status, last)
    _check_open(place, status, last)


def _check_owner(place: str, status: os.stat_result, last: bool) -> None:
    if status.st_uid in (0, os.geteuid()) or place == "/":
        return
    if not last and status.st_uid == _stand_in_for_root():
        return
    raise Distrusted(f"{place} belongs to user {_user(status.st_uid)}")


def _check_open(place: str, status: os.stat_result, last: bool) -> None:
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & _OTHERS:
        return
    if not last and stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return
    if not status.st_mode & stat.S_IWOTH and _is_private_group(status.st_gid):
        return
    raise Distrusted(f"others can write to {place} (mode {stat.S_IMODE(status.st_mode):04o})")


@functools.cache
def _stand_in_for_root() -> int | None:
    """The 'overflow' user, who owns root's files in a container without root (Apptainer). None elsewhere."""
    try:
        lines = Path("/proc/self/uid_map").read_text().splitlines()
        mapped = [tuple(map(int, line.split())) for line in lines]
        if any(inside == 0 for inside, _, _ in mapped):
            return None
        return int(Path("/proc/sys/fs/overflowuid").read_text())
    except (OSError, ValueError):
        return None


@functools.cache
def _is_private_group(gid: int) -> bool:
    """Whether a group belongs to this user alone: same name, no other members, as many systems set it up."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    own = user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
    return own and os.geteuid() != 0


def _user(uid: int) -> str:
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)
