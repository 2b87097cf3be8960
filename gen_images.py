# SPDX-License-Identifier: Apache-2.0
"""Images from a network pickle.

    # one PNG per seed
    python gen_images.py --network=network-snapshot.pkl --seeds=0-15 --outdir=out

    # one class, by name or index, with truncation
    python gen_images.py --network=network-snapshot.pkl --seeds=0-15 --class="grinning face" --trunc=0.7 --outdir=out

    # one picture of 8 x 4 images
    python gen_images.py --network=network-snapshot.pkl --seeds=0-31 --grid=8x4 --outdir=out

    # a sheet with one labelled row per class; every column is one seed
    python gen_images.py --network=network-snapshot.pkl --seeds=0 --classes=0-8 --samples-per-class=8 --outdir=out

Latents are numpy's RandomState(seed).randn(batch_sz, z_dim), labels without --class RandomState(seed).randint(0, c_dim, batch_sz), as published.
A seed's image does not depend on what else is generated: on CPUs images are computed one at a time, so that even the last bit is the same whatever
--batch says; on GPUs --batch may change roundings, that is single pixels by one grey level.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

import dnnlib.util
from torch_utils import images, memory
from training.build import PRECISIONS, pick_device
from training.data.dataset import ImageDataset
from training.generator import Generator
from training.networks import files, hub, stems

TRUST_HELP = "run a pickle that cannot be read otherwise. It is a program then: it can do whatever you can. Only for files whose maker you trust"
MAX_SEED = 2**32 - 1  # of numpy's RandomState


@dataclasses.dataclass
class Network:
    """A generator with what its pickle says about itself."""

    path: str
    G: Any  # a Generator; with --trust-pickle maybe a weights.ForeignGenerator, which our scripts use alike
    training_set_kwargs: dict[str, Any]
    provenance: dict[str, Any]
    class_names: list[str] | None

    @property
    def device(self) -> torch.device:
        return next(self.G.parameters()).device

    def label_text(self, index: int) -> str:
        """'3 sad' or '3'."""
        return f"{index} {self.class_names[index]}" if self.class_names and index < len(self.class_names) else str(index)


def load_network(
    path_or_url: str,
    device: torch.device | str = "cpu",
    data: str | None = None,
    key: str = "G_ema",
    trust_pickle: bool = False,
    precision: str = "auto",
) -> Network:
    """Read a network pickle, a run folder's best one, a .safetensors file with its .json, or hf://OWNER/NAME, without running what is in it.

    Class names come from the data set `data` if given, else from the file, else from the data set the file names, if it is still there.
    trust_pickle: if a pickle cannot be read so, run it, and use the network that comes out with its own code.
    precision: of the layers that are flagged for reduced precision, auto or one of `training.build.PRECISIONS`.
    Raises FileNotFoundError, OSError or ValueError with one line.
    """
    if hub.is_repository(path_or_url):
        contents = hub.pull(path_or_url)
    else:
        path = dnnlib.util.open_url(path_or_url, return_filename=True, num_attempts=3) if dnnlib.util.is_url(path_or_url) else path_or_url
        if Path(path).is_dir():
            path = path_or_url = stems.network_in("--network", path)
        if not Path(path).is_file():
            raise FileNotFoundError(f"--network: there is no file {path_or_url}")
        try:
            contents = files.read(path, key=key)
        except ValueError as error:
            if not trust_pickle:
                raise ValueError(str(error).replace(str(path), path_or_url, 1)) from None
            warn_trusted(path_or_url)
            if precision != "auto":
                raise ValueError(f"--precision={precision}: {path_or_url} runs with its own code, which chooses for itself") from None
            foreign = files.trusted_generator(path, key).to(device)
            return Network(path_or_url, foreign, {}, {}, _class_names(foreign.c_dim, data, {}, {}))
    G = contents.only(key).generators[key].to(device)
    set_precision(G, precision)
    kwargs, provenance = contents.training_set_kwargs or {}, contents.provenance or {}
    return Network(path_or_url, G, kwargs, provenance, _class_names(G.c_dim, data, kwargs, provenance))


def set_precision(G: Generator, precision: str) -> None:
    """Choose what the layers that are flagged for reduced precision compute in, on the device they are on."""
    if precision != "auto":
        G.synthesis.reduced_dtype = PRECISIONS[precision]
    elif next(G.parameters()).device.type != "cuda" and G.synthesis.reduced_dtype == torch.float16:
        G.synthesis.reduced_dtype = None  # as published: float16 is for GPUs


def warn_trusted(path: str) -> None:
    """What --trust-pickle means, said where it takes effect."""
    click.echo(f"warning: {path} is run as a program, because of --trust-pickle: it can do whatever you can do on this machine", err=True)


def _class_names(num_classes: int, data: str | None, kwargs: dict[str, Any], provenance: dict[str, Any]) -> list[str] | None:
    if not num_classes:
        return None
    if data is not None:
        names = ImageDataset(data, use_labels=True).class_names
        if names is not None and len(names) != num_classes:
            raise ValueError(f"--data={data}: it has {len(names)} classes, the network {num_classes}")
        return names
    names = provenance.get("class_names")
    trained_on = kwargs.get("path")
    if names is None and isinstance(trained_on, str) and os.path.exists(trained_on):
        try:
            names = ImageDataset(trained_on, use_labels=True).class_names
        except (ValueError, OSError):
            names = None  # whatever lies there now, the network does not need it
    fits = isinstance(names, list) and len(names) == num_classes and all(isinstance(name, str) for name in names)
    return names if fits else None


def class_index(network: Network, text: str) -> int:
    """The class that `text` means: a whole number is an index, anything else a name. Raises ValueError with the nearest known name."""
    num_classes = network.G.c_dim
    if not num_classes:
        raise ValueError(f"class {text!r}: {network.path} is unconditional, it has no classes")
    text = text.strip()
    if text.isdecimal():
        if int(text) >= num_classes:
            raise ValueError(f"class {text}: the network's classes are 0 to {num_classes - 1}")
        return int(text)
    if network.class_names is None:
        raise ValueError(
            f"class {text!r}: {network.path} knows no class names; give an index from 0 to {num_classes - 1}, or --data with a data set that does"
        )
    by_name = {name.casefold(): index for index, name in reversed(list(enumerate(network.class_names)))}
    if text.casefold() not in by_name:
        if num_classes <= 20:
            listed = ", ".join(f"{index} {name}" for index, name in enumerate(network.class_names))
            raise ValueError(f"class {text!r} is unknown; the classes are {listed}")
        near = difflib.get_close_matches(text.casefold(), by_name, n=1, cutoff=0.0)[0]
        raise ValueError(f"class {text!r} is unknown; the nearest of {num_classes} names is {network.class_names[by_name[near]]!r} ({by_name[near]})")
    return by_name[text.casefold()]


def class_indices(network: Network, text: str) -> list[int]:
    """'0,3-5,cat' -> [0, 3, 4, 5, index of cat]; 'all' = every class. A name may hold a hyphen. Raises ValueError as `class_index`."""
    if text.strip() == "all" and network.G.c_dim:
        return list(range(network.G.c_dim))
    indices: list[int] = []
    for entry in text.split(","):
        if entry.strip().replace("-", "").isdecimal():
            indices += [class_index(network, str(value)) for value in dnnlib.util.parse_int_list(entry)]
        else:
            indices.append(class_index(network, entry))
    return indices


def parse_grid(text: str) -> tuple[int, int]:
    """'8x4' -> (8 columns, 4 rows). Raises ValueError."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--grid={text}: say columns x rows, for example 8x4")
    return int(parts[0]), int(parts[1])


