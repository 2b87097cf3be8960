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
