# SPDX-License-Identifier: Apache-2.0
"""Compares learning curves of a training step with those of the published algorithm, from the same seeds.

    python benchmarks/quality.py train-images-idx3-ubyte.gz       # Fashion-MNIST or MNIST, at 16 pixels
    python benchmarks/quality.py train-images-idx3-ubyte.gz --seeds 1 --steps 8

Both train the same networks on the same images with the same draws. The curve is the squared distance between
the mean lite0 features of real and generated images. The published algorithm runs its power iterations in
every pass and not once per step, so the curves need not be equal, but they must not differ by more than seeds
do.
"""

import gzip
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import train_step
from benchmarks.published import Published
from torch_utils import features
from training import build, loop, steps
from training.generator import Generator
from training.networks.stems import Lineage

ROW = train_step.Row("small G, lite0 at 64, batch 8", 8, 64)
EVALUATED = 64  # images per point of a curve


def read_images(path: str) -> torch.Tensor:
    """Return the images of an IDX file, uint8 [n, 3, 16, 16].

    Raises:
        click.ClickException: The file is not one of 28x28 images.
    """
    with gzip.open(path) as f:
        content = f.read()
    if len(content) < 16 or content[:4] != b"\0\0\x08\x03" or (len(content) - 16) % 784:
        raise click.ClickException(f"{path} is not a gzipped IDX file of 28x28 images")
    pixels = torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy())
    small = F.interpolate(pixels[:4096].float(), (16, 16), mode="area")
    return small.round().to(torch.uint8).repeat(1, 3, 1, 1)


def _mean_feature(network: features.FeatureNetwork, images: torch.Tensor) -> torch.Tensor:
    x = F.interpolate(network.normalize((images + 1) / 2), (64, 64), mode="bilinear", align_corners=False)
    return network.pooled(x).mean(dim=0)


def curves(images: torch.Tensor, seed: int, count: int, every: int) -> dict[str, list[float]]:
    """Train both implementations and return their curves.

    Args:
        images: uint8 [n, 3, 16, 16].
        seed: Of weights and draws.
        count: Steps.
        every: Steps per point.
    """
    cfg = train_step.make_config(ROW, "fp32").override({"run.seed": seed, "loss.blur_init_sigma": 0})
    loop.configure(cfg, torch.device("cpu"))
    G = train_step.make_generator(ROW, seed)
    D = build.make_discriminator(cfg.discriminator, train_step.CLASSES, 16, seed)
    data, published = train_step.Data.of(cfg, G.z_dim), Published(G, D, cfg)
    state = build.assemble(cfg, G, D, Lineage(), torch.device("cpu"))
    network = features.load()
    z = torch.randn(EVALUATED, G.z_dim, generator=torch.Generator().manual_seed(seed))
    classes = torch.arange(EVALUATED) % train_step.CLASSES
    found: dict[str, list[float]] = {"published": [], "here": []}

    @torch.no_grad()
    def distance(generator: Generator) -> float:
        real = _mean_feature(network, images[:512].float() / 127.5 - 1)
        return float((_mean_feature(network, generator(z, classes)) - real).square().sum())

    trained: dict[str, tuple[Generator, Callable[[torch.Tensor, torch.Tensor, int], None]]] = {
        "published": (published.G, lambda x, c, nimg: published.step(data.inputs, x, c, nimg)),
        "here": (state.G, lambda x, c, _: steps.train_step(state, data.inputs, cfg, x, c)),
    }
    for name, (generator, step) in trained.items():
        for i in range(count):
            if i % every == 0:
                found[name].append(distance(generator))
            batch = images[i * ROW.batch % 4000 :][: ROW.batch]
            step(batch, torch.arange(ROW.batch) % train_step.CLASSES, i * ROW.batch)
        found[name].append(distance(generator))
    return found


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.argument("data")
@click.option("--seeds", default=3, show_default=True, help="Number of seeds.")
@click.option("--steps", "count", default=32, show_default=True, help="Training steps of each run.")
@click.option("--every", default=8, show_default=True, help="Steps between points of a curve.")
def main(data: str, seeds: int, count: int, every: int) -> None:
    """Print the curves; the help text is the module's docstring."""
    torch.set_num_threads(1)
    images = read_images(data)
    found = []
    for seed in range(seeds):
        found.append(curves(images, seed, count, every))
        for name, curve in found[-1].items():
            click.echo(f"seed {seed} {name:9s} " + " ".join(f"{value:7.3f}" for value in curve))
    points = [*range(0, count, every), count]
    click.echo("| step | " + " | ".join(map(str, points)) + " |\n" + "|---" * (len(points) + 1) + "|")
    for name in ("published", "here"):
        at = [[run[name][i] for run in found] for i in range(len(points))]
        cells = [f"{statistics.mean(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in at]
        click.echo(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
