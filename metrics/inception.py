# SPDX-License-Identifier: Apache-2.0
"""Inception-v3 as the 2015-12-05 TensorFlow graph computes it, the network behind FID, IS and KID.

Architecture: Szegedy et al. 2016, "Rethinking the Inception Architecture"; parameter names are torchvision's,
as in the published PyTorch state dict. What the 2015 graph does otherwise than torchvision: average pools
leave the padding out of the mean, the last block pools by maximum, the classifier has 1008 outputs, there is
no auxiliary head, and images are resized as TensorFlow 1 did.

Shapes: N batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SIZE = 299
FEATURE_DIM = 2048
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7
SPATIAL_DIM = SPATIAL_CHANNELS * 17 * 17

Kernel = int | tuple[int, int]
# An inner step of a branch: parameter name, output channels, kernel. Every step has stride 1 and keeps the
# size unless the block reduces it.
Step = tuple[str, int, Kernel]


class BasicConv2d(nn.Module):
    """Convolution without bias, BatchNorm (eps 1e-3), ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Kernel, stride: int = 1, padding: Kernel = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False
        )
        self.bn: nn.Module = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H', W']."""
        return F.relu(self.bn(self.conv(x)), inplace=True)

    def fold(self) -> None:
        """Put the BatchNorm into the convolution's weight and bias, computed in float64."""
        norm, weight = self.bn, self.conv.weight.double()
        if not isinstance(norm, nn.BatchNorm2d):
            return
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        bias = norm.bias.double() - norm.running_mean.double() * scale
        self.conv.weight = nn.Parameter((weight * scale[:, None, None, None]).float(), requires_grad=False)
        self.conv.bias = nn.Parameter(bias.float(), requires_grad=False)
        self.bn = nn.Identity()


def average_pool(x: Tensor) -> Tensor:
    """3x3 mean at stride 1 over the pixels that exist: at a border the sum is divided by 4 or 6, not 9."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def max_pool_same(x: Tensor) -> Tensor:
    """3x3 maximum at stride 1, size kept."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def max_pool_half(x: Tensor) -> Tensor:
    """3x3 maximum at stride 2 without padding."""
    return F.max_pool2d(x, 3, stride=2)


