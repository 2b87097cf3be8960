# SPDX-License-Identifier: Apache-2.0
"""The activation functions by name, and what their operators share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SQRT2 = 2.0**0.5


IMPLEMENTATIONS = ("ref", "cuda")


@dataclass(frozen=True)
class Activation:
    """An activation function with the slope and the gain it has when the caller names none.

    The gains of relu, lrelu and swish keep the second moment of a unit normal input near 1.
    """

    func: Callable[[torch.Tensor, float], torch.Tensor]  # (x, alpha) -> y
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
    """Raises ValueError unless `impl` is an implementation's name."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(
            f"impl={impl!r} is not an implementation; use 'cuda' (fastest there is for the device) or 'ref'"
        )


def clamp_abs(x: torch.Tensor, bound: float) -> torch.Tensor:
    """clamp(x, -bound, bound) whose gradient is zero on the bound itself, as in the published operation."""
    # torch.clamp lets the gradient through on the bound in some releases and stops it there in others; this
    # does not depend on it.
    return torch.where(x.abs() < bound, x, x.detach().clamp(-bound, bound))


def along(b: torch.Tensor, dim: int, ndim: int) -> torch.Tensor:
    """b [n] as a tensor of `ndim` axes that runs along `dim`, ready for broadcasting."""
    return b.reshape([-1 if axis == dim % ndim else 1 for axis in range(ndim)])
