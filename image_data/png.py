# SPDX-License-Identifier: Apache-2.0
"""PNGs that are written and read at the speed of memory: grey, RGB or RGBA, filter 0, not compressed.

Such a file is a valid PNG with a fixed layout: everything but the pixels and the checksums follows from width
and height. Its rows lie in stored zlib blocks of whole rows, so that a reader copies pixels from the file's
bytes straight to their place.

`decode_into` reads exactly the files that `encode` writes. It compares every other byte with the layout and
follows no number of the file, so a damaged or hostile file cannot lead it astray; for all other files it
returns False, and Pillow reads them.
"""

import functools
import struct
import zlib
from typing import NamedTuple

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_BLOCK_BYTES = 0xFFFF  # of a stored zlib block
MAX_CHUNK_BYTES = 2**31 - 1
_IDAT = 8 + 25 + 4  # signature, IHDR, size of IDAT; its CRC-32 starts at its name
_BEFORE_DATA = _IDAT + 4 + 2  # and the head of the zlib stream
_BLOCK_HEAD = 5
_AFTER_DATA = 4 + 4 + 12  # Adler-32, CRC-32, IEND
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # channels -> colour type in the header
_CHANNELS = {colour_type: channels for channels, colour_type in _COLOUR_TYPES.items()}


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


_END = _chunk(b"IEND", b"")


class _Block(NamedTuple):
    """A stored zlib block of whole rows."""

    start: int  # of its head in the file
    head: bytes
    first_row: int
    end_row: int


class _Layout(NamedTuple):
    """Everything in a file of one size but pixels and checksums."""

    size: int  # of the file in bytes
    before: bytes  # up to the first block
    blocks: list[_Block]


def file_size(width: int, height: int, channels: int = 3) -> int | None:
    """The bytes of a file of this size in pixels; None if the format does not fit it."""
    rows = MAX_BLOCK_BYTES // (1 + channels * width)
    if width < 1 or height < 1 or rows < 1:
        return None
    size = _BEFORE_DATA + height * (1 + channels * width) + -(-height // rows) * _BLOCK_HEAD + _AFTER_DATA
    return size if size <= MAX_CHUNK_BYTES else None


@functools.lru_cache(maxsize=8)
def _layout(width: int, height: int, channels: int) -> _Layout:
    """The layout of a size that `file_size` accepts."""
    size, row_bytes = file_size(width, height, channels), 1 + channels * width
    assert size is not None
    colour_type = _COLOUR_TYPES[channels]
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0))
    idat = struct.pack(">I", size - _IDAT - 8 - len(_END)) + b"IDAT"
    rows, start, blocks = MAX_BLOCK_BYTES // row_bytes, _BEFORE_DATA, []
    for first in range(0, height, rows):
        end = min(first + rows, height)
        length = (end - first) * row_bytes
        head = struct.pack("<BHH", end == height, length, length ^ 0xFFFF)
        blocks.append(_Block(start, head, first, end))
        start += _BLOCK_HEAD + length
    return _Layout(size, SIGNATURE + header + idat + b"\x78\x01", blocks)


def encode(pixels: np.ndarray) -> bytes | None:
    """Encode uint8 pixels [H, W], [H, W, 3] or [H, W, 4]; None if they do not fit the format."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if (
        pixels.dtype != np.uint8
        or channels not in _COLOUR_TYPES
        or file_size(width, height, channels) is None
    ):
        return None
    layout, rows = _layout(width, height, channels), pixels.reshape(height, channels * width)
    data = np.zeros(layout.size, dtype=np.uint8)
    view = data.data
    view[: len(layout.before)] = layout.before
    adler = 1
    for block in layout.blocks:
        start, count = block.start + _BLOCK_HEAD, block.end_row - block.first_row
        end = start + count * (1 + channels * width)
        view[block.start : start] = block.head
        data[start:end].reshape(count, -1)[:, 1:] = rows[block.first_row : block.end_row]
        adler = zlib.adler32(view[start:end], adler)
    tail = layout.size - _AFTER_DATA
    view[tail : tail + 4] = struct.pack(">I", adler)
    view[tail + 4 : tail + 8] = struct.pack(">I", zlib.crc32(view[_IDAT : tail + 4]))
    view[tail + 8 :] = _END
    return data.tobytes()


def decode_into(data: bytes, out: np.ndarray, is_checked: bool = False) -> bool:
    """Decode a file that `encode` has written.

    Args:
        data: the file.
        out: uint8 array [1, 3 or 4, H, W], of any strides, for the pixels.
        is_checked: the caller has compared the whole file with a checksum, as readers of zips do. Otherwise
            the CRC-32 of the pixels is compared with the file's.

    Returns:
        Whether the file has that size, layout and number of channels. If not, `out` has any contents.
    """
    channels, height, width = out.shape
    found = _rows(data, width, height, channels, is_checked)
    if found is None:
        return False
    place = out.transpose(1, 2, 0)
    for first, end, rows in found:  # one copy each: threads that decode wait for each other between copies
        place[first:end] = rows.reshape(end - first, width, channels)
    return True


def _rows(
    data: bytes, width: int, height: int, channels: int, is_checked: bool
) -> list[tuple[int, int, np.ndarray]] | None:
    """Return (first row, end row, pixels [rows, channels * width]) per block, or None for another file."""
    if len(data) != file_size(width, height, channels):
        return None
    layout, row_bytes = _layout(width, height, channels), 1 + channels * width
    tail = layout.size - _AFTER_DATA
    if not data.startswith(layout.before) or data[tail + 8 :] != _END:
        return None
    content, found = np.frombuffer(data, dtype=np.uint8), []
    for start, head, first, end in layout.blocks:
        if data[start : start + _BLOCK_HEAD] != head:
            return None
        start += _BLOCK_HEAD
        rows = content[start : start + (end - first) * row_bytes].reshape(end - first, row_bytes)
        if rows[:, 0].any():  # another filter than 0
            return None
        found.append((first, end, rows[:, 1:]))
    crc = int.from_bytes(data[tail + 4 : tail + 8], "big")
    return found if is_checked or zlib.crc32(memoryview(data)[_IDAT : tail + 4]) == crc else None


def decode(data: bytes, is_checked: bool = False) -> np.ndarray | None:
    """The pixels [H, W], [H, W, 3] or [H, W, 4] of a file that `encode` has written; None for all others.

    `is_checked` as for `decode_into`.
    """
    if len(data) < _BEFORE_DATA or not data.startswith(SIGNATURE):
        return None
    width, height = struct.unpack(">II", data[16:24])
    channels = _CHANNELS.get(data[25], 0)
    found = _rows(data, width, height, channels, is_checked) if channels else None
    if found is None:
        return None
    pixels = np.empty([height, width * channels], dtype=np.uint8)
    for first, end, rows in found:
        pixels[first:end] = rows
    return pixels if channels == 1 else pixels.reshape(height, width, channels)
