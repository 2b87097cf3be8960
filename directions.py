# SPDX-License-Identifier: Apache-2.0
r"""Find directions in the styles of a network, for --edit of the other commands.

    # what changes the styles of layers 0 to 4 most, in closed form (SeFa)
    python directions.py sefa --network=network.pkl --layers=0-4 --dest=sefa.safetensors

    # principal components of w (GANSpace)
    python directions.py pca --network=network.pkl --dest=pca.safetensors

    # an attribute of images that you sorted into two folders, or labelled by seed in a CSV or JSON file
    python directions.py attribute --network=network.pkl --positive=smiling --negative=serious \
        --dest=smile.safetensors
    python directions.py attribute --network=network.pkl --labels=labels.csv --dest=smile.safetensors

    # a picture of directions: a row for each, a column per strength
    python directions.py sheet --network=network.pkl --edit=sefa.safetensors --seeds=0-2 --output=sheet.png

    # move the images of gen_images.py along the second direction
    python gen_images.py --network=network.pkl --seeds=0-7 --edit=sefa.safetensors#1:-2 --outdir=out

Strength 1 is one standard deviation of w along the direction. A direction fits the network that it was made
with and every stage of it; run_stylemc.py finds directions from a text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dnnlib import outputs
from generation import commands

NETWORK = click.option(
    "--network", required=True, metavar="PATH|URL", help="Network file, run folder or repository."
)
DEST = click.option(
    "--dest", required=True, metavar="FILE", help="Direction file to write: NAME.safetensors."
)
LAYERS = click.option(
    "--layers",
    metavar="LIST",
    help="Rows of w to move: 0 = the input, i = synthesis layer i. For example 0-4,7.  [default: all]",
)
NUM = click.option("--num", type=click.IntRange(1, 4096), default=10, show_default=True, help="Directions.")
SAMPLES = click.option(
    "--samples",
    type=click.IntRange(2, 1_000_000),
    default=10_000,
    show_default=True,
    help="Random style codes of which spreads are computed.",
)
SEED = click.option(
    "--seed", type=click.IntRange(0, commands.MAX_SEED), default=0, show_default=True, help="Random seed."
)
CLASSES = click.option(
    "--class", "classes", metavar="LIST", help="Draw the style codes from these classes.  [default: all]"
)


def several(*options: Callable[..., Any]) -> Callable[..., Any]:
    """One decorator made of several."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.group(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
def main() -> None:
    """Find directions in the styles of a network."""


@main.command()
@several(NETWORK, DEST, LAYERS, NUM, SAMPLES, SEED, CLASSES, commands.device_option)
@commands.one_line_errors
def sefa(**options: Any) -> None:
    """In closed form: what changes the styles of some layers most (SeFa)."""
    from generation import direction_command

    direction_command.closed_form("sefa", **options)


@main.command()
@several(NETWORK, DEST, LAYERS, NUM, SAMPLES, SEED, CLASSES, commands.device_option)
@commands.one_line_errors
def pca(**options: Any) -> None:
    """Principal components of w around the mean of its class (GANSpace)."""
    from generation import direction_command

    direction_command.closed_form("pca", **options)


@main.command()
@several(NETWORK, DEST, LAYERS, commands.device_option, SEED)
@click.option(
    "--labels", metavar="FILE", help="CSV with columns seed,label[,class], or JSON; labels 0 and 1."
)
@click.option("--positive", metavar="DIR", help="PNG files of gen_images.py that have the attribute.")
@click.option("--negative", metavar="DIR", help="PNG files of gen_images.py that do not have it.")
@click.option("--positive-class", metavar="CLASS", help="In place of folders: a class, by index or name.")
@click.option("--negative-class", metavar="CLASS", help="The class to move away from.")
@click.option(
    "--per-class",
    type=click.IntRange(5, 100_000),
    default=1000,
    show_default=True,
    help="Images of each of the two classes.",
)
@click.option("--name", metavar="STR", help="Name of the attribute, for sheets and sliders.")
@click.option(
    "--trunc",
    type=float,
    default=1,
    show_default=True,
    help="Truncation of the images in --labels or of classes.",
)
@commands.one_line_errors
def attribute(**options: Any) -> None:
    """From labelled images: the normal of a logistic regression on w."""
    from generation import direction_command

    direction_command.attribute(**options)


@main.command()
@commands.common_options
@click.option("--seeds", required=True, metavar="LIST", help="Seeds and ranges, for example 0,1,4-6.")
@click.option("--class", "class_name", metavar="CLASS", help="Class index or name of all images.")
@click.option(
    "--strengths",
    default="-3,-2,-1,0,1,2,3",
    show_default=True,
    metavar="LIST",
    help="Strengths of the columns.",
)
@click.option("--output", required=True, metavar="PNG", help="Picture to write.")
@click.option("--scale", type=click.IntRange(1, 64), default=1, show_default=True, help="Magnify the images.")
@commands.one_line_errors
def sheet(seeds: str, class_name: str | None, strengths: str, output: str, scale: int, **common: Any) -> None:
    """Draw directions: a row for each direction and seed, a column per strength.

    --edit names directions without a strength here: FILE#INDEX, or FILE for all directions of the file.
    """
    outputs.check_output("--output", output, inputs={"--network": common["network"]})
    if Path(output).suffix.lower() != ".png":
        raise ValueError(f"--output={output}: end the name with .png")
    if not common["edit"]:
        raise ValueError("give at least one direction: --edit=FILE or --edit=FILE#INDEX")
    from generation import direction_command

    names = direction_command.named(common.pop("edit"))
    options = commands.NetworkOptions(**common, edit=tuple(names))
    direction_command.sheet(options, commands.parse_seeds(seeds), class_name, strengths, Path(output), scale)


@main.command()
@click.argument("file")
@commands.one_line_errors
def info(file: str) -> None:
    """Print the metadata of a direction file as JSON."""
    import json

    from generation import direction_files

    found = direction_files.read(file)
    click.echo(json.dumps({"directions": len(found), **found.about}, indent=2))


if __name__ == "__main__":
    main()
