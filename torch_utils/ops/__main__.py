# SPDX-License-Identifier: Apache-2.0
"""Builds the kernels ahead of time, or explains why they cannot be built.

python -m torch_utils.ops build                     # into the cache folder
python -m torch_utils.ops build --out /shared/ops   # for all nodes: set STYLESAN_XL_OPS=/shared/ops on them
python -m torch_utils.ops build --cpu               # only for this machine's CPU; needs no CUDA
python -m torch_utils.ops doctor
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import click

from dnnlib import trust
from dnnlib.util import make_cache_dir_path

_ARCH_HELP = (
    "sm_XY or compute_XY (PTX); can be repeated.  [default: this machine's GPUs; with --out, or without "
    "a GPU: sm_80, sm_90 and compute_80]"
)


@click.group()
def main() -> None:
    """Build or check the kernels of bias_act, upfirdn2d and filtered_lrelu."""


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the library.  [default: the cache folder]",
)
@click.option("--arch", "architectures", multiple=True, help=_ARCH_HELP)
@click.option("--cpu", "cpu_only", is_flag=True, help="Build only the kernels for this machine's CPU.")
@click.option("--verbose", is_flag=True, help="Print the commands.")
def build(out: Path | None, architectures: tuple[str, ...], cpu_only: bool, verbose: bool) -> None:
    """Compile the kernels for this machine's CPU and for GPUs. No GPU is needed."""
    from torch_utils.ops.backend import cpu_extension, extension

    folder = out or extension.folders()[-1]
    if out is not None:
        trust.make_private(out, 0o755)  # readable by other nodes, and by other users if root builds
    try:
        wanted = (
            architectures
            or (extension.device_architectures() if out is None else ())
            or extension.DEFAULT_ARCHITECTURES
        )
        _print_result(lambda: cpu_extension.build(folder))
        if not cpu_only:
            _print_result(lambda: extension.build(folder, wanted, verbose=verbose))
    except extension.BuildError as error:
        raise click.ClickException(str(error)) from None
    if out is not None:
        click.echo(f"on the machines that use it: export {extension.FOLDER_VARIABLE}={out.resolve()}")


def _print_result(make: Callable[[], Path]) -> None:
    start = time.monotonic()
    path = make()
    click.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB, {time.monotonic() - start:.1f} s)")


@main.command()
def doctor() -> None:
    """Print the kernels' requirements, which of them are met, and how to fix the rest.

    The exit status is 1 if the CUDA kernels cannot be used.
    """
    import torch

    from torch_utils.ops.backend import cpu_extension, extension

    toolkit = extension.find_toolkit()
    devices = extension.device_architectures()
    click.echo(f"torch         {torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    click.echo(f"devices       {', '.join(devices) or 'none visible'}")
    click.echo(f"C++ compiler  {extension.compiler() or 'none'}")
    click.echo(f"ninja         {extension.ninja() or 'none'}")
    nvcc = f"{toolkit.nvcc}, CUDA {'.'.join(map(str, toolkit.version))}" if toolkit else "none"
    click.echo(f"nvcc          {nvcc}")
    for folder in dict.fromkeys([*extension.folders(), Path(make_cache_dir_path("ops"))]):
        libraries = sorted(folder.glob("ops-*.so")) if folder.is_dir() else []
        fresh = [
            path.name
            for path in libraries
            if path.name.startswith(f"ops-{extension.source_hash()}-") and not path.stem.endswith("-host")
        ]
        parent = next(p for p in [folder, *folder.parents] if p.exists())
        reason = trust.untrusted_reason(folder)
        note = f" (not used: {reason})" if reason else "" if os.access(parent, os.W_OK) else " (not writable)"
        click.echo(f"folder        {folder}{note}: {', '.join(fresh) or 'no library for this torch'}")
    click.echo(f"CPU kernels   {cpu_extension.describe()}")
    found = extension.find(devices)
    problems = [] if found else extension.problems()
    for problem in problems:
        click.echo(f"PROBLEM       {problem}")
    if found:
        click.echo(f"The CUDA kernels are built: {found}")
    elif not problems:
        click.echo(
            "The CUDA kernels can be built here: run python -m torch_utils.ops build, or they are built at "
            "their first use on a GPU."
        )
    if problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
