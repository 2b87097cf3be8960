# SPDX-License-Identifier: Apache-2.0
"""Images in .npz files: those of ADM (guided-diffusion) with arr_0 and arr_1, or with other names.

Images are uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3], labels integers [N], one-hot rows or names.
"""

from typing import NamedTuple

import numpy as np

from dnnlib import arrays
from dnnlib.progress import Progress
from dnnlib.util import Damaged
from image_data import array_layout
from image_data.array_layout import IMAGE_ARRAYS, LABEL_ARRAYS, Shape
from image_data.classes import Classes
from image_data.entries import AGAIN

IMAGES, LABELS = IMAGE_ARRAYS[0], LABEL_ARRAYS[0]


class Found(NamedTuple):
    """The images of a file, their classes, and the name of the array of labels; None without labels."""

    rows: arrays.Rows
    classes: Classes | None
    label_array: str | None


class Opener:
    """Reads refs that are indices of rows. Each process opens the file itself."""

    def __init__(self, images: arrays.Rows) -> None:
        self.images = images

    def load(self, ref: int) -> tuple[str, np.ndarray]:
        """(name, uint8 pixels [H, W] or [H, W, 3]) of an image."""
        return f"image {ref}", array_layout.pixels_of(self.images[ref])

    def fingerprint(self) -> str:
        """Identify the images by size and CRC-32 from the directory of the file."""
        info = self.images.member.info
        return f"{info.filename}\0{info.file_size}\0{info.CRC}\n"


def open_images(path: str) -> tuple[arrays.Rows, np.ndarray | None]:
    """Open the images of an .npz file, and read their labels.

    Returns:
        Rows, each uint8 [H, W], [H, W, 1] or [H, W, 3], and labels int64 [N]; None without usable ones.

    Raises:
        ValueError: one line with the actual content of the file.
        OSError: the file cannot be read.
    """
    found = find(path)
    return found.rows, None if found.classes is None else found.classes.labels


def find(path: str, image_column: str | None = None, label_column: str | None = None) -> Found:
    """Like `open_images`, with arrays of any name.

    Args:
        path: the file.
        image_column: the name of the images; None = the first of IMAGE_ARRAYS that exists.
        label_column: the name of the labels; None = the first of LABEL_ARRAYS that exists.

    Raises:
        ValueError: one line with the actual content of the file.
        OSError: the file cannot be read.
    """
    try:
        return _find(path, image_column, label_column)
    except Damaged as error:
        raise ValueError(f"{error}: {AGAIN}") from None


def check(rows: arrays.Rows) -> None:
    """Read images once, and compare them with their CRC-32: single rows of a mapped file have none.

    Raises:
        ValueError: one line: they are damaged.
        OSError: the file cannot be read.
    """
    progress = Progress(label=f"Checking {rows.member.path}", unit="bytes", silent=5)
    try:
        rows.check(progress)
    except Damaged as error:
        raise ValueError(f"{error}: {AGAIN}") from None


def _find(path: str, image_column: str | None, label_column: str | None) -> Found:
    members = arrays.members(path)
    shapes = {name: Shape(member.shape, member.dtype) for name, member in members.items()}
    images, labels = array_layout.choose(path, shapes, image_column, label_column)
    rows = arrays.Rows(members[images])
    if labels is None:
        return Found(rows, None, None)
    # arr_1 is the second array of any file; only ADM's has labels.
    shape = shapes[labels]
    is_sure = labels != LABELS or label_column is not None
    is_sure = is_sure or (shape.dtype.kind in "iu" and shape.shape == (len(rows),))
    try:
        values = arrays.read(path, [labels], array_layout.MAX_BYTES)[labels]
        return Found(rows, array_layout.classes(path, labels, values, len(rows)), labels)
    except Damaged:
        raise
    except ValueError:
        if is_sure:
            raise
        return Found(rows, None, None)
