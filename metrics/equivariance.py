# SPDX-License-Identifier: Apache-2.0
"""How well a network's images follow translations and rotations of its input: EQ-T and EQ-R of StyleGAN3.

Karras et al. 2021, "Alias-Free Generative Adversarial Networks", section 3 and appendix E. The network is run
with and without a transformed input; the untransformed image is transformed by the operators of this module,
and the two are compared as a peak signal-to-noise ratio in decibels.

Each operator takes images [N, C, H, W] and returns the moved images with a mask [1, 1, H, W] that is 1 where
the result does not depend on what lies outside of the image. Offsets are fractions of the image's size, to
the right and downwards; angles are in radians.

The bandlimit filter of a rotation keeps the frequencies that lie in both sampling grids, the upright and the
rotated one. Its impulse response is the convolution of the ideal responses of the two grids, multiplied by
the convolution of a Lanczos window (a = 3) with its rotated copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.network_metrics import Measured, Task
from torch_utils import rng

MAX_TRANSLATION = 1 / 8  # of the image's size, along each axis
MAX_ANGLE = math.pi
GROUP = 4  # images that share one transform, as published
LANCZOS = 3  # zero crossings of the window on each side
FILTER_REACH = 2 * LANCZOS  # pixels that the bandlimit filter reaches on each side
OVERSAMPLING = 4  # samples per pixel of an image before it is rotated
APERTURE = 64  # pixels on each side over which ideal responses are convolved
MAX_PSNR = 200.0  # dB; images that agree exactly have no finite ratio


def _window(distance: np.ndarray) -> np.ndarray:
    """Lanczos window of distances in pixels."""
    return np.where(np.abs(distance) < LANCZOS, np.sinc(distance / LANCZOS), 0)


def _mask(x: Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    """[1, 1, H, W] of zeros with ones in columns left..right - 1 and rows top..bottom - 1."""
    mask = x.new_zeros(1, 1, *x.shape[2:])
    mask[:, :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 1
    return mask


def _check_offsets(tx: float, ty: float) -> None:
    if not max(abs(tx), abs(ty)) < 1:
        raise ValueError(f"offsets are fractions of the image between -1 and 1, got {tx} and {ty}")


def integer_translation(x: Tensor, tx: float, ty: float) -> tuple[Tensor, Tensor]:
    """Images moved by the whole number of pixels that is nearest to (tx, ty)."""
    _check_offsets(tx, ty)
    height, width = x.shape[2:]
    columns, rows = round(tx * width), round(ty * height)
    moved = F.pad(x, (columns, -columns, rows, -rows))
    return moved, _mask(x, columns, rows, width + columns, height + rows)


def fractional_translation(x: Tensor, tx: float, ty: float) -> tuple[Tensor, Tensor]:
    """Images moved by (tx, ty), interpolated with a Lanczos filter of 6 taps per axis."""
    _check_offsets(tx, ty)
    height, width = x.shape[2:]
    columns, rows = math.floor(tx * width), math.floor(ty * height)
    taps = np.arange(-LANCZOS, LANCZOS)  # out[p] = sum over taps k of in[p - shift + k] weight[k]

    def weights(fraction: float) -> Tensor:
        values = np.sinc(taps + fraction) * _window(taps + fraction)
        return torch.from_numpy(values / values.sum()).to(x)

    before, after = LANCZOS, LANCZOS - 1
    padded = F.pad(x, (before + columns, after - columns, before + rows, after - rows))
    y = padded.flatten(0, 1)[:, None]
    y = F.conv2d(y, weights(tx * width - columns).view(1, 1, 1, -1))
    y = F.conv2d(y, weights(ty * height - rows).view(1, 1, -1, 1))
    mask = _mask(x, columns + before, rows + before, width + columns - after, height + rows - after)
    return y.view_as(x), mask


def _turned(grid: np.ndarray, angle: float, response: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A separable response on a square grid, turned by `angle`: [len(grid), len(grid)]."""
    x, y = np.meshgrid(grid, grid)
    along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    return np.asarray(response(along) * response(across))


def bandlimit_filter(angle: float, oversampling: int) -> Tensor:
    """Filter for images that are rotated by `angle`: float64 [K, K], K = 2 * FILTER_REACH * oversampling - 1.

    Each of its oversampling^2 phases adds up to 1.
    """
    reach, aperture = FILTER_REACH * oversampling - 1, APERTURE * oversampling - 1
    lags, grid = np.arange(-reach, reach + 1), np.arange(-aperture, aperture + 1)
    distance = lags[:, None] - grid
    upright = np.where(np.abs(distance) <= aperture, np.sinc(distance / oversampling), 0)
    ideal = upright @ _turned(grid / oversampling, angle, np.sinc) @ upright.T
    near = grid[np.abs(grid) <= 2 * reach] / oversampling  # beyond it, the rotated window is 0
    upright = _window(lags[:, None] / oversampling - near)
    kernel = ideal * (upright @ _turned(near, angle, _window) @ upright.T)
    for i in range(oversampling):
        for j in range(oversampling):
            kernel[i::oversampling, j::oversampling] /= kernel[i::oversampling, j::oversampling].sum()
    return torch.from_numpy(kernel)


def _oversampled(x: Tensor, kernel: Tensor) -> Tensor:
    """Images [N, C, H, W] at OVERSAMPLING samples per pixel, pixel p at sample OVERSAMPLING * p.

    Computed phase by phase, without multiplying the zeros between the pixels.
    """
    phases = F.pad(kernel, (1, 0, 1, 0)).flip(0, 1)
    weight = torch.stack(
        [
            phases[OVERSAMPLING - 1 - row :: OVERSAMPLING, OVERSAMPLING - 1 - column :: OVERSAMPLING]
            for row in range(OVERSAMPLING)
            for column in range(OVERSAMPLING)
        ]
    )
    padded = F.pad(x.flatten(0, 1)[:, None], (FILTER_REACH - 1, FILTER_REACH) * 2)
    fine = F.pixel_shuffle(F.conv2d(padded, weight[:, None]), OVERSAMPLING)
    return fine.view(*x.shape[:2], *fine.shape[2:])


