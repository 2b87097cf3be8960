# SPDX-License-Identifier: Apache-2.0
"""Bias, upsampling, leaky ReLU with gain and clamp, downsampling: the alias-free nonlinearity of StyleGAN3 (Karras et al. 2021, section 3)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import resampling
from .bias_act import bias_act, check_impl
from .upfirdn2d import Factors, check_filter, check_image, filter_size, has_fast_path, parse_factors, parse_padding, upfirdn2d


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
    # Dispatch point: a fused kernel for x.device takes over here when impl == 'cuda'.
    if impl == "cuda" and has_fast_path(x, fu, fd):
        dtype = resampling.compute_dtype(x.dtype)
        # lrelu(g u) = g lrelu(u) for g > 0: a positive gain costs nothing inside the upsampling.
        inner = gain if gain > 0 and not (up_rows.trivial and up_columns.trivial) else 1.0
        up_map = resampling.make_resampler(fu, up_rows, up_columns, flip_filter, up_x * up_y * inner, dtype)
        down_map = resampling.make_resampler(fd, down_rows, down_columns, flip_filter, 1.0, dtype)
        if up_map is not None or down_map is not None:
            spec = _Spec(up_map, down_map, (up_rows.out_size, up_columns.out_size), slope, gain / inner, clamp)
            return _FilteredLrelu.apply(x, b, spec)
    if b is not None:
        x = bias_act(x, b, impl=impl)
    x = upfirdn2d(x, fu, up=up, padding=padding, gain=up_x * up_y, flip_filter=flip_filter, impl=impl)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp, impl=impl)
    return upfirdn2d(x, fd, down=down, flip_filter=flip_filter, impl=impl)


class _Spec(NamedTuple):
    """y = down(phi(up(x + b))) with phi(u) = clamp(gain * lrelu(u, slope)); a map that is None is the identity."""

    up: resampling.Resampler | None
    down: resampling.Resampler | None
    mid_size: tuple[int, int]
    slope: float
    gain: float
    clamp: float | None

    @property
    def pixels(self) -> int:
        """Pixels of the largest image on the way."""
        return max(m.max_pixels for m in (self.up, self.down) if m is not None)

    @property
    def in_size(self) -> tuple[int, int]:
        return self.mid_size if self.up is None else self.up.in_size

    @property
    def out_size(self) -> tuple[int, int]:
        return self.mid_size if self.down is None else self.down.out_size

    def activate_(self, u: torch.Tensor) -> torch.Tensor:
        """phi(u), in place."""
        u = F.leaky_relu_(u, self.slope)
        if self.gain != 1:
            u *= self.gain
        if self.clamp is not None:
            u = u.clamp_(-self.clamp, self.clamp)
        return u

    def gate_(self, t: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """t * phi'(u), in place; phi' is `slope` at 0 and 0 on the clamp itself. Overwrites u, too."""
        outside = None
        if self.clamp is not None:
            low, high = torch.aminmax(u)
            # Clamps are there for emergencies: one cheap look at the extremes usually saves the mask.
            if not max(abs(float(low)), abs(float(high))) * abs(self.gain) * max(1.0, abs(self.slope)) < self.clamp:
                outside = self.activate_(u.clone()).abs_() >= self.clamp
        negative = torch.le(u, 0, out=u)
        torch.addcmul(t, t, negative, value=self.slope - 1, out=t)
        if self.gain != 1:
            t *= self.gain
        return t if outside is None else t.masked_fill_(outside, 0)


def _apply(linear: resampling.Resampler | None, x: torch.Tensor) -> torch.Tensor:
    return x if linear is None else linear(x)


def _adjoint(linear: resampling.Resampler | None) -> resampling.Resampler | None:
    return None if linear is None else linear.adjoint


class _FilteredLrelu(torch.autograd.Function):
    """(x, b) -> y, chunk by chunk. Only x and b are kept for the backward pass, nothing of the upsampled size."""

    @staticmethod
    def forward(ctx, x, b, spec):  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(x, b)
        ctx.spec = spec
        y = resampling.new_images(x, spec.out_size)
        dtype = resampling.compute_dtype(x.dtype)
        for chunk in resampling.chunks(x, spec.pixels):
            part = resampling.load_chunk(x[chunk], dtype, None if b is None else b[chunk[1]])
            resampling.store_chunk(_apply(spec.down, spec.activate_(_apply(spec.up, part))), y[chunk])
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def, override]
        x, b = ctx.saved_tensors
        dx = _Gated.apply(dy, x, b, ctx.spec, True)
        db = dx.sum(dim=(0, 2, 3), dtype=b.dtype) if ctx.needs_input_grad[1] else None
        return dx, db, None


class _Gated(torch.autograd.Function):
    """The derivative of `_FilteredLrelu` at x applied to t: forwards, down(phi' * up(t)), or transposed, up'(phi' * down'(t)).

    Linear in t, and each direction is the other's derivative. phi' is constant almost everywhere, so x and b get no gradient. phi' is
    recomputed from x: two small products instead of an upsampled image kept in memory from the forward pass.
    """

    @staticmethod
    def forward(ctx, t, x, b, spec, transposed):  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(x, b)
        ctx.spec, ctx.transposed = spec, transposed
        before, after = (_adjoint(spec.down), _adjoint(spec.up)) if transposed else (spec.up, spec.down)
        y = resampling.new_images(x, spec.in_size if transposed else spec.out_size)
        dtype = resampling.compute_dtype(x.dtype)
        for chunk in resampling.chunks(x, spec.pixels):
            u = _apply(spec.up, resampling.load_chunk(x[chunk], dtype, None if b is None else b[chunk[1]]))
            part = _apply(before, resampling.load_chunk(t[chunk], dtype))
            resampling.store_chunk(_apply(after, spec.gate_(part, u)), y[chunk])
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def, override]
        x, b = ctx.saved_tensors
        return _Gated.apply(dy, x, b, ctx.spec, not ctx.transposed), None, None, None, None
