# SPDX-License-Identifier: Apache-2.0
"""Convolutions whose weight gradient can be switched off during a backward pass, and which are fast on CPUs.

Path-length regularisation differentiates the image with respect to the latents and then differentiates the
result again. The first of the two passes does not need weight gradients, and `no_weight_gradients()` skips
them. The second pass still reaches the weights, because the gradient with respect to the input is itself a
(transposed) convolution with the same weight.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from torch_utils import cpu_speed
from torch_utils.ops.backend import library, winograd
from torch_utils.ops.backend.convolution import Convolution

# For callers that set it. False = torch's own convolutions, on which no_weight_gradients() has no effect.
enabled = True

_MIN_OUT, _MIN_WINDOW = 128, 1024  # O and I k k from which products win
_MIN_CHANNELS, _MIN_TILES = 128, 64  # I and O, and tiles of 4x4 pixels of a batch, from which Winograd wins

_weight_gradients_disabled = False

Pair = int | Sequence[int]


@contextlib.contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Skip the weight gradients of `conv2d` and `conv_transpose2d` in backward passes within this context.

    Biases still get gradients. The context applies to the time of the backward pass, not of the convolution.

    Args:
        disable: False = no effect.
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
    """Compute torch.nn.functional.conv2d with support for `no_weight_gradients`.

    Args:
        input: [N, C, H, W].
        weight: [O, C/groups, kh, kw].
        bias: [O].
        stride: as in torch.
        padding: as in torch.
        dilation: as in torch.
        groups: as in torch.
    """
    weight = _gated(weight)
    if (bias, groups, _pair(dilation)) == (None, 1, (1, 1)) and _is_plain(input):
        by_winograd = _winograd_wins(input, weight, stride, padding)
        trained = weight.requires_grad and torch.is_grad_enabled()
        if by_winograd or (trained and _products_win(input, weight)):
            y: torch.Tensor = Convolution.apply(
                input, weight, _pair(stride), _pair(padding), by_winograd, _gradients_are_off
            )
            return y
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


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
    """Compute torch.nn.functional.conv_transpose2d with support for `no_weight_gradients`.

    Args:
        input: [N, C, H, W].
        weight: [C, O/groups, kh, kw].
        bias: [O].
        stride: as in torch.
        padding: as in torch.
        output_padding: as in torch.
        groups: as in torch.
        dilation: as in torch.
    """
    return F.conv_transpose2d(input, _gated(weight), bias, stride, padding, output_padding, groups, dilation)


def _is_plain(x: torch.Tensor) -> bool:
    """Return whether x is a batch of images on the CPU that nothing traces, transforms or casts."""
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.numel() > 0
        and not (
            torch.compiler.is_compiling()
            or torch._C._get_tracing_state()
            or torch.is_autocast_enabled("cpu")
            or library.transforms()
        )
    )


def _winograd_wins(x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> bool:
    """Return whether all passes are faster by Winograd's algorithm."""
    return (
        x.dtype == weight.dtype == torch.float32
        and weight.shape[2:] == (winograd.KERNEL, winograd.KERNEL)
        and min(weight.shape[:2]) >= _MIN_CHANNELS
        and _pair(stride) == (1, 1)
        and 0 <= min(_pair(padding)) <= max(_pair(padding)) < winograd.KERNEL
        and x.shape[1] == weight.shape[1]
        and x.is_contiguous()
        and winograd.tiles(x, _pair(padding)) >= _MIN_TILES
        and cpu_speed.choices().winograd
    )


def _products_win(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether the gradient of this weight is faster as matrix products."""
    if (
        weight.shape[0] < _MIN_OUT
        or weight[0].numel() < _MIN_WINDOW
        or weight.shape[2] * weight.shape[3] == 1
    ):
        return False
    if x.dtype == torch.float32:
        return cpu_speed.choices().product_gradients
    return x.dtype == torch.bfloat16 and cpu_speed.choices().product_gradients_bf16


def _gradients_are_off() -> bool:
    return enabled and _weight_gradients_disabled


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _gated(weight: torch.Tensor) -> torch.Tensor:
    if not enabled or not weight.requires_grad:
        return weight
    gated: torch.Tensor = _GradientGate.apply(weight)
    return gated


class _GradientGate(torch.autograd.Function):
    """The identity; its gradient is None while weight gradients are switched off.

    This gate in front of torch's convolution is sufficient: torch skips a weight gradient that does not lead
    to any of the requested tensors, and its second derivatives were measured to be as fast as hand-written
    convolutions.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor | None:
        return None if _weight_gradients_disabled else grad
