# SPDX-License-Identifier: Apache-2.0
"""Generate images with a trained network.

    # one PNG per seed
    python gen_images.py --network=network.pkl --seeds=0-15 --outdir=out

    # one class, by name or index, with truncation
    python gen_images.py --network=network.pkl --seeds=0-15 --class="grinning face" --trunc=0.7 --outdir=out

    # one picture of 8 x 4 images
    python gen_images.py --network=network.pkl --seeds=0-31 --grid=8x4 --outdir=out

    # a sheet with one labelled row per class; every column is one seed
    python gen_images.py --network=network.pkl --seeds=0 --classes=0-8 --samples-per-class=8 --outdir=out

As in the published code, the latents of a seed are RandomState(seed).randn(batch_sz, z_dim) of numpy, and its
classes without --class are RandomState(seed).randint(0, c_dim, batch_sz).

The image of a seed does not depend on the other seeds of a command. On a CPU it is identical to the last bit,
because images are computed one at a time. On a GPU, --batch can change rounding, that is single pixels by one
grey level.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import dnnlib.util
from dnnlib import outputs
from generation import commands


def _check_together(
    grid: str | None, classes: str | None, class_name: str | None, samples_per_class: int | None
) -> None:
    """Raise ValueError for options that exclude or require each other."""
    if classes and (class_name or grid):
        raise ValueError("--classes makes a sheet of several classes: remove --class and --grid")
    if samples_per_class and not classes:
        raise ValueError("--samples-per-class needs --classes")


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@commands.common_options
@click.option("--seeds", required=True, metavar="LIST", help="Seeds and ranges, for example 0,1,4-6.")
@click.option("--outdir", required=True, metavar="DIR", help="Folder for the PNG files.")
@click.option(
    "--batch-sz",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Images per seed, tiled into one PNG.",
)
@click.option(
    "--class",
    "class_name",
    metavar="CLASS",
    help="Class index or name of all images.  [default: a random class per image]",
)
@click.option(
    "--classes", metavar="LIST", help="Make a class sheet. Indices, ranges, names, or all: 0,3-5,cat."
)
@click.option(
    "--samples-per-class",
    type=click.IntRange(min=1),
    metavar="N",
    help="Columns of the class sheet. With a single seed s, the columns have the seeds s to s+N-1.",
)
@click.option(
    "--grid", metavar="WxH|W,H", help="One picture of W columns and H rows instead of one PNG per seed."
)
@click.option(
    "--noise-mode",
    type=click.Choice(["const", "random", "none"]),
    default="const",
    show_default=True,
    help="No effect: the layers have no noise. Accepted for compatibility.",
)
@click.option(
    "--translate",
    default="0,0",
    show_default=True,
    metavar="X,Y",
    help="Shift right and down, in image widths.",
)
@click.option(
    "--rotate",
    type=float,
    default=0,
    show_default=True,
    metavar="DEGREES",
    help="Rotate anticlockwise, in degrees.",
)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help=commands.batch_help)
@commands.one_line_errors
def main(
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
    batch: int,
    **common: Any,
) -> None:
    """Generate images with a trained network."""
    common_options = commands.NetworkOptions(**common)
    _check_together(grid, classes, class_name, samples_per_class)
    outputs.check_output("--outdir", outdir, data={"--data": common_options.data}, folder=True)
    commands.check_finite("--rotate", rotate)
    seed_list, offset = commands.parse_seeds(seeds), dnnlib.util.parse_vec2(translate)
    shape = commands.parse_grid(grid) if grid else None
    if shape and shape[0] * shape[1] != len(seed_list) * batch_sz:
        raise ValueError(
            f"--grid={grid} has {shape[0] * shape[1]} cells, but --seeds and --batch-sz make "
            f"{len(seed_list) * batch_sz} images"
        )
    from generation import pictures, render
    from torch_utils import images

    network, centroids = common_options.load()
    render.set_transform(network.G, offset, rotate)
    options: dict[str, Any] = {
        "truncation": common_options.truncation,
        "centroids": centroids,
        "noise_mode": noise_mode,
        "batch": batch,
    }
    about: dict[str, Any] = {
        **common_options.description(),
        "translate": translate if any(offset) else None,
        "rotate": rotate or None,
    }
    folder = Path(outdir)
    if classes:
        columns = commands.sheet_seeds(seed_list, samples_per_class)
        rows = render.class_indices(network, classes)
        what = f"--classes={classes[:40]} with {len(columns)} images of each"
        images.check_picture(what, len(rows) * len(columns), network.G.img_resolution)
        folder.mkdir(parents=True, exist_ok=True)
        pictures.write_sheet(network, rows, columns, folder / "classes.png", about, **options)
        return
    about["images_per_seed"] = batch_sz if batch_sz > 1 else None
    index = None if class_name is None else render.class_index(network, class_name)
    pictures.check_size(network, grid, shape, batch_sz)
    folder.mkdir(parents=True, exist_ok=True)
    if shape:
        about["grid"] = grid
        pictures.write_grid(
            network, seed_list, folder / "grid.png", shape[0], batch_sz, index, about, **options
        )
    else:
        pictures.write_seeds(network, seed_list, folder, batch_sz, index, about, **options)


if __name__ == "__main__":
    main()
