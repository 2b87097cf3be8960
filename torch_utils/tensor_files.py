# SPDX-License-Identifier: Apache-2.0
"""Tensors out of files of torch.save: nothing in them is run, and they take no more memory than they have
bytes."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def load(path: str | os.PathLike[str]) -> Any:
    """What torch.save wrote: tensors on the CPU, in plain containers.

    Raises ValueError for a file that unpacks to more than it holds, or has tensors larger than itself;
    OSError; and for other files whatever torch raises.
    """
    size = os.stat(path).st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > size:  # torch.save packs nothing
            raise ValueError(f"its {size:,} bytes claim to unpack to {unpacked:,} (zip bomb?)")
    content = torch.load(path, map_location="cpu", weights_only=True)
    storages: dict[int, int] = {}
    for tensor in _tensors(content):
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > size or sum(storages.values()) > size:
            raise ValueError(f"its {size:,} bytes claim a tensor of shape {list(tensor.shape)}")
    return content


def _tensors(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested tables, lists and tuples; what is there twice comes once."""
    seen: set[int] = set()
    todo = [content]
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (Mapping, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            todo.extend(item.values() if isinstance(item, Mapping) else item)
