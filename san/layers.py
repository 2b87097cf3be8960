# SPDX-License-Identifier: Apache-2.0
"""The last layers of a SAN discriminator: unit directions, scales, and two outputs with different gradients.

A discriminator is f(x) = <omega, h(x)> with features h and a last linear layer omega. A SAN layer writes
omega as scale times a unit direction. It returns `SANLogits(fun, dir)`, which have equal values (Takida et
al., ICLR 2024, section 5):

    fun = scale * <stopgrad(direction), h>      trains h, the input bias and the scale; the generator uses it
    dir = stopgrad(scale) * <direction, stopgrad(h)>      trains only the direction

Shapes: N batch, I inputs, O outputs, D embedding width.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-12  # smallest norm that a direction is divided by
_PAIR = (
    "SANLogits are a pair, not a tensor: compute with .fun and .dir, as in "
    "san.SANLogits(a.fun + b.fun, a.dir + b.dir)"
)


class SANLogits(NamedTuple):
    """The two outputs of a SAN layer: equal values, different gradients (see the module docstring).

    Sums and multiples, which would be those of a tuple, raise TypeError.
    """

    fun: Tensor
    dir: Tensor

    def __add__(self, other: object) -> NoReturn:
        """Refuse to append to the pair."""
        raise TypeError(_PAIR)

    def __mul__(self, other: object) -> NoReturn:
        """Refuse to repeat the pair."""
        raise TypeError(_PAIR)

    def __rmul__(self, other: object) -> NoReturn:
        """Refuse to repeat the pair."""
        raise TypeError(_PAIR)


class SONALogits(NamedTuple):
    """The outputs of a SONAHead (san/sona.py).

    Attributes:
        fun: naturalness, trains the features: [N, ...].
        dir: naturalness, trains the direction: [N, ...].
        align: alignment with the sample's own condition: [N].
        crossed: alignment with the conditions of the samples of its group: [N, g].
    """

    fun: Tensor
    dir: Tensor
    align: Tensor
    crossed: Tensor


def widened(x: Tensor) -> Tensor:
    """Convert float16 and bfloat16, which cannot represent EPS or large norms, to float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit_directions(weight: Tensor) -> Tensor:
    """Divide each direction (leading axis) of a weight [K, ...] by its norm, keeping the type."""
    flat = widened(weight.flatten(1))
    return F.normalize(flat, dim=1, eps=EPS).view_as(weight).to(weight.dtype)


def tied(fun: Tensor, weight: Tensor) -> Tensor:
    """Return `fun`; in distributed training, make it depend on `weight` with a gradient of zeros.

    DistributedDataParallel waits for the gradient of every parameter, also in a generator step that does not
    freeze the discriminator and uses only `fun`.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not (distributed and torch.is_grad_enabled() and weight.requires_grad):
        return fun
    return fun + weight.flatten()[:0].sum()


class _SANLayer(nn.Module):
    """Directions and scales of all SAN layers. The leading axis of `weight` is the index of the direction."""

    weight: nn.Parameter
    scale: nn.Parameter

    def _set_direction(self, initial: Tensor, scale_shape: tuple[int, ...]) -> None:
        """Split an initial weight into unit directions and norms: the layer starts like an ordinary one."""
        norm = initial.flatten(1).norm(dim=1).clamp_min(EPS)
        self.scale = nn.Parameter(norm.view(scale_shape))
        self.weight = nn.Parameter(unit_directions(initial))

    def _stored_weight(self) -> Tensor | None:
        """Return the registered directions; None if a wrapper has removed them."""
        found = self._parameters.get("weight")
        return self.__dict__.get("weight") if found is None else found

    def normalize_(self) -> None:
        """Project `weight` back to unit directions, in place and outside autograd.

        The optimizer state does not change.

        Raises:
            ValueError: this process has only a flat shard of the weight (FullyShardedDataParallel outside
                summon_full_params).
        """
        weight = self._stored_weight()
        if weight is None or weight.ndim < 2 or weight.untyped_storage().size() == 0:
            raise ValueError(
                f"the directions of a {type(self).__name__} are flat shards: call san.normalize_ within "
                "FullyShardedDataParallel.summon_full_params(D), or wrap D with fully_shard (FSDP2) instead"
            )
        with torch.no_grad():
            weight.copy_(unit_directions(weight))


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Draw from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as torch's linear and convolution layers do."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


class _SANWeighted(_SANLayer):
    """A SAN layer that maps features to logits. Subclasses define the linear map in `_map`."""

    def __init__(self, shape: tuple[int, ...], bias: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        self._set_direction(_uniform(shape, generator), (shape[0],))
        # Added to the input: the bias is part of h.
        self.bias = nn.Parameter(torch.zeros(shape[1])) if bias else None

    def _map(self, h: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Return h, which is multiplied with the directions: the input plus the bias."""
        return x if self.bias is None else x + self.bias.view((-1,) + (1,) * (self.weight.ndim - 2))

    def forward(self, x: Tensor) -> SANLogits:
        """Map features to logits. The module docstring explains what each of the two outputs trains."""
        return self._logits(x, self.weight)

    def _logits(self, x: Tensor, weight: Tensor) -> SANLogits:
        per_channel = (-1,) + (1,) * (weight.ndim - 2)
        h = self.features(x)
        direction = unit_directions(weight)
        scale = self.scale.view(per_channel)
        return SANLogits(
            fun=tied(scale * self._map(h, direction.detach()), weight),
            dir=scale.detach() * self._map(h.detach(), direction),
        )

    def extra_repr(self) -> str:
        """Return the shape of the weight, and whether there is a bias."""
        return f"{tuple(self.weight.shape)}, bias={self.bias is not None}"


