# SPDX-License-Identifier: Apache-2.0
"""The operators of `library.py` for CPU tensors.

They use the native kernels if these are built and support the dtype (`cpu_kernels.py`). Otherwise
filtered_lrelu and upfirdn2d use the matrix products of `resampling.py`, and bias_act uses torch operations.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from torch_utils.ops.backend import cpu_kernels, resampling
from torch_utils.ops.backend.activations import activation_funcs, along, clamp_abs
from torch_utils.ops.backend.cpu_kernels import Axes

_Geometry = list[
    int
]  # as library.Geometry for filtered_lrelu; the first six and the output size for upfirdn2d
_Axes = tuple[resampling.AxisPlan, resampling.AxisPlan]  # (rows, columns)


class Spec(NamedTuple):
    """A filtered_lrelu: y = down(phi(up(x + b))) with phi(u) = clamp(gain * lrelu(u, slope)).

    Attributes:
        up: upsampling map; None = identity.
        down: downsampling map; None = identity.
        mid_size: (height, width) between the maps.
        slope: slope of phi below zero.
        gain: factor of phi.
        clamp: bound of phi; None = unbounded.
    """

    up: resampling.Resampler | None
    down: resampling.Resampler | None
    mid_size: tuple[int, int]
    slope: float
    gain: float
    clamp: float | None

    @property
    def pixels(self) -> int:
        """Pixels of the largest intermediate image."""
        return max(m.max_pixels for m in (self.up, self.down) if m is not None)

    @property
    def in_size(self) -> tuple[int, int]:
        """(height, width) of the input."""
        return self.mid_size if self.up is None else self.up.in_size

    @property
    def out_size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        return self.mid_size if self.down is None else self.down.out_size

    def activate_(self, u: torch.Tensor) -> torch.Tensor:
        """Compute phi(u) in place."""
        u = F.leaky_relu_(u, self.slope)
        if self.gain != 1:
            u *= self.gain
        if self.clamp is not None:
            u = u.clamp_(-self.clamp, self.clamp)
        return u

    def gate_(self, t: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Compute t * phi'(u) in place, overwriting u as well.

        phi' is `gain * slope` at 0, and 0 at the clamp.
        """
        outside = None
        if self.clamp is not None:
            low, high = torch.aminmax(u)
            # Values rarely reach the clamp: checking the extremes is cheap and usually avoids the mask.
            largest = max(abs(float(low)), abs(float(high)))
            if not largest * abs(self.gain) * max(1.0, abs(self.slope)) < self.clamp:
                outside = self.activate_(u.clone()).abs_() >= self.clamp
        negative = torch.le(u, 0, out=u)
        torch.addcmul(t, t, negative, value=self.slope - 1, out=t)
        if self.gain != 1:
            t *= self.gain
        return t if outside is None else t.masked_fill_(outside, 0)

    def forward(self, x: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        """Compute y chunk by chunk."""
        y = resampling.new_images(x, self.out_size)
        dtype = resampling.compute_dtype(x.dtype)
        for chunk in resampling.chunks(x, self.pixels):
            part = resampling.load_chunk(x[chunk], dtype, None if b is None else b[chunk[1]])
            resampling.store_chunk(_apply(self.down, self.activate_(_apply(self.up, part))), y[chunk])
        return y

    def gated(
        self, t: torch.Tensor, x: torch.Tensor, b: torch.Tensor | None, transposed: bool
    ) -> torch.Tensor:
        """Apply the derivative at x to t: down(phi' * up(t)), or transposed: up'(phi' * down'(t))."""
        before, after = (_adjoint(self.down), _adjoint(self.up)) if transposed else (self.up, self.down)
        y = resampling.new_images(x, self.in_size if transposed else self.out_size)
        dtype = resampling.compute_dtype(x.dtype)
        for chunk in resampling.chunks(x, self.pixels):
            u = _apply(self.up, resampling.load_chunk(x[chunk], dtype, None if b is None else b[chunk[1]]))
            part = _apply(before, resampling.load_chunk(t[chunk], dtype))
            resampling.store_chunk(_apply(after, self.gate_(part, u)), y[chunk])
        return y


def _apply(linear: resampling.Resampler | None, x: torch.Tensor) -> torch.Tensor:
    return x if linear is None else linear(x)


def _adjoint(linear: resampling.Resampler | None) -> resampling.Resampler | None:
    return None if linear is None else linear.adjoint


class FilteredLrelu(torch.autograd.Function):
    """(x, b) -> y, chunk by chunk. It saves x and b for the backward pass and no upsampled images."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, b: torch.Tensor | None, spec: Spec) -> torch.Tensor:
        """Compute y."""
        ctx.save_for_backward(x, b)
        ctx.spec = spec
        return spec.forward(x, b)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        """Compute the gradients of x and b."""
        x, b = ctx.saved_tensors
        dx = Gated.apply(dy, x, b, ctx.spec, True)
        db = dx.sum(dim=(0, 2, 3), dtype=b.dtype) if ctx.needs_input_grad[1] else None
        return dx, db, None


class Gated(torch.autograd.Function):
    """The derivative of `FilteredLrelu` at x applied to t.

    Not transposed it is down(phi' * up(t)), transposed up'(phi' * down'(t)). Both are linear in t, and each
    is the derivative of the other. phi' is constant almost everywhere, so x and b get no gradient. phi' is
    recomputed from x: two small products instead of an upsampled image that the forward pass would have to
    keep in memory.
    """

    @staticmethod
    def forward(
        ctx: Any, t: torch.Tensor, x: torch.Tensor, b: torch.Tensor | None, spec: Spec, transposed: bool
    ) -> torch.Tensor:
        """Compute the derivative applied to t."""
        ctx.save_for_backward(x, b)
        ctx.spec, ctx.transposed = spec, transposed
        return spec.gated(t, x, b, transposed)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        """Compute the gradient of t."""
        x, b = ctx.saved_tensors
        return Gated.apply(dy, x, b, ctx.spec, not ctx.transposed), None, None, None, None


def _plans(
    size: int, up: int, pad: int, mid: int, taps_up: int, down: int, out: int, taps_down: int
) -> tuple[resampling.AxisPlan, resampling.AxisPlan]:
    """Return the plans of one axis of filtered_lrelu: to the middle grid, and from there to the output."""
    first = resampling.AxisPlan(size, taps_up, up, 1, pad, mid - 1 + taps_up - size * up - pad)
    return first, resampling.AxisPlan(mid, taps_down, 1, down, 0, (out - 1) * down + taps_down - mid)


def make_spec(
    dtype: torch.dtype,
    filters: tuple[torch.Tensor | None, torch.Tensor | None],
    up: _Axes,
    down: _Axes,
    flip_filter: bool,
    gain: float,
    slope: float,
    clamp: float | None,
) -> Spec:
    """Return the filtered_lrelu that these arguments describe.

    Args:
        dtype: type of the images.
        filters: upsampling and downsampling filter.
        up: upsampling of the (rows, columns).
        down: downsampling of the (rows, columns).
        flip_filter: False = convolution, True = correlation.
        gain: factor of phi.
        slope: slope of phi below zero.
        clamp: bound of phi; None = unbounded.
    """
    dtype = resampling.compute_dtype(dtype)
    # lrelu(g u) = g lrelu(u) for g > 0: a positive gain costs nothing if it is part of the upsampling.
    inner = gain if gain > 0 and not (up[0].trivial and up[1].trivial) else 1.0
    up_map = resampling.make_resampler(filters[0], *up, flip_filter, up[0].up * up[1].up * inner, dtype)
    down_map = resampling.make_resampler(filters[1], *down, flip_filter, 1.0, dtype)
    return Spec(up_map, down_map, (up[0].out_size, up[1].out_size), slope, gain / inner, clamp)


def _spec_of_operator(
    x: torch.Tensor,
    fu: torch.Tensor | None,
    fd: torch.Tensor | None,
    geometry: _Geometry,
    flip: bool,
    gain: float,
    slope: float,
    clamp: float,
) -> Spec:
    """Return the filtered_lrelu that an operator's arguments describe; clamp < 0: unbounded."""
    up_x, up_y, down_x, down_y, pad_x, pad_y, in_w, in_h, mid_w, mid_h, out_w, out_h = geometry
    (fu_h, fu_w), (fd_h, fd_w) = ((1, 1) if f is None else (f.shape[0], f.shape[-1]) for f in (fu, fd))
    up_rows, down_rows = _plans(in_h, up_y, pad_y, mid_h, fu_h, down_y, out_h, fd_h)
    up_columns, down_columns = _plans(in_w, up_x, pad_x, mid_w, fu_w, down_x, out_w, fd_w)
    up, down = (up_rows, up_columns), (down_rows, down_columns)
    return make_spec(x.dtype, (fu, fd), up, down, flip, gain, slope, None if clamp < 0 else clamp)


def _filtered_lrelu(
    x: torch.Tensor,
    fu: torch.Tensor | None,
    fd: torch.Tensor | None,
    b: torch.Tensor | None,
    geometry: _Geometry,
    flip: bool,
    gain: float,
    slope: float,
    clamp: float,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    if not cpu_kernels.ready(x.dtype):
        spec = _spec_of_operator(x, fu, fd, geometry, flip, gain, slope, clamp)
        return spec.forward(x, b), x.new_empty(0, dtype=torch.uint8)
    up_x, up_y, down_x, down_y, pad_x, pad_y, _, _, mid_w, mid_h, out_w, out_h = geometry
    axes = Axes((up_x, up_y), (1, 1), (pad_x, pad_y)), Axes((1, 1), (down_x, down_y), (0, 0))
    codes = x.new_empty(cpu_kernels.codes_shape(x, (mid_h, mid_w)), dtype=torch.uint8) if save else None
    # clamp(g lrelu(u)) = sign(g) clamp(lrelu(|g| u)): the gain costs nothing as part of the filters.
    gains = up_x * up_y * abs(gain), -1.0 if gain < 0 else 1.0
    sizes = (mid_h, mid_w), (out_h, out_w)
    bound = None if clamp < 0 else clamp
    y = cpu_kernels.filtered_lrelu(x, (fu, fd), axes, not flip, gains, sizes, b, slope, bound, codes, save)
    return y, x.new_empty(0, dtype=torch.uint8) if codes is None else codes


def _filtered_lrelu_gated(
    t: torch.Tensor,
    fu: torch.Tensor | None,
    fd: torch.Tensor | None,
    codes: torch.Tensor,
    x: torch.Tensor | None,
    b: torch.Tensor | None,
    geometry: _Geometry,
    flip: bool,
    gain: float,
    slope: float,
    clamp: float,
    transposed: bool,
) -> torch.Tensor:
    if codes.ndim == 1:
        assert x is not None  # saved if there are no codes
        return _spec_of_operator(x, fu, fd, geometry, flip, gain, slope, clamp).gated(t, x, b, transposed)
    up_x, up_y, down_x, down_y, pad_x, pad_y, in_w, in_h, mid_w, mid_h, out_w, out_h = geometry
    gains = up_x * up_y * gain, 1.0
    if not transposed:
        axes = Axes((up_x, up_y), (1, 1), (pad_x, pad_y)), Axes((1, 1), (down_x, down_y), (0, 0))
        return cpu_kernels.filtered_lrelu(
            t, (fu, fd), axes, not flip, gains, ((mid_h, mid_w), (out_h, out_w)), slope=slope, codes=codes
        )
    # The transposed map of an axis swaps up and down, reverses the taps and pads by taps - 1 - padding.
    (fu_h, fu_w), (fd_h, fd_w) = ((1, 1) if f is None else (f.shape[0], f.shape[-1]) for f in (fu, fd))
    axes = (
        Axes((down_x, down_y), (1, 1), (fd_w - 1, fd_h - 1)),
        Axes((1, 1), (up_x, up_y), (fu_w - 1 - pad_x, fu_h - 1 - pad_y)),
    )
    return cpu_kernels.filtered_lrelu(
        t, (fd, fu), axes, flip, gains, ((mid_h, mid_w), (in_h, in_w)), slope=slope, codes=codes
    )


def _upfirdn2d(
    x: torch.Tensor, f: torch.Tensor | None, geometry: _Geometry, reverse: bool, gain: float
) -> torch.Tensor:
    up_x, up_y, down_x, down_y, pad_x, pad_y, out_w, out_h = geometry
    if cpu_kernels.ready(x.dtype):
        return cpu_kernels.upfirdn2d(
            x, f, Axes((up_x, up_y), (down_x, down_y), (pad_x, pad_y)), (out_h, out_w), reverse, gain
        )
    taps_y, taps_x = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    rows = resampling.AxisPlan(
        x.shape[2], taps_y, up_y, down_y, pad_y, (out_h - 1) * down_y + taps_y - x.shape[2] * up_y - pad_y
    )
    columns = resampling.AxisPlan(
        x.shape[3], taps_x, up_x, down_x, pad_x, (out_w - 1) * down_x + taps_x - x.shape[3] * up_x - pad_x
    )
    resampler = resampling.make_resampler(
        f, rows, columns, not reverse, gain, resampling.compute_dtype(x.dtype)
    )
    return x.clone() if resampler is None else resampling.resample(x, resampler)


def _slopes(name: str, v: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the activation's slope as a function of its value v, and the derivative of that function."""
    one, zero = torch.ones_like(v), torch.zeros_like(v)
    positive = v > 0
    # SELU's scale, and scale * alpha (Klambauer et al. 2017)
    scale, negative_limit = 1.0507009873554805, 1.7580993408473766
    return {
        "linear": lambda: (one, zero),
        "relu": lambda: (positive.to(v.dtype), zero),
        "lrelu": lambda: (torch.where(positive, 1.0, alpha).to(v.dtype), zero),
        "tanh": lambda: (1 - v * v, -2 * v),
        "sigmoid": lambda: (v * (1 - v), 1 - 2 * v),
        "elu": lambda: (torch.where(positive, one, v + 1), torch.where(positive, zero, one)),
        "selu": lambda: (
            torch.where(positive, scale * one, v + negative_limit),
            torch.where(positive, zero, one),
        ),
        "softplus": lambda: (-torch.expm1(-v), torch.exp(-v)),
    }[name]()


def _swish_slopes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and second derivative of x * sigmoid(x)."""
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s)), s * (1 - s) * (2 + x * (1 - 2 * s))


def _bias_act(
    x: torch.Tensor, b: torch.Tensor | None, dim: int, act: int, alpha: float, gain: float, clamp: float
) -> torch.Tensor:
    if cpu_kernels.ready(x.dtype):
        return cpu_kernels.bias_act(0, x, None, None, b, None, dim, act, alpha, gain, clamp)
    if b is not None:
        x = x + along(b.to(x.dtype), dim, x.ndim)
    y = list(activation_funcs.values())[act].func(x, alpha) * gain
    y = clamp_abs(y, clamp) if clamp >= 0 else y
    return torch.empty_like(x).copy_(y)


def _bias_act_slopes(
    x: torch.Tensor | None,
    b: torch.Tensor | None,
    y: torch.Tensor | None,
    dim: int,
    act: int,
    alpha: float,
    gain: float,
    clamp: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the slope of the whole operation, and its derivative with respect to the saved tensor.

    The saved tensors are x and b, or y, or none.
    """
    name = list(activation_funcs)[act]
    if y is not None:
        slope, second = _slopes(name, y / gain, alpha)
        slope = slope * gain
        bound = torch.tensor(clamp, dtype=y.dtype)
    elif x is None:
        return torch.tensor(gain), torch.tensor(0.0)
    else:
        x = x if b is None else x + along(b.to(x.dtype), dim, x.ndim)
        slope, second = (
            _swish_slopes(x)
            if name == "swish"
            else (torch.where(x > 0, 1.0, alpha).to(x.dtype), torch.zeros_like(x))
        )
        slope, second, bound = slope * gain, second * gain, torch.tensor(clamp)
        if name not in ("swish", "lrelu"):  # all others save y unless the gain is zero
            slope, second = torch.zeros_like(x), torch.zeros_like(x)
        y = activation_funcs[name].func(x, alpha) * gain
    if clamp >= 0:
        inside = y.abs() < bound
        slope, second = slope * inside, second * inside
    return slope, second


def _bias_act_grad(
    dy: torch.Tensor, x: torch.Tensor | None, b: torch.Tensor | None, y: torch.Tensor | None, *rest: Any
) -> torch.Tensor:
    if cpu_kernels.ready(dy.dtype):
        return cpu_kernels.bias_act(1, dy, None, x, b, y, *rest)
    return torch.empty_like(dy).copy_(dy * _bias_act_slopes(x, b, y, *rest)[0])


def _bias_act_grad2(
    ddx: torch.Tensor,
    dy: torch.Tensor,
    x: torch.Tensor | None,
    b: torch.Tensor | None,
    y: torch.Tensor | None,
    *rest: Any,
) -> torch.Tensor:
    if cpu_kernels.ready(ddx.dtype):
        return cpu_kernels.bias_act(2, ddx, dy, x, b, y, *rest)
    return torch.empty_like(ddx).copy_(bias_act_grad2_formula(ddx, dy, x, b, y, *rest))


def bias_act_grad2_formula(
    ddx: torch.Tensor,
    dy: torch.Tensor,
    x: torch.Tensor | None,
    b: torch.Tensor | None,
    y: torch.Tensor | None,
    *rest: Any,
) -> torch.Tensor:
    """Compute the operator bias_act_grad2 with torch operations, which torch can differentiate."""
    return ddx * dy * _bias_act_slopes(x, b, y, *rest)[1]


def _channel_sums(x: torch.Tensor, dim: int) -> torch.Tensor:
    if cpu_kernels.ready(x.dtype):
        return cpu_kernels.channel_sums(x, dim)
    return sum_over_others(x, dim, torch.float32)


def sum_over_others(x: torch.Tensor, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the sum over all axes except `dim`: [x.shape[dim]]."""
    axes = [axis for axis in range(x.ndim) if axis != dim % x.ndim]
    return x.sum(axes, dtype=dtype) if axes else x.to(dtype)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "bias_act": _bias_act,
    "bias_act_grad": _bias_act_grad,
    "bias_act_grad2": _bias_act_grad2,
    "channel_sums": _channel_sums,
    "upfirdn2d": _upfirdn2d,
    "filtered_lrelu": _filtered_lrelu,
    "filtered_lrelu_gated": _filtered_lrelu_gated,
}
