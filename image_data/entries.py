# SPDX-License-Identifier: Apache-2.0
"""One file of an archive, and the helpers that its readers share."""

import os
import zipfile
from typing import NamedTuple

AGAIN = "copy or download it again"  # what to do about a damaged file


class Entry(NamedTuple):
    """One file of an archive. In a folder only the name is known; zips and indexed shards list the rest."""

    name: str
    size: int = -1  # bytes, unpacked
    crc: int = -1
    offset: int = 0  # zip: of the local header; tar: of the content
    stored_size: int = 0
    method: int = zipfile.ZIP_STORED
    shard: int = 0  # tar: the number of the shard


def check_name(name: str, where: str) -> str:
    """Return a name with forward slashes. ValueError if it is absolute or leads out of the archive."""
    clean = name.replace("\\", "/")
    if (
        clean.startswith("/")
        or (".." in clean and ".." in clean.split("/"))
        or clean[1:2] == ":"
        or "\0" in clean
    ):
        raise ValueError(
            f'{where}: entry {name!r} leads out of the folder: absolute paths and ".." are not allowed'
        )
    return clean


def plain_name(name: str, where: str) -> str:
    """Return `check_name` in its shortest form: './a//b.png' -> 'a/b.png'. A '/' at the end stays."""
    clean = check_name(name, where)
    if clean.startswith("./") or "/./" in clean or "//" in clean:
        shortest = "/".join(part for part in clean.split("/") if part not in ("", "."))
        clean = shortest + "/" * clean.endswith("/")
    return clean


def pread_all(fd: int, count: int, offset: int) -> bytes:
    """Read `count` bytes at a position. One system call reads at most 2 GiB and may return fewer bytes."""
    parts = []
    while count > 0:
        part = os.pread(fd, min(count, 2**30), offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
