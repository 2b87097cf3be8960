# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the commands that load a network: options, parsing, progress and one-line errors.

Importing this module does not import torch, so that --help is fast.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

import dnnlib.util
from dnnlib import outputs
from dnnlib.one_path import OnePath
from dnnlib.progress import Progress
from generation import edits

if TYPE_CHECKING:
    from torch import Tensor

    from generation.render import Network

MAX_SEED = 2**32 - 1  # of numpy's RandomState
PRECISION_NAMES = ("fp32", "fp16", "bf16")  # the keys of torch_utils.devices.PRECISIONS
TRUST_HELP = (
    "Run the code in a pickle that cannot be read otherwise. The code can do anything that you can do on "
    "this "
    "machine: use this only for files from people you trust."
)


def parse_grid(text: str) -> tuple[int, int]:
    """Parse --grid: '8x4' or '8,4' -> (8 columns, 4 rows). Raises ValueError."""
    try:
        return dnnlib.util.parse_grid(text)
    except ValueError as error:
        raise ValueError(f"--grid={text[:40]}: {error}") from None


def parse_seeds(text: str, flag: str = "--seeds") -> list[int]:
    """Parse a list of seeds: '0,1,4-6' -> [0, 1, 4, 5, 6]. Raises ValueError."""
    try:
        seeds = dnnlib.util.parse_int_list(text)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None
    if max(seeds) > MAX_SEED:
        raise ValueError(f"{flag}: {max(seeds)} is too large, the largest seed is {MAX_SEED}")
    return seeds


def parse_translate(text: str) -> tuple[float, float]:
    """Parse a value of --translate: '0.5,-1' -> (0.5, -1.0). Raises ValueError."""
    numbers = edits.numbers(f"--translate={text[:40]}:", text)
    if len(numbers) != 2:
        raise ValueError(f"--translate={text[:40]}: give two numbers, right and down, for example 0.5,-1")
    return numbers[0], numbers[1]


