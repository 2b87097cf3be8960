# SPDX-License-Identifier: Apache-2.0
"""Images in HDF5 files: uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3], with optional labels. Needs h5py."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from dnnlib import util
from image_data import array_layout
from image_data.array_layout import Shape
from image_data.classes import Classes
from image_data.entries import AGAIN
from image_data.streams import Item, Streamed

ENDINGS = (".h5", ".hdf5", ".he5")
_BLOCK_BYTES = 2**22


class Found(NamedTuple):
    """The images of a file, their classes, and the name of the array of labels; None without labels."""

    refs: Streamed
    classes: Classes | None
    label_array: str | None


def open_images(path: str, image_column: str | None = None, label_column: str | None = None) -> Found:
    """Open the images of an HDF5 file, and read their labels.

    Args:
        path: the file.
        image_column: the name of the images; None = the first of IMAGE_ARRAYS that exists.
        label_column: the name of the labels; None = the first of LABEL_ARRAYS that exists.

    Raises:
        ValueError: one line with the actual content of the file, or that h5py is missing.
    """
    with _open(path) as file:
        arrays = _arrays(file)
        shapes = {name: Shape(array.shape, array.dtype) for name, array in arrays.items()}
        images, labels = array_layout.choose(path, shapes, image_column, label_column)
        count, rows = len(arrays[images]), _block_rows(arrays[images])
        _check_size(f"{path}: a block of {images}", rows * _row_bytes(arrays[images]))
        found = None
        if labels is not None:
            _check_size(f"{path}: {labels}", arrays[labels].nbytes)
            try:
                values = arrays[labels][()]
            except Exception as error:  # h5py raises OSError, RuntimeError and others for damaged data
                raise ValueError(f"{path}: {labels} cannot be read ({util.reason(error)}): {AGAIN}") from None
            found = array_layout.classes(path, labels, values, count)
    refs = Streamed(path, count, _Blocks(path, images, count, rows), lambda index: index // rows * rows)
    return Found(refs, found, labels)


def _open(path: str) -> Any:
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path}: reading HDF5 needs the package h5py: pip install h5py") from None
    try:
        return h5py.File(path, "r")
    except Exception as error:  # OSError, or others for damaged files
        raise ValueError(f"{path}: not a readable HDF5 file ({util.reason(error)}): {AGAIN}") from None


def _arrays(file: Any) -> dict[str, Any]:
    """The arrays of a file by name. Links and arrays that lead to other files are left out."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        is_array = hasattr(item, "dtype") and bool(getattr(item, "shape", None))
        if is_array and not item.external and not item.is_virtual:
            found[name] = item

    file.visititems(visit)
    return found


def _check_size(where: str, size: int) -> None:
    """Raise ValueError for data that is read at once and would take too much memory."""
    if size > array_layout.MAX_BYTES:
        raise ValueError(
            f"{where} needs {size / 2**30:,.1f} GiB of memory at once, over the limit of "
            f"{array_layout.MAX_BYTES / 2**30:.0f} GiB"
        )


def _row_bytes(array: Any) -> int:
    return max(int(array.dtype.itemsize * array.size // len(array)), 1)


def _block_rows(array: Any) -> int:
    """Images per block: whole chunks of the file, so that each is unpacked once."""
    chunk = array.chunks[0] if array.chunks else 1
    return int(max(_BLOCK_BYTES // _row_bytes(array) // chunk, 1) * chunk)


class _Blocks:
    """Yields blocks of images from the one that contains an index (see `Streamed`)."""

    def __init__(self, path: str, name: str, count: int, rows: int) -> None:
        self.path, self.name, self.count, self.rows = path, name, count, rows

    def __call__(self, index: int) -> Iterator[tuple[int, list[Item]]]:
        with _open(self.path) as file:
            for first in range(index // self.rows * self.rows, self.count, self.rows):
                try:
                    block = file[self.name][first : first + self.rows]
                except Exception as error:  # as in open_images
                    where = f"{self.path}: {self.name}"
                    raise ValueError(
                        f"{where}: damaged after image {first:,} ({util.reason(error)}): {AGAIN}"
                    ) from None
                pixels = enumerate(block, first)
                yield first, [(f"image {i}", array_layout.pixels_of(row)) for i, row in pixels]
