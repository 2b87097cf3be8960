# SPDX-License-Identifier: Apache-2.0
"""Generate a class sheet with a trained network: the published command line of `gen_images.py --classes`.

    python gen_class_samplesheet.py --network=network.pkl --classes=0-8 --outdir=out --grid-width=32

Sample j of a class is the image of `gen_images.py --class=CLASS --seeds=SEED+j`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from dnnlib import outputs
from generation import commands


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@commands.common_options
@click.option("--classes", required=True, metavar="LIST", help="Indices, ranges, names, or all: 0,3-5,cat.")
@click.option("--outdir", required=True, metavar="DIR", help="Folder for the sheet.")
@click.option(
    "--seed",
    type=click.IntRange(0, commands.MAX_SEED),
    default=42,
    show_default=True,
    help="Seed of the first sample of every class.",
)
@click.option(
    "--samples-per-class",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Samples of each class.",
)
@click.option(
    "--grid-width", type=click.IntRange(min=1), default=32, show_default=True, help="Images per row."
)
@click.option(
    "--batch-gpu",
    "batch",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help=commands.batch_help,
)
@click.option("--desc", metavar="STR", help="Added to the file name: sheet-STR.png.")
@commands.one_line_errors
def main(
    classes: str,
    outdir: str,
    seed: int,
    samples_per_class: int,
    grid_width: int,
    batch: int,
    desc: str | None,
    **common: Any,
) -> None:
    """Generate a class sheet with a trained network."""
    options = commands.NetworkOptions(**common)
    outputs.check_output("--outdir", outdir, data={"--data": options.data}, folder=True)
    seeds = commands.sheet_seeds([seed], samples_per_class)
    if desc and not re.fullmatch(r"[\w.+-]+", desc):
        raise ValueError(
            f"--desc={desc!r}: use only letters, digits and . _ + -, because it becomes part of a file name"
        )
    from generation import pictures, render
    from torch_utils import images

    network, centroids = options.load()
    rows = render.class_indices(network, classes)
    total = len(rows) * len(seeds)
    flags = f"--classes={classes[:40]} --samples-per-class={samples_per_class}"
    images.check_picture(flags, total, network.G.img_resolution)
    path = Path(outdir) / (f"sheet-{desc}.png" if desc else "sheet.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.write_sheet(
        network,
        rows,
        seeds,
        path,
        options.description(),
        columns=min(grid_width, total),
        truncation=options.truncation,
        centroids=centroids,
        batch=batch,
    )


if __name__ == "__main__":
    main()