def check_finite(flag: str, value: float) -> None:
    """Raise ValueError for NaN, infinities, and what is infinite in float32."""
    if not abs(value) <= edits.MAX_NUMBER:
        raise ValueError(f"{flag}={value} is not a finite number")


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Show progress and the remaining time on stderr. Yields update(n)."""
    with Progress(label=label, unit="", silent=10) as progress:
        yield lambda count: progress.advance(count, total)


def memory_remedy(batch: int | None) -> str:
    """How to reduce the memory of the running command. `batch` is the value of its batch option."""
    context = click.get_current_context(silent=True)
    flags = (
        [p.opts[0] for p in context.command.params if p.name == "batch"]
        if context is not None and batch
        else []
    )
    return (
        f"lower {flags[0]} (now {batch}), or use --device=cpu" if flags else "use a machine with more memory"
    )


def one_line_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command so that user errors and a lack of memory end it with one line and exit code 1.

    User errors are ValueError and OSError. SIGTERM and SIGHUP end the command as Ctrl-C does, without leaving
    temporary files.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from torch_utils import memory

        dnnlib.util.plain_warnings()
        dnnlib.util.print_any_name()
        try:
            remedy = memory_remedy(kwargs.get("batch"))
            with (
                outputs.interruptible(),
                memory.out_of_memory_hint(kwargs.get("device") or "this machine", remedy),
            ):
                return function(*args, **outputs.expand_home(kwargs))
        except (ValueError, OSError) as error:
            text = (
                f"{error.strerror}: {error.filename}"
                if isinstance(error, OSError) and error.filename
                else str(error)
            )
            raise click.ClickException(" ".join(text.split())) from None

    return wrapped


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Device to compute on.",
)
noise_mode_option = click.option(
    "--noise-mode",
    type=click.Choice(["const", "random", "none"]),
    default="const",
    show_default=True,
    help="No effect: the layers have no noise. Accepted for compatibility.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", *PRECISION_NAMES]),
    default="auto",
    show_default=True,
    help="Number format of the large layers. auto: as in training, but fp16 only on GPUs. bf16 is fastest "
    "on CPUs with bf16 units.",
)
batch_help = "Images computed at a time on a GPU. A CPU computes one at a time."


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with the options of `NetworkOptions`."""
    for option in (
        click.option("--edit", multiple=True, metavar=edits.METAVAR, help=edits.HELP),
        click.option(
            "--data",
            metavar="ZIP|DIR",
            help="Data set that provides class names, if the network file has none.",
        ),
        device_option,
        precision_option,
        click.option(
            "--centroids-path",
            metavar="PATH|URL",
            help="A .npy file of cluster centres in W. Truncation is towards the nearest of them.",
        ),
        click.option(
            "--trunc",
            "truncation",
            type=float,
            default=1,
            show_default=True,
            help="Truncation psi: 1 = no truncation, 0 = the mean image of the class.",
        ),
        click.option("--trust-pickle", is_flag=True, help=TRUST_HELP),
        click.option(
            "--network",
            cls=OnePath,
            required=True,
            metavar="PATH|URL",
            help="Network pickle, .safetensors file, run folder (its best network), or hf://OWNER/NAME.",
        ),
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class NetworkOptions:
    """The values of `common_options`."""

    network: str
    trust_pickle: bool
    truncation: float
    centroids_path: str | None
    precision: str
    device: str
    data: str | None
    edit: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_finite("--trunc", self.truncation)
        self.specs(several=True)

    def specs(self, several: bool = False) -> list[edits.Spec]:
        """The values of --edit, parsed. `several`: allow lists of strengths. Raises ValueError."""
        return [edits.parse(text, several) for text in self.edit]

    def load(self, local_rank: int = 0, several: bool = False) -> tuple[Network, Tensor | None]:
        """Load the network with its edits and, if given, the centroids.

        Args:
            local_rank: Index of the GPU.
            several: Allow lists of strengths in --edit.

        Raises:
            ValueError: one line about the file.
            OSError: a file cannot be read.
        """
        from generation import render
        from torch_utils.devices import use_device

        specs = self.specs(several)
        device = use_device(self.device, local_rank)
        network = render.load_network(
            self.network,
            device,
            self.data,
            trust_pickle=self.trust_pickle,
            precision=self.precision,
        )
        if specs:
            network.edits = edits.load(specs, network)
            network.edits.attach()
        if not self.centroids_path:
            return network, None
        found = render.load_centroids(self.centroids_path, network.G.w_dim)
        if not dnnlib.util.is_url(self.centroids_path):
            render.check_centroids(self.centroids_path, network.G)
        return network, found

    def description(self) -> dict[str, Any]:
        """The options that `render.about` writes into a picture's file."""
        texts = ", ".join(os.path.basename(text) for text in self.edit)
        return {
            "truncation": self.truncation,
            "centroids_path": self.centroids_path,
            "edits": texts or None,
        }


def projected_w_option(multiple: bool = False) -> Callable[..., Any]:
    """The option --projected-w. `multiple`: it may be repeated."""
    again = " May be repeated." if multiple else ""
    return click.option(
        "--projected-w",
        multiple=multiple,
        metavar="NPZ",
        help=f"File of style codes w, such as projected_w.npz, in place of seeds.{again}",
    )


save_w_option = click.option(
    "--save-w", metavar="NPZ", help="Also write the style codes of the seeds, for --projected-w."
)


def parse_layers(flag: str, text: str, num_ws: int, path: str) -> list[int]:
    """Parse a list of rows of w: 0 is the input, i synthesis layer i. Raises ValueError."""
    try:
        rows = dnnlib.util.parse_int_list(text)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None
    if max(rows) >= num_ws:
        raise ValueError(f"{flag}={text}: {path} has layers 0 to {num_ws - 1}")
    return list(dict.fromkeys(rows))


def check_save_w(path: str | None, inputs: outputs.Inputs) -> None:
    """Refuse a value of --save-w that is a mistake. Raises ValueError."""
    if path is None:
        return
    outputs.check_output("--save-w", path, inputs=inputs)
    if not path.lower().endswith(".npz"):
        raise ValueError(f"--save-w={path}: end the name with .npz")


def note_ignored(flag: str, others: Mapping[str, object]) -> None:
    """Print a note about the given ones of other options, which have no effect with `flag`."""
    given = [name for name, value in others.items() if value]
    if given:
        verb = "has" if len(given) == 1 else "have"
        click.echo(f"note: {', '.join(given)} {verb} no effect with {flag}", err=True)


def sheet_seeds(seeds: Sequence[int], samples_per_class: int | None) -> list[int]:
    """The seeds of a sheet's columns: the given ones, or consecutive ones that start with a single seed.

    Raises:
        ValueError: the number of seeds does not match `samples_per_class`.
    """
    if samples_per_class is None or samples_per_class == len(seeds):
        return list(seeds)
    if len(seeds) != 1:
        raise ValueError(
            f"--samples-per-class={samples_per_class} does not match {len(seeds)} seeds: give one seed, or "
            f"{samples_per_class}"
        )
    if samples_per_class > dnnlib.util.MAX_LIST:
        raise ValueError(f"--samples-per-class={samples_per_class}: at most {dnnlib.util.MAX_LIST:,}")
    if seeds[0] + samples_per_class - 1 > MAX_SEED:
        raise ValueError(f"seed {seeds[0] + samples_per_class - 1}: the largest seed is {MAX_SEED}")
    return list(range(seeds[0], seeds[0] + samples_per_class))
