# SPDX-License-Identifier: Apache-2.0
"""Files for bookkeeping: a JSON object, or JSON lines with one object each.

They survive a kill (a JSON file is written atomically, JSON lines one at a time), damage (a damaged file is
renamed) and disks that are briefly unavailable (reads are retried).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnnlib import bounded, util
from dnnlib.files import names_file, retry_io, temporary_prefix
from dnnlib.util import atomic_write

_METRIC = "metric-"  # the metric's name follows
MAX_KIMG = 1e12  # a line with a larger value is damaged
MAX_LINE_BYTES, MAX_LINES_BYTES = 2**20, 2**28  # of one line, of all lines of a file; more is damage


def metric_file(run_dir: str | os.PathLike[str], metric: str) -> Path:
    """The file with the records of a metric, one line per evaluation."""
    return Path(run_dir) / f"{_METRIC}{metric}.jsonl"


def metric_files(run_dir: Path) -> list[Path]:
    """The files with the records of all evaluated metrics, sorted by name."""
    return sorted(run_dir.glob(f"{_METRIC}*.jsonl"))


class Damaged(util.Damaged):
    """A bookkeeping file does not have the expected content."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both arguments, so that the exception can be pickled
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is damaged ({self.reason})"


def read_object(path: Path) -> dict[str, Any]:
    """Read the object of a JSON file.

    Raises:
        Damaged: the file contains no JSON object.
        OSError: the file does not exist or cannot be read.
    """
    data = retry_io(lambda: _first_bytes(path), path)
    if len(data) > bounded.MAX_TEXT_BYTES:
        raise Damaged(path, f"larger than {bounded.MAX_TEXT_BYTES // 2**20} MiB")
    if data.count(b"[") + data.count(b"{") > bounded.MAX_JSON_CONTAINERS:
        raise Damaged(path, f"more than {bounded.MAX_JSON_CONTAINERS:,} lists and objects")
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as err:
        raise Damaged(path, str(err)[:100] or type(err).__name__) from None
    if not isinstance(value, dict):
        raise Damaged(path, f"{type(value).__name__} instead of an object")
    return value


def _first_bytes(path: Path) -> bytes:
    """What a JSON file may have, and one byte more where it has more."""
    with open(path, "rb") as file:
        return file.read(bounded.MAX_TEXT_BYTES + 1)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the object of a JSON file; {} if the file is missing, damaged, unreadable or not an object."""
    try:
        return read_object(Path(path)) if os.path.isfile(path) else {}
    except (OSError, Damaged):
        return {}


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. A damaged file of that name is renamed first."""
    set_aside_if_damaged(path)
    with atomic_write(path, "w") as f:
        json.dump(value, f, indent=2)


def set_aside_if_damaged(path: Path) -> None:
    """Rename a JSON file that contains no object, and print a warning."""
    try:
        read_object(path)
    except FileNotFoundError:
        pass
    except Damaged as err:
        set_aside(path, err.reason)


def set_aside(path: Path, reason: str) -> None:
    """Rename a damaged file, and print a warning."""
    print(f"WARNING: {path} is damaged ({reason}): kept as {_second_name(path).name}", flush=True)
    path.unlink()


def _second_name(path: Path) -> Path:
    """Copy the file to the first free name of NAME.damaged, NAME.damaged-2, ..."""
    names = (path.with_name(f"{path.name}.damaged{f'-{i}' if i > 1 else ''}") for i in range(1, 10**6))
    target = next(name for name in names if not name.exists())
    replace_with_copy(path, target)
    return target


