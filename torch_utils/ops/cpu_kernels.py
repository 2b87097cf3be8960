# SPDX-License-Identifier: Apache-2.0
"""The native CPU kernels of `csrc/cpu/`: filtered_lrelu and upfirdn2d in float32 and bfloat16, called through ctypes.

Where they cannot be built (`cpu_extension.py`), `resampling.py` does the same work through torch's matrix products.
"""

import ctypes
import functools
import os
from typing import NamedTuple

import torch

from . import cpu_extension, resampling

# Work below this many samples of the middle image (or output pixels) takes less time than waking other threads.
_INLINE_SAMPLES = 1 << 16
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_PLAIN, _SAVE, _GATED = range(3)
CODE_CHANNELS = 16  # channels whose codes share 4 bytes


class _Image(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("n", "c", "h", "w", "sn", "sc", "sh", "sw"))]


class _Resampling(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("up_x", "up_y", "down_x", "down_y", "pad_x", "pad_y", "taps_x", "taps_y", "full", "reverse")),
        ("f", ctypes.c_void_p),
        ("gain", ctypes.c_double),
    ]


class _Activation(ctypes.Structure):
    _fields_ = [
        ("codes", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("mode", "mid_h", "mid_w")),
        ("slope", ctypes.c_double),
        ("clamp", ctypes.c_double),
    ]


class Axes(NamedTuple):
    """Factors and padding at the low ends of a resampling, as (x, y)."""

    up: tuple[int, int]
    down: tuple[int, int]
    pad: tuple[int, int]


enabled = True  # False: matrix products in place of the kernels, for comparisons
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# The threads of an OpenMP pool do not survive a fork, and waiting for them would never end.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = cpu_extension.load()
    if library is None:
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.ops_filtered_lrelu.argtypes = [integer, *[pointer] * 6, integer]
    library.ops_upfirdn2d.argtypes = [integer, *[pointer] * 3, integer]
    for function in (library.ops_filtered_lrelu, library.ops_upfirdn2d):
        function.restype = None
    return library


def ready(dtype: torch.dtype) -> bool:
    """True if the kernels take this dtype and can be used here; builds them if need be."""
    return enabled and dtype in _DTYPES and _library() is not None


def _threads(samples: int) -> int:
    return 1 if _forked or samples < _INLINE_SAMPLES else torch.get_num_threads()


def _walkable(x: torch.Tensor) -> torch.Tensor:
    """x itself if its pixels or its channels lie side by side (any other strides are correct, but slow), else a copy."""
    return x if x.stride(1) == 1 or x.stride(3) == 1 else x.contiguous()


def _image(x: torch.Tensor) -> _Image:
    return _Image(x.data_ptr(), *x.shape, *x.stride())


def _resampling(f: torch.Tensor | None, axes: Axes, reverse: bool, gain: float) -> _Resampling:
    """`f` must be float32 and contiguous."""
    full = f is not None and f.ndim == 2
    taps = (1, 1) if f is None else (f.shape[-1], f.shape[0])
    return _Resampling(*axes.up, *axes.down, *axes.pad, *taps, full, reverse, None if f is None else f.data_ptr(), gain)


def _filter(f: torch.Tensor | None) -> torch.Tensor | None:
    return None if f is None else f.to(torch.float32).contiguous()


def upfirdn2d(x: torch.Tensor, f: torch.Tensor | None, axes: Axes, size: tuple[int, int], reverse: bool, gain: float) -> torch.Tensor:
    """out[o] = gain * sum_i x[i] f[i * up + pad - o * down] along each axis: [N, C, H, W] -> [N, C, *size] in x's memory format and dtype.

    f: [taps] or [taps y, taps x], stored last tap first if `reverse`; None = one tap of 1.
    """
    library = _library()
    assert library is not None
    x, y, f = _walkable(x), resampling.new_images(x, size), _filter(f)
    if y.numel() > 0:
        arguments = _image(x), _image(y), _resampling(f, axes, reverse, gain)
        library.ops_upfirdn2d(_DTYPES[x.dtype], *map(ctypes.byref, arguments), _threads(y.numel()))
    return y


def codes_shape(x: torch.Tensor, mid_size: tuple[int, int]) -> tuple[int, ...]:
    """Shape of what `filtered_lrelu` keeps for the gradient: 2 bits per channel and sample of the middle image."""
    return x.shape[0], -(-x.shape[1] // CODE_CHANNELS), *mid_size, 4


def filtered_lrelu(
    x: torch.Tensor,
    filters: tuple[torch.Tensor | None, torch.Tensor | None],
    axes: tuple[Axes, Axes],
    reverse: bool,
    gains: tuple[float, float],
    sizes: tuple[tuple[int, int], tuple[int, int]],
    b: torch.Tensor | None = None,
    slope: float = 1.0,
    clamp: float | None = None,
    codes: torch.Tensor | None = None,
    save: bool = False,
) -> torch.Tensor:
    """down(phi(up(x + b))) with phi(u) = clamp(lrelu(u)), or with a product by the slope that saved codes tell.

    Args:
        x: [N, C, H, W] of float32 or bfloat16.
        filters, axes, gains: of `up` and `down`, each as in `upfirdn2d`.
        reverse: both filters are stored last tap first.
        sizes: (h, w) of the middle image and of the output.
        b: bias [C].
        slope, clamp: of phi; clamp None = unbounded.
        codes: of `codes_shape`, to be written if `save`, else read; None = neither.
    """
    library = _library()
    assert library is not None
    y = resampling.new_images(x, sizes[1])
    if y.numel() == 0:
        return y
    x, fu, fd = _walkable(x), *(_filter(f) for f in filters)
    b = None if b is None else b.to(torch.float32).contiguous()
    mode = _PLAIN if codes is None else _SAVE if save else _GATED
    bound = float("inf") if clamp is None else clamp
    arguments = (
        _resampling(fu, axes[0], reverse, gains[0]),
        _resampling(fd, axes[1], reverse, gains[1]),
        _Activation(None if codes is None else codes.data_ptr(), mode, *sizes[0], slope, bound),
    )
    samples = x.shape[0] * x.shape[1] * sizes[0][0] * sizes[0][1]
    bias = None if b is None else b.data_ptr()
    images = ctypes.byref(_image(x)), ctypes.byref(_image(y))
    library.ops_filtered_lrelu(_DTYPES[x.dtype], *images, bias, *map(ctypes.byref, arguments), _threads(samples))
    return y
