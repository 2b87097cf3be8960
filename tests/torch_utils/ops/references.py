# SPDX-License-Identifier: Apache-2.0
"""Inputs and comparisons that the tests of the CUDA kernels and those of the CPU kernels share."""

import numpy as np
import scipy.special
import torch

from torch_utils.ops.filtered_lrelu import filtered_lrelu


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers in float64, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """`found` is within `tolerance` times the largest magnitude of `wanted`, a float64 tensor."""
    assert found.shape == wanted.shape
    scale = max(float(wanted.abs().max()), 1e-3) if wanted.numel() else 0.0
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance * scale)


def close_sum(found: torch.Tensor, wanted: torch.Tensor, terms: torch.Tensor, tolerance: float) -> None:
    """`found`, sums of some of the `terms` each, is within `tolerance` times the Euclidean norm of those.

    A sum can cancel: its error scales with its terms, not with its value.
    """
    norm = float((terms.square().sum() / max(wanted.numel(), 1)).sqrt())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance * max(norm, 1e-3))


def close_gradients(found: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float) -> None:
    """Gradients by x and b, then second derivatives by dy, x and b; without a bias those by b are missing."""
    sums = {1: 0, 4: 3} if len(wanted) == 5 else {}  # gradients by b sum those by x
    for i, (f, w) in enumerate(zip(found, wanted, strict=True)):
        if i in sums:
            close_sum(f, w, wanted[sums[i]], tolerance)
        else:
            close(f, w, tolerance)


def radial(taps: int) -> torch.Tensor:
    """A filter [taps, taps] that is no outer product."""
    position = np.arange(taps) - (taps - 1) / 2
    radius = np.maximum(np.hypot(*np.meshgrid(position, position)), 1e-6)
    f = scipy.special.j1(0.8 * radius) / radius * np.outer(np.kaiser(taps, 4), np.kaiser(taps, 4))
    return torch.from_numpy(f / f.sum())


def check_gradient_on_the_kinks(dtype: torch.dtype, full: bool, channels: int) -> None:
    """filtered_lrelu where each middle sample is exactly a pixel: at zero the slope is the negative side's,
    on the clamp it is zero.
    """
    filters = torch.float64 if dtype == torch.float64 else torch.float32
    fu, fd = torch.zeros(12, dtype=filters), torch.zeros(12, dtype=filters)
    fu[5:7], fd[5] = 0.5, 1.0
    fd = torch.outer(fd, fd) if full else fd
    x = (
        torch.tensor([0.0, 1.0, -1.0, 0.5, -5.0, 2.0], dtype=dtype)
        .repeat(32)
        .view(1, 1, 16, 12)
        .repeat(1, channels, 1, 1)
    )
    results = []
    for impl in ("cuda", "ref"):
        leaf = x.clone().requires_grad_()
        y = filtered_lrelu(
            leaf, fu, fd, up=2, down=2, padding=[9, 8, 9, 8], gain=1.0, slope=0.25, clamp=1.0, impl=impl
        )
        (dx,) = torch.autograd.grad(y.sum(), leaf)
        assert set(dx.flatten().tolist()) == {0.0, 0.25, 1.0}
        results.append((y.detach(), dx))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def lay_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """x itself, with channels last, or with strides that no kernel is made for."""
    if layout == "strided":
        return torch.stack([x, x], dim=-1)[..., 0]
    return x.contiguous(memory_format=torch.channels_last) if layout == "last" else x


# up, down, taps up, taps down, padding, full downsampling filter: every kind of layer in the recipes, and
# others.
LAYERS = {
    "same": (2, 2, 12, 12, [9, 8, 9, 8], False),
    "crop": (2, 2, 12, 12, [-11, -12, -11, -12], False),
    "up": (4, 2, 24, 12, [-6, -9, -6, -9], False),
    "same radial": (2, 2, 12, 12, [11, 10, 11, 10], True),
    "up radial": (4, 2, 24, 12, [-2, -5, -2, -5], True),
}
OTHERS = {
    "no filters": (1, 2, 0, 0, [1, 0, 2, 1], False),
    "up only": (2, 1, 7, 0, [3, 4, 3, 3], False),
    "odd factors": (3, 2, 8, 5, [5, 5, 3, 6], True),
    "down only": (1, 3, 0, 6, [4, 4, 4, 4], False),
    "few taps": (4, 3, 2, 2, [1, 1, 1, 1], False),
}


def run_layer(layer, shape, dtype, kind, impl, clamp, slope=0.2, gain=2**0.5, flip=False, layout="first"):
    """Output, gradients by x and b, second derivative, and the output without a gradient; computed in `kind`
    from values of `dtype`.
    """
    up, down, taps_up, taps_down, padding, full = layer
    fu = normal(taps_up, seed=5) / taps_up**0.5 if taps_up else None
    fd = normal(taps_down, seed=7) / 3 if taps_down else None
    if full:
        fd = radial(taps_down) + 0.1 * normal(taps_down, taps_down, seed=6) / taps_down
    fu, fd = (f if f is None or kind == torch.float64 else f.float() for f in (fu, fd))
    x, b = normal(*shape, seed=1).to(dtype), normal(shape[1], seed=2).to(dtype)
    leaf, bias = lay_out(x.to(kind), layout).detach().requires_grad_(), b.to(kind).requires_grad_()
    arguments = {
        "up": up,
        "down": down,
        "padding": padding,
        "gain": gain,
        "slope": slope,
        "clamp": clamp,
        "flip_filter": flip,
        "impl": impl,
    }
    y = filtered_lrelu(leaf, fu, fd, bias, **arguments)
    dy = normal(*y.shape, seed=3).to(dtype).to(kind).requires_grad_()
    dx, db = torch.autograd.grad(y, (leaf, bias), dy, create_graph=True)
    (second,) = torch.autograd.grad(dx, dy, normal(*x.shape, seed=4).to(dtype).to(kind))
    with torch.no_grad():
        plain = filtered_lrelu(leaf, fu, fd, bias, **arguments)
    return [t.detach() for t in (y, dx, db, second, plain)]


def compare_layer(layer, shape, dtype, tolerance, clamp=0.8, **options) -> None:
    """The kernels in `dtype` beside the reference in float64: outputs, gradients, second derivative."""
    wanted = run_layer(layer, shape, dtype, torch.float64, "ref", clamp, **options)
    found = run_layer(layer, shape, dtype, dtype, "cuda", clamp, **options)
    torch.testing.assert_close(found[4], found[0], rtol=0, atol=0)
    for name, f, w in zip(("y", "dx", "db", "second"), found, wanted, strict=False):
        assert torch.isfinite(f).all(), name
        if name != "db":
            close(f, w, 4 * tolerance)
    close_sum(found[2], wanted[2], wanted[1], 16 * tolerance)
