# SPDX-License-Identifier: Apache-2.0
"""FIR resampling of images as products with small banded matrices: upfirdn2d and filtered_lrelu on a CPU
where its native kernels do not run (`cpu_kernels.py`): in float64 and float16, and where nothing can be
compiled.

Zero insertion, padding (or cropping), a FIR filter and decimation along one axis are together one matrix
[out, in], which is zero off a band. It is cut into tiles of consecutive outputs, each a dense product with
the few inputs that those outputs see. Images are worked on in chunks of planes (sample, channel) laid out [H,
W, P], so that both axes are plain matrix products with the planes in the last, wide axis and the upsampled
image of a chunk stays in the cache. A filter [h, w] that is no outer product is a sum of outer products
(SVD).

Measured against depthwise convolutions in docs/performance.md. Products in bfloat16 took longer than in
float32 at these sizes (packing dominates), so half precision is computed in float32 inside and rounded once
at the end.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

# Elements of the largest intermediate image in a chunk, and the planes that keep the products efficient.
_CHUNK_ELEMENTS = 1 << 20
_MIN_PLANES, _MAX_PLANES = 32, 512
# Outer products below this share of a filter's norm are dropped: float32's resolution. float64 keeps all that
# are not noise.
_RANK_TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-14}


@dataclass(frozen=True)
class AxisPlan:
    """Resampling of one axis: zero insertion, padding (negative = crop), a FIR filter, decimation.

    Raises:
        ValueError: no output pixel is left.
    """

    size: int
    taps: int = 1
    up: int = 1
    down: int = 1
    pad_low: int = 0
    pad_high: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or self.out_size < 1:
            raise ValueError(
                f"no output pixel is left of {self.size} pixels with up {self.up}, down {self.down}, "
                f"padding {self.pad_low} and {self.pad_high} and {self.taps} filter taps"
            )

    @property
    def out_size(self) -> int:
        """Pixels after resampling."""
        return (self.size * self.up + self.pad_low + self.pad_high - self.taps) // self.down + 1

    @property
    def trivial(self) -> bool:
        """True if the axis is only multiplied by the filter's one tap."""
        return (self.taps, self.up, self.down, self.pad_low, self.pad_high) == (1, 1, 1, 0, 0)


class Tile(NamedTuple):
    """Outputs [out_start, out_stop) as a dense matrix [out, in] of inputs [in_start, in_stop)."""

    out_start: int
    out_stop: int
    in_start: int
    in_stop: int
    matrix: torch.Tensor


class Axis(NamedTuple):
    """The matrix of one axis, in tiles."""

    size: int
    out_size: int
    tiles: tuple[Tile, ...]

    def rows(self, x: torch.Tensor, y: torch.Tensor, add: bool) -> None:
        """y [out, W, P] = or += matrix x [in, W, P]."""
        x, y = x.view(x.shape[0], -1), y.view(y.shape[0], -1)
        for tile in self.tiles:
            target, source = y[tile.out_start : tile.out_stop], x[tile.in_start : tile.in_stop]
            if add:
                torch.addmm(target, tile.matrix, source, out=target)
            else:
                torch.mm(tile.matrix, source, out=target)

    def columns(self, x: torch.Tensor, y: torch.Tensor, add: bool) -> None:
        """y [H, out, P] = or += matrix x [H, in, P]."""
        for tile in self.tiles:
            target, source = y[:, tile.out_start : tile.out_stop], x[:, tile.in_start : tile.in_stop]
            matrix = tile.matrix.expand(x.shape[0], -1, -1)
            if add:
                torch.baddbmm(target, matrix, source, out=target)
            else:
                torch.bmm(matrix, source, out=target)


