# SPDX-License-Identifier: Apache-2.0
"""Measures the projected discriminator and the guidance, and the gain from optimising their frozen networks.

    python benchmarks/discriminator.py                     # one thread, all configurations; 2 to 3 minutes
    python benchmarks/discriminator.py --quick
    python benchmarks/discriminator.py --guidance          # classifier guidance alone; seconds
    python benchmarks/discriminator.py --threads 2         # on an otherwise idle machine

Ratios are relative to timm's original network (BatchNorm not folded, torch's backward pass of depthwise
convolutions) in the same run. Seconds are the process's CPU time divided by the number of threads. With one
thread, they depend little on other work on the machine; with more, idle threads spin. bfloat16 is measured
where the processor has it.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.published import plain_layers
from torch_utils import cpu_speed, features, memory, timm_weights
from training import losses
from training.discriminator import ProjectedDiscriminator

# feature_size, head_channels, proj_channels, batch; the first is the published configuration
CONFIGURATIONS = (
    (224, 64, 64, 16),
    (128, 64, 64, 32),
    (64, 64, 64, 32),
    (128, 16, 16, 32),
    (64, 32, 32, 32),
    (64, 16, 16, 32),
    (32, 16, 16, 32),
)


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the smallest CPU time of a call divided by the threads, after one warm-up call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times) / torch.get_num_threads()


def network_rates(dtype: torch.dtype, size: int, batch: int) -> tuple[float, float, float, float]:
    """Return images/s (forward; forward and backward to the input) of our frozen network and of timm's."""
    rates = []
    for ours in (True, False):
        with contextlib.nullcontext() if ours else plain_layers():
            network = features.load(fold_batchnorm=ours).to(dtype).to(memory_format=torch.channels_last)
        x = (
            torch.randn(batch, 3, size, size)
            .to(dtype)
            .contiguous(memory_format=torch.channels_last)
            .requires_grad_()
        )

        def forward(network: features.FeatureNetwork = network, x: torch.Tensor = x) -> None:
            with torch.no_grad():
                network(x)

        def both(network: features.FeatureNetwork = network, x: torch.Tensor = x) -> None:
            torch.autograd.grad(sum(y.float().sum() for y in network(x)), x)

        rates += [batch / seconds(forward), batch / seconds(both)]
    return rates[0], rates[1], rates[2], rates[3]


def discriminator_rates(
    dtype: torch.dtype, size: int, heads: int, projection: int, batch: int
) -> tuple[float, float, float]:
    """Return millions of trained parameters, and images/s of two passes forward and backward.

    The first pass is that of a discriminator step, the second that of a generator step.
    """
    options: dict[str, Any] = {
        "feature_size": size,
        "head_channels": heads,
        "proj_channels": projection,
        "compute_dtype": dtype,
    }
    D = ProjectedDiscriminator([features.load()], 10, 16, **options)
    x, c, draws = (
        torch.rand(batch, 3, 16, 16) * 2 - 1,
        torch.arange(batch) % 10,
        {timm_weights.LITE0: torch.rand(batch, 7)},
    )

    def d_pass() -> None:
        D.requires_grad_(True)
        y = D(x, c, draws)[timm_weights.LITE0]
        (y.fun.relu().mean() + y.dir.mean()).backward()
        D.zero_grad(set_to_none=True)

    def g_pass() -> None:
        D.requires_grad_(False)
        image = x.clone().requires_grad_()
        D(image, c, draws)[timm_weights.LITE0].fun.mean().backward()

    return sum(p.numel() for p in D.parameters()) / 1e6, batch / seconds(d_pass), batch / seconds(g_pass)


def guidance_rates(dtype: torch.dtype, size: int, batch: int) -> tuple[float, float]:
    """Return images/s of lite0's classifier, forward and backward to the images: ours, and timm's layers."""
    rates = []
    for ours in (True, False):
        network = features.classifier(timm_weights.LITE0, size=size, fast=ours).to(dtype)
        x = torch.randn(batch, 3, 32, 32).requires_grad_()
        labels = torch.arange(batch)

        def step(
            network: features.Classifier = network, x: torch.Tensor = x, y: torch.Tensor = labels
        ) -> None:
            torch.autograd.grad(losses.guidance(network, x, y), x)

        rates.append(batch / seconds(step))
    return rates[0], rates[1]


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--threads", default=1, show_default=True)
@click.option("--quick", is_flag=True, help="Run only the small configurations.")
@click.option("--guidance", is_flag=True, help="Measure only the guidance.")
def main(threads: int, quick: bool, guidance: bool) -> None:
    """Print the tables."""
    torch.set_num_threads(threads)
    memory.keep_freed_memory()
    dtypes = [torch.float32] + [torch.bfloat16] * cpu_speed.choices().bf16
    print(f"torch {torch.__version__}, {threads} threads; images/s")
    print("guidance, lite0 | forward + backward to the images (plain timm)")
    for dtype in dtypes:
        for size in (64, 224)[: 1 if quick else None]:
            ours, plain = guidance_rates(dtype, size, 16)
            print(
                f"{str(dtype)[6:]:8s} {size:4d}   | {ours:6.0f} ({plain:.0f}) x{ours / plain:.1f}", flush=True
            )
    if guidance:
        return
    print("lite0           | forward (plain timm)  | forward + backward to the input (plain timm)")
    for dtype in dtypes:
        for size, batch in ((64, 32), (128, 16), (224, 8))[: 1 if quick else None]:
            forward, both, plain_forward, plain_both = network_rates(dtype, size, batch)
            print(
                f"{str(dtype)[6:]:8s} {size:4d}   | {forward:6.0f} ({plain_forward:.0f}) "
                f"x{forward / plain_forward:.1f} "
                f"| {both:6.0f} ({plain_both:.0f}) x{both / plain_both:.1f}",
                flush=True,
            )
    print(
        "discriminator: type, feature size, head and projection width | M parameters | D forward + backward "
        "| G forward + backward"
    )
    for dtype in dtypes:
        for size, heads, projection, batch in CONFIGURATIONS[-3 if quick else 0 :]:
            parameters, d, g = discriminator_rates(dtype, size, heads, projection, batch)
            print(
                f"{str(dtype)[6:]:8s} {size:4d} {heads:3d} {projection:3d} | {parameters:6.2f} | {d:6.0f} | "
                f"{g:6.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
