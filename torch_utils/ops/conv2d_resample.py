# SPDX-License-Identifier: Apache-2.0
"""Convolution with upsampling before it or downsampling after it.

For other StyleGAN-family code and pickles only.
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
        up: integer upsampling factor.
        down: integer downsampling factor.
        padding: pixels of the upsampled image, in addition to the padding that centres the filters: a number,
            [x, y] or [left, right, top, bottom].
        groups: groups of the convolution.
        flip_weight: True = correlation (as in torch), False = convolution.
        flip_filter: False = convolution, True = correlation.

    Returns:
        [N, O, h, w].

    Raises:
        ValueError: an argument has another form.
    """
    _check_arguments(x, w, f, up, down)
    if not flip_weight:
        w = w.flip([2, 3])
    # The whole padding is applied in the first step that filters.
    pads = _centred_padding(f, up, down, padding)
    pointwise = w.shape[2:] == (1, 1)
    if pointwise and up == 1 and down > 1:
        # A 1x1 convolution commutes with resampling: apply it to the image with fewer pixels.
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


def _check_arguments(x: torch.Tensor, w: torch.Tensor, f: torch.Tensor | None, up: int, down: int) -> None:
    check_image(x)
    check_filter(f)
    if w.ndim != 4 or w.dtype != x.dtype:
        raise ValueError(
            f"the weight must be [O, C/groups, kh, kw] of x's dtype {x.dtype}, not {w.dtype} {list(w.shape)}"
        )
    for name, factor in (("up", up), ("down", down)):
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"{name}={factor!r} must be a positive integer")


def _centred_padding(f: torch.Tensor | None, up: int, down: int, padding: Factors) -> list[int]:
    """Return [left, right, top, bottom]: `padding` plus the pixels that centre the resampling filters."""
    left, right, top, bottom = parse_padding(padding)
    fw, fh = filter_size(f)
    if up > 1:
        left, right = left + (fw + up - 1) // 2, right + (fw - up) // 2
        top, bottom = top + (fh + up - 1) // 2, bottom + (fh - up) // 2
    if down > 1:
        left, right = left + (fw - down + 1) // 2, right + (fw - down) // 2
        top, bottom = top + (fh - down + 1) // 2, bottom + (fh - down) // 2
    return [left, right, top, bottom]
