# SPDX-License-Identifier: Apache-2.0
"""Files fetched where there is a network, for machines that have none: one after the other, checked,
listed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dnnlib.util import sha256_file


@dataclass(frozen=True)
class Item:
    """A file to have. what: for the user. find: returns its path after fetching it if need be, None if there
    is nothing to fetch; raises OSError or ValueError, in one line, if it cannot be had.
    """

    what: str
    find: Callable[[], str | os.PathLike[str] | None]


def fetch_all(items: Iterable[Item], say: Callable[[str], None] = print) -> list[str]:
    """Fetch what is missing and end with a list: what, bytes, SHA-256, where. One that fails does not keep
    the others back.

    Returns a line per file that could not be had.
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
        say(f"{item.what}: here")
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
