# SPDX-License-Identifier: Apache-2.0
"""DiffAugment as a function of uniform draws.

Source: Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", 2020.

Every operation takes one draw per sample, so the augmentation of a sample depends on its own draws only.

Shapes: N batch, C channels, H W height and width. Images are in [-1, 1] and padded with 0 (mid-grey).
"""

from collections.abc import Collection

import torch
from torch import Tensor

from training.config import DIFFAUG

# brightness, saturation, contrast, translation row, translation column, cutout row, cutout column
NUM_DRAWS = 7
TRANSLATION = 1 / 8  # largest shift, as a fraction of the image's side
CUTOUT = 1 / 5  # side of the square, as a fraction of the image's side


def diff_augment(x: Tensor, u: Tensor, policy: Collection[str] = DIFFAUG) -> Tensor:
    """Apply brightness, saturation, contrast ("color"), translation and cutout, in this order.

    Args:
        x: Images [N, C, H, W].
        u: Uniform draws in [0, 1), [N, 7], in the order of NUM_DRAWS. An operation has the same draws with
            every policy.
        policy: The operations to apply.

    Returns:
        [N, C, H, W], differentiable in x.

    Raises:
        ValueError: The draws have another shape.
    """
    if u.shape != (x.shape[0], NUM_DRAWS):
        raise ValueError(f"DiffAugment needs draws of shape {(x.shape[0], NUM_DRAWS)}, got {tuple(u.shape)}")
    u = u.to(device=x.device)
    if "color" in policy:
        x = brightness(x, u[:, 0])
        x = saturation(x, u[:, 1])
        x = contrast(x, u[:, 2])
    if "translation" in policy:
        x = translation(x, u[:, 3], u[:, 4])
    return cutout(x, u[:, 5], u[:, 6]) if "cutout" in policy else x


def brightness(x: Tensor, u: Tensor) -> Tensor:
    """Add U(-0.5, 0.5) to each sample."""
    return x + _per_sample(u - 0.5, x)


def saturation(x: Tensor, u: Tensor) -> Tensor:
    """Scale the difference from the pixel's mean over channels by U(0, 2)."""
    mean = x.mean(dim=1, keepdim=True)
    return mean + (x - mean) * _per_sample(2 * u, x)


def contrast(x: Tensor, u: Tensor) -> Tensor:
    """Scale the difference from the image's mean by U(0.5, 1.5)."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (x - mean) * _per_sample(u + 0.5, x)


def translation(x: Tensor, u_row: Tensor, u_col: Tensor) -> Tensor:
    """Shift by a whole number of pixels, uniform up to +-round(side / 8), and pad with zeros."""
    for dim, u in ((2, u_row), (3, u_col)):
        size = x.shape[dim]
        reach = _round_half_up(size * TRANSLATION)
        # [N, size]: the input line of each output line
        source = _positions(x, dim) + _integer(u, -reach, reach).view(-1, 1)
        inside = (source >= 0) & (source < size)
        lines = [-1, 1, 1, 1]
        lines[dim] = size
        index = source.clamp(0, size - 1).view(lines).expand_as(x)
        x = x.gather(dim, index) * inside.view(lines).to(x.dtype)
    return x


def cutout(x: Tensor, u_row: Tensor, u_col: Tensor) -> Tensor:
    """Set a square of side round(side / 5) around a uniform centre to zero.

    Near a border, part of the square is outside the image.
    """
    outside = []
    for dim, u in ((2, u_row), (3, u_col)):
        size = x.shape[dim]
        side = _round_half_up(size * CUTOUT)
        start = _integer(u, 0, size - side % 2).view(-1, 1) - side // 2
        line = _positions(x, dim)
        outside.append((line < start) | (line >= start + side))
    keep = outside[0][:, None, :, None] | outside[1][:, None, None, :]
    return x * keep.to(x.dtype)


def _per_sample(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.dtype).view(-1, 1, 1, 1)


def _integer(u: Tensor, low: int, high: int) -> Tensor:
    """Map uniform draws in [0, 1) to uniform integers in low..high, inclusive."""
    count = high - low + 1
    return low + (u * count).floor().clamp(max=count - 1).long()


def _positions(x: Tensor, dim: int) -> Tensor:
    return torch.arange(x.shape[dim], device=x.device)


def _round_half_up(value: float) -> int:
    return int(value + 0.5)
