# SPDX-License-Identifier: Apache-2.0
"""Builds the CUDA kernels ahead of time, or says why they cannot be built.

python -m torch_utils.ops build                          # into the cache folder
python -m torch_utils.ops build --out /shared/ops        # for all nodes: export STYLESAN_XL_OPS=/shared/ops there
python -m torch_utils.ops doctor
"""

import os
import time
from pathlib import Path

import click
import torch

from . import extension

_ARCH_HELP = "sm_XY or compute_XY (PTX), repeatable.  [default: this machine's GPUs; with --out, or without a GPU: sm_80, sm_90 and compute_80]"


@click.group()
def main() -> None:
    """The CUDA kernels of bias_act, upfirdn2d and filtered_lrelu."""


@main.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the library.  [default: the cache folder]")
@click.option("--arch", "architectures", multiple=True, help=_ARCH_HELP)
@click.option("--verbose", is_flag=True, help="Show the commands.")
def build(out: Path | None, architectures: tuple[str, ...], verbose: bool) -> None:
    """Compile the kernels; a GPU is not needed."""
    start = time.monotonic()
    try:
        wanted = architectures or (extension.device_architectures() if out is None else ()) or extension.DEFAULT_ARCHITECTURES
        path = extension.build(out or extension.folders()[-1], wanted, verbose=verbose)
    except extension.BuildError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB, {time.monotonic() - start:.1f} s)")
    if out is not None:
        click.echo(f"where it is to be used: export {extension.FOLDER_VARIABLE}={out.resolve()}")


@main.command()
def doctor() -> None:
    """Say what the kernels need, what of it is here, and how to mend the rest. Exit status 1 if the kernels cannot be used."""
    toolkit = extension.find_toolkit()
    devices = extension.device_architectures()
    click.echo(f"torch         {torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    click.echo(f"devices       {', '.join(devices) or 'none visible'}")
    click.echo(f"C++ compiler  {extension.compiler() or 'none'}")
    click.echo(f"ninja         {extension.ninja() or 'none'}")
    click.echo(f"nvcc          {f'{toolkit.nvcc}, CUDA ' + '.'.join(map(str, toolkit.version)) if toolkit else 'none'}")
    for folder in extension.folders():
        libraries = sorted(folder.glob("ops-*.so")) if folder.is_dir() else []
        fresh = [path.name for path in libraries if path.name.startswith(f"ops-{extension.source_hash()}-") and not path.stem.endswith("-host")]
        parent = next(p for p in [folder, *folder.parents] if p.exists())
        note = "" if os.access(parent, os.W_OK) else " (cannot be written to)"
        click.echo(f"folder        {folder}{note}: {', '.join(fresh) or 'no library for this torch'}")
    found = extension.find(devices)
    problems = [] if found else extension.problems()
    for problem in problems:
        click.echo(f"PROBLEM       {problem}")
    if found:
        click.echo(f"The kernels are built: {found}")
    elif not problems:
        click.echo("The kernels can be built here: python -m torch_utils.ops build (or at their first use on a GPU).")
    if problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
