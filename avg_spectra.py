# SPDX-License-Identifier: Apache-2.0
"""Average power spectra of generated and real images, as StyleGAN3's paper shows them.

    # mean and standard deviation of the training data, which whiten every set
    python avg_spectra.py stats --source=ffhq256.zip

    # the spectra of the training data and of a network
    python avg_spectra.py calc --source=ffhq256.zip --dest=reals.npz --mean=112.684 --std=69.509
    python avg_spectra.py calc --source=n.pkl --dest=fakes.npz --mean=112.684 --std=69.509 --num=50000

    # pictures
    python avg_spectra.py heatmap fakes.npz --save=heatmap.png
    python avg_spectra.py slices reals.npz fakes.npz --save=slices.png

A source is a network file or run folder, or images: a data set, a folder, a zip or ADM's .npz.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

import dnnlib.util
from dnnlib import bounded, outputs
from dnnlib.one_path import OnePath
from dnnlib.progress import Progress
from generation import commands

if TYPE_CHECKING:
    from torch import Tensor

    from metrics.image_sets import GeneratedImages, RealImages

_NETWORKS = (".pkl", ".pickle", ".safetensors")
_LEVELS = (-40, 20)  # dB of the colours of a heatmap


def open_source(
    path: str, num: int | None, seed: int, options: dict[str, Any]
) -> tuple[GeneratedImages | RealImages, int]:
    """The images of a network or of a data set, and how many there are.

    Raises:
        ValueError: The source is of neither kind, or a network comes without --num.
        OSError: It cannot be read.
    """
    from generation import render
    from metrics.image_sets import GeneratedImages, ImageFiles, RealImages
    from torch_utils.devices import use_device
    from training import run_folder
    from training.networks import hub

    is_run = run_folder.is_run_folder(path) or run_folder.is_recipe_folder(path)
    named = path.lower().endswith(_NETWORKS) or dnnlib.util.is_url(path)
    is_network = named or hub.is_repository(path) or is_run
    if not is_network:
        images = RealImages(ImageFiles(path), num)
        return images, len(images)
    if num is None:
        raise ValueError(f"--num is missing: {path} is a network, which can generate any number of images")
    device = use_device(options["device"])
    network = render.load_network(path, device, trust_pickle=options["trust_pickle"])
    return GeneratedImages(network.G, seed, device, None, None), num


def batches(source: GeneratedImages | RealImages, count: int, size: int) -> Iterator[Tensor]:
    """The images of a source in parts, with progress on stderr: RGB, transparent pixels laid on white."""
    from torch_utils.images import to_rgb

    with Progress(label="Images", unit="", silent=5) as progress:
        for start in range(0, count, size):
            part = range(start, min(start + size, count))
            yield to_rgb(source(part))
            progress(part.stop, count)


def source_options(function: Any) -> Any:
    """The options of the commands that read images."""
    for option in (
        commands.device_option,
        click.option(
            "--batch", type=click.IntRange(min=1), default=32, show_default=True, help="images at a time"
        ),
        click.option("--trust-pickle", is_flag=True, help=commands.TRUST_HELP),
        click.option(
            "--seed",
            type=click.IntRange(0, commands.MAX_SEED),
            default=0,
            show_default=True,
            help="of the latents of a network",
        ),
        click.option(
            "--num",
            type=click.IntRange(min=2),
            metavar="N",
            help="images; of a data set a random subset  [default: all; required for networks]",
        ),
        click.option(
            "--source",
            cls=OnePath,
            required=True,
            metavar="PKL|ZIP|DIR|NPZ",
            help="network, data set or images",
        ),
    ):
        function = option(function)
    return function


@click.group(context_settings={"max_content_width": 110}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
def main() -> None:
    """The command line; its help is the module's docstring."""


@main.command()
@source_options
@commands.one_line_errors
def stats(**options: Any) -> None:
    """Print mean and standard deviation of the pixels, for calc's --mean and --std."""
    from metrics import spectra

    source, count = open_source(options["source"], options["num"], options["seed"], options)
    found = spectra.pixel_statistics(batches(source, count, options["batch"]))
    click.echo(f"{found.num_images:,} images: --mean={found.mean:.6g} --std={found.std:.6g}")


@main.command()
@source_options
@click.option("--dest", required=True, metavar="NPZ", help="where to write the spectrum")
@click.option("--mean", type=float, required=True, help="of the training data's pixels (command stats)")
@click.option("--std", type=float, required=True, help="of the training data's pixels (command stats)")
@click.option(
    "--beta", type=click.FloatRange(min=0), default=8, show_default=True, help="of the Kaiser window"
)
@click.option(
    "--interp",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="samples per frequency: zero padding",
)
@commands.one_line_errors
def calc(**options: Any) -> None:
    """Calculate the average power spectrum of a set of images."""
    from metrics import spectra

    for flag in ("mean", "std", "beta"):
        commands.check_finite(f"--{flag}", options[flag])
    if options["std"] <= 0:
        raise ValueError(f"--std={options['std']:g}: must be positive")
    outputs.check_output("--dest", options["dest"], data={"--source": options["source"]})
    source, count = open_source(options["source"], options["num"], options["seed"], options)
    images = batches(source, count, options["batch"])
    spectrum, size = spectra.average_spectrum(
        images, options["mean"], options["std"], options["beta"], options["interp"]
    )
    Path(options["dest"]).parent.mkdir(parents=True, exist_ok=True)
    with dnnlib.util.atomic_write(options["dest"]) as file:
        np.savez(file, spectrum=spectrum, image_size=size)
    click.echo(options["dest"])


