# SPDX-License-Identifier: Apache-2.0
"""Fetches files on a machine with internet access for machines without it, one by one, and lists them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dnnlib.util import sha256_file


@dataclass(frozen=True)
class Item:
    """A file to fetch.

    Attributes:
        what: description for the user.
        find: returns the path of the file, after fetching it if necessary; None if there is nothing to fetch.
            Raises OSError or ValueError with one line if the file is not available.
    """

    what: str
    find: Callable[[], str | os.PathLike[str] | None]


def fetch_all(items: Iterable[Item], say: Callable[[str], None] = print) -> list[str]:
    """Fetch the missing files and print a list of all: description, bytes, SHA-256 and path.

    A failure does not prevent the other files from being fetched.

    Args:
        items: the files.
        say: called with each line of output.

    Returns:
        One line for each file that could not be fetched.
    """
    files: dict[Path, list[str]] = {}
    failures = []
    for item in items:
        try:
            found = item.find()
        except (OSError, ValueError) as error:
            failures.append(f"{item.what}: {error}")
            say(failures[-1])
            continue
        if found is None:
            continue
        files.setdefault(Path(found).absolute(), []).append(item.what)
        say(f"{item.what}: available")
    for path, uses in files.items():
        say(
            f"\n{', '.join(dict.fromkeys(uses))}\n  {path}\n  {path.stat().st_size:,} bytes, sha256 "
            f"{sha256_file(path)}"
        )
    total = sum(path.stat().st_size for path in files)
    say(
        f"\n{len(files)} file{'s' * (len(files) != 1)}, {total:,} "
        f"bytes{f'; {len(failures)} missing' if failures else ''}"
    )
    return failures
