# SPDX-License-Identifier: Apache-2.0
"""Upsample, pad, filter and downsample images: the resampling operation of StyleGAN-family networks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from torch_utils.ops.backend import library, resampling
from torch_utils.ops.backend.activations import check_impl

Factors = int | Sequence[int]


def setup_filter(
    f: Any,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> torch.Tensor:
    """Create a filter for the functions below from taps.

    Args:
        f: taps [n] (of a separable filter), [h, w], a single number, or None = identity.
        device: device of the filter.
        normalize: scale the taps to a sum of 1.
        flip_filter: reverse the taps.
        gain: total gain of the filter over both axes.
        separable: True = keep [n] taps one-dimensional; False = return their outer product; None = True for
            8 or more taps.

    Returns:
        float32 [n] (separable) or [h, w].

    Raises:
        ValueError: no taps, more than two axes, or [h, w] taps with separable=True.
    """
    taps = torch.as_tensor(1 if f is None else f, dtype=torch.float32)
    if taps.ndim > 2 or taps.numel() == 0:
        raise ValueError(
            f"a filter must have shape [n] or [h, w] with at least one tap, not {list(taps.shape)}"
        )
    if taps.ndim == 0:
        taps = taps[None]
    if taps.ndim == 2 and separable:
        raise ValueError(f"separable=True needs a filter of shape [n], not {list(taps.shape)}")
    if separable is None:
        separable = taps.ndim == 1 and taps.numel() >= 8
    if taps.ndim == 1 and not separable:
        taps = taps.outer(taps)
    if normalize:
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(list(range(taps.ndim)))
    scaled: torch.Tensor = taps * gain ** (taps.ndim / 2)
    return scaled.to(device)


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: Factors = 1,
    down: Factors = 1,
    padding: Factors = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Insert up - 1 zeros after each pixel, pad, convolve with `f` and keep every down-th pixel.

    The operation is differentiable twice.

    Args:
        x: [N, C, H, W], contiguous or channels_last; on a CPU the result has the same layout.
        f: filter [n] (applied along both axes), [h, w], or None = identity.
        up: integer factor, or [x, y].
        down: integer factor, or [x, y].
        padding: pixels added to the upsampled image: one number, [x, y] or [left, right, top, bottom];
            negative = crop.
        flip_filter: False = convolution, True = correlation.
        gain: factor of the result.
        impl: 'ref', or 'cuda' = the fastest implementation for x's device.

    Returns:
        [N, C, h, w] with h = (H * up + top + bottom - taps) // down + 1; w likewise.

    Raises:
        ValueError: an argument has another form, or the output would have no pixels.
    """
    check_impl(impl)
    check_image(x)
    check_filter(f)
    up_x, up_y = parse_factors(up, "up")
    down_x, down_y = parse_factors(down, "down")
    pad_x0, pad_x1, pad_y0, pad_y1 = parse_padding(padding)
    width, height = filter_size(f)
    rows = resampling.AxisPlan(x.shape[2], height, up_y, down_y, pad_y0, pad_y1)
    columns = resampling.AxisPlan(x.shape[3], width, up_x, down_x, pad_x0, pad_x1)
    namespace = library.namespace_for(x, f) if impl == "cuda" else None
    if namespace is not None:
        return library.upfirdn2d(namespace, x, f, rows, columns, flip_filter, gain)
    if impl == "cuda" and has_fast_path(x, f):
        resampler = resampling.make_resampler(
            f, rows, columns, flip_filter, float(gain), resampling.compute_dtype(x.dtype)
        )
        y: torch.Tensor = x if resampler is None else resampling.Resample.apply(x, resampler)
        return y
    return _upfirdn2d_ref(x, f, rows, columns, flip_filter, float(gain))


def has_fast_path(x: torch.Tensor, *filters: torch.Tensor | None) -> bool:
    """Return whether matrix products can replace depthwise convolutions, which are slower.

    They need CPU tensors and constant filters, and do not work under torch.func's transforms.
    """
    return (
        x.device.type == "cpu"
        and not any(f is not None and f.requires_grad for f in filters)
        and not library.transforms()
    )


