# SPDX-License-Identifier: Apache-2.0
"""Compares filtered_lrelu and bias_act on a CPU with and without the native kernels.

    python benchmarks/ops_cpu.py                                # all layers, two threads
    python benchmarks/ops_cpu.py --threads 1 --cpu-time         # on a machine with other users
    python benchmarks/ops_cpu.py --op bias_act

All implementations run alternately in this process, and the fastest run of each counts. bias_act is compared
with torch's own operations (impl='ref') and with the copy of a tensor. filtered_lrelu is compared with matrix
products (`torch_utils/ops/backend/resampling.py`), which are used without a compiler, and with the plain
implementation (impl='ref': zero insertion, padding, depthwise convolutions, leaky ReLU). The layers are those
of StyleGAN-XL's ImageNet (-t) and CIFAR-10 (-r) generators with fewer channels; the time per plane does not
depend on their number.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.signal
import scipy.special
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch_utils.ops.backend import cpu_kernels, library
from torch_utils.ops.backend.activations import activation_funcs
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu


class Layer(NamedTuple):
    """A synthesis layer, after its convolution."""

    name: str
    batch: int
    channels: int
    size: int
    up: int
    pad_low: int
    pad_high: int
    radial: bool


LAYERS = [
    Layer("36 -> 36, 16 ch", 16, 16, 38, 2, 9, 8, False),
    Layer("36 -> 36", 2, 256, 38, 2, 9, 8, False),
    Layer("36 -> 16", 2, 256, 38, 2, -11, -12, False),
    Layer("36 -> 52", 2, 128, 38, 4, -6, -9, False),
    Layer("84 -> 84", 1, 128, 86, 2, 9, 8, False),
    Layer("148 -> 148", 1, 64, 150, 2, 9, 8, False),
    Layer("276 -> 276", 1, 16, 278, 2, 9, 8, False),
    Layer("36 -> 36 radial", 2, 128, 36, 2, 11, 10, True),
    Layer("36 -> 52 radial", 2, 64, 36, 4, -2, -5, True),
]


def make_filters(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the Kaiser low-pass filters of a layer; a radial one is a jinc function with the same window."""
    taps = 6 * layer.up
    fu = scipy.signal.firwin(taps, cutoff=0.35 / layer.up, width=0.4 / layer.up)
    fd = scipy.signal.firwin(12, cutoff=0.3, width=0.25)
    if layer.radial:
        position = np.arange(12) - 5.5
        radius = np.hypot(*np.meshgrid(position, position))
        window = np.kaiser(12, scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(12, 0.25)))
        fd = scipy.special.j1(np.pi * 0.3 * radius) / radius * np.outer(window, window)
        fd = fd / fd.sum()
    return torch.from_numpy(fu).float(), torch.from_numpy(fd).float()


