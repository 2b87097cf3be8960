# SPDX-License-Identifier: Apache-2.0
"""Bias, upsampling, leaky ReLU with gain and clamp, downsampling: the alias-free nonlinearity of StyleGAN3
(Karras et al. 2021, section 3).
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
    """down(clamp(gain * lrelu(up(x + b)))), differentiable twice.

    Args:
        x: [N, C, H, W], contiguous or channels_last; on a CPU the result has the same layout.
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
    down_x, down_y = parse_factors(down, "down")
    pad_x0, pad_x1, pad_y0, pad_y1 = parse_padding(padding)
    if b is not None and b.shape != (x.shape[1],):
        raise ValueError(f"the bias must have shape ({x.shape[1]},), not {tuple(b.shape)}")
    if clamp is not None and clamp < 0:
        raise ValueError(f"clamp={clamp} must not be negative; None = no clamp")
    (fu_w, fu_h), (fd_w, fd_h) = filter_size(fu), filter_size(fd)
    up_rows = resampling.AxisPlan(x.shape[2], fu_h, up_y, 1, pad_y0, pad_y1)
    up_columns = resampling.AxisPlan(x.shape[3], fu_w, up_x, 1, pad_x0, pad_x1)
    down_rows = resampling.AxisPlan(up_rows.out_size, fd_h, 1, down_y)
    down_columns = resampling.AxisPlan(up_columns.out_size, fd_w, 1, down_x)
    if (
        fu is None
        and fd is None
        and up_columns.trivial
        and up_rows.trivial
        and down_columns.trivial
        and down_rows.trivial
    ):
        return bias_act(x, b, act="lrelu", alpha=slope, gain=gain, clamp=clamp, impl=impl)
    namespace = library.namespace_for(x, fu, fd) if impl == "cuda" else None
    if namespace is not None:
        up_plans, down_plans = (up_rows, up_columns), (down_rows, down_columns)
        return library.filtered_lrelu(
            namespace, x, (fu, fd), b, up_plans, down_plans, flip_filter, gain, slope, clamp
        )
    if impl == "cuda" and has_fast_path(x, fu, fd):
        dtype = resampling.compute_dtype(x.dtype)
        # lrelu(g u) = g lrelu(u) for g > 0: a positive gain costs nothing inside the upsampling.
        inner = gain if gain > 0 and not (up_rows.trivial and up_columns.trivial) else 1.0
        up_map = resampling.make_resampler(fu, up_rows, up_columns, flip_filter, up_x * up_y * inner, dtype)
        down_map = resampling.make_resampler(fd, down_rows, down_columns, flip_filter, 1.0, dtype)
        if up_map is not None or down_map is not None:
            spec = cpu.Spec(
                up_map, down_map, (up_rows.out_size, up_columns.out_size), slope, gain / inner, clamp
            )
            return cpu.FilteredLrelu.apply(x, b, spec)
    if b is not None:
        x = bias_act(x, b, impl=impl)
    x = upfirdn2d(x, fu, up=up, padding=padding, gain=up_x * up_y, flip_filter=flip_filter, impl=impl)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp, impl=impl)
    return upfirdn2d(x, fd, down=down, flip_filter=flip_filter, impl=impl)