def _upfirdn2d_ref(
    x: torch.Tensor,
    f: torch.Tensor | None,
    rows: resampling.AxisPlan,
    columns: resampling.AxisPlan,
    flip_filter: bool,
    gain: float,
) -> torch.Tensor:
    """Compute upfirdn2d with torch operations, on any device, differentiable also in the filter."""
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n, c, h, 1, w, 1), [0, columns.up - 1, 0, 0, 0, rows.up - 1]).reshape(
        n, c, h * rows.up, w * columns.up
    )
    # Pad first, then crop: a crop may exceed the image if the other side is padded.
    pads = [columns.pad_low, columns.pad_high, rows.pad_low, rows.pad_high]
    x = F.pad(F.pad(x, [max(pad, 0) for pad in pads]), [min(pad, 0) for pad in pads])
    f = torch.ones([1, 1], device=x.device) if f is None else f
    f = f * gain if f.ndim == 2 else f
    f = (f if flip_filter else f.flip(list(range(f.ndim)))).to(device=x.device, dtype=x.dtype)
    if f.ndim == 2:
        return F.conv2d(x, f[None, None].expand(c, 1, -1, -1), stride=(rows.down, columns.down), groups=c)
    x = F.conv2d(x, f[None, None, None, :].expand(c, 1, 1, -1), stride=(1, columns.down), groups=c)
    return F.conv2d(x, (f * gain)[None, None, :, None].expand(c, 1, -1, 1), stride=(rows.down, 1), groups=c)


def filter2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    padding: Factors = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Filter images and keep their size, apart from `padding`. Arguments are those of `upfirdn2d`."""
    width, height = filter_size(f)
    extra = parse_padding(padding)
    pad = [
        extra[0] + width // 2,
        extra[1] + (width - 1) // 2,
        extra[2] + height // 2,
        extra[3] + (height - 1) // 2,
    ]
    return upfirdn2d(x, f, padding=pad, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: Factors = 2,
    padding: Factors = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Upsample images to `up` times their size and keep their mean; `padding` is added to the size.

    Arguments are those of `upfirdn2d`.
    """
    up_x, up_y = parse_factors(up, "up")
    width, height = filter_size(f)
    extra = parse_padding(padding)
    pad = [
        extra[0] + (width + up_x - 1) // 2,
        extra[1] + (width - up_x) // 2,
        extra[2] + (height + up_y - 1) // 2,
        extra[3] + (height - up_y) // 2,
    ]
    return upfirdn2d(x, f, up=up, padding=pad, flip_filter=flip_filter, gain=gain * up_x * up_y, impl=impl)


def downsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    down: Factors = 2,
    padding: Factors = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Downsample images to 1/`down` of their size; `padding` is added to the size.

    Arguments are those of `upfirdn2d`.
    """
    down_x, down_y = parse_factors(down, "down")
    width, height = filter_size(f)
    extra = parse_padding(padding)
    pad = [
        extra[0] + (width - down_x + 1) // 2,
        extra[1] + (width - down_x) // 2,
        extra[2] + (height - down_y + 1) // 2,
        extra[3] + (height - down_y) // 2,
    ]
    return upfirdn2d(x, f, down=down, padding=pad, flip_filter=flip_filter, gain=gain, impl=impl)


def check_image(x: torch.Tensor) -> None:
    """Raise ValueError unless x is a floating-point tensor [N, C, H, W]."""
    if not isinstance(x, torch.Tensor) or x.ndim != 4 or not x.is_floating_point():
        found = f"{x.dtype} {list(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"x must be a floating-point tensor [N, C, H, W], not {found}")


def check_filter(f: torch.Tensor | None, name: str = "f") -> None:
    """Raise ValueError unless f is None or a floating-point tensor [n] or [h, w] with taps."""
    if f is None:
        return
    if not isinstance(f, torch.Tensor) or f.ndim not in (1, 2) or f.numel() == 0 or not f.is_floating_point():
        found = f"{f.dtype} {list(f.shape)}" if isinstance(f, torch.Tensor) else type(f).__name__
        raise ValueError(
            f"filter {name} must be None or a floating-point tensor [n] or [h, w] with taps (see "
            f"setup_filter), not {found}"
        )


def filter_size(f: torch.Tensor | None) -> tuple[int, int]:
    """Return the (width, height) of a filter; (1, 1) for None."""
    if f is None:
        return 1, 1
    return f.shape[-1], f.shape[0]


def parse_factors(value: Factors, name: str) -> tuple[int, int]:
    """Return an up or down factor as (x, y).

    Raises:
        ValueError: the factors are not positive integers.
    """
    pair = (value, value) if isinstance(value, int | np.integer) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int | np.integer) and v >= 1 for v in pair):
        raise ValueError(f"{name}={value!r} must be a positive integer or two of them, [x, y]")
    return int(pair[0]), int(pair[1])


def parse_padding(value: Factors) -> tuple[int, int, int, int]:
    """Return a padding as (left, right, top, bottom).

    Raises:
        ValueError: it is not 1, 2 or 4 integers.
    """
    pads = (value, value) if isinstance(value, int | np.integer) else tuple(value)
    if len(pads) not in (2, 4) or not all(isinstance(v, int | np.integer) for v in pads):
        raise ValueError(f"padding={value!r} must be an integer, [x, y] or [left, right, top, bottom]")
    if len(pads) == 2:
        pads = (pads[0], pads[0], pads[1], pads[1])
    return int(pads[0]), int(pads[1]), int(pads[2]), int(pads[3])
