# SPDX-License-Identifier: Apache-2.0
"""Multiply and add, a * b + c, for other StyleGAN-family code and pickles only."""

import torch


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Compute a * b + c in one operation. The shapes are broadcast.

    It is differentiable any number of times.
    """
    return torch.addcmul(c, a, b)
