# SPDX-License-Identifier: Apache-2.0
"""A convolution on CPUs whose passes are computed by other algorithms than torch's.

Second derivatives are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from torch_utils.ops.backend import winograd
from torch_utils.ops.backend.weight_gradient import by_products, torch_gradients

Pair = tuple[int, int]


class Convolution(torch.autograd.Function):
    """A convolution without bias and dilation, in one group.

    Its weight gradient is a product of windows, or all three passes are Winograd's.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        stride: Pair,
        padding: Pair,
        by_winograd: bool,
        unwanted: Callable[[], bool],
    ) -> torch.Tensor:
        """Compute F.conv2d. `unwanted`: whether weight gradients are off at the time of a backward pass."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.by_winograd, ctx.unwanted = stride, padding, by_winograd, unwanted
        if by_winograd:
            return winograd.convolve(x, weight, padding)
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Compute the gradients of x and weight."""
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        of_x, of_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not ctx.unwanted()
        dx = dw = None
        if torch.is_grad_enabled():  # the result is differentiated again
            dx, dw = torch_gradients(x, weight, grad, stride, padding, [of_x, of_weight])
        elif ctx.by_winograd:
            dx = winograd.input_gradient(grad, weight, padding) if of_x else None
            dw = winograd.weight_gradient(x, weight, grad, padding) if of_weight else None
        else:
            dx = torch_gradients(x, weight, grad, stride, padding, [True, False])[0] if of_x else None
            dw = by_products(x, weight, grad, stride, padding) if of_weight else None
        return dx, dw, None, None, None, None