def rotation(x: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Images turned anticlockwise by `angle`: bandlimited, oversampled 4 times, interpolated linearly."""
    height, width = x.shape[2:]
    spread = math.ceil((math.hypot(height, width) - min(height, width)) / 2) + 1
    fine = _oversampled(F.pad(x, [spread] * 4), bandlimit_filter(angle, OVERSAMPLING).to(x))
    rows, columns = (
        torch.arange(n, dtype=torch.float64, device=x.device) - (n - 1) / 2 for n in (height, width)
    )
    down, right = torch.meshgrid(rows, columns, indexing="ij")
    # where in the image each pixel of the result comes from, in pixels
    from_right = math.cos(angle) * right - math.sin(angle) * down + (width - 1) / 2
    from_down = math.sin(angle) * right + math.cos(angle) * down + (height - 1) / 2
    grid = torch.stack(
        [
            2 * (position + spread) * OVERSAMPLING / (size - 1) - 1
            for position, size in ((from_right, fine.shape[3]), (from_down, fine.shape[2]))
        ],
        dim=2,
    ).to(x)
    turned = F.grid_sample(fine, grid.expand(len(x), -1, -1, -1), mode="bilinear", align_corners=True)
    inside = [
        ((position * OVERSAMPLING).round() >= FILTER_REACH * OVERSAMPLING - OVERSAMPLING // 2)
        & ((position * OVERSAMPLING).round() < (size - FILTER_REACH) * OVERSAMPLING - OVERSAMPLING // 2)
        for position, size in ((from_right, width), (from_down, height))
    ]
    return turned, (inside[0] & inside[1]).to(x)[None, None]


def pseudo_rotation(x: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Images as they are, without the frequencies that a rotated image would have lost in `rotation`."""
    height, width = x.shape[2:]
    margin = FILTER_REACH - 1
    kernel = bandlimit_filter(-angle, 1).to(x)
    y = F.conv2d(x.flatten(0, 1)[:, None], kernel[None, None], padding=margin).view_as(x)
    return y, _mask(x, margin, margin, width - margin, height - margin)


def psnr(squared_error: float, mask: float) -> float:
    """Decibels of a sum of squared errors under a mask and the sum of the mask; images span [-1, 1]."""
    mean = squared_error / mask
    return MAX_PSNR if mean <= 0 else min(20 * math.log10(2) - 10 * math.log10(mean), MAX_PSNR)


Moved = tuple[Tensor, Tensor, Tensor]  # what the image should be, what the network made, mask


def _translated(
    operator: Callable[[Tensor, float, float], tuple[Tensor, Tensor]], rounded: bool
) -> _Comparison:
    def compare(task: Task, styles: Tensor, still: Tensor, draws: np.ndarray) -> Moved:
        size = still.shape[-1]
        tx, ty = (2 * draws - 1) * MAX_TRANSLATION
        if rounded:
            tx, ty = round(tx * size) / size, round(ty * size) / size
        matrix = torch.tensor([[1, 0, -tx], [0, 1, -ty], [0, 0, 1]], dtype=torch.float32)
        with task.network.transformed(matrix):
            made = task.network.synthesize(styles)
        wanted, mask = operator(still, tx, ty)
        return wanted, made, mask

    return compare


def _rotated(task: Task, styles: Tensor, still: Tensor, draws: np.ndarray) -> Moved:
    angle = float(2 * draws[0] - 1) * MAX_ANGLE
    cos, sin = math.cos(angle), math.sin(angle)
    with task.network.transformed(torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])):
        made = task.network.synthesize(styles)
    wanted, mask = rotation(still, angle)
    made, other = pseudo_rotation(made, angle)
    return wanted, made, mask * other


_Comparison = Callable[[Task, Tensor, Tensor, np.ndarray], Moved]
COMPARISONS: dict[str, _Comparison] = {
    "eqt_int": _translated(integer_translation, rounded=True),
    "eqt_frac": _translated(fractional_translation, rounded=False),
    "eqr": _rotated,
}


def equivariance(task: Task, kind: str) -> Measured:
    """PSNR in decibels over all samples of `kind`, a key of COMPARISONS; the higher, the better.

    A row has the squared error and the mask's sum of a group of images that share a transform.

    Raises ValueError for images so small that no pixel is comparable.
    """

    def work(samples: range) -> np.ndarray:
        draws = rng.uniform(task.seed, f"metrics/{kind}", 0, [samples.start // GROUP], (2,))[0].numpy()
        styles = task.network.styles(*task.latents(samples))
        wanted, made, mask = COMPARISONS[kind](
            task, styles, task.network.synthesize(styles), draws.astype(float)
        )
        error = ((wanted - made).square() * mask).sum(dtype=torch.float64)
        area = mask.sum(dtype=torch.float64) * wanted.shape[0] * wanted.shape[1]
        return np.array([[float(error), float(area)]])

    rows = task.rows(GROUP, 2, work)
    rows = rows[rows[:, 1] > 0]
    if not len(rows):
        raise ValueError(f"{kind}: these images are too small, no pixel is far enough from the border")
    return Measured(rows, _ratio)


def _ratio(rows: np.ndarray) -> dict[str, float]:
    """The ratio of the sums, in decibels."""
    error, area = rows.sum(axis=0)
    return {"": psnr(error, area)}
