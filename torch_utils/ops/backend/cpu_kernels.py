# SPDX-License-Identifier: Apache-2.0
"""Calls the native CPU kernels of `csrc/cpu/` through ctypes.

They compute filtered_lrelu, upfirdn2d and bias_act in float32 and bfloat16. If they cannot be built
(`cpu_extension.py`), `cpu.py` uses torch's matrix products and elementwise operations instead.
"""

import ctypes
import functools
import os
from typing import NamedTuple

import torch

from torch_utils.ops.backend import cpu_extension, resampling

# With fewer samples of the middle image (or output pixels), the work takes less time than waking threads.
_INLINE_SAMPLES = 1 << 16
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_PLAIN, _SAVE, _GATED = range(3)
CODE_CHANNELS = 16  # number of channels with codes in the same 4 bytes


class _Image(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("n", "c", "h", "w", "sn", "sc", "sh", "sw")),
    ]


class _Resampling(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                "up_x",
                "up_y",
                "down_x",
                "down_y",
                "pad_x",
                "pad_y",
                "taps_x",
                "taps_y",
                "full",
                "reverse",
            )
        ),
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


class _BiasAct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y", "dy", "ddx", "b", "out")),
        *((name, ctypes.c_int64) for name in ("activation", "order")),
        *((name, ctypes.c_double) for name in ("alpha", "gain", "clamp")),
        *((name, ctypes.c_int64) for name in ("count", "step", "channels")),
    ]


class Axes(NamedTuple):
    """Factors of a resampling and its padding at the low ends, each as (x, y)."""

    up: tuple[int, int]
    down: tuple[int, int]
    pad: tuple[int, int]


enabled = True  # False: use matrix products instead of the kernels, for comparisons
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# The threads of an OpenMP pool do not survive a fork: a child process would wait for them forever.
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
    library.ops_bias_act.argtypes = [integer, pointer, integer]
    library.ops_channel_sums.argtypes = [integer, pointer, pointer, *[integer] * 4]
    for function in (
        library.ops_filtered_lrelu,
        library.ops_upfirdn2d,
        library.ops_bias_act,
        library.ops_channel_sums,
    ):
        function.restype = None
    return library


def ready(dtype: torch.dtype) -> bool:
    """Return whether the kernels support this dtype and can be used. Builds them if necessary."""
    return enabled and dtype in _DTYPES and _library() is not None


def _threads(samples: int) -> int:
    return 1 if _forked or samples < _INLINE_SAMPLES else torch.get_num_threads()


def _walkable(x: torch.Tensor) -> torch.Tensor:
    """Return x if its pixels or its channels are adjacent in memory, otherwise a copy.

    Other strides would give correct results, but slowly.
    """
    return x if x.stride(1) == 1 or x.stride(3) == 1 else x.contiguous()


def _image(x: torch.Tensor) -> _Image:
    return _Image(x.data_ptr(), *x.shape, *x.stride())


def _resampling(f: torch.Tensor | None, axes: Axes, reverse: bool, gain: float) -> _Resampling:
    """Return the C struct of a resampling. `f` must be float32 and contiguous."""
    full = f is not None and f.ndim == 2
    taps = (1, 1) if f is None else (f.shape[-1], f.shape[0])
    return _Resampling(
        *axes.up, *axes.down, *axes.pad, *taps, full, reverse, None if f is None else f.data_ptr(), gain
    )


def _filter(f: torch.Tensor | None) -> torch.Tensor | None:
    return None if f is None else f.to(torch.float32).contiguous()


def upfirdn2d(
    x: torch.Tensor, f: torch.Tensor | None, axes: Axes, size: tuple[int, int], reverse: bool, gain: float
) -> torch.Tensor:
    """Compute out[o] = gain * sum_i x[i] f[i * up + pad - o * down] along each axis.

    Args:
        x: [N, C, H, W].
        f: [taps] or [taps y, taps x], stored last tap first if `reverse`; None = one tap of 1.
        axes: factors and padding.
        size: (height, width) of the output.
        reverse: order of the taps.
        gain: factor of the output.

    Returns:
        [N, C, *size] in x's memory format and dtype.
    """
    library = _library()
    assert library is not None
    x, y, f = _walkable(x), resampling.new_images(x, size), _filter(f)
    if y.numel() > 0:
        arguments = _image(x), _image(y), _resampling(f, axes, reverse, gain)
        library.ops_upfirdn2d(_DTYPES[x.dtype], *map(ctypes.byref, arguments), _threads(y.numel()))
    return y


