# SPDX-License-Identifier: Apache-2.0
"""Reading files that somebody else wrote, in bounded time and memory: texts, JSON, numpy's arrays.

What a file says of its own size is compared with the file before anything is allocated for it. Every error is
a ValueError in one line that begins with the file's name; `dnnlib.util.Damaged` where the file is not, or not
all of, what its name says.
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
MAX_JSON_CONTAINERS = 500_000  # lists and objects, which take 20 times the memory that they take in a file
MAX_NPZ_MEMBERS = 1000
_MAX_RATIO = 1000  # unpacked : packed; no more than what deflate can do
# Of an array's header and shape; no less than what numpy takes.
_MAX_HEADER_BYTES, _MAX_DIMENSIONS, _MAX_LENGTH = 2**16, 32, 2**40
_BLOCK_BYTES = 2**24


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_TEXT_BYTES) -> bytes:
    """All of a file that has at most `limit` bytes, whatever the system says. Raises ValueError, OSError."""
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{os.fspath(path)}: larger than {_size(limit)}")
    return data


def read_text(path: str | os.PathLike[str], limit: int = MAX_TEXT_BYTES) -> str:
    """A UTF-8 text of at most `limit` bytes. Raises ValueError, OSError."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"{os.fspath(path)}: no UTF-8 text ({error.reason} at byte {error.start})") from None


def read_json(path: str | os.PathLike[str], limit: int = MAX_TEXT_BYTES) -> Any:
    """What a JSON file of at most `limit` bytes says. Raises ValueError, OSError."""
    return parse_json(read_bytes(path, limit), os.fspath(path))


def parse_json(data: bytes, where: str, containers: int = MAX_JSON_CONTAINERS) -> Any:
    """What JSON says. where: the file, for errors. containers: most lists and objects. Raises ValueError."""
    if data.count(b"[") + data.count(b"{") > containers:
        raise ValueError(f"{where}: more than {containers:,} lists and objects")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where}: this is no JSON ({' '.join(str(error).split())[:200]})") from None


def read_npy(path: str | os.PathLike[str], limit: int = 2**32) -> np.ndarray:
    """The array of a .npy file, of at most `limit` bytes, which the file must hold.

    Raises ValueError, OSError.
    """
    where = os.fspath(path)
    with open(path, "rb") as file:
        return _read_array(file, os.fstat(file.fileno()).st_size, limit, where)


def read_npz(
    path: str | os.PathLike[str], limit: int = 2**36, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, of at most `limit` bytes together, by name. Raises ValueError, OSError.

    names: of the arrays to read, as far as there are such; None = all.
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
        raise Damaged(f"{where}: no .npz file of numpy ({error})") from None


def check_unpacked(unpacked: int, packed: int, where: str) -> None:
    """Raises ValueError for what claims to unpack to absurdly more than its size."""
    ratio = unpacked / max(packed, 1)
    if unpacked > MAX_TEXT_BYTES and ratio > _MAX_RATIO:
        raise ValueError(
            f"{where}: unpacks to {ratio:,.0f} times its size, over the limit of {_MAX_RATIO} (zip bomb?)"
        )


def _read_array(file: IO[bytes], size: int, limit: int, where: str) -> np.ndarray:
    """An array of `size` bytes with its header."""
    shape, fortran, dtype = array_header(file, size, limit, where)
    needed = math.prod(shape) * dtype.itemsize
    data = np.empty(needed, np.uint8)  # pages that the file does not fill are never touched
    for start in range(0, needed, _BLOCK_BYTES):
        block = file.read(min(_BLOCK_BYTES, needed - start))
        if len(block) != min(_BLOCK_BYTES, needed - start):
            raise Damaged(f"{where}: cut short after {start + len(block):,} of {needed:,} bytes")
        data[start : start + len(block)] = np.frombuffer(block, np.uint8)
    return data.view(dtype).reshape(shape, order="F" if fortran else "C")


def array_header(
    file: IO[bytes], size: int, limit: int, where: str
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether columns come first, kind of number) of a .npy file of `size` bytes with its header.

    The file then stands at the array's data. Raises ValueError: the header does not match the size, the array
    has more than `limit` bytes or holds objects.
    """
    shape, fortran, dtype = _read_header(file, where)
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"{where}: holds {dtype}, and only numbers and texts are read")
    needed = math.prod(shape) * dtype.itemsize
    says = f"{where}: its header says {dtype} {list(shape)[:8]}, {needed:,} bytes"
    possible = len(shape) <= _MAX_DIMENSIONS and all(0 <= length <= _MAX_LENGTH for length in shape)
    if not possible or needed > limit:
        raise ValueError(f"{says}, over the limit of {_size(limit)}")
    left = size - file.tell()
    if needed != left:
        raise Damaged(f"{says}, and {left:,} follow")
    return shape, fortran, dtype


def _read_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether columns come first, kind of number) of a .npy file."""
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
    except Exception as error:  # numpy parses the header as Python, and passes on whatever its parsers raise
        raise Damaged(f"{where}: this is no .npy array ({' '.join(str(error).split())[:200]})") from None


def _size(limit: int) -> str:
    return f"{limit // 2**20:,} MiB" if limit >= 2**20 else f"{limit:,} bytes"
