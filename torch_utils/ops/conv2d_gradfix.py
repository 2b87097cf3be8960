# SPDX-License-Identifier: Apache-2.0
"""Convolutions whose weight gradient can be switched off during a backward pass, and whose second derivatives are convolutions again.

Path-length regularisation differentiates the image with respect to the latents and then differentiates the result once more. The
first of the two passes has no use for weight gradients: `no_weight_gradients()` leaves them out. The second pass still reaches the
weights, because the gradient with respect to the input is itself a (transposed) convolution with the same weight.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

# Kept for callers that set it. False = torch's own convolutions, on which no_weight_gradients() has no effect.
enabled = True

_weight_gradients_disabled = False

Pair = int | Sequence[int]


@contextlib.contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Backward passes run inside this context give the weights of `conv2d` and `conv_transpose2d` no gradient; biases keep theirs.

    What counts is when the backward pass runs, not when the convolution was called.
    """
    global _weight_gradients_disabled
    before = _weight_gradients_disabled
    _weight_gradients_disabled = before or disable
    try:
        yield
    finally:
        _weight_gradients_disabled = before


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> torch.Tensor:
    """torch.nn.functional.conv2d with the properties named above. input [N, C, H, W], weight [O, C/groups, kh, kw], bias [O]."""
    if not _use_own(input):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
    spec = _Spec(False, _pair(stride), _pair(padding), (0, 0), _pair(dilation), groups)
    return _Convolution.apply(input, weight, bias, spec)


def conv_transpose2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> torch.Tensor:
    """torch.nn.functional.conv_transpose2d with the properties named above. input [N, C, H, W], weight [C, O/groups, kh, kw], bias [O]."""
    if not _use_own(input):
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)  # type: ignore[arg-type]
    spec = _Spec(True, _pair(stride), _pair(padding), _pair(output_padding), _pair(dilation), groups)
    return _Convolution.apply(input, weight, bias, spec)


class _Spec(NamedTuple):
    """Settings of a convolution. A transposed one and the plain one with the same settings are each other's adjoint in the input."""

    transposed: bool
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def run(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if self.transposed:
            return F.conv_transpose2d(x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def adjoint(self, x_size: Sequence[int], y_size: Sequence[int], kernel: Sequence[int]) -> "_Spec":
        """The settings that take a gradient of the output (height, width y_size) to one of the input (x_size)."""
        if self.transposed:
            return self._replace(transposed=False, output_padding=(0, 0))
        # A strided convolution may ignore input pixels at the far edges: output_padding gives them their zero gradient.
        rest = [
            x_size[i] - ((y_size[i] - 1) * self.stride[i] - 2 * self.padding[i] + self.dilation[i] * (kernel[i] - 1) + 1) for i in range(2)
        ]
        return self._replace(transposed=True, output_padding=(rest[0], rest[1]))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, spec):  # type: ignore[no-untyped-def, override]
        ctx.spec = spec
        ctx.x_shape = x.shape
        # The input serves the weight gradient alone, the weight the input gradient alone.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        ctx.weight_shape = weight.shape
        return spec.run(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def, override]
        x, weight = ctx.saved_tensors
        spec: _Spec = ctx.spec
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = _Convolution.apply(dy, weight, None, spec.adjoint(ctx.x_shape[2:], dy.shape[2:], ctx.weight_shape[2:]))
        if ctx.needs_input_grad[1] and not _weight_gradients_disabled:
            dw = _WeightGradient.apply(x, dy, ctx.weight_shape, spec)
        if ctx.needs_input_grad[2]:
            db = dy.sum(dim=(0, 2, 3))
        return dx, dw, db, None


class _WeightGradient(torch.autograd.Function):
    """(x, dy) -> dw, bilinear: its derivatives are the convolution of x with a weight-shaped tensor and the adjoint of that."""

    @staticmethod
    def forward(ctx, x, dy, weight_shape, spec):  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(x, dy)
        ctx.spec = spec
        big, small = (dy, x) if spec.transposed else (x, dy)
        return torch.nn.grad.conv2d_weight(big, weight_shape, small, spec.stride, spec.padding, spec.dilation, spec.groups)

    @staticmethod
    def backward(ctx, ddw):  # type: ignore[no-untyped-def, override]
        x, dy = ctx.saved_tensors
        spec: _Spec = ctx.spec
        dx = ddy = None
        if ctx.needs_input_grad[0]:
            dx = _Convolution.apply(dy, ddw, None, spec.adjoint(x.shape[2:], dy.shape[2:], ddw.shape[2:]))
        if ctx.needs_input_grad[1]:
            ddy = _Convolution.apply(x, ddw, None, spec)
        return dx, ddy, None, None


def _use_own(input: torch.Tensor) -> bool:
    # Under autocast torch casts inside the operation; its own derivative formulas know about that.
    return enabled and input.ndim == 4 and not torch.is_autocast_enabled(input.device.type)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)
