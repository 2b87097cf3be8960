# SPDX-License-Identifier: Apache-2.0
"""Which arrays of an .npz or HDF5 file are the images and their labels."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from image_data.classes import ONE_CLASS, Classes, classes_of, pick_column, with_names

# In order of preference; the first of each are those of ADM (guided-diffusion).
IMAGE_ARRAYS = ("arr_0", "images", "image", "x_train", "x", "X", "data")
LABEL_ARRAYS = ("arr_1", "labels", "label", "y_train", "y", "Y", "targets", "cls")
MAX_BYTES = 2**31  # read at once: all labels, or a block of images
IMAGE_FLAG, LABEL_FLAG = "--image-column", "--label-column"


class Shape(NamedTuple):
    """The shape and type of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def choose(
    where: str, found: Mapping[str, Shape], image_column: str | None, label_column: str | None
) -> tuple[str, str | None]:
    """Choose the arrays.

    Returns:
        (the name of the images, the name of the labels or None).

    Raises:
        ValueError: there are no images, or they have another type or shape.
    """
    name = pick_column(where, list(found), image_column, IMAGE_ARRAYS, IMAGE_FLAG)
    expected = f"{where}: images must be {name or IMAGE_ARRAYS[0]}, uint8 [N, H, W, 3]"
    if name is None:
        holds = ", ".join(f"{array} {shape}" for array, shape in list(found.items())[:6])
        possible = any(shape.dtype == np.uint8 and len(shape.shape) in (3, 4) for shape in found.values())
        choice = f" (dataset_tool.py {IMAGE_FLAG} chooses one)" if possible else ""
        raise ValueError(f"{expected}; the file contains {holds or 'nothing'}{choice}")
    images = found[name]
    grey = len(images.shape) == 3 and images.shape[2] > 4
    if images.dtype != np.uint8 or not (len(images.shape) == 4 or grey):
        raise ValueError(f"{expected}, not {images}")
    if not grey and images.shape[3] not in (1, 3, 4):
        channels_first = images.shape[1] in (1, 3)
        remedy = ": move the channels to the end (transpose(0, 2, 3, 1))" if channels_first else ""
        raise ValueError(f"{expected}, not {images}{remedy}")
    if 0 in images.shape:
        raise ValueError(f"{where}: {name} {images} contains no images")
    return name, pick_column(where, list(found), label_column, LABEL_ARRAYS, LABEL_FLAG)


def pixels_of(row: np.ndarray) -> np.ndarray:
    """A row of the images as uint8 [H, W], [H, W, 3] or [H, W, 4]."""
    return row[..., 0] if row.ndim == 3 and row.shape[-1] == 1 else row


def classes(where: str, name: str, values: np.ndarray, count: int) -> Classes:
    """The classes of an array of labels: indices [N], one-hot rows [N, C], or names.

    Raises:
        ValueError: another shape or type, or several labels per image.
    """
    where = f"{where}: {name}"
    if values.shape[:1] != (count,):
        raise ValueError(f"{where} has shape {list(values.shape)}, but there are {count:,} images")
    if values.size == count:
        values = values.reshape(count)
    if values.ndim == 2 and values.dtype.kind in "biuf":
        if not ((values.max(axis=1) == 1) & (values.sum(axis=1) == 1) & (values.min(axis=1) == 0)).all():
            raise ValueError(f"{where} has rows that are not one-hot: {ONE_CLASS}")
        return with_names(values.argmax(axis=1).astype(np.int64), where, None, values.shape[1])
    if values.ndim != 1:
        raise ValueError(f"{where} has shape {list(values.shape)}: {ONE_CLASS}")
    if values.dtype.kind in "iu" and values.dtype != np.uint64:  # which int64 would wrap
        return with_names(values.astype(np.int64), where, None)
    texts = [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values.tolist()
    ]
    return classes_of(texts, where, [f"image {index}" for index in range(count)])
