# SPDX-License-Identifier: Apache-2.0
"""Reading and decoding of training images, without torch: processes that decode import only this."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image

from dnnlib import util
from image_data import archives, png, shards
from image_data.transforms import MODES


@dataclass(frozen=True)
class Decoder:
    """Decodes images of an archive into arrays. Can be shared between threads and pickled.

    Attributes:
        path: The path that the user gave, for messages.
        reader: Reads the bytes of an image.
        resolution: R of all images.
        channels: C of the arrays: 1, 3 or 4.
        original: The reader of the archive that `reader` reads a local copy of, or None.
    """

    path: str
    reader: archives.Reader
    resolution: int
    channels: int
    original: archives.Reader | None = None

    def decode(self, entry: archives.Entry, out: np.ndarray) -> None:
        """Write an image, not flipped, to `out`, uint8 [C, R, R] of any strides.

        Raises:
            ValueError: One line: the image cannot be read or decoded, or has another size or mode.
        """
        data = read(self.path, self.reader, entry, self.original)
        if not png.decode_into(data, out, is_checked=self.reader.checks_content):
            with open_image(self.path, entry, data) as image:
                out[...] = self._pixels(f"{self.path}: {entry.name}", image)

    def _pixels(self, where: str, image: PIL.Image.Image) -> np.ndarray:
        """Decode a file that dataset_tool.py does not write by default. Returns uint8 [C, R, R]."""
        resolution = self.resolution
        if image.size != (resolution, resolution):
            raise ValueError(
                f"{where} is {image.width}x{image.height}, but the first image is {resolution}x{resolution}"
            )
        transparent = image.mode not in ("RGB", "L", "1", "P") or "transparency" in image.info
        if transparent and not (self.channels == 4 and image.mode in ("RGBA", "LA", "P", "L", "RGB")):
            raise ValueError(
                f"{where} has mode {image.mode} or transparency; prepare the images with dataset_tool.py"
            )
        mode = MODES[self.channels]
        try:
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{where} cannot be decoded ({util.reason(error)})") from None
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def open_image(path: str, entry: archives.Entry, data: bytes) -> Any:
    """Open an image file of an archive with Pillow. ValueError in one line if it is not an image."""
    try:
        return archives.open_image(data)
    except ValueError as error:
        raise ValueError(f"{path}: {entry.name}: {error}") from None


def read(
    path: str, reader: archives.Reader, entry: archives.Entry, original: archives.Reader | None = None
) -> bytes:
    """Read the bytes of an image. The arguments are those of `Decoder`.

    Raises:
        ValueError: One line with the path, the image and what to do.
    """
    try:
        return reader.read(entry)
    except ValueError as error:
        raise ValueError(_damage(path, reader, entry, original, str(error))) from None


def _damage(
    path: str, reader: archives.Reader, entry: archives.Entry, original: archives.Reader | None, error: str
) -> str:
    """The message about an image that cannot be read."""
    shard = reader.shards[entry.shard] if isinstance(reader, shards.ShardReader) else None
    if original is not None:
        try:
            original.read(entry)
        except ValueError as damaged:  # and copied as it is
            error = str(damaged)
        else:
            copy = os.path.dirname(shard or reader.path)
            return f"{copy}: {error}: delete this copy, and it is made again"
    remedy = ": copy the shard again, or delete its index" if shard else ""
    return f"{path}: {error}{remedy}"
