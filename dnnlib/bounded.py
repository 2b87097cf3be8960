# SPDX-License-Identifier: Apache-2.0
"""Read untrusted files (text, JSON, numpy arrays) in bounded time and memory.

The size that a file claims is compared with the actual size before any memory is allocated. Every error is a
one-line ValueError that starts with the file's name. It is `dnnlib.util.Damaged` if the file is incomplete or
not of the expected format.
"""

import json
import math
import os
import zipfile
from collections.abc import Collection
from typing import IO, Any

import numpy as np

from dnnlib.util import Damaged

MAX_TEXT_BYTES = 16 * 2**20
MAX_JSON_CONTAINERS = 500_000  # lists and objects; in memory they take about 20 times their size in the file
MAX_NPZ_MEMBERS = 1000
_MAX_RATIO = 1000  # unpacked : packed size; deflate cannot exceed this
# Limits of an array's header and shape, at least as large as numpy's own.
_MAX_HEADER_BYTES, _MAX_DIMENSIONS, _MAX_LENGTH = 2**16, 32, 2**40
_BLOCK_BYTES = 2**24


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read a whole file of at most `limit` bytes, whatever size the file system claims.

    Raises:
        ValueError: the file is larger.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{os.fspath(path)}: larger than {_size(limit)}")
    return data


def read_text(path: str | os.PathLike[str], limit: int = MAX_TEXT_BYTES) -> str:
    """Read a UTF-8 text file of at most `limit` bytes.

    Raises:
        ValueError: the file is larger, or not UTF-8.
        OSError: the file cannot be read.
    """
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"{os.fspath(path)}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_json(path: str | os.PathLike[str], limit: int = MAX_TEXT_BYTES) -> Any:
    """Read and parse a JSON file of at most `limit` bytes.

    Raises:
        ValueError: the file is larger, or not JSON.
        OSError: the file cannot be read.
    """
    return parse_json(read_bytes(path, limit), os.fspath(path))


def parse_json(data: bytes, where: str, containers: int = MAX_JSON_CONTAINERS) -> Any:
    """Parse JSON.

    Args:
        data: the bytes.
        where: the file, for error messages.
        containers: maximum number of lists and objects.

    Raises:
        ValueError: not JSON, or too many containers.
    """
    if data.count(b"[") + data.count(b"{") > containers:
        raise ValueError(f"{where}: more than {containers:,} lists and objects")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where}: not valid JSON ({' '.join(str(error).split())[:200]})") from None


def read_npy(path: str | os.PathLike[str], limit: int = 2**32) -> np.ndarray:
    """Read the array of a .npy file.

    Args:
        path: the file.
        limit: maximum size of the array in bytes. The file must contain all bytes that its header declares.

    Raises:
        ValueError: too large, incomplete, or not a .npy file.
        OSError: the file cannot be read.
    """
    where = os.fspath(path)
    with open(path, "rb") as file:
        return _read_array(file, os.fstat(file.fileno()).st_size, limit, where)


def read_npz(
    path: str | os.PathLike[str], limit: int = 2**36, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file by name.

    Args:
        path: the file.
        limit: maximum size of all arrays together in bytes.
        names: read only these arrays, if they exist; None = all.

    Raises:
        ValueError: too large, incomplete, or not a .npz file.
        OSError: the file cannot be read.
    """
    where = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_NPZ_MEMBERS:
                raise ValueError(f"{where}: more than {MAX_NPZ_MEMBERS} arrays")
            if names is not None:
                members = [member for member in members if member.filename.removesuffix(".npy") in names]
            for member in members:
                check_unpacked(member.file_size, member.compress_size, f"{where}: {member.filename}")
            if sum(member.file_size for member in members) > limit:
                raise ValueError(f"{where}: its arrays unpack to more than {_size(limit)}")
            arrays = {}
            for member in members:
                with archive.open(member) as file:
                    name = member.filename.removesuffix(".npy")
                    arrays[name] = _read_array(file, member.file_size, limit, f"{where}: {member.filename}")
            return arrays
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise Damaged(f"{where}: not a numpy .npz file ({error})") from None


def check_unpacked(unpacked: int, packed: int, where: str) -> None:
    """Raise ValueError if the unpacked size is implausibly larger than the packed size (zip bomb)."""
    ratio = unpacked / max(packed, 1)
    if unpacked > MAX_TEXT_BYTES and ratio > _MAX_RATIO:
        raise ValueError(
            f"{where}: unpacks to {ratio:,.0f} times its size, over the limit of {_MAX_RATIO} (zip bomb?)"
        )


def _read_array(file: IO[bytes], size: int, limit: int, where: str) -> np.ndarray:
    """Read an array whose header and data together take `size` bytes."""
    shape, fortran, dtype = array_header(file, size, limit, where)
    needed = math.prod(shape) * dtype.itemsize
    data = np.empty(needed, np.uint8)  # the system allocates pages only as data arrives
    for start in range(0, needed, _BLOCK_BYTES):
        block = file.read(min(_BLOCK_BYTES, needed - start))
        if len(block) != min(_BLOCK_BYTES, needed - start):
            raise Damaged(f"{where}: truncated after {start + len(block):,} of {needed:,} bytes")
        data[start : start + len(block)] = np.frombuffer(block, np.uint8)
    return data.view(dtype).reshape(shape, order="F" if fortran else "C")


def array_header(
    file: IO[bytes], size: int, limit: int, where: str
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse the header of a .npy file, and leave the file at the start of the array's data.

    Args:
        file: the file.
        size: bytes of the header and the data together.
        limit: maximum size of the array in bytes.
        where: the file, for error messages.

    Returns:
        (shape, whether the array is in Fortran order, dtype).

    Raises:
        ValueError: the header does not match the size, or the array is too large or contains objects.
    """
    shape, fortran, dtype = _read_header(file, where)
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"{where}: contains {dtype}; only numbers and strings can be read")
    needed = math.prod(shape) * dtype.itemsize
    says = f"{where}: the header declares {dtype} {list(shape)[:8]}, {needed:,} bytes"
    possible = len(shape) <= _MAX_DIMENSIONS and all(0 <= length <= _MAX_LENGTH for length in shape)
    if not possible or needed > limit:
        raise ValueError(f"{says}, over the limit of {_size(limit)}")
    left = size - file.tell()
    if needed != left:
        raise Damaged(f"{says}, but {left:,} bytes follow")
    return shape, fortran, dtype


def _read_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse the header of a .npy file. Returns (shape, whether the array is in Fortran order, dtype)."""
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        at = file.tell()
        length = int.from_bytes(file.read(4), "little")
        if version != (2, 0) or length > _MAX_HEADER_BYTES:
            raise ValueError(f"version {version[0]}.{version[1]} of the format, header of {length:,} bytes")
        file.seek(at)
        return np.lib.format.read_array_header_2_0(file)
    except (
        Exception
    ) as error:  # numpy parses the header as Python code and passes on any error of its parsers
        raise Damaged(f"{where}: not a .npy array ({' '.join(str(error).split())[:200]})") from None


def _size(limit: int) -> str:
    return f"{limit // 2**20:,} MiB" if limit >= 2**20 else f"{limit:,} bytes"