def read_spectrum(path: str) -> tuple[np.ndarray, int]:
    """A spectrum [N, N] and the size of its images. Raises ValueError for other files."""
    found = bounded.read_npz(path, 2**32, ["spectrum", "image_size"])
    spectrum, size = found.get("spectrum"), found.get("image_size")
    if spectrum is None or size is None:
        raise ValueError(f"{path}: no spectrum of avg_spectra.py calc (spectrum, image_size)")
    shape = spectrum.shape
    if (
        len(shape) != 2
        or shape[0] != shape[1]
        or spectrum.dtype.kind != "f"
        or size.size != 1
        or not shape[0]
    ):
        raise ValueError(f"{path}: the spectrum must be floats [N, N], not {spectrum.dtype} {list(shape)}")
    if not np.isfinite(spectrum).all() or spectrum.min() < 0:
        raise ValueError(f"{path}: the spectrum holds NaN, Inf or negative power")
    return spectrum.astype(np.float64), int(size)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Any, path: str, dpi: int) -> None:
    ending = os.path.splitext(path)[1].lstrip(".").lower() or "png"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        with dnnlib.util.atomic_write(path) as file:
            figure.savefig(file, format=ending, dpi=dpi)
    except ValueError as error:
        raise ValueError(f"--save={path}: {dnnlib.util.reason(error)}") from None
    click.echo(path)


def draw_heatmap(path: str, save: str, dpi: int, smooth: float) -> None:
    """Draw one spectrum as an image in dB."""
    from metrics import spectra

    spectrum, size = read_spectrum(path)
    levels = spectra.decibels(spectrum, smooth)
    figure, axes = _figure(6, 5)
    extent = (-size / 2, size / 2, -size / 2, size / 2)
    shown = axes.imshow(levels, extent=extent, origin="lower", vmin=_LEVELS[0], vmax=_LEVELS[1])
    axes.contour(levels, np.arange(*_LEVELS, 10), extent=extent, colors="black", linewidths=0.5)
    axes.set(xlabel="cycles per image", ylabel="cycles per image", title=os.path.basename(path))
    figure.colorbar(shown, label="power, dB")
    _save(figure, save, dpi)


def draw_slices(paths: Sequence[str], save: str, dpi: int, smooth: float) -> None:
    """Draw spectra along 0 degrees (solid) and 45 degrees (dashed).

    Raises:
        ValueError: The images differ in size.
    """
    from metrics import spectra

    found = {path: read_spectrum(path) for path in paths}
    sizes = {size for _, size in found.values()}
    if len(sizes) > 1:
        each = ", ".join(f"{path}: {size}" for path, (_, size) in found.items())
        raise ValueError(f"spectra of images of different sizes ({each})")
    figure, axes = _figure(7, 5)
    for path, (spectrum, size) in found.items():
        straight, diagonal = spectra.slices(spectra.decibels(spectrum, smooth))
        frequencies = np.linspace(0, size / 2, len(straight))
        (line,) = axes.plot(frequencies, straight, label=f"{os.path.basename(path)}, 0 degrees")
        axes.plot(
            frequencies * np.sqrt(2),
            diagonal,
            "--",
            color=line.get_color(),
            label=f"{os.path.basename(path)}, 45 degrees",
        )
    axes.set(xlabel="cycles per image", ylabel="power, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, save, dpi)


@main.command()
@click.argument("npz_file")
@click.option(
    "--save", metavar="FILE", help="picture to write: .png, .pdf, .svg or .jpg  [default: NPZ's name.png]"
)
@click.option("--dpi", type=click.IntRange(10, 1200), default=100, show_default=True, help="dots per inch")
@click.option(
    "--smooth",
    type=click.FloatRange(0, 1000),
    default=1.25,
    show_default=True,
    help="of a Gaussian, in samples",
)
@commands.one_line_errors
def heatmap(npz_file: str, save: str | None, dpi: int, smooth: float) -> None:
    """Draw a spectrum as a heatmap in dB."""
    save = save or f"{os.path.splitext(npz_file)[0]}.png"
    outputs.check_output("--save", save, inputs={"NPZ": npz_file})
    draw_heatmap(npz_file, save, dpi, smooth)


@main.command("slices")
@click.argument("npz_files", nargs=-1, required=True)
@click.option(
    "--save",
    metavar="FILE",
    help="picture to write: .png, .pdf, .svg or .jpg  [default: the first NPZ's name-slices.png]",
)
@click.option("--dpi", type=click.IntRange(10, 1200), default=100, show_default=True, help="dots per inch")
@click.option(
    "--smooth", type=click.FloatRange(0, 1000), default=0, show_default=True, help="of a Gaussian, in samples"
)
@commands.one_line_errors
def slices_command(npz_files: tuple[str, ...], save: str | None, dpi: int, smooth: float) -> None:
    """Draw spectra along 0 degrees (solid) and 45 degrees (dashed)."""
    save = save or f"{os.path.splitext(npz_files[0])[0]}-slices.png"
    outputs.check_output("--save", save, inputs={path: path for path in npz_files})
    draw_slices(npz_files, save, dpi, smooth)


if __name__ == "__main__":
    main()
