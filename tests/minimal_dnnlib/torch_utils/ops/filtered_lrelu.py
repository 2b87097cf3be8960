# SPDX-License-Identifier: Apache-2.0
"""filtered_lrelu with the published signature, one step after the other."""

import torch

from . import bias_act


def filtered_lrelu(
    x,
    fu=None,
    fd=None,
    b=None,
    up=1,
    down=1,
    padding=0,
    gain=2.0**0.5,
    slope=0.2,
    clamp=None,
    flip_filter=False,
    impl="cuda",
):
    """Bias, zero insertion by up and filter fu, leaky ReLU with gain and clamp, filter fd and every down-th
    sample.
    """
    left, right, top, bottom = [padding] * 4 if isinstance(padding, int) else padding
    x = bias_act.bias_act(x, b)
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, h, up, w, up)
    spread[:, :, :, 0, :, 0] = x * up**2
    x = torch.nn.functional.pad(spread.reshape(n, c, h * up, w * up), [left, right, top, bottom])
    x = _filter(x, fu, flip_filter)
    x = bias_act.bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
    return _filter(x, fd, flip_filter)[:, :, ::down, ::down]


def _filter(x, f, flip):
    if f is None:
        return x
    f = f if flip else f.flip(list(range(f.ndim)))
    kernels = [f] if f.ndim == 2 else [f[None, :], f[:, None]]
    for kernel in kernels:
        x = torch.nn.functional.conv2d(
            x, kernel.to(x.dtype)[None, None].repeat(x.shape[1], 1, 1, 1), groups=x.shape[1]
        )
    return x
