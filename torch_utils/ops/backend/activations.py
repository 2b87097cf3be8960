# SPDX-License-Identifier: Apache-2.0
"""The activation functions by name, and helpers that their implementations share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SQRT2 = 2.0**0.5
IMPLEMENTATIONS = ("ref", "cuda")


@dataclass(frozen=True)
class Activation:
    """An activation function with its default slope and gain.

    The gains of relu, lrelu and swish keep the second moment of a unit normal input near 1.

    Attributes:
        func: (x, alpha) -> y.
        def_alpha: default slope below zero.
        def_gain: default factor of the result.
    """

    func: Callable[[torch.Tensor, float], torch.Tensor]
    def_alpha: float = 0.0
    def_gain: float = 1.0


activation_funcs: dict[str, Activation] = {
    "linear": Activation(lambda x, alpha: x),
    "relu": Activation(lambda x, alpha: F.relu(x), def_gain=SQRT2),
    "lrelu": Activation(lambda x, alpha: F.leaky_relu(x, alpha), def_alpha=0.2, def_gain=SQRT2),
    "tanh": Activation(lambda x, alpha: torch.tanh(x)),
    "sigmoid": Activation(lambda x, alpha: torch.sigmoid(x)),
    "elu": Activation(lambda x, alpha: F.elu(x)),
    "selu": Activation(lambda x, alpha: F.selu(x)),
    "softplus": Activation(lambda x, alpha: F.softplus(x)),
    "swish": Activation(lambda x, alpha: F.silu(x), def_gain=SQRT2),
}


def check_impl(impl: str) -> None:
    """Raise ValueError unless `impl` is the name of an implementation."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(
            f"impl={impl!r} is not a known implementation: use 'cuda' (the fastest for the device) or 'ref'"
        )


def clamp_abs(x: torch.Tensor, bound: float) -> torch.Tensor:
    """Compute clamp(x, -bound, bound) with zero gradient at the bound, as in the published operation."""
    # Not torch.clamp: its gradient at the bound is 1 in some releases and 0 in others.
    return torch.where(x.abs() < bound, x, x.detach().clamp(-bound, bound))


def along(b: torch.Tensor, dim: int, ndim: int) -> torch.Tensor:
    """Reshape b [n] for broadcasting along axis `dim` of a tensor with `ndim` axes."""
    return b.reshape([-1 if axis == dim % ndim else 1 for axis in range(ndim)])
