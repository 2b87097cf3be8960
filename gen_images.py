# SPDX-License-Identifier: Apache-2.0
"""Images from a network pickle.

    # one PNG per seed
    python gen_images.py --network=network-snapshot.pkl --seeds=0-15 --outdir=out

    # one class, by name or index, with truncation
    python gen_images.py --network=network-snapshot.pkl --seeds=0-15 --class="grinning face" --trunc=0.7
    --outdir=out

    # one picture of 8 x 4 images
    python gen_images.py --network=network-snapshot.pkl --seeds=0-31 --grid=8x4 --outdir=out

    # a sheet with one labelled row per class; every column is one seed
    python gen_images.py --network=network-snapshot.pkl --seeds=0 --classes=0-8 --samples-per-class=8
    --outdir=out

Latents are numpy's RandomState(seed).randn(batch_sz, z_dim), labels without --class
RandomState(seed).randint(0, c_dim, batch_sz), as published. A seed's image does not depend on what else is
generated: on CPUs images are computed one at a time, so that even the last bit is the same whatever
--batch says; on GPUs --batch may change roundings, that is single pixels by one grey level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

import dnnlib.util
from dnnlib import outputs
from generation import render
from generation.commands import (
    check_finite,
    common_options,
    one_line_errors,
    parse_grid,
    parse_seeds,
    progress_bar,
    sheet_seeds,
)
from generation.render import Network
from torch_utils import images
from torch_utils.devices import pick_device


def _write_per_seed(
    network: Network,
    seeds: Sequence[int],
    outdir: Path,
    batch_sz: int,
    index: int | None,
    about: dict[str, Any],
    batch: int,
    **render_kwargs: Any,
) -> None:
    most = images.MAX_PICTURE_PIXELS // (
        batch_sz * network.G.img_resolution**2
    )  # as much memory as one picture may take
    seeds_at_once = max(1, min(batch // batch_sz, most))
    columns = int(np.ceil(np.sqrt(batch_sz)))
    with progress_bar(len(seeds) * batch_sz, "Images") as done:
        for start in range(0, len(seeds), seeds_at_once):
            chunk = seeds[start : start + seeds_at_once]
            pixels = _render_seeds(network, chunk, batch_sz, index, batch=batch, done=done, **render_kwargs)
            for seed, group in zip(chunk, pixels.split(batch_sz), strict=True):
                text = render.about(network, [seed], _classes(network, [seed], batch_sz, index), **about)
                images.save_png(images.grid(group, columns), outdir / f"seed{seed:04d}.png", text)


def _classes(network: Network, seeds: Sequence[int], batch_sz: int, index: int | None) -> list[int] | None:
    """The class of every image; one for all of them if it is the same."""
    if not network.G.c_dim:
        return None
    if index is not None:
        return [index]
    labels = [render.seed_labels(network, seed, batch_sz, None) for seed in seeds]
    return [int(value) for some in labels if some is not None for value in some]


def _render_seeds(
    network: Network, seeds: Sequence[int], batch_sz: int, index: int | None, **render_kwargs: Any
) -> Tensor:
    z = torch.cat([render.latents(seed, batch_sz, network.G.z_dim) for seed in seeds])
    labels = [render.seed_labels(network, seed, batch_sz, index) for seed in seeds]
    return render.render(network, z, None if labels[0] is None else torch.cat(labels), **render_kwargs)  # type: ignore[arg-type]


def _check_together(
    grid: str | None, classes: str | None, class_name: str | None, samples_per_class: int | None
) -> None:
    if classes and (class_name or grid):
        raise ValueError("--classes makes a sheet of several classes: leave out --class and --grid")
    if samples_per_class and not classes:
        raise ValueError("--samples-per-class needs --classes")


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@common_options
@click.option("--seeds", required=True, metavar="LIST", help="for example 0,1,4-6")
@click.option("--outdir", required=True, metavar="DIR", help="where the PNGs go")
@click.option(
    "--batch-sz",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="images per seed, tiled into one PNG",
)
@click.option(
    "--class",
    "class_name",
    metavar="CLASS",
    help="class index or name; without it every image gets a random class",
)
@click.option("--classes", metavar="LIST", help="a class sheet: indices, ranges, names, or all")
@click.option(
    "--samples-per-class",
    type=click.IntRange(min=1),
    metavar="N",
    help="columns of the sheet: with one seed s, the seeds s to s+N-1",
)
@click.option("--grid", metavar="WxH|W,H", help="one picture of W x H images instead of one PNG per seed")
@click.option(
    "--noise-mode",
    type=click.Choice(["const", "random", "none"]),
    default="const",
    show_default=True,
    help="without effect: the layers have no noise",
)
@click.option(
    "--translate",
    default="0,0",
    show_default=True,
    metavar="X,Y",
    help="shift right and down, in image widths",
)
@click.option(
    "--rotate", type=float, default=0, show_default=True, metavar="DEGREES", help="turn anticlockwise"
)
@click.option("--data", metavar="ZIP|DIR", help="data set to take class names from, if the pickle has none")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="images computed at a time on a GPU",
)
@one_line_errors
def main(
    network: str,
    trust_pickle: bool,
    truncation: float,
    centroids_path: str | None,
    device: str,
    precision: str,
    seeds: str,
    outdir: str,
    batch_sz: int,
    class_name: str | None,
    classes: str | None,
    samples_per_class: int | None,
    grid: str | None,
    noise_mode: str,
    translate: str,
    rotate: float,
    data: str | None,
    batch: int,
) -> None:
    _check_together(grid, classes, class_name, samples_per_class)
    outputs.check_output("--outdir", outdir, data={"--data": data}, folder=True)
    check_finite("--trunc", truncation)
    check_finite("--rotate", rotate)
    numbers, offset = parse_seeds(seeds), dnnlib.util.parse_vec2(translate)
    shape = parse_grid(grid) if grid else None
    if shape and shape[0] * shape[1] != len(numbers) * batch_sz:
        raise ValueError(
            f"--grid={grid} holds {shape[0] * shape[1]} images, but --seeds and --batch-sz make "
            f"{len(numbers) * batch_sz}"
        )
    net = render.load_network(
        network, pick_device(device), data, trust_pickle=trust_pickle, precision=precision
    )
    render.set_transform(net.G, offset, rotate)
    centroids = render.load_centroids(centroids_path, net.G.w_dim) if centroids_path else None
    options: dict[str, Any] = {
        "truncation": truncation,
        "centroids": centroids,
        "noise_mode": noise_mode,
        "batch": batch,
    }
    about: dict[str, Any] = {
        "truncation": truncation,
        "centroids_path": centroids_path,
        "translate": translate if any(offset) else None,
        "rotate": rotate or None,
    }
    folder = Path(outdir)
    if classes:
        columns = sheet_seeds(numbers, samples_per_class)
        rows = render.class_indices(net, classes)
        images.check_picture(
            f"--classes={classes[:40]} with {len(columns)} images of each",
            len(rows) * len(columns),
            net.G.img_resolution,
        )
        folder.mkdir(parents=True, exist_ok=True)
        with progress_bar(len(rows) * len(columns), "Images") as done:
            sheet = render.class_sheet(net, rows, columns, done=done, **options)
        images.save_png(sheet, folder / "classes.png", render.about(net, columns, rows, **about))
        click.echo(f"{len(rows)} classes, {len(columns)} images each: {folder / 'classes.png'}")
        return
    about["images_per_seed"] = batch_sz if batch_sz > 1 else None
    index = None if class_name is None else render.class_index(net, class_name)
    in_one_picture = shape[0] * shape[1] if shape else math.ceil(math.sqrt(batch_sz)) ** 2
    images.check_picture(
        f"--grid={grid}" if shape else f"--batch-sz={batch_sz}", in_one_picture, net.G.img_resolution
    )
    folder.mkdir(parents=True, exist_ok=True)
    if shape:
        with progress_bar(len(numbers) * batch_sz, "Images") as done:
            pixels = _render_seeds(net, numbers, batch_sz, index, done=done, **options)
        text = render.about(net, numbers, _classes(net, numbers, batch_sz, index), grid=grid, **about)
        images.save_png(images.grid(pixels, shape[0]), folder / "grid.png", text)
        click.echo(f"{len(pixels)} images: {folder / 'grid.png'}")
    else:
        _write_per_seed(net, numbers, folder, batch_sz, index, about, **options)
        click.echo(f"{len(numbers)} PNG files in {folder}")


if __name__ == "__main__":
    main()
