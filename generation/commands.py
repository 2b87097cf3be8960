# SPDX-License-Identifier: Apache-2.0
"""What the commands with a network share: options, the parsing of their values, progress, one-line errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

import dnnlib.util
from dnnlib import outputs
from dnnlib.progress import Progress
from generation.render import MAX_SEED
from torch_utils import memory
from torch_utils.devices import PRECISIONS

TRUST_HELP = (
    "run a pickle that cannot be read otherwise. It is a program then: it can do whatever you can. "
    "Only for files whose maker you trust"
)


def parse_grid(text: str) -> tuple[int, int]:
    """'8x4' or '8,4' -> (8 columns, 4 rows). Raises ValueError."""
    try:
        return dnnlib.util.parse_grid(text)
    except ValueError as error:
        raise ValueError(f"--grid={text[:40]}: {error}") from None


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


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Progress with the remaining time on stderr; yields update(n)."""
    with Progress(label=label, unit="", silent=10) as progress:
        yield lambda count: progress.advance(count, total)


def memory_remedy(batch: int | None) -> str:
    """What to change when the running command is out of memory. batch: the value of its option for images at
    a time.
    """
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
    """Decorator of a command: a user's mistake (ValueError, OSError) or too little memory ends in one line
    and exit code 1.

    SIGTERM and SIGHUP end it as Ctrl-C does: no temporary file stays.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        dnnlib.util.plain_warnings()
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


precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", *PRECISIONS]),
    default="auto",
    show_default=True,
    help="of the large layers; auto = as the network was trained, fp16 on GPUs alone. bf16 is the fastest "
    "on CPUs with bf16 matrix units",
)


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that every command with a network takes."""
    for option in (
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda", "mps"]),
            default="auto",
            show_default=True,
            help="where to compute",
        ),
        precision_option,
        click.option(
            "--centroids-path",
            metavar="PATH|URL",
            help="truncate towards the nearest of these cluster centres in W, a .npy file",
        ),
        click.option(
            "--trunc",
            "truncation",
            type=float,
            default=1,
            show_default=True,
            help="truncation psi; 1 = none, 0 = the class's mean image",
        ),
        click.option("--trust-pickle", is_flag=True, help=TRUST_HELP),
        click.option(
            "--network",
            required=True,
            metavar="PATH|URL",
            help="network pickle, or run folder, or .safetensors with its .json, or hf://OWNER/NAME",
        ),
    ):
        function = option(function)
    return function


def sheet_seeds(seeds: Sequence[int], samples_per_class: int | None) -> list[int]:
    """The seeds of a sheet's columns: those given, or samples_per_class consecutive ones from a single seed.
    Raises ValueError for other counts.
    """
    if samples_per_class is None or samples_per_class == len(seeds):
        return list(seeds)
    if len(seeds) != 1:
        raise ValueError(
            f"--samples-per-class={samples_per_class} does not go with {len(seeds)} seeds: give one seed, "
            "or as many"
        )
    if samples_per_class > dnnlib.util.MAX_LIST:
        raise ValueError(f"--samples-per-class={samples_per_class}: at most {dnnlib.util.MAX_LIST:,}")
    if seeds[0] + samples_per_class - 1 > MAX_SEED:
        raise ValueError(f"seed {seeds[0] + samples_per_class - 1}: seeds go up to {MAX_SEED}")
    return list(range(seeds[0], seeds[0] + samples_per_class))
