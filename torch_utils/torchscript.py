# SPDX-License-Identifier: Apache-2.0
"""The tensors of a TorchScript archive, read without running the program in it."""

from __future__ import annotations

import io
import os
import zipfile
from typing import Any

from torch import Tensor

from torch_utils.pickle_reader import _STORAGE_DTYPES, _NetworkMachine, _Stream
from torch_utils.pickle_stubs import MAX_MODULES, GlobalName, ObjectStub, StorageStub, TensorStub


class _ScriptMachine(_NetworkMachine):
    """Reads data.pkl of an archive; storages are members beside it."""

    def __init__(self, stream: _Stream, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream, strict=True)
        self.archive, self.folder = archive, folder
        self.storages: dict[str, StorageStub] = {}

    def persistent_id(self, value: Any) -> StorageStub:
        """The storage of ('storage', type, member, device, elements)."""
        kinds = (str, GlobalName, str, str, int)
        if not isinstance(value, tuple) or len(value) != 5 or not all(map(isinstance, value, kinds)):
            raise ValueError("a malformed storage")
        _, kind, member, _, numel = value
        if kind.name not in _STORAGE_DTYPES or not member.isdecimal():
            raise ValueError("a storage of an unknown type")
        if member not in self.storages:
            data = _stored(self.archive, f"{self.folder}data/{member}")
            dtype = _STORAGE_DTYPES[kind.name]
            if len(data) != numel * dtype.itemsize:
                raise ValueError(f"a storage of {numel} elements has {len(data)} bytes")
            self.storages[member] = StorageStub(dtype, numel, memoryview(data))
        return self.storages[member]


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Parameters and buffers by their dotted names, in the order of the archive.

    Raises:
        ValueError: the archive is damaged or not understood; one line.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable TorchScript archive: {error}") from None


def _stored(archive: zipfile.ZipFile, member: str) -> bytes:
    """A member that is not compressed, so that it takes no more memory than it has bytes in the file."""
    info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member} is compressed")
    return archive.read(member)


def _read(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    found = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(found) != 1:
        raise ValueError("it has no data.pkl")
    data = _stored(archive, found[0])
    machine = _ScriptMachine(_Stream(io.BytesIO(data), len(data)), archive, found[0].removesuffix("data.pkl"))
    tensors: dict[str, Tensor] = {}
    todo = [("", machine.run())]
    visited = 0
    while todo:
        name, value = todo.pop(0)
        visited += 1
        if visited > MAX_MODULES:
            raise ValueError(f"it has more than {MAX_MODULES} attributes")
        if isinstance(value, TensorStub):
            tensors[name] = value.tensor()
        elif isinstance(value, ObjectStub):
            inner = [(f"{name}.{key}" if name else str(key), item) for key, item in value.attributes.items()]
            todo[:0] = inner
    return tensors
