# SPDX-License-Identifier: Apache-2.0
"""Bookkeeping in files: a JSON object, or JSON lines, one record each.

It survives a kill (JSON is written whole or not at all, JSON lines one by one), damage (what is damaged is
set aside under another name) and a disk that is away for a moment (reading is tried again).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dnnlib import util
from dnnlib.files import names_file, patiently, temporary_prefix
from dnnlib.util import atomic_write

_METRIC = "metric-"  # its name follows
MAX_KIMG = 1e12  # more in a record is damage


def metric_file(run_dir: str | os.PathLike[str], metric: str) -> Path:
    """The records of a metric, one line per evaluation."""
    return Path(run_dir) / f"{_METRIC}{metric}.jsonl"


def metric_files(run_dir: Path) -> list[Path]:
    """The records of all metrics that were measured, by name."""
    return sorted(run_dir.glob(f"{_METRIC}*.jsonl"))


class Damaged(util.Damaged):
    """A file of bookkeeping is not what it should be."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both, so that another process can receive it
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is damaged ({self.reason})"


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        Damaged: it holds none. OSError: there is no such file, or it cannot be read.
    """
    data = patiently(path.read_bytes, path)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as err:
        raise Damaged(path, str(err)[:100] or type(err).__name__) from None
    if not isinstance(value, dict):
        raise Damaged(path, f"{type(value).__name__} in the place of an object")
    return value


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file; empty if it is missing, damaged, unreadable or no object."""
    try:
        return read_object(Path(path)) if os.path.isfile(path) else {}
    except (OSError, Damaged):
        return {}


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. A damaged file that is in its place is set aside."""
    set_aside_if_damaged(path)
    with atomic_write(path, "w") as f:
        json.dump(value, f, indent=2)


def set_aside_if_damaged(path: Path) -> None:
    """Give a JSON file that holds no object another name, with a warning."""
    try:
        read_object(path)
    except FileNotFoundError:
        pass
    except Damaged as err:
        set_aside(path, err.reason)


def set_aside(path: Path, reason: str) -> None:
    """Give a damaged file another name, with a warning."""
    print(f"WARNING: {path} is damaged ({reason}): kept as {_second_name(path).name}", flush=True)
    path.unlink()


def _second_name(path: Path) -> Path:
    """The file under another name, too: NAME.damaged, NAME.damaged-2, ..."""
    names = (path.with_name(f"{path.name}.damaged{f'-{i}' if i > 1 else ''}") for i in range(1, 10**6))
    target = next(name for name in names if not name.exists())
    replace_with_copy(path, target)
    return target


def append_jsonl(path: Path, value: dict[str, Any]) -> None:
    """Append one line, on a line of its own also where a writer was killed before its line's end."""
    with names_file(path), open(path, "a+b") as f:
        if f.seek(0, os.SEEK_END):
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":
                f.write(b"\n")
        f.write(json.dumps(value).encode() + b"\n")


def _record(line: bytes) -> dict[str, Any] | None:
    """The object of a JSON line; None if it is damaged: no object, or with something else than a number of
    kimg.
    """
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    kimg = value.get("kimg", 0.0)
    return value if type(kimg) in (int, float) and abs(kimg) < MAX_KIMG else None


def last_line(path: Path) -> dict[str, Any] | None:
    """The object of the last line; None without a file or a line.

    Raises:
        Damaged: it holds none. OSError: it cannot be read.
    """
    try:
        lines = [line for line in patiently(path.read_bytes, path).split(b"\n") if line.strip()]
    except FileNotFoundError:
        return None
    record = _record(lines[-1]) if lines else None
    if lines and record is None:
        raise Damaged(path, "the last line is not a JSON object; move the file away")
    return record


def drop_lines_after(path: Path, kimg: float, and_at: bool = False) -> None:
    """Forget the lines that a killed run wrote after the checkpoint from which it goes on (`and_at`: also
    those of that very moment).

    A line without kimg, of calc_metrics.py, stays. If lines are damaged, the file as it was is set aside,
    with a warning.
    """
    try:
        lines = patiently(path.read_bytes, path).split(b"\n")
    except FileNotFoundError:
        return
    unfinished = lines.pop()  # '' or the line that was being written when the process died
    records = [(line, _record(line)) for line in lines if line.strip()]
    if unfinished.strip() and (last := _record(unfinished)) is not None:
        records.append((unfinished, last))  # an editor left no newline
    damaged = sum(record is None for _, record in records)
    kept = [line for line, r in records if r is not None and _is_before(r, kimg, and_at)]
    if damaged:
        print(
            f"WARNING: {damaged} of {len(records)} lines of {path} are damaged: going on with the others, "
            "the file is kept as "
            f"{_second_name(path).name}", flush=True,
        )  # fmt: skip
    with atomic_write(path) as f:
        f.write(b"".join(line + b"\n" for line in kept))


def _is_before(record: dict[str, Any], kimg: float, and_at: bool) -> bool:
    at = record.get("kimg", -1.0)
    return at < kimg or (at == kimg and not and_at)


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file in order; lines that are damaged, half written or no objects are
    passed over. No file: an empty list.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError:
        return []
    return [record for line in lines if (record := _record(line)) is not None]


def replace_with_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hard link where the file system has them, a copy elsewhere.
    Atomic.
    """
    linked = target.with_name(f"{temporary_prefix(target)}link.tmp")
    try:
        os.link(source, linked)
        os.replace(linked, target)
    except OSError:
        with atomic_write(target) as f:
            f.write(source.read_bytes())
    finally:
        linked.unlink(missing_ok=True)
