# SPDX-License-Identifier: Apache-2.0
"""The one conversion between uint8 pixels and [-1, 1], image grids, class sheets and atomic PNG files.

Shapes: N images, C channels (1 or 3), H W height and width.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.PngImagePlugin
import torch

from dnnlib import util

SOFTWARE = "StyleSAN-XL"
MAX_PICTURE_PIXELS = 2**28  # of a grid: 1024 images of 512 x 512 pixels, for which some GB are taken
_LABEL_GAP = 4  # pixels between a row's label and its images


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """float [..., C, H, W] in [-1, 1] -> uint8 of the same shape: clamp(x * 127.5 + 128, 0, 255), truncated,
    computed in float32.

    The quantisation of every image that leaves the project (SPEC of StyleGAN's FID: 127.5 and 128, truncated,
    not rounded).
    """
    return (x.to(torch.float32) * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_float(x: torch.Tensor) -> torch.Tensor:
    """uint8 [..., C, H, W] -> float32 in [-1, 1]: x / 127.5 - 1. to_uint8(to_float(x)) == x."""
    return x.to(torch.float32) / 127.5 - 1


def check_picture(flag: str, cells: int, resolution: int) -> None:
    """Raises ValueError, naming a flag with its value, for a grid of more pixels than a picture may have."""
    if cells * resolution**2 > MAX_PICTURE_PIXELS:
        most = max(MAX_PICTURE_PIXELS // resolution**2, 1)
        raise ValueError(
            f"{flag}: {cells:,} images of {resolution}x{resolution} pixels are too many for one picture: at "
            f"most {most:,}"
        )


def grid(images: torch.Tensor | np.ndarray, columns: int) -> np.ndarray:
    """uint8 [N, C, H, W] -> uint8 [rows * H, columns * W, C], row by row; empty cells of the last row are
    black.
    """
    array = np.asarray(images.detach().cpu() if isinstance(images, torch.Tensor) else images)
    if array.ndim != 4 or array.dtype != np.uint8 or array.shape[1] not in (1, 3) or array.shape[0] == 0:
        raise ValueError(
            f"images must be uint8 [N, 1 or 3, H, W] with N > 0, got {array.dtype} {list(array.shape)}"
        )
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    n, c, h, w = array.shape
    rows = -(-n // columns)
    cells = np.zeros((rows * columns, c, h, w), dtype=np.uint8)
    cells[:n] = array
    return cells.reshape(rows, columns, c, h, w).transpose(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)


def _to_pil(array: np.ndarray) -> PIL.Image.Image:
    """uint8 [H, W], [H, W, 1] or [H, W, 3] -> PIL image."""
    if array.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8, got {array.dtype}")
    return PIL.Image.fromarray(
        array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else np.ascontiguousarray(array)
    )


def _magnify(image: PIL.Image.Image, cell: int, target: int) -> tuple[PIL.Image.Image, int]:
    """Repeats the pixels of images too small to stand beside a line of text, so that a cell is at least
    `target` pixels high.
    """
    factor = max(1, -(-target // cell))
    return (
        (image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST), factor)
        if factor > 1
        else (image, 1)
    )


def labelled_grid(
    images: torch.Tensor | np.ndarray,
    row_labels: Sequence[str],
    columns: int,
    min_cell: int = 24,
    column_labels: Sequence[str] | None = None,
    caption: str | None = None,
) -> PIL.Image.Image:
    """Class sheet: grid(images, columns) on white with one label to the left of each row, in PIL's built-in
    font.

    images: uint8 [N, 1 or 3, H, W], one label per row of the grid (ValueError otherwise). Returns an RGB
    image.
    min_cell: images lower than this are magnified by a whole factor (their pixels repeated), so that text
    fits.
    column_labels: one short text above each column, if given. caption: a line below everything, if given.
    """
    pixels = grid(images, columns)
    rows = -(-len(images) // columns)
    if len(row_labels) != rows:
        raise ValueError(
            f"{len(images)} images in {columns} columns make {rows} rows, got {len(row_labels)} labels"
        )
    if column_labels is not None and len(column_labels) != columns:
        raise ValueError(f"{columns} columns need as many labels, got {len(column_labels)}")
    cell = pixels.shape[0] // rows
    sheet, factor = _magnify(_to_pil(pixels).convert("RGB"), cell, min_cell)
    cell *= factor
    size = max(10, min(cell // 3, 20))
    font = PIL.ImageFont.load_default(size=size)
    labels = [_one_line(label) for label in row_labels]
    boxes = [font.getbbox(label) for label in labels]
    margin = int(np.ceil(max(box[2] for box in boxes))) + 2 * _LABEL_GAP
    top = 0 if column_labels is None else size + 2 * _LABEL_GAP
    below = 0 if caption is None else size + 2 * _LABEL_GAP
    width = max(margin + sheet.width, int(font.getlength(caption or "")) + 2 * _LABEL_GAP)
    canvas = PIL.Image.new("RGB", (width, top + sheet.height + below), "white")
    canvas.paste(sheet, (margin, top))
    draw = PIL.ImageDraw.Draw(canvas)
    for row, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        draw.text(
            (margin - _LABEL_GAP - box[2], top + (row + 0.5) * cell),
            label,
            fill="black",
            font=font,
            anchor="lm",
        )
    for column, label in enumerate(column_labels or ()):
        draw.text(
            (margin + (column + 0.5) * sheet.width / columns, top / 2),
            _one_line(label),
            fill="black",
            font=font,
            anchor="mm",
        )
    if caption is not None:
        draw.text((_LABEL_GAP, top + sheet.height + below / 2), caption, fill="black", font=font, anchor="lm")
    return canvas


def _one_line(label: str, limit: int = 40) -> str:
    line = " ".join(str(label).split())
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."


def save_png(
    image: np.ndarray | PIL.Image.Image,
    path: str | os.PathLike,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes uint8 [H, W], [H, W, 1 or 3] or a PIL image as a PNG; `path` never holds a part of a file.

    about: what the picture shows (docs/run-folder.md lists the keys), kept in the file as `png_text` does.
    """
    picture = image if isinstance(image, PIL.Image.Image) else _to_pil(image)
    with util.atomic_write(path) as f:
        picture.save(f, format="PNG", pnginfo=png_text(about or {}))


def png_text(about: Mapping[str, Any]) -> PIL.PngImagePlugin.PngInfo:
    """Text chunks of a PNG: Software, and every key of `about` whose value is not None.

    Whole numbers in a list are written as ranges. Callers give file names and hashes, never paths: a picture
    travels.
    """
    chunks = PIL.PngImagePlugin.PngInfo()
    chunks.add_text("Software", SOFTWARE)
    for key, value in about.items():
        if value is not None:
            chunks.add_text(key, number_list(value) if isinstance(value, list | tuple) else str(value))
    return chunks


def number_list(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 7, 3] -> '0-2,7,3': what dnnlib.util.parse_int_list reads back."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
