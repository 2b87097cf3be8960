# SPDX-License-Identifier: Apache-2.0
"""Convolutions whose weight gradient can be switched off during a backward pass.

Path-length regularisation differentiates the image with respect to the latents and then differentiates the
result once more. The first of the two passes has no use for weight gradients: `no_weight_gradients()` leaves
them out. The second pass still reaches the weights, because the gradient with respect to the input is itself
a (transposed) convolution with the same weight.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

# Kept for callers that set it. False = torch's own convolutions, on which no_weight_gradients() has no
# effect.
enabled = True

_weight_gradients_disabled = False

Pair = int | Sequence[int]


@contextlib.contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Backward passes run inside this context give the weights of `conv2d` and `conv_transpose2d` no
    gradient; biases keep theirs.

    What counts is when the backward pass runs, not when the convolution was called. disable=False changes
    nothing.
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
    """torch.nn.functional.conv2d that obeys `no_weight_gradients`. input [N, C, H, W], weight [O, C/groups,
    kh, kw], bias [O].
    """
    return F.conv2d(input, _gated(weight), bias, stride, padding, dilation, groups)  # type: ignore[arg-type]


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
    """torch.nn.functional.conv_transpose2d that obeys `no_weight_gradients`. input [N, C, H, W], weight [C,
    O/groups, kh, kw], bias [O].
    """
    return F.conv_transpose2d(input, _gated(weight), bias, stride, padding, output_padding, groups, dilation)  # type: ignore[arg-type]


def _gated(weight: torch.Tensor) -> torch.Tensor:
    return _GradientGate.apply(weight) if enabled and weight.requires_grad else weight


class _GradientGate(torch.autograd.Function):
    """The identity, whose gradient is None while weight gradients are switched off.

    A gate before torch's convolution is all it takes: torch leaves out a weight gradient that leads to none
    of the tensors asked for, and its second derivatives were measured to be as fast as a hand-written set of
    convolutions.
    """

    @staticmethod
    def forward(ctx, weight):  # type: ignore[no-untyped-def, override]
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def, override]
        return None if _weight_gradients_disabled else grad
