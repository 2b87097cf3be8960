# SPDX-License-Identifier: Apache-2.0
"""Faster convolutions for frozen networks.

BatchNorm is folded into the convolution before it, depthwise convolutions get a cheaper input gradient, and
on CPUs a ReLU6 is part of the convolution before it, which saves a pass over the memory.
"""

import functools
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pair = tuple[int, int]

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


def fuse_relu6_(body: nn.Module) -> None:
    """Make the ReLU6 after a convolution a part of it, in place, where BatchNorm has been folded."""
    for parent in list(body.modules()):
        for conv_name, bn_name in _CONV_BN_PAIRS.get(type(parent).__name__, ()):
            conv, after = getattr(parent, conv_name), getattr(parent, bn_name)
            if not (isinstance(after, nn.Sequential) and isinstance(after[-1], nn.ReLU6)):
                continue
            if isinstance(conv, FrozenDepthwiseConv2d):
                conv.relu6 = True
            elif FrozenConv2d.fits(conv):
                setattr(parent, conv_name, FrozenConv2d(conv))
            else:
                continue
            after[-1] = nn.Identity()


def _fuses(x: Tensor) -> bool:
    """Return whether oneDNN can clamp the result of a convolution of x."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and x.dtype in _fused_types()
        and x.numel() > 0
    )


@functools.cache
def _fused_types() -> tuple[torch.dtype, ...]:
    """Return the types in which oneDNN clamps results on this CPU."""
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return ()
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Pair, groups: int, relu6: bool
) -> Tensor:
    if not relu6:
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)
    if not _fuses(x):
        return F.relu6(F.conv2d(x, weight, bias, stride, padding, groups=groups), inplace=True)
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, (stride, stride), (1, 1), groups, "hardtanh", [0.0, 6.0], ""
    )
    return y


def _relu6_gradient(grad: Tensor, y: Tensor) -> Tensor:
    """Return the gradient before ReLU6 from that of its result y."""
    found: Tensor = torch.ops.aten.hardtanh_backward(grad, y, 0.0, 6.0)
    return found


def _blank(count: int, channels: int, size: tuple[int, int], like: Tensor) -> Tensor:
    """Return zeros [count, channels, *size] in channels-last order.

    torch.nn.functional.pad, or torch.zeros followed by a layout change, would write the memory twice.
    """
    return torch.zeros((count, *size, channels), dtype=like.dtype, device=like.device).permute(0, 3, 1, 2)


class _DepthwiseFunction(torch.autograd.Function):
    """Depthwise convolution with constant weights whose input gradient is a forward convolution, too.

    On CPUs, PyTorch's backward pass of a strided depthwise convolution in bfloat16 takes tens of times as
    long as the forward pass, and most of the time of a generator step. `before` and `after` are the numbers
    of zero (rows, columns) added before and after the image; `relu6`: ReLU6 of the result.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        before: Pair,
        after: Pair,
        relu6: bool,
    ) -> Tensor:
        count, channels, height, width = x.shape
        ctx.size, ctx.stride, ctx.before, ctx.after = (height, width), stride, before, after
        padding = before
        if before != after:
            padded = _blank(count, channels, (height + before[0] + after[0], width + before[1] + after[1]), x)
            padded[:, :, before[0] : before[0] + height, before[1] : before[1] + width] = x
            x, padding = padded, (0, 0)
        y = _convolve(x, weight, bias, stride, padding, channels, relu6)
        ctx.save_for_backward(weight, *((y,) if relu6 else ()))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *clamped = ctx.saved_tensors
        for y in clamped:
            grad = _relu6_gradient(grad, y)
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
                None,
            )
        spread = _blank(count, channels, (ctx.size[0] + reach, ctx.size[1] + reach), grad)
        spread[:, :, top : top + rows * stride : stride, left : left + columns * stride : stride] = grad
        return F.conv2d(spread, flipped, groups=channels), None, None, None, None, None, None


class _ReLU6Function(torch.autograd.Function):
    """ReLU6 of a convolution with constant weights, in one pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Pair
    ) -> Tensor:
        y = _convolve(x, weight, bias, stride, padding, 1, relu6=True)
        ctx.save_for_backward(x, weight, y)
        ctx.stride, ctx.padding = stride, padding
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        stride = (ctx.stride, ctx.stride)
        dx = torch.ops.aten.convolution_backward(
            _relu6_gradient(grad, y), x, weight, None, stride, ctx.padding, (1, 1), False, (0, 0), 1,
            [True, False, False],
        )[0]  # fmt: skip
        return dx, None, None, None, None


def _is_square(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a module is a convolution that the classes below can replace."""
    return (
        type(conv).__name__ in ("Conv2d", "Conv2dSame")
        and isinstance(conv, nn.Conv2d)
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.stride[0] == conv.stride[1]
        and conv.dilation == (1, 1)
        and not isinstance(conv.padding, str)
        and conv.padding[0] == conv.padding[1] < conv.kernel_size[0]
    )


class _FrozenConv2d(nn.Module):
    """Weights, stride and padding of a convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        # TensorFlow's padding: the smallest one with ceil(size / stride) outputs.
        self.same = type(conv).__name__ == "Conv2dSame"
        self.padding = 0 if self.same else int(conv.padding[0])

    def _zeros(self, x: Tensor) -> tuple[Pair, Pair]:
        """Return the zero (rows, columns) before and after an image [N, C, H, W]."""
        total = [2 * self.padding] * 2
        if self.same:
            total = [
                max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
                for size in x.shape[2:]
            ]
        before = (total[0] // 2, total[1] // 2)
        return before, (total[0] - before[0], total[1] - before[1])


class FrozenDepthwiseConv2d(_FrozenConv2d):
    """Replaces a depthwise nn.Conv2d (or timm's Conv2dSame) that has constant weights.

    The function and the names in the state dict stay the same. With `relu6`, a ReLU6 follows.
    """

    relu6 = False

    @staticmethod
    def fits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Return whether this class can replace a module."""
        return _is_square(conv) and conv.groups == conv.in_channels == conv.out_channels > 1

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [N, C, H, W]."""
        before, after = self._zeros(x)
        if x.device.type == "cpu":
            y: Tensor = _DepthwiseFunction.apply(
                x, self.weight, self.bias, self.stride, before, after, self.relu6
            )
            return y
        if before != after:
            x, before = F.pad(x, (before[1], after[1], before[0], after[0])), (0, 0)
        return _convolve(x, self.weight, self.bias, self.stride, before, x.shape[1], self.relu6)


class FrozenConv2d(_FrozenConv2d):
    """Replaces an nn.Conv2d (or timm's Conv2dSame) that has constant weights and is followed by ReLU6.

    The names in the state dict stay the same.
    """

    @staticmethod
    def fits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Return whether this class can replace a module."""
        return _is_square(conv) and conv.groups == 1

    def forward(self, x: Tensor) -> Tensor:
        """Return ReLU6 of the convolution of x [N, C, H, W]."""
        before, after = self._zeros(x)
        if before != after:
            x, before = F.pad(x, (before[1], after[1], before[0], after[0])), (0, 0)
        if _fuses(x):
            y: Tensor = _ReLU6Function.apply(x, self.weight, self.bias, self.stride, before)
            return y
        return _convolve(x, self.weight, self.bias, self.stride, before, 1, relu6=True)


def replace_depthwise_(body: nn.Module) -> None:
    """Replace the depthwise convolutions below `body` by FrozenDepthwiseConv2d, in place."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if FrozenDepthwiseConv2d.fits(child):
                setattr(parent, name, FrozenDepthwiseConv2d(child))
