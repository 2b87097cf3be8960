# SPDX-License-Identifier: Apache-2.0
"""Images of large files, read block by block in ascending order, so that memory stays flat."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Item = tuple[str, bytes | np.ndarray | ValueError | None]
Blocks = Iterator[tuple[int, list[Item]]]


class Streamed(Sequence[Item]):
    """Refs that contain one image each: its name, and its bytes or pixels.

    An image that is missing has None instead, and one that cannot be read has its error.

    Args:
        where: the file, for messages.
        count: number of images.
        blocks: yields (index of the first image, images) in ascending order. Its argument is an index; the
            first block may begin before it.
        start_of: the index at which `blocks` begins for an index.
    """

    def __init__(
        self, where: str, count: int, blocks: Callable[[int], Blocks], start_of: Callable[[int], int]
    ) -> None:
        self._where, self._count, self._open, self._start_of = where, count, blocks, start_of
        self._blocks: Blocks = iter(())
        self._first, self._items = 0, list[Item]()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        end = self._first + len(self._items)
        if index < self._first or not self._items or self._start_of(index) > end:
            self._blocks, self._first, self._items = self._open(index), 0, []
        while not self._first <= index < self._first + len(self._items):
            try:
                self._first, self._items = next(self._blocks)
            except StopIteration:
                raise ValueError(f"{self._where}: the file ends before image {index:,}") from None
        return self._items[index - self._first]


class StreamOpener(NamedTuple):
    """Returns the images of `Streamed` refs."""

    def load(self, ref: Item) -> tuple[str, bytes | np.ndarray]:
        """(name, bytes or pixels) of an image. Raises ValueError if it is missing."""
        name, payload = ref
        if isinstance(payload, ValueError):
            raise payload
        if payload is None:
            raise ValueError(f"{name}: the row has no image")
        return name, payload
