# SPDX-License-Identifier: Apache-2.0
"""Mix the styles of two lists of seeds: every row's image with some layers' styles of every column's.

    python style_mixing.py --network=network.pkl --rows=85,100,75,458,1500 --cols=55,821,1789,293 --outdir=out

    # coarse styles of the columns, all images of one class
    python style_mixing.py --network=network.pkl --rows=0-3 --cols=10-15 --styles=0-3 --class=207 --outdir=out

As the published script it writes ROW-COL.png, the mixed images; SEED-SEED.png, the images of the seeds; and
grid.png with the columns' images above and the rows' images to the left. --styles counts the rows of w: 0 is
the input, i the i-th synthesis layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dnnlib import outputs
from generation import commands

DEFAULT_STYLES = range(7)


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@commands.common_options
@click.option("--rows", "row_seeds", required=True, metavar="LIST", help="Seeds of the rows.")
@click.option("--cols", "col_seeds", required=True, metavar="LIST", help="Seeds of the columns.")
@click.option(
    "--styles",
    metavar="LIST",
    help="Layers that come from the columns.  [default: 0-6, as far as the network has them]",
)
@click.option(
    "--class", "class_name", metavar="CLASS", help="Class index or name of all images.  [default: random]"
)
@click.option(
    "--outdir", required=True, metavar="DIR", help="Folder for the PNG files. Existing ones are replaced."
)
@commands.noise_mode_option
@click.option(
    "--scale",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Magnify the PNG files by repeating every pixel.",
)
@commands.one_line_errors
def main(
    row_seeds: str,
    col_seeds: str,
    styles: str | None,
    class_name: str | None,
    outdir: str,
    noise_mode: str,
    scale: int,
    **common: Any,
) -> None:
    """Mix the styles of two lists of seeds."""
    options = commands.NetworkOptions(**common)
    outputs.check_output("--outdir", outdir, data={"--data": options.data}, folder=True)
    rows, cols = commands.parse_seeds(row_seeds, "--rows"), commands.parse_seeds(col_seeds, "--cols")
    from generation import mixing, render
    from torch_utils import images

    network, centroids = options.load()
    G = network.G
    if styles is None:
        layers = [row for row in DEFAULT_STYLES if row < G.num_ws]
    else:
        layers = commands.parse_layers("--styles", styles, G.num_ws, network.path)
    index = None if class_name is None else render.class_index(network, class_name)
    cells = (len(rows) + 1) * (len(cols) + 1)
    images.check_picture("--rows and --cols", cells, G.img_resolution * scale)
    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    mixing.write(
        network,
        rows,
        cols,
        layers,
        folder,
        index=index,
        truncation=options.truncation,
        centroids=centroids,
        scale=scale,
        about=options.description(),
    )


if __name__ == "__main__":
    main()
