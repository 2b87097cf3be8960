# SPDX-License-Identifier: Apache-2.0
"""Measures a training step beside the published algorithm (benchmarks/published.py).

    python benchmarks/train_step.py                                   # every row, one thread
    python benchmarks/train_step.py --rows lite0-128 --repeats 5
    python benchmarks/train_step.py --out benchmarks/results/train_step.json
    python benchmarks/train_step.py --activations                     # --checkpoint-activations
    python benchmarks/train_step.py --smoke                           # tiny networks, a few seconds

A step trains the generator, then the discriminator, and averages the weights, all with the default options
of train.py for this machine. The small generator is that of demo.py. Frozen networks other than lite0 have
random weights, which take the same time. --activations measures a forward and a backward pass of a generator
of two stages in float32, of which the second one trains, with and without --checkpoint-activations.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import interleaved
from benchmarks.published import Published
from torch_utils import devices, memory, timm_weights
from training import build, compiled, generator, loop, steps
from training.config import TrainConfig
from training.inputs import InputSource
from training.networks.stems import Lineage

DEIT = "deit_base_distilled_patch16_224"
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Row:
    """The sizes of one measured step."""

    title: str
    batch: int
    feature_size: int = 224
    backbones: tuple[str, ...] = (timm_weights.LITE0,)
    large: bool = False  # the generator of ImageNet's first stage
    tiny: bool = False
    resolution: int = 16


ROWS = {
    "lite0-224": Row("small G, lite0 at 224, batch 16", 16),
    "lite0-128": Row("small G, lite0 at 128, batch 16", 16, 128),
    "both": Row("small G, both backbones, batch 4", 4, backbones=(DEIT, timm_weights.LITE0)),
    "imagenet": Row("ImageNet-size G at 16 pixels, lite0 at 224, batch 2", 2, large=True),
}
SMOKE = {"smoke": Row("tiny networks, batch 4", 4, 32, tiny=True)}
HEAD = Row("head from 32 to 128 pixels, 128 channels, batch 4", 4, resolution=32)
HEAD_SMOKE = dataclasses.replace(HEAD, title="tiny head, batch 4", tiny=True, resolution=16)


def make_generator(row: Row, seed: int = 0) -> generator.Generator:
    """Return the generator of a row, with new weights."""
    torch.manual_seed(seed)
    if row.large:
        return generator.build_stem("stylegan3-t", row.resolution, CLASSES, syn_layers=10)
    sizes = {"cbase": 256, "cmax": 4} if row.tiny else {"cmax": 16}
    return generator.build_stem(
        "stylegan3-t", row.resolution, CLASSES, syn_layers=5, w_dim=128, margin_size=4, **sizes
    )


def make_config(row: Row, precision: str = "auto") -> TrainConfig:
    """Return the options of a row."""
    weights = {name: timm_weights.RANDOM for name in row.backbones if name != timm_weights.LITE0}
    narrow = {f"discriminator.{name}": 4 for name in ("proj_channels", "head_channels", "cond_channels")}
    return TrainConfig().override(
        {
            "run.batch": row.batch,
            "run.precision": precision,
            "discriminator.precision": precision,
            "discriminator.backbones": list(row.backbones),
            "discriminator.backbone_weights": weights,
            "discriminator.feature_size": row.feature_size,
            "loss.diagnostics": False,
            **(narrow if row.tiny else {}),
        }
    )


@dataclasses.dataclass
class Data:
    """Inputs of a step: draws, and random images of all classes."""

    inputs: InputSource
    pixels: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, cfg: TrainConfig, z_dim: int, resolution: int = 16) -> "Data":
        """Return the inputs of a run in one process."""
        device = torch.device("cpu")
        shape = (cfg.run.batch, 3, resolution, resolution)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        inputs = InputSource.of(cfg, np.arange(CLASSES), z_dim, device, processes=1, rank=0)
        return cls(inputs, pixels, torch.arange(cfg.run.batch) % CLASSES)


def published(row: Row) -> interleaved.Work:
    """Return a step of the published algorithm."""
    cfg, G = make_config(row, "fp32"), make_generator(row)
    D = build.make_discriminator(cfg.discriminator, CLASSES, row.resolution, 0)
    data, step = Data.of(cfg, G.z_dim, row.resolution), Published(G, D, cfg)
    return lambda: step.step(data.inputs, data.pixels, data.labels)


def here(row: Row, precision: str = "auto") -> interleaved.Work:
    """Return a step as train.py runs it."""
    cfg, G = make_config(row, precision), make_generator(row)
    loop.configure(cfg, devices.use_device("cpu"))
    D = build.make_discriminator(cfg.discriminator, CLASSES, row.resolution, 0, torch.device("cpu"))
    state = build.assemble(cfg, G, D, Lineage(), torch.device("cpu"))
    data = Data.of(cfg, G.z_dim, row.resolution)

    def step() -> None:
        state.progress.nimg = 0  # the same blur in every step
        steps.train_step(state, data.inputs, cfg, data.pixels, data.labels)

    return step


def make_stages(row: Row) -> generator.Generator:
    """Return a frozen stem and a head of four times its resolution."""
    torch.manual_seed(0)
    channels = {"cbase": 256, "cmax": 4} if row.tiny else {"cbase": 16384, "cmax": 64}
    stem = generator.build_stem("stylegan3-t", row.resolution, CLASSES, w_dim=128, **channels)
    return generator.build_superres(stem, "stylegan3-t", up_factor=4)


def passes(row: Row, recompute: bool = False) -> interleaved.Work:
    """Return a forward and a backward pass of a generator; `recompute`: with --checkpoint-activations."""
    memory.keep_freed_memory()
    G = make_stages(row)
    if recompute:
        compiled.checkpoint_activations(G)
    z, c = torch.randn(row.batch, G.z_dim), torch.arange(row.batch) % CLASSES

    def work() -> None:
        G(z, c).square().mean().backward()
        G.zero_grad(set_to_none=True)

    return work


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@interleaved.options(ROWS, ",".join(ROWS))
@click.option("--activations", is_flag=True, help="Measure --checkpoint-activations, and no step.")
def main(rows: str, smoke: bool, activations: bool, **options: Any) -> None:
    """Measure the rows; the help text is the module's docstring."""
    if activations:
        recomputing: dict[str, interleaved.Maker] = {
            "kept": passes,
            "computed again": functools.partial(passes, recompute=True),
        }
        interleaved.run(recomputing, {"head": HEAD_SMOKE if smoke else HEAD}, smoke=smoke, **options)
        return
    chosen = SMOKE if smoke else interleaved.chosen(rows, ROWS)
    interleaved.run({"published": published, "here": here}, chosen, smoke=smoke, **options)


if __name__ == "__main__":
    main()
