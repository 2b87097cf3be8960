# SPDX-License-Identifier: Apache-2.0
"""Compares learning curves of a training step with those of the published algorithm, from the same seeds.

    python benchmarks/quality.py train-images-idx3-ubyte.gz       # Fashion-MNIST or MNIST, at 16 pixels
    python benchmarks/quality.py train-images-idx3-ubyte.gz --seeds 1 --steps 8 --every 4
    python benchmarks/quality.py train-images-idx3-ubyte.gz --variants here,bf16 --out curves.json

Every variant trains the same networks on the same images with the same draws: the published algorithm, and
the project's step in float32 and in bf16 (generator and discriminator). The curve is the squared distance
between the mean lite0 features of real and generated images. The published algorithm runs its power
iterations in every pass and not once per step, so the curves need not be equal, but they must not differ by
more than seeds do.

Convolutions and matrix products in bf16 are computed as a GPU computes them: operands rounded to bf16,
sums in float32, results rounded. Processors without bf16 units do this many times faster than their bf16
operations. With --out, finished curves are kept, and the same command continues.
"""

import gzip
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import train_step
from benchmarks.published import Published
from dnnlib.records import write_json
from torch_utils import devices, features
from training import build, loop, steps
from training.networks.stems import Lineage

ROW = train_step.Row("small G, lite0 at 64, batch 8", 8, 64)
EVALUATED = 256  # generated images per point of a curve
REAL = 1024
# As the demo's, which learns in thousands of images.
SHORT_RUN = {"loss.blur_init_sigma": 0, "optim.glr": 0.005, "optim.dlr": 0.004}
VARIANTS = ("published", "here", "bf16")


def read_images(path: str) -> torch.Tensor:
    """Return the images of an IDX file, uint8 [n, 3, 16, 16].

    Raises:
        click.ClickException: The file is not one of 28x28 images.
    """
    try:
        with gzip.open(path) as f:
            content = f.read()
    except (OSError, EOFError):
        content = b""
    if len(content) < 16 or content[:4] != b"\0\0\x08\x03" or (len(content) - 16) % 784:
        raise click.ClickException(f"{path} is not a gzipped IDX file of 28x28 images")
    pixels = torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy())
    small = F.interpolate(pixels[:4096].float(), (16, 16), mode="area")
    return small.round().to(torch.uint8).repeat(1, 3, 1, 1)


