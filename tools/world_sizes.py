# SPDX-License-Identifier: Apache-2.0
"""How far runs of one, two and four processes are apart: the equality table of docs/scaling.md.

    python -m tools.world_sizes --kimg=0.08

Trains the tests' small model with micro-batches of 2 images, in all ways on the CPU, and prints for each way
the largest difference of a weight of G_ema, relative to the largest weight of its tensor, from the run of one
process.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

from tests.toy_data import make_zip
from tests.toy_runs import config, final_state
from torch_utils import distributed, launcher
from training import loop
from training.config import from_json, to_json

Part = tuple[int, dict[str, Any]]  # processes; options that differ


def train_process(tree: dict[str, Any], run_dir: str) -> None:
    """One process of a run."""
    cfg = from_json(tree)
    loop.train(cfg, run_dir, distributed.init("cpu", cfg.run.collective_timeout))


def final_weights(data: str, run_dir: Path, kimg: float, parts: list[Part]) -> dict[str, torch.Tensor]:
    """G_ema after `kimg`, of which each part trains an equal share and resumes from the one before."""
    run_dir.mkdir()
    for i, (processes, options) in enumerate(parts, start=1):
        share = round(1000 * kimg * i / len(parts)) / 1000
        # Ticks and snapshots at the end alone; no sheets.
        cfg = config(
            data, run__kimg=share, run__tick=kimg, run__variety=0, **{"run__batch_gpu": 2, **options}
        )
        launcher.launch(train_process, processes, to_json(cfg), str(run_dir))
    weights: dict[str, torch.Tensor] = final_state(run_dir)["G_ema"]
    return weights


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of an element, relative to the largest of its tensor."""
    pairs = [(x.double(), b[name].double()) for name, x in a.items() if x.is_floating_point() and x.numel()]
    return max(float((x - y).abs().max() / x.abs().max().clamp(min=1e-12)) for x, y in pairs)


WAYS: dict[str, list[Part]] = {
    "1 process again": [(1, {})],
    "2 processes": [(2, {})],
    "4 processes": [(4, {})],
    "1 process, then 2, then 4": [(1, {}), (2, {}), (4, {})],
    "1 process, micro-batches of 4": [(1, {"run__batch_gpu": 4})],
    "1 process, --batch=8, then 16": [(1, {}), (1, {"run__batch": 16})],
}


@click.command(help=str(__doc__))
@click.option("--kimg", default=0.08, help="length of the runs")
@click.option("--path-lengths", is_flag=True, help="with path length regularisation from the first step")
def main(kimg: float, path_lengths: bool) -> None:
    """Print the table."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    every = {"loss__pl_start_kimg": 0.0} if path_lengths else {}
    with tempfile.TemporaryDirectory() as folder:
        data = make_zip(Path(folder), "toy", classes=3, count=24)
        one = final_weights(data, Path(folder, "one"), kimg, [(1, every)])
        print(f"| after {1000 * kimg:g} images | largest relative difference |\n|---|---|", flush=True)
        for number, (name, parts) in enumerate(WAYS.items()):
            ways = [(n, every | options) for n, options in parts]
            other = final_weights(data, Path(folder, str(number)), kimg, ways)
            print(f"| {name} | {difference(one, other):.1e} |", flush=True)


if __name__ == "__main__":
    main()
