# SPDX-License-Identifier: Apache-2.0
"""Training state on disk: tensors and JSON-like values, complete or absent, never half of it.

A checkpoint is one file, `checkpoint-<images shown, 12 digits>-<first 16 digits of its sha256>.pt`. It is
written under a temporary name, flushed to the disk, renamed, read back, and only then are older ones removed;
so a process or a machine may die at any moment and latest() finds a whole one. The checksum in the name tells
a whole file from a damaged one without trusting what is in it; nothing in the file is ever executed
(torch.load with weights_only).

A file that cannot be read is not a damaged one: reading is tried again for half a minute, and then fails with
OSError.
"""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from dnnlib import util
from dnnlib.files import remove_temporaries, retry_io, temporary_prefix
from torch_utils import tensor_files

_NAME = re.compile(r"checkpoint-(\d{12})-([0-9a-f]{16})\.pt")
_SET_ASIDE = ".damaged"  # added to the name of one whose contents do not match its checksum
_VERSION = 1


class _HashingWriter:
    """What torch.save needs of a file (write, flush), with the sha256 of all that was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.error: OSError | None = None  # torch reports it as a wrong position in the file

    def write(self, data: Any) -> int:
        self._hash.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._hash.hexdigest()[:16]


def _plain(value: Any, where: str, own: bool = False) -> Any:
    """A copy of `value` with tensors on the CPU, each with a storage of its own.

    Args:
        value: what `save` takes.
        where: its name in messages.
        own: also copy tensors that are on the CPU already.

    Raises:
        ValueError: naming the first thing that cannot be saved.
    """
    if isinstance(value, torch.Tensor):
        x = value.detach()
        if x.layout != torch.strided:
            raise ValueError(f"checkpoint: {where} is a {x.layout} tensor, only dense ones can be saved")
        if own:
            return _host_copy(x)
        x = x.cpu()
        # A view would be saved with all of the memory it looks into.
        return x.clone() if x.untyped_storage().nbytes() != x.numel() * x.element_size() else x
    if isinstance(value, dict):
        bad = [key for key in value if type(key) not in (str, int)]
        if bad:
            raise ValueError(f"checkpoint: {where} has the key {bad[0]!r}, keys must be strings or integers")
        return {key: _plain(item, f"{where}.{key}", own) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{where}[{i}]", own) for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(
        f"checkpoint: {where} is a {type(value).__module__}.{type(value).__qualname__}; "
        "only tensors, dicts, lists, tuples, None, bool, int, float and str can be saved"
    )


def _host_copy(x: torch.Tensor) -> torch.Tensor:
    """A copy in (pinned) host memory, which may still be on its way from the device.

    The order of the elements in memory stays: Adam's fused step needs its moments laid out as the weights.
    """
    copy = torch.empty_like(x, device="cpu", pin_memory=x.device.type == "cuda")
    return copy.copy_(x, non_blocking=True)


def host_copy(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of what `save` takes, in host memory, which does not change with the original.

    Raises:
        ValueError: naming the first thing that cannot be saved.
    """
    copied: dict[str, Any] = _plain(state, "state", own=True)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copied


class Writer:
    """Saves checkpoints in a thread, one at a time, while training continues.

    Args:
        folder: of the checkpoints.
        keep: as for `save`.
        written: called in the thread with the images shown, once a checkpoint is durable.
        local: a folder on another disk for a copy of the newest checkpoint, which is written first. If that
            fails, there is a warning. The folder that it is in must exist.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: int,
        written: Callable[[int], None],
        local: Path | None = None,
    ) -> None:
        self.folder, self.keep, self.written, self.local = folder, keep, written, local
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None

    def save(self, nimg: int, state: dict[str, Any]) -> None:
        """Copy the state and begin to write it, once the checkpoint before is written.

        Raises:
            OSError: the checkpoint before could not be written. ValueError: as `save`.
        """
        self.wait()
        copied = host_copy(state)
        self.thread = threading.Thread(target=self._write, args=(nimg, copied), name="checkpoint")
        self.thread.start()

    def _write(self, nimg: int, state: dict[str, Any]) -> None:
        try:
            self._write_locally(nimg, state)
            save(self.folder, nimg, state, self.keep)
            self.written(nimg)
        except Exception as error:
            self.error = error

    def _write_locally(self, nimg: int, state: dict[str, Any]) -> None:
        if self.local is not None:
            try:
                save(self.local, nimg, state, keep=1)
            except OSError as error:
                warnings.warn(f"no local copy of the checkpoint: {error}", stacklevel=2)

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written. Does not wait."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def wait(self) -> None:
        """Wait until the checkpoint is written. Raises as `check`."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        self.check()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _entries(folder: Path) -> list[tuple[int, Path]]:
    """(images shown, path), oldest first."""
    return sorted(
        (int(match[1]), folder / name) for name in _names(folder) if (match := _NAME.fullmatch(name))
    )