@dataclass(frozen=True)
class Resampler:
    """A linear map of images [H, W, P] -> [h, w, P]: a sum of terms, each a matrix per axis."""

    in_size: tuple[int, int]
    out_size: tuple[int, int]
    terms: tuple[tuple[Axis, Axis], ...]  # (rows, columns)
    adjoint_terms: tuple[tuple[Axis, Axis], ...]

    @property
    def adjoint(self) -> "Resampler":
        """The transposed map: takes a gradient of the output to the gradient of the input."""
        return Resampler(self.out_size, self.in_size, self.adjoint_terms, self.terms)

    @property
    def max_pixels(self) -> int:
        """Pixels of a plane before or after, whichever are more."""
        return max(self.in_size[0] * self.in_size[1], self.out_size[0] * self.out_size[1])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[H, W, P] -> [h, w, P], contiguous, of the dtype that the matrices have."""
        (height, width), (out_height, out_width), planes = self.in_size, self.out_size, x.shape[2]
        y = x.new_empty(out_height, out_width, planes)
        # The large image goes through the row products, which are one product each; the small one through the
        # batched columns.
        growing = out_height * out_width > height * width
        between = x.new_empty((height, out_width, planes) if growing else (out_height, width, planes))
        for i, (rows, columns) in enumerate(self.terms):
            if growing:
                columns.columns(x, between, add=False)
                rows.rows(between, y, add=i > 0)
            else:
                rows.rows(x, between, add=False)
                columns.columns(between, y, add=i > 0)
        return y


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What images of a dtype are resampled in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_resampler(
    f: torch.Tensor | None,
    rows: AxisPlan,
    columns: AxisPlan,
    flip_filter: bool,
    gain: float,
    dtype: torch.dtype,
) -> Resampler | None:
    """The map that upfirdn2d's arguments describe, cached by their values; None for the identity. `f` must
    not need a gradient.
    """
    taps = np.ones(1) if f is None else f.detach().double().cpu().numpy()
    if taps.ndim == 1:
        taps = taps * np.sqrt(abs(gain))
    else:
        taps = taps * abs(gain)
    return _cached_resampler(taps.tobytes(), taps.shape, rows, columns, flip_filter, gain < 0, dtype)


@functools.lru_cache(maxsize=512)
def _cached_resampler(
    data: bytes,
    shape: tuple[int, ...],
    rows: AxisPlan,
    columns: AxisPlan,
    flip_filter: bool,
    negative: bool,
    dtype: torch.dtype,
) -> Resampler | None:
    taps = np.frombuffer(data).reshape(shape)
    if not flip_filter:
        taps = np.flip(taps)
    if taps.ndim == 1:
        pairs = [(-taps if negative else taps, taps)]
    else:
        left, values, right = np.linalg.svd(-taps if negative else taps)
        count = max(1, int(np.sum(values > _RANK_TOLERANCE[dtype] * np.linalg.norm(taps))))
        pairs = [(left[:, k] * values[k], right[k]) for k in range(count)]
    if rows.trivial and columns.trivial and len(pairs) == 1 and pairs[0][0][0] * pairs[0][1][0] == 1:
        return None
    # A tensor born under inference_mode could not be used under autograd later.
    with torch.inference_mode(False):
        made = [(_make_axis(a, rows, dtype), _make_axis(b, columns, dtype)) for a, b in pairs]
    return Resampler(
        (rows.size, columns.size),
        (rows.out_size, columns.out_size),
        tuple((a[0], b[0]) for a, b in made),
        tuple((a[1], b[1]) for a, b in made),
    )


def _make_axis(taps: np.ndarray, plan: AxisPlan, dtype: torch.dtype) -> tuple[Axis, Axis]:
    """The tiles of an axis and of its transpose. `taps` are in the order in which they meet the pixels."""
    tap = (
        np.arange(plan.size)[None, :] * plan.up + plan.pad_low - np.arange(plan.out_size)[:, None] * plan.down
    )
    band = (tap >= 0) & (tap < plan.taps)
    matrix = np.where(band, taps[np.clip(tap, 0, plan.taps - 1)], 0.0)
    forward = _cut(matrix, band, plan.taps, plan.up, plan.down, dtype)
    return forward, _cut(matrix.T, band.T, plan.taps, plan.down, plan.up, dtype)


def _cut(matrix: np.ndarray, band: np.ndarray, taps: int, up: int, down: int, dtype: torch.dtype) -> Axis:
    """Cuts a banded matrix into tiles of consecutive rows."""
    out_size, in_size = matrix.shape
    # An output sees taps/up inputs, each further one down/up more. Tiles that see three times what one output
    # sees were the fastest (up 2: 28 outputs of 20 inputs; down 2: 12 of 34); smaller ones save arithmetic
    # and lose it to the products' overhead.
    wanted = max(8, 2 * -(-taps // up) * up // down)
    count = max(1, round(out_size / wanted))
    edges = [out_size * k // count for k in range(count + 1)]
    tiles = []
    for start, stop in itertools.pairwise(edges):
        used = np.flatnonzero(band[start:stop].any(axis=0))
        first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        block = torch.from_numpy(np.ascontiguousarray(matrix[start:stop, first:last])).to(dtype)
        tiles.append(Tile(start, stop, first, last, block))
    return Axis(in_size, out_size, tuple(tiles))


def chunks(x: torch.Tensor, pixels: int) -> Iterator[tuple[slice, slice]]:
    """Index pairs (samples, channels) of x [N, C, H, W] whose planes have about _CHUNK_ELEMENTS elements
    together, at `pixels` per plane.
    """
    n, c = x.shape[:2]
    planes = min(max(_CHUNK_ELEMENTS // pixels, _MIN_PLANES), _MAX_PLANES)
    c_step = max(1, -(-c // max(1, round(c / planes))))
    n_step = max(1, planes // max(1, c))
    for n_start in range(0, n, n_step):
        for c_start in range(0, c, c_step):
            yield slice(n_start, min(n, n_start + n_step)), slice(c_start, min(c, c_start + c_step))


def load_chunk(x: torch.Tensor, dtype: torch.dtype, b: torch.Tensor | None = None) -> torch.Tensor:
    """A new tensor [H, W, P] of x [n, c, H, W] plus bias b [c]."""
    n, c, h, w = x.shape
    part = torch.empty((h, w, n, c), dtype=dtype, device=x.device)
    b = None if b is None else b.to(dtype)
    if not x.is_contiguous():
        x = x.permute(2, 3, 0, 1)
        if b is None:
            part.copy_(x)
        else:
            torch.add(x, b, out=part)
    else:
        # torch transposes matrices of one dtype block by block; the same copy with four axes is up to eight
        # times slower.
        part.view(h * w, n * c).copy_(x.to(dtype).view(n * c, h * w).t())
        if b is not None:
            part += b
    return part.view(h, w, n * c)


def store_chunk(y: torch.Tensor, target: torch.Tensor) -> None:
    """Writes [h, w, P] to [n, c, h, w]."""
    n, c, h, w = target.shape
    if target.is_contiguous():
        target.view(n * c, h * w).copy_(y.to(target.dtype).view(h * w, n * c).t())
    else:
        target.copy_(y.view(h, w, n, c).permute(2, 3, 0, 1))


def new_images(like: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Uninitialised images of another size in the memory format, dtype and device of `like`."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(
        (*like.shape[:2], *size), dtype=like.dtype, device=like.device, memory_format=memory_format
    )


def resample(x: torch.Tensor, resampler: Resampler) -> torch.Tensor:
    """x [N, C, H, W] through a map, chunk by chunk, in x's memory format and dtype."""
    y = new_images(x, resampler.out_size)
    dtype = compute_dtype(x.dtype)
    for chunk in chunks(x, resampler.max_pixels):
        store_chunk(resampler(load_chunk(x[chunk], dtype)), y[chunk])
    return y


class Resample(torch.autograd.Function):
    """(x [N, C, H, W], resampler) -> [N, C, h, w]. Linear, so its derivatives of every order are itself and
    its adjoint.
    """

    @staticmethod
    def forward(ctx, x, resampler):  # type: ignore[no-untyped-def, override]
        ctx.resampler = resampler
        return resample(x, resampler)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def, override]
        return Resample.apply(dy, ctx.resampler.adjoint), None
