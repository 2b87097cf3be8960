# SPDX-License-Identifier: Apache-2.0
"""Linear layers of frozen networks: through oneDNN where that is faster than torch's default.

On AMD processors with AVX-512, MKL's float32 products run at half the speed of oneDNN's.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_utils import cpu_speed


class _LinearFunction(torch.autograd.Function):
    """A linear layer with constant parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return cpu_speed.onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return cpu_speed.onednn_linear(grad.contiguous(), weight.t(), None), None, None


class FrozenLinear(nn.Module):
    """Replaces an nn.Linear that has constant weights.

    The function and the names in the state dict stay the same.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x [..., in_features]."""
        if _eager_cpu(x, torch.float32) and cpu_speed.choices().onednn_linear:
            y: Tensor = _LinearFunction.apply(x, self.weight, self.bias)
            return y
        return F.linear(x, self.weight, self.bias)


def replace_linear_(body: nn.Module) -> None:
    """Replace the linear layers below `body` by FrozenLinear, in place."""
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, FrozenLinear(child))


def attention_layers(body: nn.Module) -> list[nn.Module]:
    """Return timm's attention layers below `body`."""
    return [module for module in body.modules() if isinstance(getattr(module, "fused_attn", None), bool)]


def choose_attention_(layers: Iterable[nn.Module], x: Tensor) -> None:
    """Let attention layers use plain operations for these images where they are faster.

    torch.compile chooses its own.
    """
    if torch.compiler.is_compiling():
        return
    plain = _eager_cpu(x, torch.bfloat16) and cpu_speed.choices().plain_attention
    for layer in layers:
        layer.fused_attn = not plain  # type: ignore[assignment]


def _eager_cpu(x: Tensor, dtype: torch.dtype) -> bool:
    return x.device.type == "cpu" and x.dtype == dtype and not torch.compiler.is_compiling()