def parse_seeds(text: str) -> list[int]:
    """'0,1,4-6' -> [0, 1, 4, 5, 6]. Raises ValueError."""
    try:
        seeds = dnnlib.util.parse_int_list(text)
    except ValueError as error:
        raise ValueError(f"--seeds: {error}") from None
    if max(seeds) > MAX_SEED:
        raise ValueError(f"--seeds: {max(seeds)} is too large, seeds go up to {MAX_SEED}")
    return seeds


def check_finite(flag: str, value: float) -> None:
    """Raises ValueError for NaN and infinities."""
    if not math.isfinite(value):
        raise ValueError(f"{flag}={value} is not a finite number")


def load_centroids(path: str, w_dim: int) -> Tensor:
    """Cluster centres in W, float32 [K, w_dim], from a .npy file. Raises FileNotFoundError or ValueError."""
    try:
        centroids = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise ValueError(f"--centroids-path={path}: this is no .npy array") from None
    if not isinstance(centroids, np.ndarray) or centroids.ndim != 2 or centroids.shape[1] != w_dim or not len(centroids):
        raise ValueError(f"--centroids-path={path}: expected an array [K, {w_dim}], got {list(getattr(centroids, 'shape', []))}")
    return torch.from_numpy(centroids.astype(np.float32))


