# SPDX-License-Identifier: Apache-2.0
"""The trained part of the discriminator: one small SAN head per projected level, conditional or not.

Names of parameters and buffers are the published ones: `main.{i}.main.0` (spectrally normalised convolution),
`main.{i}.main.1` (batch normalisation), `last_layer` (unconditional), `cls` and `embed` (conditional).

Shapes: N batch, C channels, H W height and width, K logits of a head.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from san.layers import SANConv2d, SANEmbedding, SANLogits

LAST_SIZE = 8  # a head halves its map until it is at most this wide
KERNEL = 4
POWER_ITERATIONS_AT_START = 15
EPS = 1e-12  # smallest norm that the power iteration divides by


class SpectralConv2d(nn.Module):
    """Convolution with its weight divided by an estimate of its largest singular value (Miyato et al., ICLR
    2018), without bias.

    sigma = u^T W v with unit vectors u and v, which are constants to autograd. `forward` never changes them:
    Deviation: the published heads advance the power iteration in every forward pass, generator passes
    included, which makes results depend on the number of accumulation rounds and processes. Here
    `advance_spectral_norm` does, once per training step.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = KERNEL,
        stride: int = 1,
        padding: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        fan_in = in_channels * kernel_size**2
        bound = 1 / math.sqrt(fan_in)
        self.weight_orig = nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))
        self.register_buffer(
            "weight_u", F.normalize(torch.empty(out_channels).normal_(generator=generator), dim=0)
        )
        self.register_buffer("weight_v", F.normalize(torch.empty(fan_in).normal_(generator=generator), dim=0))
        for _ in range(POWER_ITERATIONS_AT_START):
            self.advance_spectral_norm()

    @torch.no_grad()
    def advance_spectral_norm(self) -> None:
        """One power iteration: v <- W^T u / |W^T u|, u <- W v / |W v|."""
        weight = self._matrix()
        v = F.normalize(weight.t() @ self.weight_u, dim=0, eps=EPS)
        self.weight_u.copy_(F.normalize(weight @ v, dim=0, eps=EPS))
        kernel, in_channels = self.weight_orig.shape[2:], self.weight_orig.shape[1]
        self.weight_v.copy_(v.view(*kernel, in_channels).permute(2, 0, 1).flatten())

    def _matrix(self) -> Tensor:
        """The weight as [out_channels, kernel * kernel * in_channels]: a view of a channels-last weight,
        unlike flatten(1).
        """
        return self.weight_orig.permute(0, 2, 3, 1).reshape(self.weight_orig.shape[0], -1)

    def sigma(self) -> Tensor:
        """The estimate u^T W v, a scalar, differentiable in the weight."""
        v = self.weight_v.view(self.weight_orig.shape[1:]).permute(1, 2, 0).flatten()
        return self.weight_u @ (self._matrix() @ v)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W'] in the type of x; the weight itself is kept and divided in
        float32.
        """
        weight = self.weight_orig * self.sigma().reciprocal()  # cheaper to differentiate than a division
        return F.conv2d(x, weight.to(x.dtype), None, self.stride, self.padding)


class GroupedBatchNorm2d(nn.Module):
    """Batch normalisation over groups of consecutive samples, so that a sample's output depends on its group
    alone.

    Statistics are those of the group, always, and are computed in float32.
    Deviation: published heads normalise over an accumulation round, 8 samples; here the group is a number of
    its own, so that results do not depend on --batch-gpu. A batch that is no multiple of it is one group.
    Running statistics are never used (a discriminator is not evaluated by them) nor updated: a forward pass
    changes no state. The buffers exist because the published state has them.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, group: int | None = 8, eps: float = 1e-5) -> None:
        super().__init__()
        self.group, self.eps = group, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape and type."""
        count = x.shape[0]
        group = self.group if self.group and count % self.group == 0 else count
        parts = [
            F.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for part in x.split(group)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class DownBlock(nn.Module):
    """Spectrally normalised 4x4 convolution of stride 2, batch normalisation, leaky ReLU 0.2.

    Deviation: published convolutions have a bias, which batch normalisation cancels, so that its gradient is
    rounding noise which Adam turns into steps. Here it is a buffer for the sake of the state's format:
    neither added nor trained.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bn_group: int | None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        conv = SpectralConv2d(in_channels, out_channels, KERNEL, stride=2, padding=1, generator=generator)
        conv.register_buffer("bias", torch.zeros(out_channels))
        self.main = nn.Sequential(conv, GroupedBatchNorm2d(out_channels, bn_group))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(self.main(x), 0.2)