def fastest(calls: list[Callable[[], object]], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Return the seconds of the fastest of `repeats` alternating runs of each call, after one warm-up run."""
    best = [float("inf")] * len(calls)
    for repeat in range(repeats + 1):
        for i, call in enumerate(calls):
            start = clock()
            call()
            if repeat > 0:
                best[i] = min(best[i], clock() - start)
    return best


# Name, implementation, and whether the native kernels are enabled.
WAYS = [("plain", "ref", True), ("products", "cuda", False), ("native", "cuda", True)]


def measure(
    layer: Layer, dtype: torch.dtype, channels_last: bool, repeats: int, clock: Callable[[], float]
) -> list[list[float]]:
    """Return the seconds of each of `WAYS`: forward, then forward and backward."""
    fu, fd = make_filters(layer)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = (
        torch.randn(layer.batch, layer.channels, layer.size, layer.size)
        .to(dtype)
        .contiguous(memory_format=memory_format)
    )
    b = torch.randn(layer.channels, dtype=dtype)
    leaf = x.clone().requires_grad_()
    pads = [layer.pad_low, layer.pad_high] * 2

    def forward(x: torch.Tensor, impl: str, kernels: bool) -> torch.Tensor:
        cpu_kernels.enabled = kernels
        return filtered_lrelu(x, fu, fd, b, up=layer.up, down=2, padding=pads, clamp=256, impl=impl)

    gradient = torch.randn_like(forward(x, "cuda", True))

    def both(impl: str, kernels: bool) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(forward(leaf, impl, kernels), leaf, gradient)

    with torch.no_grad():
        seconds = fastest(
            [functools.partial(forward, x, impl, kernels) for _, impl, kernels in WAYS], repeats, clock
        )
    return [
        seconds,
        fastest([functools.partial(both, impl, kernels) for _, impl, kernels in WAYS], repeats, clock),
    ]


def print_filtered_lrelu(args: argparse.Namespace, clock: Callable[[], float]) -> None:
    """Print a row of milliseconds and ratios for every layer, type and memory format."""
    columns = "".join(f"{name:>9s}" for name, *_ in WAYS) + f"{'plain/n.':>9s}{'prod./n.':>9s}"
    print(f"{'layer':17s}{'N x C':>9s}  {'dtype':9s}{'layout':8s}{columns}  | and backward {columns}")
    for layer in LAYERS:
        if args.layers not in layer.name:
            continue
        for dtype in (torch.float32, torch.bfloat16):
            for channels_last in (True, False):
                label = (
                    f"{layer.name:17s}{f'{layer.batch} x {layer.channels}':>9s}  "
                    f"{str(dtype)[6:]:9s}{'NHWC' if channels_last else 'NCHW':8s}"
                )
                parts = []
                for seconds in measure(layer, dtype, channels_last, args.repeats, clock):
                    times = "".join(f"{1000 * s:9.2f}" for s in seconds)
                    parts.append(times + "".join(f"{s / seconds[-1]:8.1f}x" for s in seconds[:-1]))
                print(label + "  |              ".join(parts), flush=True)


# [N, C, height, width] of StyleGAN2's layers and a toRGB layer; activation; clamp.
ELEMENTWISE = [
    ((4, 512, 16, 16), "lrelu", 256.0),
    ((4, 512, 32, 32), "lrelu", 256.0),
    ((4, 256, 128, 128), "lrelu", 256.0),
    ((4, 3, 256, 256), "linear", 256.0),
    ((4, 512, 32, 32), "swish", None),
    ((4, 512, 32, 32), "softplus", None),
]


def measure_bias_act(
    shape: tuple[int, ...],
    act: str,
    clamp: float | None,
    dtype: torch.dtype,
    channels_last: bool,
    repeats: int,
    clock: Callable[[], float],
) -> list[list[float]]:
    """Return the seconds of a copy, of torch's own operations and of the kernel.

    First forward, then forward and backward with the gradient of the bias.
    """
    x = (
        torch.randn(shape)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    )
    b, gradient = torch.randn(shape[1]).to(dtype), torch.randn_like(x)
    leaves = [x.clone().requires_grad_(), b.clone().requires_grad_()]
    spec = activation_funcs[act]

    def forward(way: str, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if way == "copy":
            return torch.empty_like(x).copy_(x)
        if way == "torch":
            return bias_act(x, b, act=act, clamp=clamp, impl="ref")
        return library.bias_act(library.NAMESPACE, x, b, 1, act, spec.def_alpha, spec.def_gain, clamp)

    def both(way: str) -> object:
        return torch.autograd.grad(forward(way, *leaves), leaves, gradient)

    with torch.no_grad():
        seconds = fastest(
            [functools.partial(forward, way, x, b) for way in ("copy", "torch", "native")], repeats, clock
        )
    return [seconds, fastest([functools.partial(both, way) for way in ("torch", "native")], repeats, clock)]


def print_bias_act(args: argparse.Namespace, clock: Callable[[], float]) -> None:
    """Print a row of milliseconds and ratios for every shape, type and memory format."""
    columns = (
        f"{'copy':>9s}{'torch':>9s}{'native':>9s}{'torch/n.':>9s}  | and "
        f"backward{'torch':>9s}{'native':>9s}{'torch/n.':>9s}"
    )
    print(f"{'bias_act':30s}{'dtype':9s}{'layout':8s}{columns}")
    for shape, act, clamp in ELEMENTWISE:
        for dtype in (torch.float32, torch.bfloat16):
            for channels_last in (True, False):
                (copy, plain, native), (both, both_native) = measure_bias_act(
                    shape, act, clamp, dtype, channels_last, args.repeats, clock
                )
                label = f"{f'{act} {shape}':30s}{str(dtype)[6:]:9s}{'NHWC' if channels_last else 'NCHW':8s}"
                times = "".join(f"{1000 * s:9.2f}" for s in (copy, plain, native))
                backward = "".join(f"{1000 * s:9.2f}" for s in (both, both_native))
                print(
                    f"{label}{times}{plain / native:8.1f}x  |             "
                    f"{backward}{both / both_native:8.1f}x",
                    flush=True,
                )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="compare filtered_lrelu and bias_act on a CPU with and without native kernels"
    )
    parser.add_argument("--op", choices=["filtered_lrelu", "bias_act", "all"], default="all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="measure the process's CPU time instead of the wall clock (use it with one thread)",
    )
    parser.add_argument("--layers", default="", help="only layers whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    if not cpu_kernels.ready(torch.float32):
        raise SystemExit("the native kernels cannot be used: run python -m torch_utils.ops doctor")
    print(
        f"torch {torch.__version__}, {args.threads} threads, milliseconds; plain = depthwise convolutions, "
        "products = matrix products"
    )
    if args.op != "filtered_lrelu":
        print_bias_act(args, clock)
    if args.op != "bias_act":
        print_filtered_lrelu(args, clock)


if __name__ == "__main__":
    main()
