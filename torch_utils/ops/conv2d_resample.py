# SPDX-License-Identifier: Apache-2.0
"""For foreign StyleGAN-family code and pickles alone: convolution with upsampling before it or downsampling
after it.
"""

import torch
import torch.nn.functional as F

from torch_utils.ops import conv2d_gradfix
from torch_utils.ops.upfirdn2d import (
    Factors,
    check_filter,
    check_image,
    filter_size,
    parse_padding,
    upfirdn2d,
)


def conv2d_resample(
    x: torch.Tensor,
    w: torch.Tensor,
    f: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Factors = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> torch.Tensor:
    """Upsample with filter `f`, convolve with `w`, downsample with `f`. Differentiable twice.

    Args:
        x: [N, C, H, W].
        w: weight [O, C/groups, kh, kw].
        f: low-pass filter of the resampling, [n] or [h, w]; None = identity.
        up, down: integer factors.
        padding: pixels of the upsampled image, on top of what centres the filter: a number, [x, y] or [left,
        right, top, bottom]. groups: of the convolution. flip_weight: True = correlation (as torch does),
        False = convolution. flip_filter: False = convolution, True = correlation.

    Returns:
        [N, O, h, w].

    Raises:
        ValueError: arguments of another form.
    """
    check_image(x)
    check_filter(f)
    if w.ndim != 4 or w.dtype != x.dtype:
        raise ValueError(
            f"the weight must be [O, C/groups, kh, kw] of x's dtype {x.dtype}, not {w.dtype} {list(w.shape)}"
        )
    for name, factor in (("up", up), ("down", down)):
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"{name}={factor!r} must be a positive integer")
    left, right, top, bottom = parse_padding(padding)
    if not flip_weight:
        w = w.flip([2, 3])
    fw, fh = filter_size(f)
    # Centre the resampling filters, then hand each step its share: the padding goes with the first filter
    # that runs.
    if up > 1:
        left, right, top, bottom = (
            left + (fw + up - 1) // 2,
            right + (fw - up) // 2,
            top + (fh + up - 1) // 2,
            bottom + (fh - up) // 2,
        )
    if down > 1:
        left, right, top, bottom = (
            left + (fw - down + 1) // 2,
            right + (fw - down) // 2,
            top + (fh - down + 1) // 2,
            bottom + (fh - down) // 2,
        )
    pads = [left, right, top, bottom]
    pointwise = w.shape[2:] == (1, 1)
    if pointwise and up == 1 and down > 1:
        # A 1x1 convolution commutes with resampling: run it where there are fewer pixels.
        x = upfirdn2d(x, f, down=down, padding=pads, flip_filter=flip_filter)
        return conv2d_gradfix.conv2d(x, w, groups=groups)
    if pointwise and up > 1 and down == 1:
        x = conv2d_gradfix.conv2d(x, w, groups=groups)
        return upfirdn2d(x, f, up=up, padding=pads, gain=up**2, flip_filter=flip_filter)
    if up > 1:
        x = upfirdn2d(x, f, up=up, padding=pads, gain=up**2, flip_filter=flip_filter)
    elif any(pads):
        x = F.pad(x, pads)
    x = conv2d_gradfix.conv2d(x, w, groups=groups)
    if down > 1:
        x = upfirdn2d(x, f, down=down, flip_filter=flip_filter)
    return x
