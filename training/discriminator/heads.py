# SPDX-License-Identifier: Apache-2.0
"""The trained part of the discriminator: one small SAN head per projected level, conditional or not.

Parameters and buffers have the published names: `main.{i}.main.0` (spectrally normalised convolution),
`main.{i}.main.1` (batch normalisation), `last_layer` (unconditional), `cls` and `embed` (conditional). SONA
heads have `cls`, `sona.omega` and `sona.embed`, and one `weights` per backbone.

Shapes: N batch, C channels, H W height and width, K logits of a head.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from san.layers import SANConv2d, SANEmbedding, SANLogits, SONALogits
from san.sona import SONAHead, SONAWeights, concatenated
from torch_utils.ops import conv2d_gradfix

LAST_SIZE = 8  # a head halves its map until it is at most this wide
KERNEL = 4
POWER_ITERATIONS_AT_START = 15
VARIANCE_EPS = 1e-6  # added to variances below a root
EPS = 1e-12  # lower bound of the norms that the power iteration divides by


def group_size(count: int, group: int | None, batches: int = 1) -> int:
    """Return the number of consecutive samples that share batch statistics.

    Args:
        count: N samples of a pass, which are `batches` batches of equal size.
        group: The wanted size; None or 0 = the whole batch, and so is a batch that is not a multiple of it.
        batches: Number of batches.
    """
    size = count // batches
    return group if group and size % group == 0 else size


class SpectralConv2d(nn.Module):
    """Convolution without bias whose weight is divided by an estimate of its largest singular value.

    Source: Miyato et al., ICLR 2018. The estimate is sigma = u^T W v, with unit vectors u and v that are
    constants to autograd. `forward` never changes them.

    Deviation: the published heads run a power iteration in every forward pass, also in generator steps, so
    results depend on the number of micro-batches and processes. Here `advance_spectral_norm` does it, once
    per training step.
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
        if not self.weight_orig.is_meta:  # a plan needs shapes only
            for _ in range(POWER_ITERATIONS_AT_START):
                self.advance_spectral_norm()

    @torch.no_grad()
    def advance_spectral_norm(self) -> None:
        """Run one power iteration: v <- W^T u / |W^T u|, u <- W v / |W v|."""
        weight = self._matrix()
        v = F.normalize(weight.t() @ self.weight_u, dim=0, eps=EPS)
        self.weight_u.copy_(F.normalize(weight @ v, dim=0, eps=EPS))
        kernel, in_channels = self.weight_orig.shape[2:], self.weight_orig.shape[1]
        self.weight_v.copy_(v.view(*kernel, in_channels).permute(2, 0, 1).flatten())

    def _matrix(self) -> Tensor:
        """Return the weight as [out_channels, kernel * kernel * in_channels].

        Unlike flatten(1), this is a view of a channels-last weight.
        """
        return self.weight_orig.permute(0, 2, 3, 1).reshape(self.weight_orig.shape[0], -1)

    def sigma(self) -> Tensor:
        """Return the estimate u^T W v, a scalar, differentiable in the weight."""
        v = self.weight_v.view(self.weight_orig.shape[1:]).permute(1, 2, 0).flatten()
        return self.weight_u @ (self._matrix() @ v)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H', W'] in the type of x.

        The weight is stored and divided in float32.
        """
        weight = self.weight_orig * self.sigma().reciprocal()  # cheaper to differentiate than a division
        return conv2d_gradfix.conv2d(x, weight.to(x.dtype), None, self.stride, self.padding)


class GroupedBatchNorm2d(nn.Module):
    """Batch normalisation over groups of consecutive samples.

    The output for a sample depends on its group only. Statistics are always those of the group, and are
    computed in float32.

    Deviation: the published heads normalise over a micro-batch of 8 samples; here the group size is a
    separate option, so that results do not depend on --batch-gpu. A batch that is not a multiple of it is one
    group. Running statistics are never used (a discriminator is not evaluated with them) and never updated,
    so a forward pass changes no state. The buffers exist because the published state has them.
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

    def forward(self, x: Tensor, batches: int = 1) -> Tensor:
        """Map [N, C, H, W], which are `batches` batches, to the same shape and type."""
        parts = [
            F.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for part in torch.split(x, group_size(x.shape[0], self.group, batches))
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class DownBlock(nn.Module):
    """Spectrally normalised 4x4 convolution of stride 2, batch normalisation, leaky ReLU 0.2.

    Deviation: the published convolutions have a bias. Batch normalisation cancels it, so its gradient is
    rounding noise, which Adam turns into steps. Here it is a buffer, for the format of the state: it is
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

    def forward(self, x: Tensor, batches: int = 1) -> Tensor:
        """Map [N, C, H, W], which are `batches` batches, to [N, C', H/2, W/2]."""
        conv, norm = self.main
        return F.leaky_relu_(norm(conv(x), batches), 0.2)


def _full(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if it has that type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Blocks(nn.Sequential):
    """Consecutive DownBlocks."""

    def forward(self, x: Tensor, batches: int = 1) -> Tensor:
        """Apply the blocks to [N, C, H, W], which are `batches` batches."""
        for block in self:
            x = block(x, batches)
        return x


class Head(nn.Module):
    """Maps a projected feature map to SANLogits [N, 1, H', W'].

    Unconditional: a 4x4 SAN convolution. Conditional: a spectrally normalised 4x4 convolution to
    cond_channels, and its inner product with the SAN embedding of the class.

    Args:
        channels: Channels of the input and after each halving.
        c_dim: Number of classes, 0 = unconditional.
        cond_channels: Width of the class embedding.
        bn_group: As for `GroupedBatchNorm2d`.
        generator: Source of the initial weights.
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
        self.main = Blocks(*(DownBlock(a, b, bn_group, generator) for a, b in pairwise(channels)))
        self.conditional = c_dim > 0
        if self.conditional:
            self.cls = SpectralConv2d(channels[-1], cond_channels, generator=generator)
            self.embed = SANEmbedding(c_dim, cond_channels, generator=generator)
        else:
            self.last_layer = SANConv2d(channels[-1], 1, KERNEL, bias=False, generator=generator)

    def forward(self, x: Tensor, c: Tensor | None = None, batches: int = 1) -> SANLogits:
        """Compute logits.

        Args:
            x: Feature map [N, C, H, W].
            c: Labels, int64 [N]; None if unconditional.
            batches: As for `group_size`.

        Returns:
            Logits in float32, whatever the type of x (float64 for float64).
        """
        h = self.main(x, batches)
        if not self.conditional:
            logits: SANLogits = self.last_layer(_full(h))
            return logits
        h = _full(self.cls(h))  # [N, cond_channels, H', W']
        direction = self.embed(c)
        gain = 1 / math.sqrt(h.shape[1])
        return SANLogits(
            fun=torch.einsum("nchw,nc->nhw", h, direction.fun).unsqueeze(1) * gain,
            dir=torch.einsum("nchw,nc->nhw", h.detach(), direction.dir).unsqueeze(1) * gain,
        )


def head_channels(in_channels: int, size: int, width: int = 64) -> list[int]:
    """Return the channels of a head's input and after each halving, down to at most LAST_SIZE pixels.

    Args:
        in_channels: Channels of the input.
        size: Size of the input map in pixels. It counts as the next power of two.
        width: Channels at 64 and 128 pixels (published: 64). They double with every halving below 64, up to 8
            x width at 8 pixels, and halve with every doubling above 128.

    Raises:
        ValueError: The map is too small for a 4x4 kernel.
    """
    if size < KERNEL:
        raise ValueError(f"a head needs a map of at least {KERNEL}x{KERNEL} pixels, got {size}x{size}")
    nominal = 1 << (size - 1).bit_length()
    channels = [in_channels]
    while nominal > LAST_SIZE:
        nominal //= 2
        channels.append(max(1, width * 64 // nominal if nominal <= 64 else width * 128 // nominal))
    return channels


class SONAProjectedHead(nn.Module):
    """A conditional head whose last layer is a SONAHead on the output of the 4x4 convolution.

    Arguments are those of `Head`; c_dim must be positive.

    Deviation: the published method has no factor on its unit directions, because it belongs to the features.
    These features are spectrally normalised, so a trained scale of omega takes its place.
    """

    def __init__(
        self,
        channels: Sequence[int],
        c_dim: int,
        cond_channels: int = 64,
        bn_group: int | None = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if c_dim < 1:
            raise ValueError("SONA heads need classes: use projection heads for unconditional training")
        self.bn_group = bn_group
        self.main = Blocks(*(DownBlock(a, b, bn_group, generator) for a, b in pairwise(channels)))
        self.cls = SpectralConv2d(channels[-1], cond_channels, generator=generator)
        self.sona = SONAHead(cond_channels, c_dim, bias=False, generator=generator)

    def forward(self, x: Tensor, c: Tensor, batches: int = 1) -> SONALogits:
        """Compute logits in float32, whatever the type of x, from [N, C, H, W] and labels [N].

        Conditions are compared within the groups of the batch normalisation.
        """
        group = group_size(x.shape[0], self.bn_group, batches)
        logits: SONALogits = self.sona(_full(self.cls(self.main(x, batches))), c, group)
        return logits


def class_deviations(x: Tensor, c: Tensor | None, group: int) -> Tensor:
    """Return the standard deviation of every feature over the samples of the same class and group.

    Source: the minibatch standard deviation of Karras et al. (ICLR 2018), there over all samples and averaged
    over features. With it the discriminator sees if the images of a class are more alike than those of the
    data, which a single image does not show.

    Args:
        x: Feature map [N, C, H, W].
        c: Labels, int64 [N]; None = all samples are of one class.
        group: Consecutive samples that are compared; N is a multiple of it.

    Returns:
        [N, C, H, W] in the type of x; 0 for a sample that is alone.
    """
    count, channels, height, width = x.shape
    # of channels-last maps, as the backbones' are, a view
    values = _full(x).permute(0, 2, 3, 1).reshape(-1, group, height * width * channels)
    if c is None:
        same = values.new_ones(1, group, group)
    else:
        labels = c.unflatten(0, (-1, group))
        same = (labels[:, :, None] == labels[:, None, :]).to(values.dtype)
    weights = same / same.sum(dim=2, keepdim=True)
    squares = (values - weights @ values).square()
    deviations = (weights @ squares + VARIANCE_EPS).sqrt()
    found = (deviations - math.sqrt(VARIANCE_EPS)).to(x.dtype).reshape(count, height, width, channels)
    return found.permute(0, 3, 1, 2)


class HeadSet(nn.Module):
    """The heads of one backbone, one per level. Their logits are concatenated.

    SONA heads share one set of `weights`, and their alignment is averaged over all logit maps. With `mbstd`,
    the heads also see `class_deviations` of their maps, as further channels.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        sizes: Sequence[int],
        c_dim: int = 0,
        width: int = 64,
        cond_channels: int = 64,
        bn_group: int | None = 8,
        generator: torch.Generator | None = None,
        sona: bool = False,
        mbstd: bool = False,
    ) -> None:
        super().__init__()
        head = SONAProjectedHead if sona else Head
        self.bn_group, self.mbstd = bn_group, mbstd
        if mbstd:
            in_channels = [2 * channels for channels in in_channels]
        self.mini_discs = nn.ModuleList(
            head(head_channels(channels, size, width), c_dim, cond_channels, bn_group, generator)
            for channels, size in zip(in_channels, sizes, strict=True)
        )
        self.weights = SONAWeights() if sona else None

    def forward(
        self, maps: Sequence[Tensor], c: Tensor | None = None, batches: int = 1
    ) -> SANLogits | SONALogits:
        """Compute the logits of all levels.

        Args:
            maps: One feature map [N, C_l, H_l, W_l] per level.
            c: Labels, int64 [N]; None if unconditional.
            batches: As for `group_size`.

        Returns:
            SANLogits, or SONALogits of SONA heads: [N, K] in float32, ordered by level.
        """
        if self.mbstd:
            group = group_size(maps[0].shape[0], self.bn_group, batches)
            maps = [torch.cat([x, class_deviations(x, c, group)], dim=1) for x in maps]
        logits = [head(x, c, batches) for head, x in zip(self.mini_discs, maps, strict=True)]
        if self.weights is not None:
            return concatenated(logits)
        return SANLogits(
            *(torch.cat([part.flatten(1) for part in parts], dim=1) for parts in zip(*logits, strict=True))
        )
