# SPDX-License-Identifier: Apache-2.0
"""Measures the time from an empty cache folder to the first image, and the share of building kernels.

    python benchmarks/cold_start.py     # a tiny network, and ImageNet's at 256 pixels (needs 4 GB of memory)
    python benchmarks/cold_start.py --networks tiny --device cuda

Each row is a command in a separate process, with wall-clock seconds and the CPU seconds of the process and
its children, which depend less on the load of the machine. `first` starts with an empty cache folder, `again`
with the one that `first` has filled. The networks have random weights.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch_utils import persistence
from torch_utils.ops.backend import extension
from training import generator

ROOT = Path(__file__).resolve().parent.parent


def make_network(name: str) -> generator.Generator:
    """Return a network with random weights.

    Args:
        name: 'tiny' (16 pixels, 10 classes), or 'imagenet256' (the published stages from 16 to 256 pixels,
            1000 classes, 233 M parameters).
    """
    torch.manual_seed(0)
    if name == "tiny":
        return generator.build_stem("stylegan3-t", 16, 10, syn_layers=5, cbase=256, cmax=16)
    G = generator.build_stem("stylegan3-t", 16, 1000, syn_layers=10)
    while G.img_resolution < 256:
        G = generator.build_superres(G, "stylegan3-t", 2, 7)
    return G


def timed(arguments: list[str], cache: Path) -> tuple[float, float]:
    """Return the wall-clock and CPU seconds of a command with a cache folder.

    Raises:
        click.ClickException: the command failed. The message has its last line.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {key: value for key, value in os.environ.items() if key != extension.FOLDER_VARIABLE} | {
        "DNNLIB_CACHE_DIR": str(cache)
    }
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise click.ClickException(
            f"{' '.join(arguments)}: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--networks", default="tiny,imagenet256", show_default=True, help="Names, comma-separated.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON file of the results.")
def main(networks: str, device: str, out: Path | None) -> None:
    """Run all rows; the help text is the module's docstring."""
    names = networks.split(",")
    if not set(names) <= {"tiny", "imagenet256"}:
        raise click.ClickException(f"--networks={networks}: choose from tiny and imagenet256")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)

        def row(what: str, arguments: list[str], cache: str) -> None:
            wall, cpu = timed(arguments, work / cache)
            rows.append({"what": what, "seconds": wall, "cpu_seconds": cpu})
            click.echo(f"{what:44s}{wall:8.1f} s {cpu:8.1f} CPU s")

        row("importing torch", ["-c", "import torch"], "import")
        row("build of the CPU kernels", ["-m", "torch_utils.ops", "build", "--cpu"], "cpu")
        if not extension.problems():
            row("build of the CUDA kernels", ["-m", "torch_utils.ops", "build"], "cuda")
        for name in names:
            network = work / f"{name}.pkl"
            G = make_network(name).eval().requires_grad_(False)
            persistence.save_network_pickle(
                network, {"G": G, "D": None, "G_ema": G, "training_set_kwargs": {}, "augment_pipe": None}
            )
            del G
            command = [
                "gen_images.py",
                f"--network={network}",
                "--seeds=0",
                f"--outdir={work / 'images'}",
                f"--device={device}",
            ]
            for attempt in ("first", "again"):
                row(f"gen_images.py, one image, {name}, {attempt}", command, name)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(
            json.dumps(
                {"torch": torch.__version__, "cuda": torch.version.cuda, "device": device, "rows": rows},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