def styles(G: Generator, z: Tensor, labels: Tensor | None, truncation: float = 1, centroids: Tensor | None = None) -> Tensor:
    """ws [N, num_ws, W], truncated towards the class's mean, or towards the nearest of `centroids` [K, W] (Mokady et al. 2022)."""
    if centroids is None:
        return G.mapping(z, labels, truncation_psi=truncation)
    ws = G.mapping(z, labels)
    centroids = centroids.to(ws.device)
    nearest = centroids[(ws[:, :1] - centroids).square().sum(dim=2).argmin(dim=1)][:, None, :]  # [N, 1, W]
    return nearest.lerp(ws, truncation)


def set_transform(G: Generator, translate: tuple[float, float] = (0, 0), rotate: float = 0) -> None:
    """Move what all later images show by `translate` (fractions of the image, right and down), after turning it by `rotate` degrees anticlockwise.

    The input layer's matrix maps positions of the output to positions of the picture, so it gets the inverse of that motion.
    Raises ValueError for a motion of a network that cannot move its pictures.
    """
    if not hasattr(G.synthesis, "input"):
        if (*translate, rotate) != (0, 0, 0):
            raise ValueError("--translate and --rotate: this network has no input layer that can move a picture")
        return
    angle = np.deg2rad(rotate)
    motion = np.array([[np.cos(angle), np.sin(angle), translate[0]], [-np.sin(angle), np.cos(angle), translate[1]], [0, 0, 1]])
    G.synthesis.input.transform.copy_(torch.from_numpy(np.linalg.inv(motion).astype(np.float32)))


@torch.no_grad()
def synthesize(network: Network, ws: Tensor, noise_mode: str = "const") -> Tensor:
    """uint8 images [N, C, R, R] on the CPU of ws [N, num_ws, W]. Raises ValueError for a network that returns NaN or Inf."""
    x = network.G.synthesis(ws, noise_mode=noise_mode)
    if not torch.isfinite(x).all():
        raise ValueError(f"{network.path}: the network returned NaN or Inf")
    return images.to_uint8(x).cpu()