class Float32Sums(TorchDispatchMode):
    """Computes convolutions and products of bf16 tensors in float32, and rounds the results to bf16."""

    OPERATIONS = frozenset(
        {
            torch.ops.aten.convolution.default,
            torch.ops.aten.convolution_backward.default,
            torch.ops.aten.mm.default,
            torch.ops.aten.addmm.default,
            torch.ops.aten.bmm.default,
            torch.ops.aten.baddbmm.default,
        }
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        leaves = tree_leaves((args, kwargs))
        reduced = any(isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 for x in leaves)
        if func not in self.OPERATIONS or not reduced:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(torch.Tensor, lambda x: x.float(), (args, kwargs or {}))
        return tree_map_only(torch.Tensor, lambda x: x.bfloat16(), func(*args, **kwargs))


def _mean_feature(network: features.FeatureNetwork, images: torch.Tensor) -> torch.Tensor:
    x = F.interpolate(network.normalize((images + 1) / 2), (64, 64), mode="bilinear", align_corners=False)
    return network.pooled(x).mean(dim=0)


def curve(variant: str, images: torch.Tensor, seed: int, count: int, every: int) -> list[float]:
    """Train one variant and return its curve.

    Args:
        variant: One of VARIANTS.
        images: uint8 [n, 3, 16, 16].
        seed: Of weights and draws.
        count: Steps.
        every: Steps per point.
    """
    precision = "bf16" if variant == "bf16" else "fp32"
    cfg = train_step.make_config(ROW, precision).override({"run.seed": seed, **SHORT_RUN})
    loop.configure(cfg, devices.use_device("cpu"))
    G = train_step.make_generator(ROW, seed)
    D = build.make_discriminator(
        cfg.discriminator,
        train_step.CLASSES,
        16,
        seed,
        None if variant == "published" else torch.device("cpu"),
    )
    data, network = train_step.Data.of(cfg, G.z_dim), features.load()
    z = torch.randn(EVALUATED, G.z_dim, generator=torch.Generator().manual_seed(seed))
    classes = torch.arange(EVALUATED) % train_step.CLASSES
    mean_real = _mean_feature(network, images[:REAL].float() / 127.5 - 1)
    if variant == "published":
        oracle = Published(G, D, cfg)
        generator = oracle.G
    else:
        state = build.assemble(cfg, G, D, Lineage(), torch.device("cpu"))
        generator = state.G

    @torch.no_grad()
    def distance() -> float:
        return float((_mean_feature(network, generator(z, classes)) - mean_real).square().sum())

    sums: AbstractContextManager[object] = nullcontext()
    if variant == "bf16":
        sums = Float32Sums()  # type: ignore[no-untyped-call]
    found = [distance()]
    for i in range(count):
        first = i * ROW.batch % (len(images) - ROW.batch + 1)
        batch, labels = images[first : first + ROW.batch], torch.arange(ROW.batch) % train_step.CLASSES
        with sums:
            if variant == "published":
                oracle.step(data.inputs, batch, labels, i * ROW.batch)
            else:
                steps.train_step(state, data.inputs, cfg, batch, labels)
        if (i + 1) % every == 0:
            found.append(distance())
    return found


def table(found: Mapping[str, list[float]], variants: Sequence[str], every: int) -> str:
    """Return the rows of a table: mean and range over the seeds, of keys 'variant seed'."""
    columns = max(map(len, found.values()))
    lines = [
        "| step | " + " | ".join(str(i * every) for i in range(columns)) + " |",
        "|---" * (columns + 1) + "|",
    ]
    for variant in variants:
        runs = [curve for key, curve in found.items() if key.split()[0] == variant]
        cells = [f"{statistics.mean(v):.4g} ({min(v):.4g} to {max(v):.4g})" for v in zip(*runs, strict=True)]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.argument("data")
@click.option("--variants", default=",".join(VARIANTS), show_default=True, help="Separated by commas.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds.")
@click.option("--steps", "count", type=click.IntRange(1), default=32, show_default=True, help="Of each run.")
@click.option("--every", type=click.IntRange(1), default=8, show_default=True, help="Steps between points.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file for finished curves.")
def main(data: str, variants: str, seeds: int, count: int, every: int, out: Path | None) -> None:
    """Print the curves; the help text is the module's docstring."""
    torch.set_num_threads(1)
    chosen = [name.strip() for name in variants.split(",")]
    for name in chosen:
        if name not in VARIANTS:
            raise click.ClickException(
                f"--variants={variants}: unknown variant '{name}'; use {', '.join(VARIANTS)}"
            )
    images = read_images(data)
    options = {"steps": count, "every": every}
    kept: dict[str, Any] = {**options, "curves": {}}
    if out is not None and out.exists():
        kept = json.loads(out.read_text())
    if {name: kept.get(name) for name in options} != options:
        raise click.ClickException(f"--out={out} has curves of other --steps or --every; give another file")
    curves: dict[str, list[float]] = kept["curves"]
    for seed in range(seeds):
        for name in chosen:
            key = f"{name} {seed}"
            if key not in curves:
                curves[key] = curve(name, images, seed, count, every)
                if out is not None:
                    write_json(out, kept)
            click.echo(f"{name:9s} seed {seed} " + " ".join(f"{value:.4g}" for value in curves[key]))
    found = {f"{name} {seed}": curves[f"{name} {seed}"] for name in chosen for seed in range(seeds)}
    click.echo(table(found, chosen, every))


if __name__ == "__main__":
    main()
