# SPDX-License-Identifier: Apache-2.0
"""The small files of a run folder: JSON, JSON lines that survive a kill, one file under two names, which classes are shown."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.util import atomic_write


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with atomic_write(str(path), "w") as f:
        json.dump(value, f, indent=2)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file; empty if it is missing, damaged or no object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def append_jsonl(path: Path, value: dict[str, Any]) -> None:
    """Append one line."""
    with open(path, "a") as f:
        f.write(json.dumps(value) + "\n")


def drop_lines_after(path: Path, kimg: float, and_at: bool = False) -> None:
    """Forget the lines that a killed run wrote after the checkpoint from which it goes on (`and_at`: also those of that very moment)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            at = json.loads(line).get("kimg", -1.0)  # a line of calc_metrics.py has none, and stays
            if at < kimg or (at == kimg and not and_at):
                kept.append(line)
        except json.JSONDecodeError:
            continue  # the line that was being written when the process died
    with atomic_write(str(path), "w") as f:
        f.write("".join(line + "\n" for line in kept))


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file in order; lines that are damaged, half written or no objects are passed over. No file: an empty list."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    records = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            records.append(value)
    return records


def spaced_labels(c_dim: int, rows: int) -> list[int]:
    """`rows` classes, evenly spaced; all of them in turn where there are fewer."""
    return [int(v) for v in np.linspace(0, c_dim - 1, rows)] if c_dim > rows else [i % c_dim for i in range(rows)]


def replace_with_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hard link where the file system has them, a copy elsewhere. Atomic."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:
        with atomic_write(str(target), "wb") as f:
            f.write(source.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)
