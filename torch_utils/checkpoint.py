# SPDX-License-Identifier: Apache-2.0
"""Training state on disk: tensors and JSON-like values, complete or absent, never half of it.

A checkpoint is one file, `checkpoint-<images shown, 12 digits>-<first 16 digits of its sha256>.pt`. It is written under a temporary
name, flushed to the disk, renamed, and only then are older ones removed; so a process or a machine may die at any moment and
latest() finds a whole one. The checksum in the name tells a whole file from a damaged one without trusting what is in it;
nothing in the file is ever executed (torch.load with weights_only).
"""

import contextlib
import hashlib
import os
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from dnnlib import util

_NAME = re.compile(r"checkpoint-(\d{12})-([0-9a-f]{16})\.pt")
_PARTIAL = ".checkpoint-*.tmp"
_VERSION = 1


class _HashingWriter:
    """What torch.save needs of a file (write, flush), with the sha256 of all that was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._hash.hexdigest()[:16]


def _plain(value: Any, where: str) -> Any:
    """A copy of `value` with tensors on the CPU, each with a storage of its own; ValueError names the first thing that is not allowed."""
    if isinstance(value, torch.Tensor):
        x = value.detach()
        if x.layout != torch.strided:
            raise ValueError(f"checkpoint: {where} is a {x.layout} tensor, only dense ones can be saved")
        x = x.cpu()
        # A view would be saved with all of the memory it looks into.
        return x.clone() if x.untyped_storage().nbytes() != x.numel() * x.element_size() else x
    if isinstance(value, dict):
        bad = [key for key in value if type(key) not in (str, int)]
        if bad:
            raise ValueError(f"checkpoint: {where} has the key {bad[0]!r}, keys must be strings or integers")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(
        f"checkpoint: {where} is a {type(value).__module__}.{type(value).__qualname__}; "
        "only tensors, dicts, lists, tuples, None, bool, int, float and str can be saved"
    )


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable. Some file systems and Windows cannot, and then do not need it or offer nothing better."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _entries(folder: Path) -> list[tuple[int, Path]]:
    """(images shown, path), oldest first."""
    if not folder.is_dir():
        return []
    return sorted((int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def save(folder: str | os.PathLike, nimg: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Writes `state` as the newest checkpoint of `folder` and returns its path once it is durable; then removes all but the `keep` newest.

    state: nested dicts (string or integer keys), lists and tuples of tensors (any dtype, kept bit for bit; any device, loaded on the CPU),
    None, bool, int, float and str; ValueError otherwise. Other checkpoints of `nimg` images or more belong to a line that the
    run went back from, or are damaged, and are removed too. OSError, with the earlier checkpoints intact, when the disk is full.
    """
    if keep < 1 or not 0 <= nimg < 10**12:
        raise ValueError(f"checkpoint: keep must be at least 1 and nimg in [0, 10**12), got {keep} and {nimg}")
    record = {"version": _VERSION, "nimg": int(nimg), "state": _plain(state, "state")}
    directory = Path(folder)
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(_PARTIAL):
        leftover.unlink(missing_ok=True)
    partial = directory / f".checkpoint-{nimg:012d}-{os.getpid()}.tmp"
    try:
        with open(partial, "wb") as f:
            writer = _HashingWriter(f)
            torch.save(record, cast(BinaryIO, writer))
            f.flush()
            os.fsync(f.fileno())
        path = directory / f"checkpoint-{nimg:012d}-{writer.digest()}.pt"
        os.replace(partial, path)
    except (OSError, RuntimeError) as e:  # torch reports a failed write as RuntimeError
        raise OSError(f"cannot write the checkpoint of {nimg} images to {directory} ({e}); earlier checkpoints are intact") from e
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(directory)
    older = [entry for n, entry in _entries(directory) if n < nimg]
    replaced = [entry for n, entry in _entries(directory) if n >= nimg and entry != path]
    for entry in replaced + older[: max(0, len(older) - (keep - 1))]:
        entry.unlink(missing_ok=True)
    return path


def _is_whole(path: Path) -> bool:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return True  # renamed by the user: nothing to compare with
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest().startswith(match[2])


def latest(folder: str | os.PathLike) -> Path | None:
    """Path of the newest whole checkpoint of `folder`, None if there is none. Passes over damaged ones with a warning."""
    for _, path in reversed(_entries(Path(folder))):
        try:
            if _is_whole(path):
                return path
            problem = "its contents do not match its checksum"
        except OSError as e:
            problem = str(e)
        warnings.warn(f"checkpoint {path} is damaged ({problem}); taking the one before it", stacklevel=2)
    return None


def load(path: str | os.PathLike) -> dict[str, Any]:
    """The state given to save(), tensors on the CPU. FileNotFoundError if there is no such file, ValueError if it is damaged or not a checkpoint."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if not _is_whole(path):
        raise ValueError(f"checkpoint {path} is damaged: its contents do not match its checksum; resume from an earlier one")
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch, pickle and zip errors alike: the file is not what it should be
        raise ValueError(f"{path} is not a checkpoint ({util.reason(e)})") from e
    if not isinstance(record, dict) or record.get("version") != _VERSION or not isinstance(record.get("state"), dict):
        raise ValueError(f"{path} is not a checkpoint of version {_VERSION} of this program")
    return record["state"]
