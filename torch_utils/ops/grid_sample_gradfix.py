# SPDX-License-Identifier: Apache-2.0
"""For foreign StyleGAN-family code and pickles alone: bilinear grid sampling that can be differentiated twice
with respect to the image.
"""

import torch
import torch.nn.functional as F

# Kept for callers that set it: True = differentiable twice, False = torch's own operation, which need not be.
enabled = True


def grid_sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Samples `input` bilinearly at `grid`: zeros outside, corners not aligned.

    Args:
        input: [N, C, H, W].
        grid: [N, h, w, 2], (x, y) in [-1, 1].

    Returns:
        [N, C, h, w]. First derivatives reach both arguments; second derivatives treat the grid as a constant.

    Raises:
        ValueError: shapes that do not fit.
    """
    if input.ndim != 4 or grid.ndim != 4 or grid.shape[-1] != 2 or grid.shape[0] != input.shape[0]:
        raise ValueError(
            f"grid_sample takes input [N, C, H, W] and grid [N, h, w, 2], not {tuple(input.shape)} and "
            f"{tuple(grid.shape)}"
        )
    if not enabled:
        return _sample(input, grid)
    return _GridSample.apply(input, grid)


def _sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class _GridSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, grid):  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(input, grid)
        return _sample(input, grid)

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def, override]
        input, grid = ctx.saved_tensors
        return _GridSampleBackward.apply(grad_output, input, grid)


class _GridSampleBackward(torch.autograd.Function):
    """(dy, x, grid) -> (dx, dgrid). dx is linear in dy and independent of x, and its adjoint is the sampling
    itself.
    """

    @staticmethod
    def forward(ctx, grad_output, input, grid):  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(grid)
        with torch.enable_grad():
            x, g = input.detach().requires_grad_(), grid.detach().requires_grad_()
            y = _sample(x, g)
        return torch.autograd.grad(y, (x, g), grad_output.detach())

    @staticmethod
    def backward(ctx, grad_grad_input, grad_grad_grid):  # type: ignore[no-untyped-def, override]
        (grid,) = ctx.saved_tensors
        d_grad_output = grid_sample(grad_grad_input, grid) if ctx.needs_input_grad[0] else None
        return d_grad_output, None, None