def _names(folder: Path) -> list[str]:
    try:
        return retry_io(lambda: os.listdir(folder), folder)
    except FileNotFoundError:
        return []


def save(folder: str | os.PathLike[str], nimg: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `state` as the newest checkpoint of `folder`, then remove all but the `keep` newest.

    Other checkpoints of `nimg` images or more are damaged, or were left by a run that went back to an earlier
    checkpoint: they are removed too.

    Args:
        folder: of the checkpoints.
        nimg: images shown.
        state: nested dicts (string or integer keys), lists and tuples of tensors (any dtype, kept bit for
            bit; any device, loaded on the CPU), None, bool, int, float and str.
        keep: number of checkpoints kept.

    Returns:
        The path, once the file is durable.

    Raises:
        ValueError: something in `state` cannot be saved.
        OSError: the disk is full, or the file cannot be read back. Earlier checkpoints are intact.
    """
    if keep < 1 or not 0 <= nimg < 10**12:
        raise ValueError(
            f"checkpoint: keep must be at least 1 and nimg in [0, 10**12), got {keep} and {nimg}"
        )
    record = {"version": _VERSION, "nimg": int(nimg), "state": _plain(state, "state")}
    directory = Path(folder)
    directory.mkdir(exist_ok=True)
    remove_temporaries(directory)
    path = _write(directory, nimg, record)
    _prove(path)
    older = [entry for n, entry in _entries(directory) if n < nimg]
    replaced = [entry for n, entry in _entries(directory) if n >= nimg and entry != path]
    damaged = [
        directory / name
        for name in _names(directory)
        if _NAME.fullmatch(name.removesuffix(_SET_ASIDE)) and name.endswith(_SET_ASIDE)
    ]
    for entry in damaged + replaced + older[: max(0, len(older) - (keep - 1))]:
        entry.unlink(missing_ok=True)
    return path


def _write(directory: Path, nimg: int, record: dict[str, Any]) -> Path:
    """Write a new, durable checkpoint. Raises OSError if that fails."""
    stem = f"checkpoint-{nimg:012d}"
    partial = directory / f"{temporary_prefix(stem)}x.tmp"
    writer: _HashingWriter | None = None
    try:
        with open(partial, "wb") as f:
            writer = _HashingWriter(f)
            torch.save(record, cast(BinaryIO, writer))
            f.flush()
            os.fsync(f.fileno())
            if hasattr(os, "posix_fadvise"):  # so that it is read back from the disk
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        path = directory / f"{stem}-{writer.digest()}.pt"
        os.replace(partial, path)
    except (OSError, RuntimeError) as e:  # torch reports a failed write as RuntimeError
        reason = (writer and writer.error) or e
        raise OSError(
            f"cannot write the checkpoint of {nimg} images to {directory} ({reason}); earlier checkpoints "
            "are intact"
        ) from e
    finally:
        partial.unlink(missing_ok=True)
    return path


def _prove(path: Path) -> None:
    """Read a new checkpoint back. Raises OSError if that fails, and removes a damaged one."""
    if not retry_io(lambda: _is_whole(path), path):
        path.unlink()
        raise OSError(
            f"the checkpoint {path} does not read back as it was written; earlier checkpoints are intact"
        )


def _is_whole(path: Path) -> bool:
    with open(path, "rb") as f:
        return _fits_name(path, hashlib.file_digest(f, "sha256").hexdigest())


def _fits_name(path: Path, digest: str) -> bool:
    match = _NAME.fullmatch(path.name)
    return match is None or digest.startswith(match[2])  # renamed by the user: nothing to compare with


def copy(path: Path, folder: str | os.PathLike[str]) -> Path:
    """Copy a checkpoint into another folder of checkpoints.

    Returns:
        The path of the copy, once it is durable.

    Raises:
        OSError: it cannot be read or written, or does not read back.
    """
    directory = Path(folder)
    directory.mkdir(exist_ok=True)
    target = directory / path.name
    with util.atomic_write(target) as f, open(path, "rb") as source:
        shutil.copyfileobj(source, f, 2**20)
    _sync_folder(directory)
    _prove(target)
    return target


def nimg_of(path: Path) -> int:
    """Images shown at a checkpoint, from its name. Raises ValueError for another name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not named as a checkpoint")
    return int(match[1])


def newest_nimg(folder: str | os.PathLike[str]) -> int | None:
    """Images shown at the newest checkpoint, by its name, whole or not; None without one."""
    entries = _entries(Path(folder))
    return entries[-1][0] if entries else None


def exists(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a checkpoint, whole, damaged or set aside.

    Raises:
        OSError: the folder cannot be read.
    """
    return any(_NAME.fullmatch(name.removesuffix(_SET_ASIDE)) for name in _names(Path(folder)))


def latest(folder: str | os.PathLike[str], set_aside: bool = False) -> Path | None:
    """Path of the newest whole checkpoint of `folder`, None if there is none. Warns of damaged ones.

    Args:
        folder: of the checkpoints.
        set_aside: rename damaged ones that are newer; the next save() removes them. For the one process that
            writes there.

    Raises:
        OSError: a checkpoint cannot be read, so that it is not known whether it is whole. Nothing has been
            changed.
    """
    damaged: list[Path] = []
    for _, path in reversed(_entries(Path(folder))):
        try:
            whole = retry_io(functools.partial(_is_whole, path), path)
        except FileNotFoundError:
            continue  # removed by the run that writes here
        except OSError as e:
            raise OSError(
                f"checkpoint {path} cannot be read ({e.strerror or e}), which does not mean that it is "
                "damaged: nothing was changed, "
                "try again when the disk answers"
            ) from None
        if whole:
            for other in damaged if set_aside else ():
                os.replace(other, f"{other}{_SET_ASIDE}")
            return path
        warnings.warn(
            f"checkpoint {path} is damaged (its contents do not match its checksum); "
            "taking the one before it",
            stacklevel=2,
        )
        damaged.append(path)
    return None


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state given to save(), tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is damaged or not a checkpoint.
    """
    return load_with_digest(path)[0]


def load_with_digest(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """The state given to save(), and the sha256 of the bytes it was loaded from. Raises as `load`."""
    path = Path(path)
    record, digest = retry_io(lambda: _read(path), path)
    return _state(record, path), digest


def load_mapped(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state given to save(), with tensors that are read from the file when they are used.

    The checksum is not compared: for a path from `latest`, which has done it.

    Raises:
        ValueError, OSError: as `load`.
    """
    path = Path(path)
    try:
        return _state(retry_io(lambda: tensor_files.load_mapped(path), path), path)
    except (OSError, ValueError):
        raise
    except Exception as e:
        raise _not_a_checkpoint(path, e) from e


def _state(record: Any, path: Path) -> dict[str, Any]:
    if (
        not isinstance(record, dict)
        or record.get("version") != _VERSION
        or not isinstance(record.get("state"), dict)
    ):
        raise ValueError(f"{path} is not a checkpoint of version {_VERSION} of this program")
    state: dict[str, Any] = record["state"]
    return state


def _not_a_checkpoint(path: Path, error: Exception) -> ValueError:
    """For errors of torch, pickle and zip alike: the file is not what it should be."""
    return ValueError(f"{path} is not a checkpoint ({util.reason(error)})")


def _read(path: Path) -> tuple[Any, str]:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    # Opened here and not by torch, whose errors do not tell an unreadable file from a damaged one.
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        if not _fits_name(path, digest):
            raise ValueError(
                f"checkpoint {path} is damaged: its contents do not match its checksum; resume from an "
                "earlier one"
            )
        f.seek(0)
        try:
            return tensor_files.load_from(f), digest
        except OSError:
            raise
        except Exception as e:
            raise _not_a_checkpoint(path, e) from e
