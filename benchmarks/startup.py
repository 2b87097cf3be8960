# SPDX-License-Identifier: Apache-2.0
"""Measures what commands cost before they work: --help, one picture, plans, beside importing torch.

    python benchmarks/startup.py                   # about two minutes
    python benchmarks/startup.py --out benchmarks/results/startup.json
    python benchmarks/startup.py --smoke           # two commands, once

All numbers are CPU seconds of a process, the medians of rounds in which every command runs once.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import machine, rounds
from dnnlib.records import write_json

ROOT = Path(__file__).resolve().parent.parent
TORCH = "importing torch"
NO_HELP = {"legacy", "visualizer"}  # they only name others


def cpu_seconds(arguments: list[str]) -> float:
    """Return the CPU seconds of a command of Python in the project's folder.

    Raises:
        click.ClickException: the command failed. The message has its last line.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise click.ClickException(f"{' '.join(arguments)}: {lines[-1] if lines else done.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write_network(path: Path) -> None:
    """Write the pickle of a small network with random weights."""
    from torch_utils import persistence
    from training import generator

    G = generator.build_stem("stylegan3-t", 16, 10, syn_layers=5, cbase=256, cmax=16)
    G = G.eval().requires_grad_(False)
    persistence.save_network_pickle(path, {"G": G, "D": None, "G_ema": G, "training_set_kwargs": {}})


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--repeats", default=5, show_default=True, help="Rounds.")
@click.option("--smoke", is_flag=True, help="Run two commands once, to check the benchmark itself.")
@click.option("--out", help="JSON file for the results.")
def main(repeats: int, smoke: bool, out: str | None) -> None:
    """Measure all rows; the help text is the module's docstring."""
    scripts = sorted({path.stem for path in ROOT.glob("*.py")} - NO_HELP)
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder, "network.pkl")
        write_network(network)
        picture = ["gen_images.py", f"--network={network}", "--seeds=0", "--device=cpu", f"--outdir={folder}"]
        rows = {f"{script}.py --help": [f"{script}.py", "--help"] for script in scripts}
        rows |= {TORCH: ["-c", "import torch"], "gen_images.py, one small picture": picture}
        rows |= {
            "imports of train.py": ["-c", "import generation.train_command"],
            "imports of calc_metrics.py": ["-c", "import generation.measure_command"],
        }
        if smoke:
            rows, repeats = {"gen_images.py --help": rows["gen_images.py --help"], TORCH: rows[TORCH]}, 1
        found = rounds.medians(rows, cpu_seconds, repeats)
    click.echo(f"{machine.processor()}, CPU seconds")
    for title, value in found.items():
        above = f"{value - found[TORCH]:+8.2f} above importing torch" if value > found[TORCH] else ""
        click.echo(f"{title:40s}{value:7.2f}{above}")
    if out is not None:
        facts = {**machine.describe("cpu"), "repeats": repeats}
        write_json(Path(out), {**facts, "cpu_seconds": found})


if __name__ == "__main__":
    main()
