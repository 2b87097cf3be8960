# SPDX-License-Identifier: Apache-2.0
"""Generate images with a trained network.

    # one PNG per seed
    python gen_images.py --network=network.pkl --seeds=0-15 --outdir=out

    # one class, by name or index, with truncation
    python gen_images.py --network=network.pkl --seeds=0-15 --class="grinning face" --trunc=0.7 --outdir=out

    # one picture of 8 x 4 images
    python gen_images.py --network=network.pkl --seeds=0-31 --grid=8x4 --outdir=out

    # 50,000 images with four processes, as a data set; the same command resumes after a kill
    python gen_images.py --network=network.pkl --seeds=0-49999 --gpus=4 --to=fakes.zip

    # the images of style codes in a file, for example of run_inversion.py; --save-w writes such files
    python gen_images.py --network=network.pkl --projected-w=projected_w.npz --outdir=out

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
from typing import TYPE_CHECKING, Any

import click

from dnnlib import outputs
from dnnlib.one_path import OnePath
from generation import commands

if TYPE_CHECKING:
    from generation.render import Network


def _check_together(
    grid: str | None, classes: str | None, class_name: str | None, samples_per_class: int | None, **more: Any
) -> None:
    """Raise ValueError for options that exclude or require each other."""
    if more["seeds"] is None and not more["projected_w"]:
        raise ValueError("give --seeds=LIST, or --projected-w=FILE")
    if (more["projected_w"] or more["save_w"]) and (more["to"] or classes):
        flag = "--projected-w" if more["projected_w"] else "--save-w"
        raise ValueError(f"{flag} makes PNG files in --outdir: remove --to and --classes")
    if more["projected_w"] and (more["save_w"] or more["batch_sz"] > 1):
        raise ValueError("--projected-w has one image per style code: remove --save-w and --batch-sz")
    if bool(more["to"]) == bool(more["outdir"]):
        raise ValueError("give either --outdir=DIR, or --to=DIR, x.zip, x.npz or x-{000000..000099}.tar")
    if more["to"] and (grid or classes or more["batch_sz"] > 1 or more["scale"] > 1):
        raise ValueError("--to writes one image per seed: remove --grid, --classes, --batch-sz and --scale")
    if more["outdir"] and more["gpus"] > 1:
        raise ValueError(f"--gpus={more['gpus']} needs --to in place of --outdir")
    if classes and (class_name or grid):
        raise ValueError("--classes makes a sheet of several classes: remove --class and --grid")
    if samples_per_class and not classes:
        raise ValueError("--samples-per-class needs --classes")


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@commands.common_options
@click.option("--seeds", metavar="LIST", help="Seeds and ranges, for example 0,1,4-6.")
@commands.projected_w_option()
@commands.save_w_option
@click.option("--outdir", metavar="DIR", help="Folder for the PNG files. Existing ones are replaced.")
@click.option(
    "--to",
    cls=OnePath,
    metavar="DIR|ZIP|NPZ|TAR",
    help="Write one image per seed into a new folder, x.zip (a data set), x.npz (ADM's layout) or "
    "x-{000000..000099}.tar (webdataset). The same command resumes after a kill.",
)
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes for --to: one per GPU, or with one thread each on a CPU.",
)
@click.option(
    "--scale",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Magnify the PNG files of --outdir by repeating every pixel.",
)
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
@commands.noise_mode_option
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
    seeds: str | None,
    projected_w: str | None,
    save_w: str | None,
    outdir: str | None,
    to: str | None,
    gpus: int,
    scale: int,
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
    options = commands.NetworkOptions(**common)
    more = {"to": to, "outdir": outdir, "gpus": gpus, "batch_sz": batch_sz, "scale": scale}
    more |= {"seeds": seeds, "projected_w": projected_w, "save_w": save_w}
    _check_together(grid, classes, class_name, samples_per_class, **more)
    inputs = {"--network": options.network, "--projected-w": projected_w}
    if outdir:
        outputs.check_output("--outdir", outdir, data={"--data": options.data}, folder=True)
    commands.check_save_w(save_w, inputs)
    commands.check_finite("--rotate", rotate)
    seed_list = [] if projected_w else commands.parse_seeds(str(seeds))
    offset = commands.parse_translate(translate)
    shape = commands.parse_grid(grid) if grid else None
    if shape and not projected_w:
        _check_cells(str(grid), shape, len(seed_list) * batch_sz, "--seeds and --batch-sz make")
    moved = {"translate": translate if any(offset) else None, "rotate": rotate or None}
    if to:
        from generation import bulk, containers

        target = containers.parse_target(to)
        job = bulk.Job(options, tuple(seed_list), class_name, offset, rotate, batch, target, moved)
        bulk.generate(job, gpus)
        return
    from generation import render

    network, centroids = options.load()
    render.set_transform(network.G, offset, rotate)
    about = {**options.description(), **moved, "scale": scale if scale > 1 else None}
    settings: dict[str, Any] = {
        "truncation": options.truncation,
        "centroids": centroids,
        "noise_mode": noise_mode,
        "batch": batch,
        "scale": scale,
    }
    folder = Path(str(outdir))
    if projected_w:
        ignored = {"--seeds": seeds, "--class": class_name, "--trunc": options.truncation != 1}
        commands.note_ignored("--projected-w", {**ignored, "--centroids-path": options.centroids_path})
        _write_projected(network, projected_w, folder, grid, about, settings)
        return
    if classes:
        columns = commands.sheet_seeds(seed_list, samples_per_class)
        _write_sheet(network, classes, columns, folder, about, settings)
        return
    index = None if class_name is None else render.class_index(network, class_name)
    _write_seeds(network, seed_list, folder, batch_sz, index, grid, save_w, about, settings)


def _check_cells(grid: str, shape: tuple[int, int], count: int, who: str) -> None:
    """Raise ValueError for a grid with another number of cells than images."""
    if shape[0] * shape[1] != count:
        raise ValueError(f"--grid={grid} has {shape[0] * shape[1]} cells, but {who} {count} images")


def _write_seeds(
    network: Network,
    seeds: list[int],
    folder: Path,
    batch_sz: int,
    index: int | None,
    grid: str | None,
    save_w: str | None,
    about: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Write seed0000.png, ... or grid.png, and the style codes of --save-w."""
    from generation import pictures

    shape = commands.parse_grid(grid) if grid else None
    about = {**about, "images_per_seed": batch_sz if batch_sz > 1 else None, "grid": grid}
    pictures.check_size(network, grid, shape, batch_sz, settings["scale"])
    folder.mkdir(parents=True, exist_ok=True)
    if save_w:
        truncation = settings["truncation"], settings["centroids"]
        pictures.save_codes(network, seeds, save_w, batch_sz, index, *truncation)
    if shape:
        path = folder / "grid.png"
        pictures.write_grid(network, seeds, path, shape[0], batch_sz, index, about, **settings)
    else:
        pictures.write_seeds(network, seeds, folder, batch_sz, index, about, **settings)


