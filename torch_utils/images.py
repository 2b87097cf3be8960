# SPDX-License-Identifier: Apache-2.0
"""Conversion between uint8 pixels and [-1, 1], image grids, class sheets and atomic PNG files.

No other module of the project converts pixels.

Shapes: N images, C channels (1 grey, 3 RGB, 4 RGB and alpha), H W height and width.
"""

import os
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.PngImagePlugin
import torch

from dnnlib import util

SOFTWARE = "StyleSAN-XL"
MAX_PICTURE_PIXELS = 2**28  # per grid: 1024 images of 512 x 512 pixels, which need a few GB of memory
_LABEL_GAP = 4  # pixels between a row's label and its images


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Convert float [..., C, H, W] in [-1, 1] to uint8 of the same shape.

    The formula is clamp(x * 127.5 + 128, 0, 255) in float32, truncated and not rounded, as in StyleGAN's FID.
    All image outputs of the project are quantised this way.
    """
    return (x.to(torch.float32) * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def to_float(x: torch.Tensor) -> torch.Tensor:
    """Convert uint8 [..., C, H, W] to float32 in [-1, 1]: x / 127.5 - 1. to_uint8(to_float(x)) == x."""
    return x.to(torch.float32) / 127.5 - 1


def to_rgb(x: torch.Tensor, background: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Convert images of 1, 3 or 4 channels to RGB, as networks that know only RGB see them.

    A grey value is repeated. With alpha, colours are composited on a background; they are not premultiplied.

    Args:
        x: [N, C, H, W], float in [-1, 1] or uint8.
        background: colour in [-1, 1], a number or [N, 3, 1, 1]; white by default.

    Returns:
        [N, 3, H, W] of the same type.
    """
    if x.shape[1] == 1:
        return x.expand(-1, 3, -1, -1)
    if x.shape[1] != 4:
        return x
    if x.dtype == torch.uint8:
        return to_uint8(to_rgb(to_float(x), background))
    alpha = (x[:, 3:] + 1) / 2
    return background + (x[:, :3] - background) * alpha


def rgb_frame(picture: np.ndarray) -> np.ndarray:
    """Convert a picture uint8 [H, W, 1, 3 or 4] to [H, W, 3], as videos need it (see `to_rgb`)."""
    planes = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    return to_rgb(planes)[0].permute(1, 2, 0).contiguous().numpy()


def check_picture(flag: str, cells: int, resolution: int) -> None:
    """Check that a grid does not exceed `MAX_PICTURE_PIXELS`.

    Args:
        flag: flag and value that request the grid, for the message.
        cells: number of images.
        resolution: height and width of each image in pixels.

    Raises:
        ValueError: the grid is too large.
    """
    if cells * resolution**2 > MAX_PICTURE_PIXELS:
        most = max(MAX_PICTURE_PIXELS // resolution**2, 1)
        raise ValueError(
            f"{flag}: {cells:,} images of {resolution}x{resolution} pixels are too many for one picture: at "
            f"most {most:,}"
        )


def grid(images: torch.Tensor | np.ndarray, columns: int) -> np.ndarray:
    """Arrange images uint8 [N, C, H, W] row by row as uint8 [rows * H, columns * W, C].

    Empty cells in the last row are black.

    Raises:
        ValueError: the images have another shape or type, or `columns` is less than 1.
    """
    array = np.asarray(images.detach().cpu() if isinstance(images, torch.Tensor) else images)
    if array.ndim != 4 or array.dtype != np.uint8 or array.shape[1] not in (1, 3, 4) or not len(array):
        raise ValueError(
            f"images must be uint8 [N, 1, 3 or 4, H, W] with N > 0, got {array.dtype} {list(array.shape)}"
        )
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    n, c, h, w = array.shape
    rows = -(-n // columns)
    cells = np.zeros((rows * columns, c, h, w), dtype=np.uint8)
    cells[:n] = array
    return cells.reshape(rows, columns, c, h, w).transpose(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)


def _to_pil(array: np.ndarray) -> PIL.Image.Image:
    """Convert uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] to a PIL image."""
    if array.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8, got {array.dtype}")
    return PIL.Image.fromarray(
        array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else np.ascontiguousarray(array)
    )


def _magnify(image: PIL.Image.Image, cell: int, target: int) -> tuple[PIL.Image.Image, int]:
    """Magnify an image by repeating its pixels, so that a cell of `cell` pixels has at least `target` pixels.

    Returns:
        The image and the factor.
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
    """Draw a class sheet: `grid(images, columns)` on white with a label to the left of each row.

    Args:
        images: uint8 [N, 1, 3 or 4, H, W].
        row_labels: one label per row of the grid.
        columns: images per row.
        min_cell: smaller images are magnified by an integer factor (repeating pixels) to at least this
            height, so that the text fits.
        column_labels: one short text above each column.
        caption: a line below the grid.

    Returns:
        An RGB image. The text is in PIL's built-in font.

    Raises:
        ValueError: the number of labels does not match the grid.
    """
    pixels = grid(to_rgb(torch.as_tensor(images)), columns)
    rows = -(-len(images) // columns)
    if len(row_labels) != rows:
        raise ValueError(
            f"{len(images)} images in {columns} columns form {rows} rows, got {len(row_labels)} labels"
        )
    if column_labels is not None and len(column_labels) != columns:
        raise ValueError(f"{columns} columns need {columns} labels, got {len(column_labels)}")
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
    path: str | os.PathLike[str],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a PNG atomically: a partial file never appears under `path`.

    Args:
        image: uint8 [H, W] or [H, W, 1, 3 or 4], or a PIL image.
        path: path of the file.
        about: metadata about the picture (docs/run-folder.md lists the keys), written by `png_text`.
    """
    with util.atomic_write(path) as f:
        write_png(image, f, about)


def write_png(
    image: np.ndarray | PIL.Image.Image, file: IO[bytes], about: Mapping[str, Any] | None = None
) -> None:
    """Write a PNG to an open file. The other arguments are those of `save_png`."""
    picture = image if isinstance(image, PIL.Image.Image) else _to_pil(image)
    picture.save(file, format="PNG", pnginfo=png_text(about or {}))


def png_text(about: Mapping[str, Any]) -> PIL.PngImagePlugin.PngInfo:
    """Return the text chunks of a PNG: Software, and every key of `about` with a value other than None.

    Lists of integers are written as ranges. Callers pass file names and hashes, never paths, because pictures
    are shared.
    """
    chunks = PIL.PngImagePlugin.PngInfo()
    chunks.add_text("Software", SOFTWARE)
    for key, value in about.items():
        if value is not None:
            chunks.add_text(key, number_list(value) if isinstance(value, list | tuple) else str(value))
    return chunks


def number_list(numbers: Sequence[int]) -> str:
    """Format integers as ranges, such as [0, 1, 2, 7, 3] as '0-2,7,3'.

    dnnlib.util.parse_int_list is the inverse.
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)
