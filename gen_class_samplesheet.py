# SPDX-License-Identifier: Apache-2.0
"""Class sheet from a network pickle: the published command line for what `gen_images.py --classes` does.

    python gen_class_samplesheet.py --network=network-snapshot.pkl --classes=0-8 --outdir=out
    --samples-per-class=4 --grid-width=32

Sample j of a class is the image that `gen_images.py --class=CLASS --seeds=SEED+j` makes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from dnnlib import outputs
from generation import commands, render
from torch_utils import images
from torch_utils.devices import pick_device


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@commands.common_options
@click.option("--classes", required=True, metavar="LIST", help="indices, ranges, names, or all: 0,3-5,cat")
@click.option("--outdir", required=True, metavar="DIR", help="where the sheet goes")
@click.option(
    "--seed",
    type=click.IntRange(0, render.MAX_SEED),
    default=42,
    show_default=True,
    help="seed of every class's first sample",
)
@click.option(
    "--samples-per-class", type=click.IntRange(min=1), default=4, show_default=True, help="columns of a class"
)
@click.option(
    "--grid-width", type=click.IntRange(min=1), default=32, show_default=True, help="images per row"
)
@click.option(
    "--batch-gpu",
    "batch",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="images computed at a time on a GPU",
)
@click.option("--desc", metavar="STR", help="goes into the file's name: sheet-STR.png")
@click.option("--data", metavar="ZIP|DIR", help="data set to take class names from, if the pickle has none")
@commands.one_line_errors
def main(
    network: str,
    trust_pickle: bool,
    truncation: float,
    centroids_path: str | None,
    device: str,
    precision: str,
    classes: str,
    outdir: str,
    seed: int,
    samples_per_class: int,
    grid_width: int,
    batch: int,
    desc: str | None,
    data: str | None,
) -> None:
    outputs.check_output("--outdir", outdir, data={"--data": data}, folder=True)
    seeds = commands.sheet_seeds([seed], samples_per_class)
    if desc and not re.fullmatch(r"[\w.+-]+", desc):
        raise ValueError(
            f"--desc={desc!r}: letters, digits and . _ + - only, since it becomes part of a file's name"
        )
    net = render.load_network(
        network, pick_device(device), data, trust_pickle=trust_pickle, precision=precision
    )
    rows = render.class_indices(net, classes)
    centroids = render.load_centroids(centroids_path, net.G.w_dim) if centroids_path else None
    total = len(rows) * len(seeds)
    images.check_picture(
        f"--classes={classes[:40]} --samples-per-class={samples_per_class}", total, net.G.img_resolution
    )
    options: dict[str, Any] = {"truncation": truncation, "centroids": centroids, "batch": batch}
    path = Path(outdir) / (f"sheet-{desc}.png" if desc else "sheet.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with commands.progress_bar(total, "Images") as done:
        sheet = render.class_sheet(net, rows, seeds, columns=min(grid_width, total), done=done, **options)
    text = render.about(net, seeds, rows, truncation=truncation, centroids_path=centroids_path)
    images.save_png(sheet, path, text)
    click.echo(f"{len(rows)} classes, {len(seeds)} images each: {path}")


if __name__ == "__main__":
    main()
