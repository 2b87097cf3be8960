# SPDX-License-Identifier: Apache-2.0
"""Target images of an inversion: any image file, made a square of the network's resolution."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from image_data import archives, transforms

MAX_TARGETS = 10_000


@dataclasses.dataclass(frozen=True)
class Target:
    """An image to invert.

    Attributes:
        name: File name without its extension, which names the folder of its results.
        pixels: uint8 [R, R, C].
        notes: What was done to the image, besides resizing, for the user.
    """

    name: str
    pixels: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """A hash of the pixels."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()


def find(paths: Sequence[str]) -> list[tuple[str, archives.Reader, archives.Entry]]:
    """List the images behind the values of --target: files, or folders and zips with images.

    Returns:
        For each image the name of its results, a reader and its entry. Names are unique.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A folder or zip has no images, or there are too many.
    """
    found: list[tuple[str, archives.Reader, archives.Entry]] = []
    taken: set[str] = set()
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(f"--target={path}: no such file or folder")
        for reader, entry in _images(path):
            plain = Path(entry.name).with_suffix("").as_posix().replace("/", "-")
            stem = name = plain.strip(". ") or "image"  # never "..", the folder above --outdir
            number = 2
            while name in taken:
                name, number = f"{stem}-{number}", number + 1
            taken.add(name)
            found.append((name, reader, entry))
            if len(found) > MAX_TARGETS:
                raise ValueError(f"--target={path}: more than {MAX_TARGETS:,} images: choose some of them")
    return found


def _images(path: str) -> Iterator[tuple[archives.Reader, archives.Entry]]:
    if not os.path.isdir(path) and not path.lower().endswith(".zip"):
        folder, name = os.path.split(path)
        yield archives.FolderReader(folder or "."), archives.Entry(name)
        return
    try:
        archive = archives.open_archive(path)
    except ValueError as error:
        raise ValueError(f"--target={error}") from None
    if not archive.images:
        raise ValueError(f"--target={path}: contains no images")
    for entry in archive.images:
        yield archive.reader, entry


def read(
    name: str, reader: archives.Reader, entry: archives.Entry, resolution: int, channels: int = 3
) -> Target:
    """Read an image and make it a target (`from_bytes`).

    Raises:
        ValueError: It is not an image. One line with its path.
    """
    try:
        return from_bytes(name, reader.read(entry), resolution, channels)
    except ValueError as error:
        reason = str(error).removeprefix(f"{entry.name}: ")
        raise ValueError(f"--target={os.path.join(reader.path, entry.name)}: {reason}") from None


def from_bytes(name: str, data: bytes, resolution: int, channels: int = 3) -> Target:
    """Make a target of an encoded image.

    The image is turned upright and converted to 8-bit RGB as dataset_tool.py does it: grey values are copied
    to all channels, and transparent pixels become white. Its largest centred square is resized with Lanczos.
    Only the first frame of an animation is used.

    Args:
        name: Of the results.
        data: Content of the file.
        resolution: Height and width of the network's images.
        channels: Channels of the network's images, 1, 3 or 4 (opaque).

    Raises:
        ValueError: It is not an image, or has no defined range of values.
    """
    with archives.open_image(data) as opened:
        notes = _notes(opened, channels)
    return from_picture(name, transforms.decode(data), resolution, channels, notes)


def from_picture(
    name: str, picture: PIL.Image.Image, resolution: int, channels: int = 3, notes: tuple[str, ...] = ()
) -> Target:
    """Make a target of an RGB picture: its largest centred square at the network's resolution."""
    side = min(picture.size)
    if picture.width != picture.height:
        notes += (f"{picture.width}x{picture.height} is cropped to its centre of {side}x{side}",)
    if side < resolution:
        notes += (f"{side}x{side} pixels are enlarged to {resolution}x{resolution}",)
    preparation = transforms.Preparation(transform="center-crop")
    square = transforms.transform(picture, (resolution, resolution), preparation)
    assert square is not None  # center-crop omits no image
    pixels = np.asarray(square.convert(transforms.MODES[channels]))
    return Target(name, pixels.reshape(resolution, resolution, channels).copy(), notes)


def _notes(opened: PIL.Image.Image, channels: int) -> tuple[str, ...]:
    """What decoding changes."""
    is_grey = opened.mode in ("1", "L", "LA", "La", "I") or opened.mode.startswith("I;16")
    notes = []
    frames = getattr(opened, "n_frames", 1)
    if frames > 1:
        notes.append(f"only the first of {frames} frames is used")
    if is_grey and channels > 1:
        notes.append("grey values are copied to all channels")
    if opened.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in opened.info:
        notes.append("transparent pixels become white")
    return tuple(notes)
