# SPDX-License-Identifier: Apache-2.0
"""Faster convolutions for frozen networks.

BatchNorm is folded into the convolution before it, and depthwise convolutions get a cheaper input gradient.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Convolution and following BatchNorm in timm's EfficientNet family, by the class of their parent module.
_CONV_BN_PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "EfficientNet": (("conv_stem", "bn1"),),
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}


def fold_batchnorm_(body: nn.Module) -> int:
    """Multiply eval-mode BatchNorm into the convolution before it, in place.

    The network's function stays the same up to rounding. Layouts outside _CONV_BN_PAIRS do not change.

    Returns:
        The number of folded BatchNorm layers.
    """
    folded = 0
    for parent in list(body.modules()):
        for conv_name, bn_name in _CONV_BN_PAIRS.get(type(parent).__name__, ()):
            conv, bn = getattr(parent, conv_name), getattr(parent, bn_name)
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d) and bn.running_var is not None:
                _fold(conv, bn)
                setattr(
                    parent,
                    bn_name,
                    nn.Sequential(getattr(bn, "drop", nn.Identity()), getattr(bn, "act", nn.Identity())),
                )
                folded += 1
    return folded


def _fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
    assert bn.running_mean is not None and bn.running_var is not None
    if conv.weight.is_meta:  # there is nothing to compute
        conv.bias = nn.Parameter(torch.empty_like(bn.weight))
        return
    with torch.no_grad():
        gain = bn.weight.double() * torch.rsqrt(bn.running_var.double() + bn.eps)
        offset = bn.bias.double() - bn.running_mean.double() * gain
        if conv.bias is not None:
            offset += conv.bias.double() * gain
        weight = conv.weight.double() * gain.view(-1, 1, 1, 1)
        conv.weight = nn.Parameter(weight.to(conv.weight.dtype))
        conv.bias = nn.Parameter(offset.to(conv.weight.dtype))


def _blank(count: int, channels: int, size: tuple[int, int], like: Tensor) -> Tensor:
    """Return zeros [count, channels, *size] in channels-last order.

    torch.nn.functional.pad, or torch.zeros followed by a layout change, would write the memory twice.
    """
    return torch.zeros((count, *size, channels), dtype=like.dtype, device=like.device).permute(0, 3, 1, 2)


class _DepthwiseFunction(torch.autograd.Function):
    """Depthwise convolution with constant weights whose input gradient is a forward convolution, too.

    On CPUs, PyTorch's backward pass of a strided depthwise convolution in bfloat16 takes tens of times as
    long as the forward pass, and most of the time of a generator step. `before` and `after` are the numbers
    of zero (rows, columns) added before and after the image.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        before: tuple[int, int],
        after: tuple[int, int],
    ) -> Tensor:
        count, channels, height, width = x.shape
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride, ctx.before, ctx.after = (height, width), stride, before, after
        if before == after:
            return F.conv2d(x, weight, bias, stride, before, groups=channels)
        padded = _blank(count, channels, (height + before[0] + after[0], width + before[1] + after[1]), x)
        padded[:, :, before[0] : before[0] + height, before[1] : before[1] + width] = x
        return F.conv2d(padded, weight, bias, stride, groups=channels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        count, channels, rows, columns = grad.shape
        reach, stride = weight.shape[2] - 1, ctx.stride
        top, left = reach - ctx.before[0], reach - ctx.before[1]
        flipped = weight.flip(2, 3)
        if stride == 1 and ctx.before == ctx.after:
            return (
                F.conv2d(grad, flipped, None, 1, (top, left), groups=channels),
                None,
                None,
                None,
                None,
                None,
            )
        spread = _blank(count, channels, (ctx.size[0] + reach, ctx.size[1] + reach), grad)
        spread[:, :, top : top + rows * stride : stride, left : left + columns * stride : stride] = grad
        return F.conv2d(spread, flipped, groups=channels), None, None, None, None, None


class FrozenDepthwiseConv2d(nn.Module):
    """Replaces a depthwise nn.Conv2d (or timm's Conv2dSame) that has constant weights.

    The function and the names in the state dict stay the same.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        # TensorFlow's padding: the smallest one with ceil(size / stride) outputs.
        self.same = type(conv).__name__ == "Conv2dSame"
        self.padding = 0 if self.same else int(conv.padding[0])

    @staticmethod
    def fits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Return whether this class can replace a module."""
        return (
            isinstance(conv, nn.Conv2d)
            and conv.groups == conv.in_channels == conv.out_channels > 1
            and conv.kernel_size[0] == conv.kernel_size[1]
            and conv.stride[0] == conv.stride[1]
            and conv.dilation == (1, 1)
            and not isinstance(conv.padding, str)
            and conv.padding[0] == conv.padding[1] < conv.kernel_size[0]
            and type(conv).__name__ in ("Conv2d", "Conv2dSame")
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [N, C, H, W]."""
        total = [2 * self.padding] * 2
        if self.same:
            total = [
                max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
                for size in x.shape[2:]
            ]
        before = (total[0] // 2, total[1] // 2)
        after = (total[0] - before[0], total[1] - before[1])
        if x.device.type == "cpu":
            y: Tensor = _DepthwiseFunction.apply(x, self.weight, self.bias, self.stride, before, after)
            return y
        if before != after:
            x, before = F.pad(x, (before[1], after[1], before[0], after[0])), (0, 0)
        return F.conv2d(x, self.weight, self.bias, self.stride, before, groups=x.shape[1])


def replace_depthwise_(body: nn.Module) -> None:
    """Replace the depthwise convolutions below `body` by FrozenDepthwiseConv2d, in place."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if FrozenDepthwiseConv2d.fits(child):
                setattr(parent, name, FrozenDepthwiseConv2d(child))
