# SPDX-License-Identifier: Apache-2.0
"""Read images from .npz files of ADM (guided-diffusion): arr_0 uint8 [N, H, W, 3], labels in arr_1."""

import numpy as np

from dnnlib import arrays

IMAGES, LABELS = "arr_0", "arr_1"
_MAX_LABELS_BYTES = 2**31


class Opener:
    """Reads refs that are indices of rows. Each process opens the file itself."""

    def __init__(self, images: arrays.Rows) -> None:
        self.images = images

    def load(self, ref: int) -> tuple[str, np.ndarray]:
        """(name, uint8 pixels [H, W] or [H, W, 3]) of an image."""
        pixels = self.images[ref]
        return f"image {ref}", pixels[..., 0] if pixels.shape[-1] == 1 else pixels

    def fingerprint(self) -> str:
        """Identify the images by size and CRC-32 from the directory of the file."""
        info = self.images.member.info
        return f"{info.filename}\0{info.file_size}\0{info.CRC}\n"


def open_images(path: str) -> tuple[arrays.Rows, np.ndarray | None]:
    """Open the images of an .npz file, and read their labels.

    Returns:
        Rows, each uint8 [H, W, 1 or 3], and labels int64 [N]; None without usable ones.

    Raises:
        ValueError: one line with the actual content of the file.
        OSError: the file cannot be read.
    """
    found = arrays.members(path)
    expected = f"{path}: images must be {IMAGES}, uint8 [N, H, W, 3]"
    if IMAGES not in found:
        holds = ", ".join(f"{m.name} {m.dtype} {list(m.shape)}" for m in list(found.values())[:6])
        raise ValueError(f"{expected}; the file contains {holds or 'nothing'}")
    images = found[IMAGES]
    shape = f"{images.dtype} {list(images.shape)}"
    if images.dtype != np.uint8 or len(images.shape) != 4:
        raise ValueError(f"{expected}, not {shape}")
    if images.shape[3] not in (1, 3):
        channels_first = images.shape[1] in (1, 3)
        remedy = ": move the channels to the end (transpose(0, 2, 3, 1))" if channels_first else ""
        raise ValueError(f"{expected}, not {shape}{remedy}")
    if 0 in images.shape:
        raise ValueError(f"{path}: {IMAGES} {shape} contains no images")
    return arrays.Rows(images), _labels(path, found.get(LABELS), images.shape[0])


def _labels(path: str, member: arrays.Member | None, count: int) -> np.ndarray | None:
    if member is None or member.dtype.kind not in "iu" or member.shape != (count,):
        return None
    labels = arrays.read(path, [LABELS], _MAX_LABELS_BYTES)[LABELS].astype(np.int64)
    return labels if labels.min() >= 0 and labels.max() < 2**31 else None
