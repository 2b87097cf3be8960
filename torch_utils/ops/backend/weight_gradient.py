# SPDX-License-Identifier: Apache-2.0
"""Weight gradients of convolutions on CPUs as matrix products.

oneDNN computes weight gradients at half the speed of the forward pass. The product of all windows of the
input, laid out with the channels last, with the gradient of the output is as fast as the forward pass for
wide layers.

Shapes: N batch, I O input and output channels, H W height and width, h w those of the output, k kernel.
"""

from __future__ import annotations

from typing import Any

import torch

Pair = tuple[int, int]

_CHUNK = 1 << 22  # elements of the windows that are copied at once: they stay in the caches


def torch_gradients(
    x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, stride: Pair, padding: Pair, wanted: list[bool]
) -> Any:
    """Return the gradients of x and weight by torch's convolution; None where they are not wanted."""
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, [*wanted, False]
    )[:2]


def by_torch(
    x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, stride: Pair, padding: Pair
) -> torch.Tensor:
    """Return the gradient [O, I, k, k] by torch's convolution."""
    found: torch.Tensor = torch_gradients(x, weight, grad, stride, padding, [False, True])[1]
    return found


def by_products(
    x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, stride: Pair, padding: Pair
) -> torch.Tensor:
    """Return the gradient [O, I, k, k] by products, with the channels last.

    Args:
        x: input [N, I, H, W].
        weight: [O, I, k, k], for its shape.
        grad: gradient of the output [N, O, h, w].
        stride: (y, x).
        padding: zeros around the input, (y, x).
    """
    (count, outputs, rows, columns), (channels, high, wide) = grad.shape, weight.shape[1:]
    padded = _channels_last(x, padding)
    of_sample, of_row, of_pixel, _ = padded.stride()
    windows = padded.as_strided(
        (count, rows, columns, high, wide * channels),
        (of_sample, of_row * stride[0], of_pixel * stride[1], of_row, 1),
    )
    grads = grad.permute(0, 2, 3, 1).reshape(count, rows * columns, outputs)
    size = high * wide * channels
    # Sums over chunks would round reduced types after each of them.
    step = max(1, _CHUNK // (rows * columns * size)) if x.dtype == torch.float32 else count
    found: torch.Tensor | None = None
    for i in range(0, count, step):
        left, right = grads[i : i + step].reshape(-1, outputs).t(), windows[i : i + step].reshape(-1, size)
        found = left @ right if found is None else found.addmm_(left, right)
    assert found is not None
    return found.view(outputs, high, wide, channels).permute(0, 3, 1, 2)


def _channels_last(x: torch.Tensor, padding: Pair) -> torch.Tensor:
    """Return x as [N, H + 2 y, W + 2 x, I] with zeros around it, contiguous."""
    images = x.permute(0, 2, 3, 1)
    if padding == (0, 0):
        return images.contiguous()
    (count, height, width, channels), (top, left) = images.shape, padding
    padded = x.new_empty(count, height + 2 * top, width + 2 * left, channels)
    for dim, pad in ((1, top), (2, left)):
        padded.narrow(dim, 0, pad).zero_()
        padded.narrow(dim, padded.shape[dim] - pad, pad).zero_()
    padded[:, top : top + height, left : left + width] = images
    return padded
