# SPDX-License-Identifier: Apache-2.0
"""The alias-free nonlinearity of StyleGAN3 (Karras et al. 2021, section 3).

It adds a bias, upsamples, applies a leaky ReLU with gain and clamp, and downsamples.
"""

import torch

from torch_utils.ops.backend import cpu, library, resampling
from torch_utils.ops.backend.activations import check_impl
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.upfirdn2d import (
    Factors,
    check_filter,
    check_image,
    filter_size,
    has_fast_path,
    parse_factors,
    parse_padding,
    upfirdn2d,
)


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
    """Compute down(clamp(gain * lrelu(up(x + b)))), which is differentiable twice.

    Args:
        x: [N, C, H, W], contiguous or channels_last; on a CPU the result has the same layout.
        fu: upsampling filter [n] or [h, w], or None = identity.
        fd: downsampling filter [n] or [h, w], or None = identity.
        b: bias [C], or None.
        up: integer upsampling factor.
        down: integer downsampling factor.
        padding: pixels added to the upsampled image: one number, [x, y] or [left, right, top, bottom];
            negative = crop.
        gain: factor after the leaky ReLU.
        slope: slope of the leaky ReLU below zero.
        clamp: bound of the absolute value after the gain; None = unbounded.
        flip_filter: False = convolution, True = correlation.
        impl: 'ref', or 'cuda' = the fastest implementation for x's device.

    Returns:
        [N, C, h, w] with h = (H * up + top + bottom - (taps_up - 1) - (taps_down - 1) + down - 1) // down.

    Raises:
        ValueError: an argument has another form, or the output would have no pixels.
    """
    _check_arguments(x, fu, fd, b, clamp, impl)
    up_x, up_y = parse_factors(up, "up")
    down_x, down_y = parse_factors(down, "down")
    pad_x0, pad_x1, pad_y0, pad_y1 = parse_padding(padding)
    (fu_w, fu_h), (fd_w, fd_h) = filter_size(fu), filter_size(fd)
    up_rows = resampling.AxisPlan(x.shape[2], fu_h, up_y, 1, pad_y0, pad_y1)
    up_columns = resampling.AxisPlan(x.shape[3], fu_w, up_x, 1, pad_x0, pad_x1)
    down_rows = resampling.AxisPlan(up_rows.out_size, fd_h, 1, down_y)
    down_columns = resampling.AxisPlan(up_columns.out_size, fd_w, 1, down_x)
    up_plans, down_plans = (up_rows, up_columns), (down_rows, down_columns)
    if fu is None and fd is None and all(plan.trivial for plan in (*up_plans, *down_plans)):
        return bias_act(x, b, act="lrelu", alpha=slope, gain=gain, clamp=clamp, impl=impl)
    namespace = library.namespace_for(x, fu, fd) if impl == "cuda" else None
    if namespace is not None:
        return library.filtered_lrelu(
            namespace, x, (fu, fd), b, up_plans, down_plans, flip_filter, gain, slope, clamp
        )
    if impl == "cuda" and has_fast_path(x, fu, fd):
        spec = cpu.make_spec(x.dtype, (fu, fd), up_plans, down_plans, flip_filter, gain, slope, clamp)
        if spec.up is not None or spec.down is not None:
            y: torch.Tensor = cpu.FilteredLrelu.apply(x, b, spec)
            return y
    if b is not None:
        x = bias_act(x, b, impl=impl)
    x = upfirdn2d(x, fu, up=up, padding=padding, gain=up_x * up_y, flip_filter=flip_filter, impl=impl)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp, impl=impl)
    return upfirdn2d(x, fd, down=down, flip_filter=flip_filter, impl=impl)


def _check_arguments(
    x: torch.Tensor,
    fu: torch.Tensor | None,
    fd: torch.Tensor | None,
    b: torch.Tensor | None,
    clamp: float | None,
    impl: str,
) -> None:
    check_impl(impl)
    check_image(x)
    check_filter(fu, "fu")
    check_filter(fd, "fd")
    if b is not None and b.shape != (x.shape[1],):
        raise ValueError(f"the bias must have shape ({x.shape[1]},), not {tuple(b.shape)}")
    if clamp is not None and clamp < 0:
        raise ValueError(f"clamp={clamp} must not be negative; None = no clamp")