def _full(x: Tensor) -> Tensor:
    """X in float32, or in float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Head(nn.Module):
    """Projected map -> SANLogits [N, 1, H', W'].

    channels: of the input and after each halving. c_dim: number of classes, 0 = unconditional. Unconditional:
    a 4x4 SAN convolution. Conditional: a spectrally normalised 4x4 convolution to cond_channels, and its
    inner product with the class's SAN embedding.
    """

    def __init__(
        self,
        channels: Sequence[int],
        c_dim: int = 0,
        cond_channels: int = 64,
        bn_group: int | None = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.main = nn.Sequential(*(DownBlock(a, b, bn_group, generator) for a, b in pairwise(channels)))
        self.conditional = c_dim > 0
        if self.conditional:
            self.cls = SpectralConv2d(channels[-1], cond_channels, generator=generator)
            self.embed = SANEmbedding(c_dim, cond_channels, generator=generator)
        else:
            self.last_layer = SANConv2d(channels[-1], 1, KERNEL, bias=False, generator=generator)

    def forward(self, x: Tensor, c: Tensor | None = None) -> SANLogits:
        """X [N, C, H, W], labels c int64 [N] -> logits, float32 whatever the type of x (float64 of
        float64).
        """
        h = self.main(x)
        if not self.conditional:
            return self.last_layer(_full(h))
        h = _full(self.cls(h))  # [N, cond_channels, H', W']
        direction = self.embed(c)
        gain = 1 / math.sqrt(h.shape[1])
        return SANLogits(
            fun=torch.einsum("nchw,nc->nhw", h, direction.fun).unsqueeze(1) * gain,
            dir=torch.einsum("nchw,nc->nhw", h.detach(), direction.dir).unsqueeze(1) * gain,
        )


def head_channels(in_channels: int, size: int, width: int = 64) -> list[int]:
    """Channels of a head's input and after each halving of a map of `size` pixels down to at most LAST_SIZE.

    width: channels at 64 and 128 pixels (published: 64); they double with every halving below 64, up to 8 x
    width at 8 pixels, and halve with every doubling above 128. Sizes count as the next power of two. Raises
    ValueError for a map that is too small for a 4x4 kernel.
    """
    if size < KERNEL:
        raise ValueError(f"a head needs a map of at least {KERNEL}x{KERNEL} pixels, got {size}x{size}")
    nominal = 1 << (size - 1).bit_length()
    channels = [in_channels]
    while nominal > LAST_SIZE:
        nominal //= 2
        channels.append(max(1, width * 64 // nominal if nominal <= 64 else width * 128 // nominal))
    return channels


class HeadSet(nn.Module):
    """The heads of one feature network: one per level, their logits side by side."""

    def __init__(
        self,
        in_channels: Sequence[int],
        sizes: Sequence[int],
        c_dim: int = 0,
        width: int = 64,
        cond_channels: int = 64,
        bn_group: int | None = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.mini_discs = nn.ModuleList(
            Head(head_channels(channels, size, width), c_dim, cond_channels, bn_group, generator)
            for channels, size in zip(in_channels, sizes, strict=True)
        )

    def forward(self, maps: Sequence[Tensor], c: Tensor | None = None) -> SANLogits:
        """One map [N, C_l, H_l, W_l] per level -> SANLogits [N, K], float32, the levels' logits one after the
        other.
        """
        logits = [head(x, c) for head, x in zip(self.mini_discs, maps, strict=True)]
        return SANLogits(
            *(torch.cat([part.flatten(1) for part in parts], dim=1) for parts in zip(*logits, strict=True))
        )