@torch.no_grad()
def render(
    network: Network,
    z: Tensor,
    labels: Tensor | None = None,
    *,
    truncation: float = 1,
    centroids: Tensor | None = None,
    noise_mode: str = "const",
    batch: int = 16,
    done: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """uint8 images [N, C, R, R] on the CPU of latents z [N, Z] and int64 labels [N] or None; `done(n)` is told of every n images computed.

    Matrix products round differently with the number of rows, so on CPUs images are computed one by one, where it costs little; `batch` is for GPUs.
    """
    size = 1 if network.device.type == "cpu" else batch
    parts = []
    for start in range(0, len(z), size):
        rows = slice(start, start + size)
        c = None if labels is None else labels[rows].to(network.device)
        parts.append(synthesize(network, styles(network.G, z[rows].to(network.device), c, truncation, centroids), noise_mode))
        done(len(parts[-1]))
    return torch.cat(parts)


def latents(seed: int, count: int, z_dim: int) -> Tensor:
    """float32 [count, z_dim], numpy's RandomState(seed).randn: the published meaning of a seed."""
    return torch.from_numpy(np.random.RandomState(seed).randn(count, z_dim).astype(np.float32))


def seed_labels(network: Network, seed: int, count: int, index: int | None) -> Tensor | None:
    """int64 [count]: the class `index`, or RandomState(seed).randint(0, c_dim, count); None for an unconditional network."""
    if not network.G.c_dim:
        return None
    if index is not None:
        return torch.full([count], index, dtype=torch.int64)
    return torch.from_numpy(np.random.RandomState(seed).randint(0, network.G.c_dim, count).astype(np.int64))


def class_sheet(network: Network, classes: Sequence[int], seeds: Sequence[int], columns: int | None = None, **render_kwargs: Any) -> Any:
    """PIL image with len(seeds) images of each class, in rows of `columns` images (default: one class per row), each row labelled with its classes.

    Image (class, seed) is the one that `--class=CLASS --seeds=SEED` makes.
    """
    z = torch.cat([latents(seed, 1, network.G.z_dim) for seed in seeds]).repeat(len(classes), 1)
    labels = torch.tensor(classes, dtype=torch.int64).repeat_interleave(len(seeds))
    pixels = render(network, z, labels, **render_kwargs)
    columns = columns or len(seeds)
    row_labels = []
    for start in range(0, len(pixels), columns):
        inside = labels[start : start + columns].unique_consecutive().tolist()
        first = network.label_text(inside[0])
        row_labels.append(first if len(inside) == 1 else f"{first} to {network.label_text(inside[-1])}")
    return images.labelled_grid(pixels, row_labels, columns)


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Bar with ETA on stderr, on terminals; yields update(n)."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr, show_pos=True) as bar:
        yield bar.update


def memory_remedy(batch: int | None) -> str:
    """What to change when the running command is out of memory. batch: the value of its option for images at a time."""
    context = click.get_current_context(silent=True)
    flags = [p.opts[0] for p in context.command.params if p.name == "batch"] if context is not None and batch else []
    return f"lower {flags[0]} (now {batch}), or use --device=cpu" if flags else "use a machine with more memory"


def one_line_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a command: a user's mistake (ValueError, OSError) or too little memory ends in one line and exit code 1."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            with memory.shortage_named(kwargs.get("device") or "this machine", memory_remedy(kwargs.get("batch"))):
                return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            text = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
            raise click.ClickException(" ".join(text.split())) from None

    return wrapped


precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", *PRECISIONS]),
    default="auto",
    show_default=True,
    help="of the large layers; auto = as the network was trained, fp16 on GPUs alone. bf16 is the fastest on CPUs with bf16 matrix units",
)


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that every command with a network takes."""
    for option in (
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True, help="where to compute"),
        precision_option,
        click.option(
            "--centroids-path",
            type=click.Path(exists=True, dir_okay=False),
            metavar="NPY",
            help="truncate towards the nearest of these cluster centres in W",
        ),
        click.option("--trunc", "truncation", type=float, default=1, show_default=True, help="truncation psi; 1 = none, 0 = the class's mean image"),
        click.option("--trust-pickle", is_flag=True, help=TRUST_HELP),
        click.option(
            "--network", required=True, metavar="PATH|URL", help="network pickle, or run folder, or .safetensors with its .json, or hf://OWNER/NAME"
        ),
    ):
        function = option(function)
    return function


def _write_per_seed(network: Network, seeds: Sequence[int], outdir: Path, batch_sz: int, index: int | None, batch: int, **render_kwargs: Any) -> None:
    seeds_at_once = max(1, batch // batch_sz)
    columns = int(np.ceil(np.sqrt(batch_sz)))
    with progress_bar(len(seeds) * batch_sz, "Images") as done:
        for start in range(0, len(seeds), seeds_at_once):
            chunk = seeds[start : start + seeds_at_once]
            pixels = _render_seeds(network, chunk, batch_sz, index, batch=batch, done=done, **render_kwargs)
            for seed, group in zip(chunk, pixels.split(batch_sz), strict=True):
                images.save_png(images.grid(group, columns), outdir / f"seed{seed:04d}.png")


def _render_seeds(network: Network, seeds: Sequence[int], batch_sz: int, index: int | None, **render_kwargs: Any) -> Tensor:
    z = torch.cat([latents(seed, batch_sz, network.G.z_dim) for seed in seeds])
    labels = [seed_labels(network, seed, batch_sz, index) for seed in seeds]
    return render(network, z, None if labels[0] is None else torch.cat(labels), **render_kwargs)  # type: ignore[arg-type]


def _check_together(grid: str | None, classes: str | None, class_name: str | None, samples_per_class: int | None) -> None:
    if classes and (class_name or grid):
        raise ValueError("--classes makes a sheet of several classes: leave out --class and --grid")
    if samples_per_class and not classes:
        raise ValueError("--samples-per-class needs --classes")


@click.command(context_settings={"max_content_width": 140}, help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@common_options
@click.option("--seeds", required=True, metavar="LIST", help="for example 0,1,4-6")
@click.option("--outdir", required=True, type=click.Path(file_okay=False), metavar="DIR", help="where the PNGs go")
@click.option("--batch-sz", type=click.IntRange(min=1), default=1, show_default=True, help="images per seed, tiled into one PNG")
@click.option("--class", "class_name", metavar="CLASS", help="class index or name; without it every image gets a random class")
@click.option("--classes", metavar="LIST", help="a class sheet: indices, ranges, names, or all")
@click.option("--samples-per-class", type=click.IntRange(min=1), metavar="N", help="columns of the sheet: with one seed s, the seeds s to s+N-1")
@click.option("--grid", metavar="WxH", help="one picture of W x H images instead of one PNG per seed")
@click.option(
    "--noise-mode",
    type=click.Choice(["const", "random", "none"]),
    default="const",
    show_default=True,
    help="without effect: the layers have no noise",
)
@click.option("--translate", default="0,0", show_default=True, metavar="X,Y", help="shift right and down, in image widths")
@click.option("--rotate", type=float, default=0, show_default=True, metavar="DEGREES", help="turn anticlockwise")
@click.option("--data", metavar="ZIP|DIR", help="data set to take class names from, if the pickle has none")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="images computed at a time on a GPU")
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
    check_finite("--trunc", truncation)
    check_finite("--rotate", rotate)
    numbers, offset = parse_seeds(seeds), dnnlib.util.parse_vec2(translate)
    shape = parse_grid(grid) if grid else None
    if shape and shape[0] * shape[1] != len(numbers) * batch_sz:
        raise ValueError(f"--grid={grid} holds {shape[0] * shape[1]} images, but --seeds and --batch-sz make {len(numbers) * batch_sz}")
    net = load_network(network, pick_device(device), data, trust_pickle=trust_pickle, precision=precision)
    set_transform(net.G, offset, rotate)
    centroids = load_centroids(centroids_path, net.G.w_dim) if centroids_path else None
    options: dict[str, Any] = {"truncation": truncation, "centroids": centroids, "noise_mode": noise_mode, "batch": batch}
    folder = Path(outdir)
    if classes:
        columns = sheet_seeds(numbers, samples_per_class)
        rows = class_indices(net, classes)
        folder.mkdir(parents=True, exist_ok=True)
        with progress_bar(len(rows) * len(columns), "Images") as done:
            images.save_png(class_sheet(net, rows, columns, done=done, **options), folder / "classes.png")
        click.echo(f"{len(rows)} classes, {len(columns)} images each: {folder / 'classes.png'}")
        return
    index = None if class_name is None else class_index(net, class_name)
    folder.mkdir(parents=True, exist_ok=True)
    if shape:
        with progress_bar(len(numbers) * batch_sz, "Images") as done:
            pixels = _render_seeds(net, numbers, batch_sz, index, done=done, **options)
        images.save_png(images.grid(pixels, shape[0]), folder / "grid.png")
        click.echo(f"{len(pixels)} images: {folder / 'grid.png'}")
    else:
        _write_per_seed(net, numbers, folder, batch_sz, index, **options)
        click.echo(f"{len(numbers)} PNG files in {folder}")


def sheet_seeds(seeds: Sequence[int], samples_per_class: int | None) -> list[int]:
    """The seeds of a sheet's columns: those given, or samples_per_class consecutive ones from a single seed. Raises ValueError for other counts."""
    if samples_per_class is None or samples_per_class == len(seeds):
        return list(seeds)
    if len(seeds) != 1:
        raise ValueError(f"--samples-per-class={samples_per_class} does not go with {len(seeds)} seeds: give one seed, or as many")
    if seeds[0] + samples_per_class - 1 > MAX_SEED:
        raise ValueError(f"seed {seeds[0] + samples_per_class - 1}: seeds go up to {MAX_SEED}")
    return list(range(seeds[0], seeds[0] + samples_per_class))


if __name__ == "__main__":
    main()