def append_jsonl(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line. If a killed process left an unfinished line, start a new line first."""
    with names_file(path), open(path, "a+b") as f:
        if f.seek(0, os.SEEK_END):
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":
                f.write(b"\n")
        f.write(json.dumps(value).encode() + b"\n")


def _record(line: bytes) -> dict[str, Any] | None:
    """Parse a JSON line; None if it is damaged: not an object, or `kimg` is not a plausible number."""
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    kimg = value.get("kimg", 0.0)
    return value if type(kimg) in (int, float) and abs(kimg) < MAX_KIMG else None


def last_line(path: Path) -> dict[str, Any] | None:
    """The object of the last line; None if the file is missing or empty.

    Raises:
        Damaged: the last line is not a JSON object.
        OSError: the file cannot be read.
    """
    try:
        tail, whole = retry_io(lambda: _tail(path), path)
    except FileNotFoundError:
        return None
    lines = [line for line in tail.split(b"\n")[0 if whole else 1 :] if line.strip()]
    record = _record(lines[-1]) if lines else None
    if record is None and (lines or not whole):
        raise Damaged(path, "the last line is not a JSON object; move or delete the file")
    return record


def _tail(path: Path) -> tuple[bytes, bool]:
    """The end of a file, longer than a line may be, and whether that is all of it."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * MAX_LINE_BYTES))
        return file.read(2 * MAX_LINE_BYTES), size <= 2 * MAX_LINE_BYTES


def _lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """The lines of a file without their ends, and whether each is complete.

    Of a line longer than MAX_LINE_BYTES only its beginning, which is no JSON object.
    """
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            ended = line.endswith(b"\n")
            if not ended and len(line) == MAX_LINE_BYTES:
                line, ended = line[:100], True
                while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
            yield line.rstrip(b"\n"), ended


def drop_lines_after(path: Path, kimg: float, and_at: bool = False) -> None:
    """Remove the lines that a killed run wrote after the checkpoint that is being resumed.

    Lines without kimg (written by calc_metrics.py) stay. If lines are damaged, a copy of the original file is
    kept and a warning is printed.

    Args:
        path: the JSON-lines file.
        kimg: progress of the checkpoint.
        and_at: also remove the lines at exactly this progress.
    """
    try:
        damaged, lines, kept = retry_io(lambda: _sorted_out(path, kimg, and_at), path)
    except FileNotFoundError:
        return
    if damaged:
        print(
            f"WARNING: {damaged} of {lines} lines of {path} are damaged and ignored; the original "
            f"file is kept as {_second_name(path).name}",
            flush=True,
        )
    with atomic_write(path) as f:
        f.writelines(line + b"\n" for line in kept)


def _sorted_out(path: Path, kimg: float, and_at: bool) -> tuple[int, int, list[bytes]]:
    """Damaged lines, all lines, and those that `drop_lines_after` keeps."""
    damaged, count, size = 0, 0, 0
    kept: list[bytes] = []
    for line, ended in _lines(path):
        record = _record(line)
        if not line.strip() or (record is None and not ended):
            continue  # a line that was being written when the process died, or what an editor left
        count += 1
        if record is None or size > MAX_LINES_BYTES:
            damaged += 1
        elif _is_before(record, kimg, and_at):
            size += len(line)
            kept.append(line)
    return damaged, count, kept


def _is_before(record: dict[str, Any], kimg: float, and_at: bool) -> bool:
    at = record.get("kimg", -1.0)
    return at < kimg or (at == kimg and not and_at)


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the objects of a JSON-lines file in order.

    Lines that are damaged, incomplete or not objects are skipped. A missing file gives an empty list.
    """
    records, size = [], 0
    with contextlib.suppress(OSError):
        for line, _ in _lines(Path(path)):
            size += len(line)
            if size > MAX_LINES_BYTES:
                break
            if (record := _record(line)) is not None:
                records.append(record)
    return records


def replace_with_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, atomically: a hard link if supported, a copy otherwise."""
    linked = target.with_name(f"{temporary_prefix(target)}link.tmp")
    try:
        os.link(source, linked)
        os.replace(linked, target)
    except OSError:
        with atomic_write(target) as f, open(source, "rb") as original:
            shutil.copyfileobj(original, f)
    finally:
        linked.unlink(missing_ok=True)
