# SPDX-License-Identifier: Apache-2.0
"""Bias, upsampling, leaky ReLU with gain and clamp, downsampling: the alias-free nonlinearity of StyleGAN3 (Karras et al. 2021, section 3)."""

import torch

from .bias_act import bias_act, check_impl
from .upfirdn2d import Factors, check_filter, check_image, parse_factors, parse_padding, upfirdn2d


def filtered_lrelu(
    x: torch.Tensor,
    fu: torch.Tensor | None = None,
    fd: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Factors = 0,
    gain: float = 2.0**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str = "cuda",
) -> torch.Tensor:
    """down(clamp(gain * lrelu(up(x + b)))), differentiable twice.

    Args:
        x: [N, C, H, W], contiguous or channels_last; the result has the same layout.
        fu, fd: up- and downsampling filters [n] or [h, w], or None = identity.
        b: bias [C], or None.
        up, down: integer factors.
        padding: of the upsampled image: one number, [x, y] or [left, right, top, bottom]; negative = crop.
        gain, slope, clamp: of the leaky ReLU; clamp None = unbounded.
        flip_filter: False = convolution, True = correlation.
        impl: 'ref', or 'cuda' = the fastest implementation there is for x's device.

    Returns:
        [N, C, h, w] with h = (H * up + top + bottom - (taps_up - 1) - (taps_down - 1) + down - 1) // down.

    Raises:
        ValueError: arguments of another form, or an output without pixels.
    """
    check_impl(impl)
    check_image(x)
    check_filter(fu, "fu")
    check_filter(fd, "fd")
    up_x, up_y = parse_factors(up, "up")
    parse_padding(padding)
    # Dispatch point: a fused kernel for x.device takes over here when impl == 'cuda'.
    if b is not None:
        x = bias_act(x, b, impl=impl)
    x = upfirdn2d(x, fu, up=up, padding=padding, gain=up_x * up_y, flip_filter=flip_filter, impl=impl)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp, impl=impl)
    return upfirdn2d(x, fd, down=down, flip_filter=flip_filter, impl=impl)
