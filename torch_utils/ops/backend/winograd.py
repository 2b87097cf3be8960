# SPDX-License-Identifier: Apache-2.0
"""3x3 convolutions in float32 on CPUs by Winograd's minimal filtering, F(4x4, 3x3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.

A tile of 4x4 outputs takes 36 multiplications per pair of channels and not 144: windows of 6x6 inputs and the
weights are transformed by small matrices, multiplied channel by channel in 36 matrix products, and
transformed back. Transforms cost little only if there are many channels. Rounding errors are about three
times those of the direct sum. The gradients are the transposed operations.

Shapes: N batch, I O input and output channels, H W height and width, T tiles, y x rows and columns of tiles.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

Pair = tuple[int, int]

TILE, KERNEL = 4, 3
WINDOW = TILE + KERNEL - 1
_POINTS = WINDOW**2

# Transforms of inputs, weights and outputs along one axis, for the points 0, 1, -1, 2, -2 and infinity.
_INPUT = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
_WEIGHT = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_OUTPUT = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)

# A chunk of transformed windows has this many elements, which stay in the caches, or this many tiles, because
# every chunk reads all transformed weights.
_CHUNK, _CHUNK_TILES = 1 << 22, 512


@functools.cache
def _matrices() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the transforms of both axes: [36, 36] of windows, [36, 9] of weights, [16, 36] of outputs."""
    axes = (torch.tensor(rows, dtype=torch.float64, device="cpu") for rows in (_INPUT, _WEIGHT, _OUTPUT))
    of_input, of_weight, of_output = (torch.kron(axis, axis).float() for axis in axes)
    return of_input, of_weight, of_output


def tiles(x: torch.Tensor, padding: Pair) -> int:
    """Return the number of tiles of a convolution of x [N, I, H, W]."""
    return x.shape[0] * _tiles(x.shape[2] + 2 * padding[0]) * _tiles(x.shape[3] + 2 * padding[1])


def _tiles(padded: int) -> int:
    return -(-(padded - KERNEL + 1) // TILE)


def convolve(x: torch.Tensor, weight: torch.Tensor, padding: Pair) -> torch.Tensor:
    """Return F.conv2d(x, weight, padding=padding).

    Args:
        x: float32 [N, I, H, W].
        weight: float32 [O, I, 3, 3].
        padding: zeros around x, (y, x).
    """
    return _convolve(x, _transformed_weights(weight, _matrices()[1]), padding)


def input_gradient(grad: torch.Tensor, weight: torch.Tensor, padding: Pair) -> torch.Tensor:
    """Return the gradient of a convolution's input [N, I, H, W].

    Args:
        grad: float32 gradient of the output [N, O, h, w].
        weight: float32 [O, I, 3, 3].
        padding: zeros around the input, (y, x), at most 2.
    """
    turned = _transformed_weights(weight, _matrices()[1].flip(1)).transpose(1, 2)
    return _convolve(grad, turned, (KERNEL - 1 - padding[0], KERNEL - 1 - padding[1]))


def weight_gradient(x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, padding: Pair) -> torch.Tensor:
    """Return the gradient of a convolution's weight [O, I, 3, 3].

    Args:
        x: float32 input [N, I, H, W].
        weight: [O, I, 3, 3], for its shape.
        grad: float32 gradient of the output [N, O, h, w].
        padding: zeros around the input, (y, x).
    """
    outputs, channels = weight.shape[:2]
    of_weight, of_output = _matrices()[1:]
    padded, (rows, columns) = _padded(x, padding)
    grads = F.pad(grad, (0, TILE * columns - grad.shape[3], 0, TILE * rows - grad.shape[2]))
    found: torch.Tensor | None = None
    for first, count in _chunks(len(x) * columns, rows, max(outputs, channels)):
        right = _transformed(padded, first, count, columns)
        left = of_output.t() @ _windows(grads, first, count, columns, TILE)
        left, right = left.view(_POINTS, outputs, -1), right.transpose(1, 2)
        found = torch.bmm(left, right) if found is None else found.baddbmm_(left, right)
    assert found is not None
    return (of_weight.t() @ found.view(_POINTS, -1)).t().reshape(weight.shape)


def _transformed_weights(weight: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
    """Return the weights [36, O, I] after a transform [36, 9]."""
    return (transform @ weight.reshape(-1, KERNEL**2).t()).view(_POINTS, *weight.shape[:2])


def _convolve(x: torch.Tensor, weight: torch.Tensor, padding: Pair) -> torch.Tensor:
    """Convolve x [N, I, H, W] with transformed weights [36, O, I]."""
    count, outputs = len(x), weight.shape[1]
    height, width = (x.shape[dim] + 2 * pad - KERNEL + 1 for dim, pad in zip((2, 3), padding, strict=True))
    padded, (rows, columns) = _padded(x, padding)
    y = x.new_empty(count, outputs, rows, TILE, columns, TILE)
    of_output = _matrices()[2]
    for first, size in _chunks(count * columns, rows, max(outputs, x.shape[1])):
        product = torch.bmm(weight, _transformed(padded, first, size, columns))
        part = (of_output @ product.view(_POINTS, -1)).view(TILE, TILE, outputs, count, size, columns)
        y[:, :, first : first + size] = part.permute(3, 2, 4, 0, 5, 1)
    return y.view(count, outputs, TILE * rows, TILE * columns)[:, :, :height, :width]


def _padded(x: torch.Tensor, padding: Pair) -> tuple[torch.Tensor, Pair]:
    """Return x with zeros around it, so that it consists of whole tiles, and their rows and columns."""
    height, width = (x.shape[dim] + 2 * pad for dim, pad in zip((2, 3), padding, strict=True))
    rows, columns = _tiles(height), _tiles(width)
    more = [TILE * many + KERNEL - 1 - size for many, size in ((rows, height), (columns, width))]
    top, left = padding
    return F.pad(x, (left, left + more[1], top, top + more[0])), (rows, columns)


def _chunks(tiles_per_row: int, rows: int, channels: int) -> list[Pair]:
    """Return the first row of tiles and the number of rows of each chunk."""
    limit = max(_CHUNK_TILES, _CHUNK // (_POINTS * channels))
    step = max(1, limit // tiles_per_row)
    return [(first, min(step, rows - first)) for first in range(0, rows, step)]


def _transformed(padded: torch.Tensor, first: int, count: int, columns: int) -> torch.Tensor:
    """Return the transformed windows [36, I, T] of some rows of tiles."""
    windows = _windows(padded, first, count, columns, WINDOW)
    return (_matrices()[0] @ windows).view(_POINTS, padded.shape[1], -1)


def _windows(x: torch.Tensor, first: int, count: int, columns: int, size: int) -> torch.Tensor:
    """Return the windows of some rows of tiles, [size * size, I * T], whose distance is that of tiles."""
    part = x[:, :, TILE * first :]
    of_sample, of_channel, of_row, of_pixel = part.stride()
    return part.as_strided(
        (size, size, x.shape[1], len(x), count, columns),
        (of_row, of_pixel, of_channel, of_sample, TILE * of_row, TILE * of_pixel),
    ).reshape(size * size, -1)