class SANLinear(_SANWeighted):
    """Linear SAN layer: [N, ..., in_features] -> SANLogits of [N, ..., out_features].

    Args:
        in_features: width of the input.
        out_features: number of directions.
        bias: add a trained bias to the input.
        generator: source of the initial weights; None = torch's global generator.

    Examples:
        >>> import san, torch
        >>> layer = san.SANLinear(8, 1)
        >>> logits = layer(torch.ones(4, 8))
        >>> torch.equal(logits.fun, logits.dir)
        True
        >>> logits.dir.sum().backward()  # trains the direction alone
        >>> [name for name, p in layer.named_parameters() if p.grad is not None]
        ['weight']
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, generator: torch.Generator | None = None
    ) -> None:
        super().__init__((out_features, in_features), bias, generator)

    def _map(self, h: Tensor, weight: Tensor) -> Tensor:
        return F.linear(h, weight)


class _SANConv(_SANWeighted):
    dims: int
    conv: Callable[..., Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,  # zeros around h; the input bias is not added to them
        dilation: int | tuple[int, ...] = 1,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        kernel = (kernel_size,) * self.dims if isinstance(kernel_size, int) else tuple(kernel_size)
        super().__init__((out_channels, in_channels, *kernel), bias, generator)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def _map(self, h: Tensor, weight: Tensor) -> Tensor:
        return type(self).conv(h, weight, None, self.stride, self.padding, self.dilation)


class SANConv1d(_SANConv):
    """1D SAN convolution: [N, I, L] -> SANLogits of [N, O, L']. Arguments are those of torch.nn.Conv1d."""

    dims, conv = 1, staticmethod(F.conv1d)


class SANConv2d(_SANConv):
    """2D SAN convolution: [N, I, H, W] -> SANLogits of [N, O, H', W'].

    Arguments are those of torch.nn.Conv2d.
    """

    dims, conv = 2, staticmethod(F.conv2d)


class SANConv3d(_SANConv):
    """3D SAN convolution: [N, I, T, H, W] -> SANLogits of [N, O, T', H', W'].

    Arguments are those of torch.nn.Conv3d.
    """

    dims, conv = 3, staticmethod(F.conv3d)


class SANEmbedding(_SANLayer):
    """One direction per class: labels int64 [N] -> SANLogits of vectors [N, D].

    The inner product with features h gives class-conditional logits. The caller must separate the gradients:
    `fun` = <h, embedding.fun> and `dir` = <h.detach(), embedding.dir>.

    Examples:
        >>> import san, torch
        >>> row, h = san.SANEmbedding(10, 8)(torch.tensor([3, 5])), torch.ones(2, 8)
        >>> logits = san.SANLogits((h * row.fun).sum(1), (h.detach() * row.dir).sum(1))
        >>> logits.fun.shape
        torch.Size([2])
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        initial = torch.empty(num_embeddings, embedding_dim).normal_(generator=generator)
        self._set_direction(initial, (num_embeddings, 1))

    def forward(self, labels: Tensor) -> SANLogits:
        """Return the vectors of the labels' classes."""
        return self._rows(labels, self.weight)

    def _rows(self, labels: Tensor, weight: Tensor) -> SANLogits:
        rows = widened(F.embedding(labels, weight))
        direction = F.normalize(rows, dim=-1, eps=EPS).to(weight.dtype)
        scale = F.embedding(labels, self.scale)
        return SANLogits(fun=tied(scale * direction.detach(), weight), dir=scale.detach() * direction)

    def extra_repr(self) -> str:
        """Return the shape of the weight."""
        return ", ".join(str(size) for size in self.weight.shape)


def normalize_(module: nn.Module) -> None:
    """Project all SAN directions inside `module` to unit norm, in place.

    Call it before the first and after each optimizer step of the discriminator.

    Examples:
        >>> import san, torch
        >>> layer = san.SANConv1d(4, 1, 3)
        >>> _ = layer.weight.data.mul_(5)
        >>> san.normalize_(layer)
        >>> round(float(layer.weight.detach().norm()), 4)
        1.0
    """
    for layer in module.modules():
        if isinstance(layer, _SANLayer):
            layer.normalize_()
