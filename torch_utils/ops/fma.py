# SPDX-License-Identifier: Apache-2.0
"""For foreign StyleGAN-family code and pickles alone: multiply and add, a * b + c."""

import torch


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a * b + c in one pass where PyTorch has one; the three shapes broadcast. Differentiable any number of
    times.
    """
    return torch.addcmul(c, a, b)
