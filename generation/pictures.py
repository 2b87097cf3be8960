# SPDX-License-Identifier: Apache-2.0
"""Write generated images as PNG files: one per seed, a grid, or a class sheet."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from dnnlib.util import available_cores
from generation import render, w_files
from generation.commands import progress_bar
from generation.render import Network
from torch_utils import images

_MAX_THREADS = 4
_MAX_WAITING_PIXELS = 2**24


class PictureWriter:
    """Writes PNG files in threads while the next images are computed.

        with PictureWriter(size) as writer:
            for ...:
                writer.save(pixels, columns, scale, path, about)

    The block ends when all files are written. An error of a thread is raised by the next call or at the end
    of the block. After an error or Ctrl-C, files that no thread has begun are not written, and none is left
    incomplete.

    Args:
        pixels: pixels of a picture. At most _MAX_WAITING_PIXELS wait; larger pictures are written at once.
    """

    def __init__(self, pixels: int) -> None:
        threads = min(_MAX_THREADS, available_cores())
        self._most = min(2 * threads, _MAX_WAITING_PIXELS // max(1, pixels))
        self._waiting: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(threads, "picture-writer") if self._most else None

    def save(self, pixels: Tensor, columns: int, scale: int, path: Path, about: dict[str, Any]) -> None:
        """Write uint8 images [N, C, H, W] as one picture; `path` and `about` as for `images.save_png`."""
        if self._pool is None:
            _save(pixels, columns, scale, path, about)
            return
        while self._waiting and (len(self._waiting) >= self._most or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(_save, pixels, columns, scale, path, about))

    def __enter__(self) -> PictureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while error is None and self._waiting:
                self._waiting.popleft().result()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


def _save(pixels: Tensor, columns: int, scale: int, path: Path, about: dict[str, Any]) -> None:
    images.save_png(magnified(images.grid(pixels, columns), scale), path, about)


def check_size(
    network: Network, grid: str | None, shape: tuple[int, int] | None, batch_sz: int, scale: int = 1
) -> None:
    """Raise ValueError if one PNG would be too large: a grid, or the tiled images of one seed."""
    in_one_picture = shape[0] * shape[1] if shape else math.ceil(math.sqrt(batch_sz)) ** 2
    flag = f"--grid={grid}" if shape else f"--batch-sz={batch_sz}"
    images.check_picture(flag, in_one_picture, network.G.img_resolution * scale)


def write_seeds(
    network: Network,
    seeds: Sequence[int],
    folder: Path,
    batch_sz: int,
    index: int | None,
    about: dict[str, Any],
    batch: int,
    scale: int = 1,
    **render_kwargs: Any,
) -> None:
    """Write seedNNNN.png for each seed, with `batch_sz` images tiled in it.

    Args:
        network: the network.
        seeds: the seeds.
        folder: existing folder for the files.
        batch_sz: images per seed.
        index: class of all images; None = the class drawn by each seed.
        about: entries of the files' metadata (see `render.about`).
        batch: images computed at a time on a GPU.
        scale: magnify the pictures by repeating every pixel.
        render_kwargs: see `render.render`.
    """
    # Use no more memory than one picture of the maximum size.
    most = images.MAX_PICTURE_PIXELS // (batch_sz * network.G.img_resolution**2)
    seeds_at_once = max(1, min(batch // batch_sz, most))
    columns = math.ceil(math.sqrt(batch_sz))
    size = batch_sz * (network.G.img_resolution * scale) ** 2
    with PictureWriter(size) as writer, progress_bar(len(seeds) * batch_sz, "Images") as done:
        for start in range(0, len(seeds), seeds_at_once):
            chunk = seeds[start : start + seeds_at_once]
            pixels = render_seeds(network, chunk, batch_sz, index, batch=batch, done=done, **render_kwargs)
            for seed, group in zip(chunk, torch.split(pixels, batch_sz), strict=True):
                text = render.about(network, [seed], _classes(network, [seed], batch_sz, index), **about)
                writer.save(group, columns, scale, folder / f"seed{seed:04d}.png", text)
    click.echo(f"{len(seeds)} PNG files in {folder}")


def write_codes(
    network: Network,
    ws: Tensor,
    folder: Path,
    columns: int | None,
    about: dict[str, Any],
    batch: int,
    scale: int = 1,
    noise_mode: str = "const",
) -> None:
    """Write the images of style codes: projNN.png for each, or one grid.png.

    Args:
        network: the network.
        ws: style codes [N, num_ws, W].
        folder: existing folder for the files.
        columns: columns of grid.png; None = single files.
        about: entries of the files' metadata (see `render.about`). Those of latents are removed.
        batch: images computed at a time on a GPU.
        scale: magnify the pictures by repeating every pixel.
        noise_mode: passed to the network.
    """
    text = {**render.about(network, [], None, **about), "truncation": None, "centroids": None}
    size = 1 if network.device.type == "cpu" else batch
    parts = []
    writer = PictureWriter((network.G.img_resolution * scale) ** 2)
    with writer, progress_bar(len(ws), "Images") as done:
        for start in range(0, len(ws), size):
            pixels = render.synthesize(network, ws[start : start + size], noise_mode)
            done(len(pixels))
            if columns is not None:
                parts.append(pixels)
                continue
            for row, picture in enumerate(pixels, start):
                writer.save(picture[None], 1, scale, folder / f"proj{row:02d}.png", {**text, "w_row": row})
    if columns is not None:
        picture = magnified(images.grid(torch.cat(parts), columns), scale)
        images.save_png(picture, folder / "grid.png", text)
    click.echo(f"{len(ws)} images: {folder / 'grid.png'}" if parts else f"{len(ws)} PNG files in {folder}")


@torch.no_grad()
def save_codes(
    network: Network,
    seeds: Sequence[int],
    path: str,
    batch_sz: int,
    index: int | None,
    truncation: float,
    centroids: Tensor | None,
) -> None:
    """Write the style codes of seeds with truncation and edits in W: the `w` of --projected-w.

    Args:
        network: the network.
        seeds: the seeds.
        path: .npz file to write.
        batch_sz: images per seed.
        index: class of all images; None = the class drawn by each seed.
        truncation: psi.
        centroids: see `render.styles`.
    """
    codes = []
    for seed in seeds:
        labels = render.seed_labels(network, seed, batch_sz, index)
        for row, z in enumerate(render.latents(seed, batch_sz, network.G.z_dim).to(network.device)):
            c = None if labels is None else labels[row : row + 1].to(network.device)
            codes.append(render.styles(network.G, z[None], c, truncation, centroids))
    ws = torch.cat(codes)
    w_files.save_shown(path, ws if network.edits is None else network.edits.on_w(ws), network)


def write_grid(
    network: Network,
    seeds: Sequence[int],
    path: Path,
    columns: int,
    batch_sz: int,
    index: int | None,
    about: dict[str, Any],
    scale: int = 1,
    **render_kwargs: Any,
) -> None:
    """Write the images of all seeds as one picture. The arguments are those of `write_seeds`."""
    with progress_bar(len(seeds) * batch_sz, "Images") as done:
        pixels = render_seeds(network, seeds, batch_sz, index, done=done, **render_kwargs)
    text = render.about(network, seeds, _classes(network, seeds, batch_sz, index), **about)
    images.save_png(magnified(images.grid(pixels, columns), scale), path, text)
    click.echo(f"{len(pixels)} images: {path}")


def write_sheet(
    network: Network,
    classes: Sequence[int],
    seeds: Sequence[int],
    path: Path,
    about: dict[str, Any],
    columns: int | None = None,
    scale: int = 1,
    **render_kwargs: Any,
) -> None:
    """Write a class sheet (see `render.class_sheet`)."""
    with progress_bar(len(classes) * len(seeds), "Images") as done:
        sheet = render.class_sheet(network, classes, seeds, columns, scale, done=done, **render_kwargs)
    images.save_png(sheet, path, render.about(network, seeds, classes, **about))
    click.echo(f"{len(classes)} classes, {len(seeds)} images each: {path}")


def magnified(picture: np.ndarray, scale: int) -> np.ndarray:
    """Repeat every pixel of uint8 [H, W, C] in both directions."""
    return picture if scale == 1 else picture.repeat(scale, axis=0).repeat(scale, axis=1)


def render_seeds(
    network: Network, seeds: Sequence[int], batch_sz: int, index: int | None, **render_kwargs: Any
) -> Tensor:
    """uint8 images [seeds * batch_sz, C, R, R] on the CPU, in the order of the seeds."""
    z = torch.cat([render.latents(seed, batch_sz, network.G.z_dim) for seed in seeds])
    labels = [render.seed_labels(network, seed, batch_sz, index) for seed in seeds]
    known = [some for some in labels if some is not None]
    return render.render(network, z, torch.cat(known) if known else None, **render_kwargs)


def _classes(network: Network, seeds: Sequence[int], batch_sz: int, index: int | None) -> list[int] | None:
    """The class of every image; a single one if it is the same for all; None without classes."""
    if not network.G.c_dim:
        return None
    if index is not None:
        return [index]
    labels = [render.seed_labels(network, seed, batch_sz, None) for seed in seeds]
    return [int(value) for some in labels if some is not None for value in some]
