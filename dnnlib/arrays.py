# SPDX-License-Identifier: Apache-2.0
"""Read arrays of .npz files member by member and row by row, so that memory does not grow with the file.

Nothing is unpickled. The size that a file claims is compared with its actual size before memory is allocated.
"""

import mmap
import os
import struct
import threading
import zipfile
from collections.abc import Callable, Collection
from typing import IO, Any, NamedTuple

import numpy as np

from dnnlib import bounded
from dnnlib.util import Damaged

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, lengths of name and extra field
_LOCAL_SIGNATURE = b"PK\3\4"
_CHECK_BYTES = 2**20  # read at once to compare a CRC-32


class Member(NamedTuple):
    """An array of an .npz file, as described by its header."""

    path: str
    name: str  # without .npy
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    info: zipfile.ZipInfo
    header_bytes: int


def members(path: str | os.PathLike[str]) -> dict[str, Member]:
    """The arrays of an .npz file by name, without their contents.

    Raises:
        Damaged: not an .npz file, or the header of an array does not match its size.
        ValueError: an array contains objects, or its unpacked size is implausibly large.
        OSError: the file cannot be read.
    """
    where = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if len(infos) > bounded.MAX_NPZ_MEMBERS:
                raise ValueError(f"{where}: more than {bounded.MAX_NPZ_MEMBERS} arrays")
            return {m.name: m for m in (_member(archive, info, where) for info in infos)}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise Damaged(f"{where}: not a numpy .npz file ({error})") from None


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> Member:
    bounded.check_unpacked(info.file_size, info.compress_size, f"{where}: {info.filename}")
    with archive.open(info) as file:
        shape, fortran, dtype = bounded.array_header(file, info.file_size, 2**50, f"{where}: {info.filename}")
        name = info.filename.removesuffix(".npy")
        return Member(where, name, shape, dtype, fortran, info, file.tell())


def read(path: str | os.PathLike[str], names: Collection[str], limit: int = 2**32) -> dict[str, np.ndarray]:
    """Read the named arrays of an .npz file. Names that it does not contain are ignored.

    Args:
        path: the file.
        names: names of the arrays.
        limit: maximum size of all arrays together in bytes.

    Raises:
        ValueError: see `bounded.read_npz`.
        OSError: the file cannot be read.
    """
    return bounded.read_npz(path, limit, names)


class Rows:
    """The rows of an array in an .npz file: `rows[i]` is a copy of row i.

    An uncompressed member is mapped into memory. A compressed one is unpacked from its start as rows are
    read. Reading an earlier row starts again, so rows should be read in ascending order.

    Args:
        member: an item of `members`, in C order.

    Raises:
        ValueError: the array is in Fortran order, or has no rows.
    """

    def __init__(self, member: Member) -> None:
        if member.fortran and len(member.shape) > 1:
            raise ValueError(f"{member.path}: {member.name} is stored by columns: save it in C order")
        if not member.shape:
            raise ValueError(f"{member.path}: {member.name} is a single value, not an array")
        self.member = member
        self.row_bytes = int(np.prod(member.shape[1:], dtype=np.int64)) * member.dtype.itemsize
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._data = 0  # start of the array in the map
        self._stream: IO[bytes] | None = None
        self._next = 0  # the next row of the stream

    def __len__(self) -> int:
        return self.member.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        with self._lock:
            stored = self.member.info.compress_type == zipfile.ZIP_STORED
            data = self._mapped(index) if stored else self._streamed(index)
        return np.frombuffer(data, self.member.dtype).reshape(self.member.shape[1:])

    def __getstate__(self) -> dict[str, Any]:
        return {"member": self.member}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["member"])  # type: ignore[misc]

    def check(self, done: Callable[[int, int], object] = lambda read, total: None) -> None:
        """Compare an uncompressed member with its CRC-32. A compressed one is compared as it is unpacked.

        Args:
            done: called with the bytes read and their total.

        Raises:
            Damaged: they differ, or the file ends early.
        """
        if self.member.info.compress_type != zipfile.ZIP_STORED:
            return
        total, read = self.member.info.file_size, 0
        try:
            with zipfile.ZipFile(self.member.path) as archive, archive.open(self.member.info) as stream:
                while data := stream.read(_CHECK_BYTES):  # zipfile compares the CRC-32 at the end
                    read += len(data)
                    done(read, total)
        except (zipfile.BadZipFile, EOFError) as error:
            raise Damaged(f"{self.member.path}: {self.member.name} is damaged ({error})") from None

    def _mapped(self, index: int) -> bytes:
        if self._map is None:
            with open(self.member.path, "rb") as file:
                file.seek(self.member.info.header_offset)
                header = file.read(_LOCAL_HEADER.size + 4)[-_LOCAL_HEADER.size - 4 :]
                signature, name, extra = _LOCAL_HEADER.unpack_from(header)
                begin = self.member.info.header_offset + 30 + name + extra + self.member.header_bytes
                end = begin + len(self) * self.row_bytes
                if signature != _LOCAL_SIGNATURE or end > os.fstat(file.fileno()).st_size:
                    raise Damaged(f"{self.member.path}: {self.member.name} does not lie where the zip says")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._data = begin
        start = self._data + index * self.row_bytes
        return self._map[start : start + self.row_bytes]

    def _streamed(self, index: int) -> bytes:
        try:
            if self._stream is None or index < self._next:
                self._stream = zipfile.ZipFile(self.member.path).open(self.member.info)  # noqa: SIM115
                self._stream.read(self.member.header_bytes)
                self._next = 0
            while True:
                data = self._stream.read(self.row_bytes)
                self._next += 1
                if len(data) != self.row_bytes:
                    raise EOFError("the data end early")
                if self._next > index:
                    return data
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            self._stream = None
            raise Damaged(f"{self.member.path}: {self.member.name} is damaged ({error})") from None
        except Exception as error:  # zlib.error, lzma.LZMAError
            self._stream = None
            raise Damaged(f"{self.member.path}: {self.member.name} cannot be unpacked ({error})") from None
