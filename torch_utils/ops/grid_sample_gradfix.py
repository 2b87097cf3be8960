# SPDX-License-Identifier: Apache-2.0
"""Bilinear grid sampling that is differentiable twice with respect to the image.

For other StyleGAN-family code and pickles only.
"""

from typing import Any

import torch
import torch.nn.functional as F

# For callers that set it. True = differentiable twice; False = torch's operation, which may not be.
enabled = True


def grid_sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Sample `input` bilinearly at `grid`, with zeros outside and align_corners=False.

    Args:
        input: [N, C, H, W].
        grid: [N, h, w, 2], (x, y) in [-1, 1].

    Returns:
        [N, C, h, w]. First derivatives reach both arguments; second derivatives treat the grid as a constant.

    Raises:
        ValueError: the shapes do not fit.
    """
    if input.ndim != 4 or grid.ndim != 4 or grid.shape[-1] != 2 or grid.shape[0] != input.shape[0]:
        raise ValueError(
            f"grid_sample needs input [N, C, H, W] and grid [N, h, w, 2], not {tuple(input.shape)} and "
            f"{tuple(grid.shape)}"
        )
    if not enabled:
        return _sample(input, grid)
    sampled: torch.Tensor = _GridSample.apply(input, grid)
    return sampled


def _sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class _GridSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(input, grid)
        return _sample(input, grid)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        input, grid = ctx.saved_tensors
        return _GridSampleBackward.apply(grad_output, input, grid)


class _GridSampleBackward(torch.autograd.Function):
    """(dy, x, grid) -> (dx, dgrid). dx is linear in dy and independent of x; its adjoint is grid_sample."""

    @staticmethod
    def forward(
        ctx: Any, grad_output: torch.Tensor, input: torch.Tensor, grid: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(grid)
        with torch.enable_grad():
            x, g = input.detach().requires_grad_(), grid.detach().requires_grad_()
            y = _sample(x, g)
        return torch.autograd.grad(y, (x, g), grad_output.detach())

    @staticmethod
    def backward(ctx: Any, grad_grad_input: torch.Tensor, grad_grad_grid: torch.Tensor) -> Any:
        (grid,) = ctx.saved_tensors
        d_grad_output = grid_sample(grad_grad_input, grid) if ctx.needs_input_grad[0] else None
        return d_grad_output, None, None