class Mixed(nn.Module):
    """An Inception block: branches joined along channels in the order given, then the pooled branch.

    Args:
        in_channels: of the input.
        branches: each a list of steps; a pair of steps splits the branch into both, joined along channels.
        pool: applied to the input.
        pool_channels: outputs of the 1x1 convolution `branch_pool` that follows the pool; None for none.
        reduce: the last step of each branch has stride 2 and no padding.
    """

    def __init__(
        self,
        in_channels: int,
        branches: Sequence[Sequence[Step | tuple[Step, Step]]],
        pool: Callable[[Tensor], Tensor],
        pool_channels: int | None,
        reduce: bool = False,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.plan: list[list[tuple[str, ...]]] = []
        self.out_channels = in_channels if pool_channels is None else pool_channels
        for branch in branches:
            width = in_channels
            names: list[tuple[str, ...]] = []
            for position, step in enumerate(branch):
                parts: list[Step] = list(step) if isinstance(step[0], tuple) else [step]
                last = reduce and position == len(branch) - 1
                for name, channels, kernel in parts:
                    size = (kernel, kernel) if isinstance(kernel, int) else kernel
                    padding = (0, 0) if last else (size[0] // 2, size[1] // 2)
                    self.add_module(
                        name, BasicConv2d(width, channels, size, stride=2 if last else 1, padding=padding)
                    )
                names.append(tuple(name for name, _, _ in parts))
                width = sum(channels for _, channels, _ in parts)
            self.plan.append(names)
            self.out_channels += width
        if pool_channels is not None:
            self.add_module("branch_pool", BasicConv2d(in_channels, pool_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, out_channels, H', W']."""
        outputs = []
        for names in self.plan:
            y = x
            for group in names:
                parts = [self.get_submodule(name)(y) for name in group]
                y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            outputs.append(y)
        pooled = self.pool(x)
        outputs.append(
            self.get_submodule("branch_pool")(pooled) if "branch_pool" in self._modules else pooled
        )
        return torch.cat(outputs, 1)


def _mixed_35(in_channels: int, pool_channels: int) -> Mixed:
    """35x35 block (paper figure 5)."""
    return Mixed(
        in_channels,
        [
            [("branch1x1", 64, 1)],
            [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ],
        average_pool,
        pool_channels,
    )


def _reduce_35(in_channels: int) -> Mixed:
    """35x35 -> 17x17 (figure 10)."""
    branches: list[list[Step | tuple[Step, Step]]] = [
        [("branch3x3", 384, 3)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
    ]
    return Mixed(in_channels, branches, max_pool_half, None, reduce=True)


def _mixed_17(in_channels: int, width: int) -> Mixed:
    """17x17 block with 7x7 convolutions factored into 1x7 and 7x1 (figure 6)."""
    row, column = (1, 7), (7, 1)
    double: list[Step | tuple[Step, Step]] = [
        ("branch7x7dbl_1", width, 1),
        ("branch7x7dbl_2", width, column),
        ("branch7x7dbl_3", width, row),
        ("branch7x7dbl_4", width, column),
        ("branch7x7dbl_5", 192, row),
    ]
    return Mixed(
        in_channels,
        [
            [("branch1x1", 192, 1)],
            [("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)],
            double,
        ],
        average_pool,
        192,
    )


def _reduce_17(in_channels: int) -> Mixed:
    """17x17 -> 8x8."""
    branches: list[list[Step | tuple[Step, Step]]] = [
        [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
        [
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3),
        ],
    ]
    return Mixed(in_channels, branches, max_pool_half, None, reduce=True)


def _mixed_8(in_channels: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    """8x8 block with branches that widen (figure 7)."""
    return Mixed(
        in_channels,
        [
            [("branch1x1", 320, 1)],
            [("branch3x3_1", 384, 1), (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1)))],
            [
                ("branch3x3dbl_1", 448, 1),
                ("branch3x3dbl_2", 384, 3),
                (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))),
            ],
        ],
        pool,
        192,
    )


class InceptionV3(nn.Module):
    """The 2015-12-05 network in eval mode.

    Parameters are random until `load_state_dict`; detectors.load_inception loads the published ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        channels = 192
        blocks: list[tuple[str, Callable[[int], Mixed]]] = [
            ("Mixed_5b", lambda c: _mixed_35(c, 32)),
            ("Mixed_5c", lambda c: _mixed_35(c, 64)),
            ("Mixed_5d", lambda c: _mixed_35(c, 64)),
            ("Mixed_6a", _reduce_35),
            ("Mixed_6b", lambda c: _mixed_17(c, 128)),
            ("Mixed_6c", lambda c: _mixed_17(c, 160)),
            ("Mixed_6d", lambda c: _mixed_17(c, 160)),
            ("Mixed_6e", lambda c: _mixed_17(c, 192)),
            ("Mixed_7a", _reduce_17),
            ("Mixed_7b", lambda c: _mixed_8(c, average_pool)),
            ("Mixed_7c", lambda c: _mixed_8(c, max_pool_same)),
        ]
        self.block_names = [name for name, _ in blocks]
        for name, build in blocks:
            block = build(channels)
            self.add_module(name, block)
            channels = block.out_channels
        self.fc = nn.Linear(FEATURE_DIM, NUM_CLASSES)
        self.eval()
        for parameter in self.parameters():
            parameter.requires_grad = False

    def fold(self) -> InceptionV3:
        """Fold every BatchNorm into its convolution, which saves time, up to rounding."""
        for module in self.modules():
            if isinstance(module, BasicConv2d):
                module.fold()
        return self

    def features(self, x: Tensor) -> Tensor:
        """pool3 features [N, 2048] of network inputs [N, 3, 299, 299] (see `prepare`)."""
        return self._maps(x)[0]

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """All outputs of network inputs: features [N, 2048], probabilities [N, 1008], spatial [N, 2023].

        spatial, of sFID, is the first 7 channels of the node mixed_6/conv of the 2015 graph, the 1x1 branch
        of Mixed_6d, as NHWC rows. That branch comes first in its block's output.
        """
        features, mixed_6d = self._maps(x)
        spatial = mixed_6d[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return {"features": features, "probabilities": self.probabilities(features), "spatial": spatial}

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """pool3 features and the output of Mixed_6d."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool_half(x)))
        x = max_pool_half(x)
        mixed_6d = x
        for name in self.block_names:
            x = self.get_submodule(name)(x)
            mixed_6d = x if name == "Mixed_6d" else mixed_6d
        return x.mean(dim=(2, 3)), mixed_6d

    def probabilities(self, features: Tensor) -> Tensor:
        """Class probabilities [N, 1008] of pool3 features.

        As in the published Inception Score, the logits are without the classifier's bias.
        """
        return (features @ self.fc.weight.T).softmax(dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Network inputs [N, 3, 299, 299] -> (features [N, 2048], probabilities [N, 1008])."""
        features = self.features(x)
        return features, self.probabilities(features)


def randomize_(network: InceptionV3, seed: int) -> None:
    """Give all convolutions He's normal initialisation (He et al. 2015), the same on every machine.

    It keeps the scale of activations through all layers; PyTorch's default shrinks them to nothing.
    """
    random = np.random.RandomState(seed)
    for _, parameter in sorted(network.named_parameters()):
        if parameter.ndim == 4:
            scale = (2 / parameter[0].numel()) ** 0.5
            values = random.standard_normal(parameter.shape).astype(np.float32)
            parameter.copy_(torch.from_numpy(values * np.float32(scale)))


def resize_tf1(x: Tensor, height: int, width: int) -> Tensor:
    """Resize float images [N, C, H, W] as TensorFlow 1's resize_bilinear does by default.

    Output pixel i reads position i * in / out, without half-pixel offset or antialiasing. The first row and
    column are copied, and positions beyond the last pixel repeat it.
    """

    def taps(size_in: int, size_out: int) -> tuple[Tensor, Tensor, Tensor]:
        position = torch.arange(size_out, dtype=torch.float32, device=x.device) * (size_in / size_out)
        low = position.long().clamp(max=size_in - 1)
        return low, (low + 1).clamp(max=size_in - 1), (position - low).to(x.dtype)

    low, high, weight = taps(x.shape[2], height)
    x = torch.lerp(x[:, :, low], x[:, :, high], weight[:, None])
    low, high, weight = taps(x.shape[3], width)
    return torch.lerp(x[:, :, :, low], x[:, :, :, high], weight)


def prepare(images: Tensor) -> Tensor:
    """Images uint8 [N, 3, H, W] to network inputs, float32 [N, 3, 299, 299].

    They are resized as by TensorFlow 1, then mapped by (x - 128) / 128.
    """
    return (resize_tf1(images.float(), INPUT_SIZE, INPUT_SIZE) - 128) / 128
