# SPDX-License-Identifier: Apache-2.0
"""Measures image generation beside the published algorithm (benchmarks/published.py).

    python benchmarks/generate.py                          # ImageNet size up to 64 pixels, one thread
    python benchmarks/generate.py --rows 256 --repeats 1   # 233 M parameters at 256 pixels: minutes
    python benchmarks/generate.py --out benchmarks/results/generate.json
    python benchmarks/generate.py --smoke                  # a tiny network, a few seconds

Times are per image. The network is that of ImageNet: a stem at 16 pixels, and superresolution stages to 64
and 256 pixels, in the default precision of gen_images.py for this machine.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import interleaved
from benchmarks import published as oracle
from torch_utils import devices, memory
from training import generator


@dataclasses.dataclass(frozen=True)
class Row:
    """A generator and a batch."""

    title: str
    stages: tuple[int, ...]  # resolutions of the stages
    batch: int
    tiny: bool = False


ROWS = {
    "16": Row("ImageNet-size G, 16 pixels, one image", (16,), 1),
    "16x4": Row("ImageNet-size G, 16 pixels, batch 4", (16,), 4),
    "64x4": Row("ImageNet-size G, 64 pixels, batch 4", (16, 32, 64), 4),
    "256": Row("ImageNet-size G, 256 pixels, one image", (16, 32, 64, 128, 256), 1),
}
SMOKE = {"smoke": Row("tiny network, batch 2", (16,), 2, tiny=True)}


def make_generator(row: Row) -> generator.Generator:
    """Return the generator of a row, with new weights."""
    torch.manual_seed(0)
    sizes = {"cbase": 256, "cmax": 16} if row.tiny else {}
    G = generator.build_stem("stylegan3-t", 16, 1000, syn_layers=5 if row.tiny else 10, **sizes)
    while G.img_resolution < row.stages[-1]:
        G = generator.build_superres(G, "stylegan3-t")
    return G.eval().requires_grad_(False)


def _inputs(row: Row, G: generator.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    z = torch.randn(row.batch, G.z_dim, generator=torch.Generator().manual_seed(1))
    return z, torch.arange(row.batch)


@torch.no_grad()
def published(row: Row) -> interleaved.Work:
    """Return one batch of the published algorithm."""
    G = make_generator(row)
    z, c = _inputs(row, G)
    return torch.no_grad()(lambda: oracle.generate(G, z, c))


def here(row: Row) -> interleaved.Work:
    """Return one batch as the scripts compute it."""
    memory.keep_freed_memory()
    G = make_generator(row)
    G.synthesis.reduced_dtype = devices.pick_precision("auto", torch.device("cpu"))
    z, c = _inputs(row, G)
    return torch.no_grad()(lambda: G(z, c))


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@interleaved.options(ROWS, "16,16x4,64x4")
def main(rows: str, smoke: bool, **options: Any) -> None:
    """Measure the rows; the help text is the module's docstring."""
    chosen = SMOKE if smoke else interleaved.chosen(rows, ROWS)
    makers = {"published": published, "here": here}
    interleaved.run(makers, chosen, smoke=smoke, unit=lambda row: row.batch, **options)


if __name__ == "__main__":
    main()
