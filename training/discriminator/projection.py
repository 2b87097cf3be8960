# SPDX-License-Identifier: Apache-2.0
"""The fixed random projection between a frozen backbone and its heads.

Source: Sauer et al., "Projected GANs", NeurIPS 2021.

Cross-channel mixing is a 1x1 convolution per level. Cross-scale mixing goes from the lowest resolution
upwards and adds each level to the next one. The tokens of transformers are first reassembled into four
resolutions. Nothing here is trained: weights are buffers, drawn once and stored with the checkpoint.

Buffers have the published names (`scratch.layer{l}_ccm`, `scratch.layer{l}_csm.out_conv`), except for
transformers: `reassemble.layer{l}.project` and `.resample` are published as `pretrained.layer{l}.3` and `.4`.

Shapes: N batch, C channels, H W height and width, l level (0 = the highest resolution in `scratch`;
`reassemble` counts from 1).
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FixedConv2d(nn.Module):
    """A convolution with fixed random weights.

    The weights are buffers, so that optimizers and requires_grad_() do not find them. Weights and bias are
    U(-b, b) with b = 1/sqrt(fan_in), as in the published projections. Computes in the type of its input.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        transposed: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.stride, self.transposed = stride, transposed
        self.padding = 0 if transposed else kernel_size // 2
        shape = (in_channels, out_channels) if transposed else (out_channels, in_channels)
        shape_with_kernel = (*shape, kernel_size, kernel_size)
        bound = 1 / math.sqrt(math.prod(shape_with_kernel[1:]))
        self.register_buffer(
            "weight", torch.empty(shape_with_kernel).uniform_(-bound, bound, generator=generator)
        )
        self.register_buffer("bias", torch.empty(out_channels).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution to x [N, C, H, W]."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if self.transposed:
            return F.conv_transpose2d(x, weight, bias, self.stride, self.padding)
        return F.conv2d(x, weight, bias, self.stride, self.padding)


class CrossScaleMixing(nn.Module):
    """1x1 convolution and bilinear upsampling by 2 with aligned corners."""

    def __init__(self, in_channels: int, out_channels: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.out_conv = FixedConv2d(in_channels, out_channels, generator=generator)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map [N, C, H, W] to [N, C', *size]."""
        # A 1x1 convolution commutes with bilinear interpolation, whose weights sum to 1. Convolving first
        # costs a quarter.
        return F.interpolate(self.out_conv(x), size, mode="bilinear", align_corners=True)


class Reassemble(nn.Module):
    """Converts the four token maps of a transformer to a feature pyramid.

    The inputs have one resolution. The outputs have 4, 2, 1 and 1/2 times that resolution, and D/8, D/4, D/2
    and D channels.
    """

    def __init__(self, width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.channels = [width // 8, width // 4, width // 2, width]
        project = [FixedConv2d(width, channels, generator=generator) for channels in self.channels]
        resample = [
            FixedConv2d(
                self.channels[0], self.channels[0], 4, stride=4, transposed=True, generator=generator
            ),
            FixedConv2d(
                self.channels[1], self.channels[1], 2, stride=2, transposed=True, generator=generator
            ),
            None,
            FixedConv2d(self.channels[3], self.channels[3], 3, stride=2, generator=generator),
        ]
        for level, (first, second) in enumerate(zip(project, resample, strict=True), start=1):
            layer = nn.Sequential(
                OrderedDict(project=first) if second is None else OrderedDict(project=first, resample=second)
            )
            self.add_module(f"layer{level}", layer)

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Reassemble four token maps [N, D, H, W].

        Returns:
            [N, D/8, 4H, 4W], [N, D/4, 2H, 2W], [N, D/2, H, W], [N, D, ceil(H/2), ceil(W/2)].
        """
        return [self.get_submodule(f"layer{level}")(x) for level, x in enumerate(tokens, start=1)]


class RandomProjection(nn.Module):
    """Mixes channels and scales of four feature maps; each output has twice the resolution of its level.

    Args:
        in_channels: Channels of the backbone's levels.
        kind: 'cnn' or 'vit' (equal channels, reassembled first).
        width: P, channels of the finest level. Cross-channel mixing gives P, 2P, 4P, 8P channels, and the
            outputs have P, P, 2P, 4P (published: 64).
        generator: Source of the weights.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        kind: str = "cnn",
        width: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.reassemble = Reassemble(in_channels[0], generator) if kind == "vit" else None
        levels = in_channels if self.reassemble is None else self.reassemble.channels
        mixed = [width * 2**level for level in range(len(levels))]
        self.out_channels = [max(width, channels // 2) for channels in mixed]
        self.scratch = nn.Module()
        for level, channels in enumerate(levels):
            self.scratch.add_module(
                f"layer{level}_ccm", FixedConv2d(channels, mixed[level], generator=generator)
            )
        for level in reversed(range(len(levels))):
            self.scratch.add_module(
                f"layer{level}_csm", CrossScaleMixing(mixed[level], self.out_channels[level], generator)
            )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Project feature maps.

        Args:
            features: [N, C_l, H_l, W_l] per level.

        Returns:
            [N, out_channels_l, 2 H_l, 2 W_l] per level, in the type of the features.
        """
        if self.reassemble is not None:
            features = self.reassemble(features)
        below: Tensor | None = None
        mixed: list[Tensor] = []
        for level in reversed(range(len(features))):
            x = self.scratch.get_submodule(f"layer{level}_ccm")(features[level])
            if below is not None:
                x = x + below
            # The size of the next level: twice this one's, unless a stride rounded it.
            size = features[level - 1].shape[2:] if level else (2 * x.shape[2], 2 * x.shape[3])
            below = self.scratch.get_submodule(f"layer{level}_csm")(x, size)
            mixed.insert(0, below)
        return mixed