def _write_projected(
    network: Network,
    path: str,
    folder: Path,
    grid: str | None,
    about: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Write proj00.png, ... or grid.png of the style codes in a file."""
    from generation import pictures, w_files

    ws = w_files.load_w(path, network)
    shape = commands.parse_grid(grid) if grid else None
    if shape:
        _check_cells(str(grid), shape, len(ws), f"--projected-w={path} has")
        pictures.check_size(network, grid, shape, 1, settings["scale"])
    folder.mkdir(parents=True, exist_ok=True)
    given = {key: settings[key] for key in ("noise_mode", "batch", "scale")}
    about = {**about, "w_file": Path(path).name, "grid": grid}
    pictures.write_codes(network, ws, folder, shape[0] if shape else None, about, **given)


def _write_sheet(
    network: Network,
    classes: str,
    columns: list[int],
    folder: Path,
    about: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    """Write classes.png."""
    from generation import pictures, render
    from torch_utils import images

    rows = render.class_indices(network, classes)
    what = f"--classes={classes[:40]} with {len(columns)} images of each"
    images.check_picture(what, len(rows) * len(columns), network.G.img_resolution * settings["scale"])
    folder.mkdir(parents=True, exist_ok=True)
    pictures.write_sheet(network, rows, columns, folder / "classes.png", about, **settings)


if __name__ == "__main__":
    main()
