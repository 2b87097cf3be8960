# SPDX-License-Identifier: Apache-2.0
"""Measures the speed of the generator.

    python benchmarks/generator.py                        # ImageNet size at 16x16: 101.9 M parameters
    python benchmarks/generator.py --cbase 16384 --cmax 256 --layers 7 --batch 16 --backward
    python benchmarks/generator.py --to 256 --batch 1     # ImageNet at 256x256, with stages at 32 to 256

It compares dense modulated convolutions with the published form, a grouped convolution with N weights. With
superresolution stages (--to), it compares native CPU kernels with matrix products.

It prints seconds per image (wall clock, and the CPU time of all threads, which depends less on the load of
the machine) and the ratio to the first form.
"""

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch_utils.ops import conv2d_gradfix
from torch_utils.ops.backend import cpu_kernels
from training import generator as networks


def grouped_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    demodulate: bool = True,
    padding: int = 0,
    input_gain: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Compute `modulated_conv2d` with a separate weight per sample (StyleGAN2, equations 1 to 3)."""
    w = weight * styles[:, None, :, None, None]  # [N, O, I, k, k]
    if demodulate:
        w = w * (w.square().sum(dim=[2, 3, 4], keepdim=True) + 1e-8).rsqrt()
    if input_gain is not None:
        w = w * input_gain
    n, o, i, k, _ = w.shape
    y = conv2d_gradfix.conv2d(
        x.reshape(1, n * i, *x.shape[2:]).to(dtype),
        w.reshape(n * o, i, k, k).to(dtype),
        padding=padding,
        groups=n,
    )
    return y.reshape(n, o, *y.shape[2:]).to(x.dtype)


def measure(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the smallest wall-clock and CPU seconds of `repeats` runs after one warm-up run."""
    run()
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(t[0] for t in times), min(t[1] for t in times)


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("--config", default="stylegan3-t", show_default=True)
@click.option("--resolution", default=16, show_default=True)
@click.option("--layers", default=10, show_default=True)
@click.option("--cbase", default=32768, show_default=True)
@click.option("--cmax", default=512, show_default=True)
@click.option("--batch", default=4, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=2, show_default=True)
@click.option(
    "--to",
    default=0,
    help="Add superresolution stages up to this resolution, and compare implementations of filtered_lrelu.  "
    "[default: none]",
)
@click.option("--backward", is_flag=True, help="Measure the forward and backward pass.")
def main(
    config: str,
    resolution: int,
    layers: int,
    cbase: int,
    cmax: int,
    batch: int,
    threads: int,
    repeats: int,
    to: int,
    backward: bool,
) -> None:
    """Run all forms; the help text is the module's docstring."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    G = networks.build_stem(config, resolution, 0, syn_layers=layers, cbase=cbase, cmax=cmax)
    while G.img_resolution < to:
        G = networks.build_superres(G, config)
    G.requires_grad_(backward)
    z = torch.randn(batch, G.z_dim)

    def step() -> None:
        with torch.set_grad_enabled(backward):
            images = G(z)
        if backward:
            images.square().mean().backward()

    dense, first = networks.modulated_conv2d, None
    forms = (
        [("products", dense, False), ("native", dense, True)]
        if to
        else [("grouped", grouped_conv2d, True), ("dense", dense, True)]
    )
    for dtype, (name, function, kernels) in itertools.product((None, torch.bfloat16), forms):
        networks.modulated_conv2d = function
        cpu_kernels.enabled = kernels
        G.synthesis.reduced_dtype = dtype
        wall, cpu = (seconds / batch for seconds in measure(step, repeats))
        first = first or cpu
        label = f"{name} {'float32' if dtype is None else 'bfloat16'}"
        print(
            f"{label:17} {wall:7.3f} s per image  {1 / wall:7.3f} images/s  {cpu:7.3f} CPU s per image  "
            f"{first / cpu:5.2f} x (CPU time)",
            flush=True,
        )
    networks.modulated_conv2d = dense


if __name__ == "__main__":
    main()
