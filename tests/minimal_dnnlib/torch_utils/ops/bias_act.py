# SPDX-License-Identifier: Apache-2.0
"""bias_act with the published signature: linear and lrelu."""

import math

import torch


def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
    """x + b along dim, activation, gain, clamp."""
    if b is not None:
        x = x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    if act == "lrelu":
        x = torch.nn.functional.leaky_relu(x, 0.2 if alpha is None else alpha)
        gain = math.sqrt(2) if gain is None else gain
    else:
        assert act == "linear"
    x = x if gain is None else x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)