def codes_shape(x: torch.Tensor, mid_size: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of the codes that `filtered_lrelu` saves for the gradient.

    A code has 2 bits per channel and sample of the middle image.
    """
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
    """Compute down(phi(up(x + b))).

    phi(u) is clamp(lrelu(u)), or a product of u with the slope in the saved codes.

    Args:
        x: [N, C, H, W] of type float32 or bfloat16.
        filters: filters of `up` and `down`, as in `upfirdn2d`.
        axes: factors and padding of `up` and `down`.
        reverse: both filters are stored last tap first.
        gains: gains of `up` and `down`.
        sizes: (h, w) of the middle image and of the output.
        b: bias [C].
        slope: slope of phi below zero.
        clamp: bound of phi; None = unbounded.
        codes: tensor of `codes_shape` that is written if `save`, otherwise read; None = neither.
        save: write the codes.
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
    library.ops_filtered_lrelu(
        _DTYPES[x.dtype], *images, bias, *map(ctypes.byref, arguments), _threads(samples)
    )
    return y


def _same_order(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors of the same shape have the same order of elements in memory."""
    return all(
        size == 1 or of_a == of_b for size, of_a, of_b in zip(a.shape, a.stride(), b.stride(), strict=True)
    )


def _channels(x: torch.Tensor, dim: int | None) -> tuple[int, int, int]:
    """Return (elements, consecutive elements of one channel, channels) of a dense tensor.

    dim = None means a single channel.
    """
    channels = 1 if dim is None else x.shape[dim]
    return x.numel(), x.numel() if dim is None or channels == 1 else x.stride(dim), channels


def bias_act(
    order: int,
    first: torch.Tensor,
    second: torch.Tensor | None,
    x: torch.Tensor | None,
    b: torch.Tensor | None,
    y: torch.Tensor | None,
    dim: int,
    act: int,
    alpha: float,
    gain: float,
    clamp: float,
) -> torch.Tensor:
    """Compute clamp(gain * act(x + b)) or a derivative of it.

    The derivatives depend on the input x with its bias b, or on the output y, or on neither if the slope is
    constant.

    Args:
        order: order of the derivative, 0 to 2.
        first: x (order 0), dy (order 1) or ddx (order 2).
        second: dy (order 2).
        x: input, for the derivatives.
        b: bias.
        y: output, for the derivatives.
        dim: as in the operators of `library.py`, and so are the following.
        act: number of the activation.
        alpha: slope below zero.
        gain: factor after the activation.
        clamp: bound; negative = unbounded.

    Returns:
        A tensor of the shape, dtype and memory order of `first`.
    """
    library = _library()
    assert library is not None
    out = torch.empty_like(first)
    if out.numel() == 0:
        return out

    def like_out(t: torch.Tensor | None) -> torch.Tensor | None:
        return (
            t
            if t is None or (t.dtype == out.dtype and _same_order(t, out))
            else torch.empty_like(out).copy_(t)
        )

    dy = like_out(second if order == 2 else first) if order > 0 else None
    ddx = like_out(first) if order == 2 else None
    # A constant slope needs no saved tensor; the kernel accepts any tensor of the right size.
    saved = dy if x is None and order > 0 else like_out(first if order == 0 else x)
    value = like_out(y)
    bias = None if b is None else b.to(torch.float32).contiguous()
    operands = [None if t is None else t.data_ptr() for t in (saved, value, dy, ddx, bias, out)]
    arguments = _BiasAct(
        *operands, act, order, alpha, gain, clamp, *_channels(out, dim if b is not None else None)
    )
    library.ops_bias_act(_DTYPES[out.dtype], ctypes.byref(arguments), _threads(out.numel()))
    return out


def channel_sums(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the sum over all axes except `dim`, in float32: [x.shape[dim]]."""
    library = _library()
    assert library is not None
    out = x.new_zeros(x.shape[dim], dtype=torch.float32)
    if x.numel() > 0:
        x = x if _same_order(x, torch.empty_like(x, device="meta")) else torch.empty_like(x).copy_(x)  # dense
        library.ops_channel_sums(
            _DTYPES[x.dtype], x.data_ptr(), out.data_ptr(), *_channels(x, dim), _threads(x.numel())
        )
    return out
