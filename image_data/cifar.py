# SPDX-License-Identifier: Apache-2.0
"""Read CIFAR's python-version tarballs and pickles in bounded time and memory, without running their code.

A few bytes of a packed tarball can unpack to any size, and a few bytes of a pickle can make Python's reader
allocate all memory. So every request for memory is compared with the size of the file first.
"""

import bz2
import gzip
import io
import os
import pickle
import pickletools
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from dnnlib import util
from image_data.entries import AGAIN

MAX_UNPACKED_BYTES = 2**30  # per tarball; CIFAR's have 178 MB
MAX_BATCH_BYTES = 2**28
MAX_RATIO, RATIO_FLOOR_BYTES = (
    100,
    16 * 2**20,
)  # unpacked : packed size, above a minimum of bytes; CIFAR's is 1.1
MAX_MEMBERS = 1000
MAX_OPERATIONS = 2_000_000  # per pickle; a batch of 50,000 images has 200,000
MAX_CLASSES = 1000
_PACKED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
)
# Pickle operations that do not occur in a batch of arrays.
_ODD_OPERATIONS = frozenset(
    ["LONG4", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER", "EXT1", "EXT2", "EXT4"]
    + ["INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID"]
)
_DTYPE = re.compile(r"[<=|]?(b1|[iu][1248]|f[248])")
_DAMAGE = (
    tarfile.TarError,
    OSError,
    EOFError,
    zlib.error,
    struct.error,
    OverflowError,
    RecursionError,
    MemoryError,
)


class _TooLarge(ValueError):
    """More data than the limit."""


class _Unpacked(io.RawIOBase):
    """Reads from an unpacked stream up to a limit. Raises _TooLarge beyond it."""

    def __init__(self, file: IO[bytes], limit: int):
        self._file, self._limit = file, limit

    def readable(self) -> bool:
        """Always True."""
        return True

    def seekable(self) -> bool:
        """Always True."""
        return True

    def tell(self) -> int:
        """The position in the unpacked data."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an absolute position."""
        if whence != os.SEEK_SET or offset > self._limit:
            raise _TooLarge
        return self._file.seek(offset)

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes."""
        if size < 0 or size > MAX_BATCH_BYTES or self._file.tell() + size > self._limit + tarfile.RECORDSIZE:
            raise _TooLarge
        return self._file.read(size)


def _unpacked(file: IO[bytes]) -> IO[bytes]:
    packed = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(8)
    file.seek(0)
    unpack = next((unpack for magic, unpack in _PACKED if head.startswith(magic)), None)
    limit = min(MAX_UNPACKED_BYTES, MAX_RATIO * packed + RATIO_FLOOR_BYTES) if unpack else packed
    return _Unpacked(unpack(file) if unpack else file, limit)  # type: ignore[return-value]


def is_tar(file: IO[bytes]) -> bool:
    """Whether a stream is a tarball, plain or packed with gzip or bzip2."""
    try:
        with tarfile.open(fileobj=_unpacked(file), mode="r:"):
            return True
    except _TooLarge:
        return True
    except _DAMAGE:
        return False


Members = dict[str, tarfile.TarInfo]


def open_tar(path: str, file: IO[bytes]) -> tuple[Members, Callable[[tarfile.TarInfo], bytes]]:
    """Open a tarball.

    Returns:
        (members by name, function that reads a member). The function raises the same errors.

    Raises:
        ValueError: damaged or too large. The message starts with `path`.
    """
    too_large = (
        f"{path}: unpacks to more than {MAX_RATIO} times its size, or contains a file larger than "
        f"{MAX_BATCH_BYTES // 2**20} MiB (decompression bomb?)"
    )
    try:
        tar = tarfile.open(fileobj=_unpacked(file), mode="r:")  # noqa: SIM115 (stays open as long as the stream)
        members: Members = {}
        for member in tar:
            members[member.name.removeprefix("./")] = member
            if len(members) > MAX_MEMBERS:
                raise ValueError(f"{path}: more than {MAX_MEMBERS} files; unpack it and give the folder")
    except _TooLarge:
        raise ValueError(too_large) from None
    except _DAMAGE as error:
        raise ValueError(f"{path}: damaged tarball ({error}): {AGAIN}") from None

    def read(member: tarfile.TarInfo) -> bytes:
        try:
            content = tar.extractfile(member) if member.isreg() and member.size <= MAX_BATCH_BYTES else None
            if content is None:
                raise ValueError(
                    f"{path}: {member.name} is not a file, or larger than {MAX_BATCH_BYTES} bytes"
                )
            return content.read()
        except _TooLarge:
            raise ValueError(too_large) from None
        except _DAMAGE as error:
            raise ValueError(f"{path}: damaged tarball ({error}): {AGAIN}") from None

    return members, read


class _Dtype:
    """Stands for numpy.dtype in a pickle: bool, integer or float, little-endian."""

    def __init__(self, code: Any, *_: Any):
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise pickle.UnpicklingError("the elements of an array are not numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if order not in ("<", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("the elements of an array are not little-endian numbers")


class _Array:
    """Stands for numpy.ndarray in a pickle. Its size is that of its bytes."""

    array: np.ndarray[Any, Any]

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array without its bytes")
        self.array = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries of arrays, lists and strings. Refuses every other name, so no code runs."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._copied, self._limit = 0, 2 * len(data) + 2**20
        reconstruct = {(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")}
        self._known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): _Dtype,
            ("_codecs", "encode"): self._encode,
            **reconstruct,
        }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a known name. Raises UnpicklingError for any other."""
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        return self._known[module, name]

    def _encode(self, text: str, encoding: str) -> bytes:
        """_codecs.encode, which old pickles use for bytes. The total size is limited."""
        self._copied += len(text)
        if encoding not in ("latin1", "latin-1") or self._copied > self._limit:
            raise pickle.UnpicklingError("bytes in an unknown encoding, or too many of them")
        return text.encode("latin-1")


def _check_operations(data: bytes) -> None:
    """Raise UnpicklingError for operations that need more memory than the size of the file justifies."""
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        if operation.name in _ODD_OPERATIONS or count > MAX_OPERATIONS:
            raise pickle.UnpicklingError(f"{operation.name}: unexpected operation, or too many operations")
        if operation.name.endswith("PUT") and int(argument or 0) > count:
            raise pickle.UnpicklingError(f"{operation.name} {argument}: index out of range")


def batch(where: str, data: bytes) -> dict[str, Any]:
    """Read the dictionary of a batch or of batches.meta, with numpy arrays.

    Args:
        where: the file, for error messages.
        data: its bytes.

    Raises:
        ValueError: not a CIFAR batch.
    """
    try:
        _check_operations(data)
        content = _Unpickler(data).load()
        named = ((key.decode() if isinstance(key, bytes) else key, value) for key, value in content.items())
        return {key: value.array if isinstance(value, _Array) else value for key, value in named}
    except Exception as error:  # a damaged pickle can raise any exception
        raise ValueError(f"{where} is not a CIFAR batch ({util.reason(error)})") from None


def images(path: str, table: dict[str, Any], label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a batch.

    Returns:
        (uint8 [n, 32, 32, 3], int64 [n]).

    Raises:
        ValueError: the batch does not contain them.
    """
    pixels, labels = table.get("data"), table.get(label_key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise ValueError(f"{path}: the batches do not contain 32x32 images and {label_key}")
    numbers = labels.tolist() if isinstance(labels, np.ndarray) and labels.ndim == 1 else labels
    in_range = isinstance(numbers, list) and all(
        type(number) is int and 0 <= number < MAX_CLASSES for number in numbers
    )
    if not isinstance(numbers, list) or not in_range or len(numbers) != len(pixels):
        raise ValueError(f"{path}: {label_key} are not {len(pixels)} class indices below {MAX_CLASSES}")
    rows = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(rows), np.array(numbers, dtype=np.int64)


def class_names(path: str, names: Any) -> list[str]:
    """The class names of a batches.meta; [] if there are none.

    Raises:
        ValueError: not a list of names.
    """
    names = names or []
    valid = isinstance(names, list) and all(isinstance(name, (bytes, str)) for name in names)
    if not valid or len(names) > MAX_CLASSES:
        raise ValueError(f"{path}: the class names are not a list of at most {MAX_CLASSES} names")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
