# SPDX-License-Identifier: Apache-2.0
"""Loads tensors from files written by torch.save, without executing code and in bounded memory.

The tensors take no more memory than the file has bytes.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor


def load(path: str | os.PathLike[str]) -> Any:
    """Load a file written by torch.save: tensors on the CPU, in plain containers.

    Raises:
        ValueError: the file claims to unpack to more than its own size, or has tensors larger than itself.
        OSError: the file could not be read.
        Exception: torch's errors for files of another kind.
    """
    with open(path, "rb") as file:
        return load_from(file)


def load_from(file: BinaryIO) -> Any:
    """Load an open file of the disk. As `load`."""
    size = os.fstat(file.fileno()).st_size
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > size:  # torch.save does not compress
            raise ValueError(f"its {size:,} bytes claim to unpack to {unpacked:,} (zip bomb?)")
    file.seek(0)
    content = torch.load(file, map_location="cpu", weights_only=True)
    storages: dict[int, int] = {}
    for tensor in _tensors(content):
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > size or sum(storages.values()) > size:
            raise ValueError(f"its {size:,} bytes claim a tensor of shape {list(tensor.shape)}")
    return content


def load_mapped(path: str | os.PathLike[str]) -> Any:
    """As `load`, but tensors are read from the disk when they are used: shapes cost nothing.

    Raises:
        OSError: the file could not be read.
        Exception: torch's errors for files of another kind.
    """
    return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=True)


def _tensors(content: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts, lists and tuples. Each container is visited once."""
    seen: set[int] = set()
    todo = [content]
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (Mapping, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            todo.extend(item.values() if isinstance(item, Mapping) else item)
