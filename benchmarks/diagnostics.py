# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of the diagnostics in the first step of each tick.

    python benchmarks/diagnostics.py                  # one thread, two sizes; about two minutes
    python benchmarks/diagnostics.py --repeats 3

It compares them with a discriminator step, and with all discriminator steps of a tick. Seconds are CPU time
of the process, which depends little on other work on the machine. Steps with and without diagnostics
alternate.
"""

import sys
import time
from pathlib import Path
from statistics import median

import click
import torch

from torch_utils import timm_weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch_utils import features
from training import steps
from training.config import LossConfig, OptimConfig, RunConfig
from training.discriminator import ProjectedDiscriminator
from training.generator import build_stem
from training.inputs import MicroBatch, RealMicroBatch
from training.state import TrainState

SIZES = {  # name -> feature_size, channels of projections and heads, batch
    "demo (lite0 at 64 pixels, 32 channels, batch 16)": (64, 32, 16),
    "default heads (lite0 at 224 pixels, 64 channels, batch 16)": (224, 64, 16),
}


def make_state(feature_size: int, channels: int) -> TrainState:
    """Return a small 16x16 generator with ten classes and a lite0 discriminator in bf16."""
    torch.manual_seed(0)
    G = build_stem(
        "stylegan3-t",
        16,
        10,
        syn_layers=5,
        cmax=16,
        w_dim=128,
        num_embeddings=10,
        embed_dim=320,
        margin_size=4,
    )
    D = ProjectedDiscriminator(
        [features.load()],
        10,
        16,
        feature_size=feature_size,
        proj_channels=channels,
        head_channels=channels,
        compute_dtype=torch.bfloat16,
    )
    return TrainState.create(G, D, OptimConfig(), pl_interval=4)


def step_seconds(state: TrainState, batch: int, diagnostics: bool) -> float:
    """Return the CPU seconds of one discriminator step."""
    labels = torch.arange(batch) % 10
    draws = {timm_weights.LITE0: torch.rand(batch, 7)}
    fake = MicroBatch(torch.randn(batch, state.G.z_dim), labels, draws, range(batch))
    real = RealMicroBatch(torch.rand(batch, 3, 16, 16) * 2 - 1, labels, draws)
    started = time.process_time()
    steps.d_step(state, [fake], [real], LossConfig(diagnostics=diagnostics), 0.0)
    return time.process_time() - started


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--repeats", default=15, show_default=True, help="Steps of each kind; medians are printed.")
def main(repeats: int) -> None:
    """Print one line per size."""
    torch.set_num_threads(1)
    tick = RunConfig().tick * 1000
    for name, (feature_size, channels, batch) in SIZES.items():
        state = make_state(feature_size, channels)
        step_seconds(state, batch, True)
        pairs = [
            (step_seconds(state, batch, False), step_seconds(state, batch, True)) for _ in range(repeats)
        ]
        without = median(a for a, _ in pairs)
        cost = median(b - a for a, b in pairs)
        print(
            f"{name}: a discriminator step {without * 1e3:.0f} ms, diagnostics {cost * 1e3:+.0f} ms once "
            "per tick, "
            f"that is {cost / (without * tick / batch):.3%} of the discriminator steps of a tick of "
            f"{tick / 1000:g} kimg",
            flush=True,
        )


if __name__ == "__main__":
    main()
