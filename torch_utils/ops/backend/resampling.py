# SPDX-License-Identifier: Apache-2.0
"""FIR resampling of images as products with small banded matrices.

It computes upfirdn2d and filtered_lrelu on a CPU when the native kernels (`cpu_kernels.py`) cannot: in
float64 and float16, and without a compiler.

Zero insertion, padding (or cropping), a FIR filter and decimation along one axis form a single banded matrix
[out, in]. It is cut into tiles of consecutive outputs; each tile is a dense product with the few inputs that
contribute to those outputs. Images are processed in chunks of planes (sample, channel) with the layout [H, W,
P]. Both axes are then plain matrix products over the wide last axis, and the upsampled image of a chunk stays
in the cache. A filter [h, w] that is not an outer product is decomposed into a sum of outer products (SVD).

docs/kernels.md compares the speed with depthwise convolutions. Products in bfloat16 took longer than in
float32 at these sizes, because packing dominates. Half precision is therefore computed in float32 and rounded
once at the end.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

# Elements of the largest intermediate image of a chunk, and limits of its planes for efficient products.
_CHUNK_ELEMENTS = 1 << 20
_MIN_PLANES, _MAX_PLANES = 32, 512
# Outer products with a smaller share of the filter's norm are dropped: below the resolution of float32, or
# rounding noise in float64.
_RANK_TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-14}


@dataclass(frozen=True)
class AxisPlan:
    """Resampling of one axis: zero insertion, padding (negative = crop), a FIR filter, decimation.

    Attributes:
        size: input pixels.
        taps: taps of the filter.
        up: upsampling factor.
        down: downsampling factor.
        pad_low: padding before the first pixel.
        pad_high: padding after the last pixel.

    Raises:
        ValueError: the output would have no pixels.
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
                f"the output of {self.size} pixels would be empty with up {self.up}, down {self.down}, "
                f"padding {self.pad_low} and {self.pad_high} and {self.taps} filter taps"
            )

    @property
    def out_size(self) -> int:
        """Output pixels."""
        return (self.size * self.up + self.pad_low + self.pad_high - self.taps) // self.down + 1

    @property
    def trivial(self) -> bool:
        """Whether the axis is only multiplied by the filter's single tap."""
        return (self.taps, self.up, self.down, self.pad_low, self.pad_high) == (1, 1, 1, 0, 0)


class Tile(NamedTuple):
    """Outputs [out_start, out_stop) as a dense matrix [out, in] of inputs [in_start, in_stop)."""

    out_start: int
    out_stop: int
    in_start: int
    in_stop: int
    matrix: torch.Tensor


class Axis(NamedTuple):
    """The matrix of one axis, cut into tiles."""

    size: int
    out_size: int
    tiles: tuple[Tile, ...]

    def rows(self, x: torch.Tensor, y: torch.Tensor, add: bool) -> None:
        """Compute y [out, W, P] = (or += if `add`) matrix * x [in, W, P]."""
        x, y = x.view(x.shape[0], -1), y.view(y.shape[0], -1)
        for tile in self.tiles:
            target, source = y[tile.out_start : tile.out_stop], x[tile.in_start : tile.in_stop]
            if add:
                torch.addmm(target, tile.matrix, source, out=target)
            else:
                torch.mm(tile.matrix, source, out=target)

    def columns(self, x: torch.Tensor, y: torch.Tensor, add: bool) -> None:
        """Compute y [H, out, P] = (or += if `add`) matrix * x [H, in, P]."""
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
        """The transposed map, from the gradient of the output to the gradient of the input."""
        return Resampler(self.out_size, self.in_size, self.adjoint_terms, self.terms)

    @property
    def max_pixels(self) -> int:
        """Pixels of an input or output plane, whichever is larger."""
        return max(self.in_size[0] * self.in_size[1], self.out_size[0] * self.out_size[1])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [H, W, P], of the matrices' dtype, to a contiguous [h, w, P]."""
        (height, width), (out_height, out_width), planes = self.in_size, self.out_size, x.shape[2]
        y = x.new_empty(out_height, out_width, planes)
        # Use the row products, each a single product, for the larger image, and the batched column products
        # for the smaller one.
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
    """Return the dtype in which images of a dtype are resampled."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_resampler(
    f: torch.Tensor | None,
    rows: AxisPlan,
    columns: AxisPlan,
    flip_filter: bool,
    gain: float,
    dtype: torch.dtype,
) -> Resampler | None:
    """Return the map that upfirdn2d's arguments describe; None for the identity.

    Maps are cached by the arguments' values. `f` must not need a gradient.
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
    # A tensor created under inference_mode could not be used under autograd later.
    with torch.inference_mode(False):
        made = [(_make_axis(a, rows, dtype), _make_axis(b, columns, dtype)) for a, b in pairs]
    return Resampler(
        (rows.size, columns.size),
        (rows.out_size, columns.out_size),
        tuple((a[0], b[0]) for a, b in made),
        tuple((a[1], b[1]) for a, b in made),
    )


def _make_axis(taps: np.ndarray, plan: AxisPlan, dtype: torch.dtype) -> tuple[Axis, Axis]:
    """Return the tiles of an axis and of its transpose. `taps` are in the order of a correlation."""
    tap = (
        np.arange(plan.size)[None, :] * plan.up + plan.pad_low - np.arange(plan.out_size)[:, None] * plan.down
    )
    band = (tap >= 0) & (tap < plan.taps)
    matrix = np.where(band, taps[np.clip(tap, 0, plan.taps - 1)], 0.0)
    forward = _cut(matrix, band, plan.taps, plan.up, plan.down, dtype)
    return forward, _cut(matrix.T, band.T, plan.taps, plan.down, plan.up, dtype)


def _cut(matrix: np.ndarray, band: np.ndarray, taps: int, up: int, down: int, dtype: torch.dtype) -> Axis:
    """Cut a banded matrix into tiles of consecutive rows."""
    out_size, in_size = matrix.shape
    # An output depends on taps/up inputs, and each further output on down/up more. Tiles with three times as
    # many inputs as one output were the fastest (up 2: 28 outputs of 20 inputs; down 2: 12 of 34). Smaller
    # tiles save arithmetic but lose more to the overhead of the products.
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
    """Yield the chunks of x [N, C, H, W] as slices (samples, channels).

    With `pixels` per plane, a chunk has about _CHUNK_ELEMENTS elements.
    """
    n, c = x.shape[:2]
    planes = min(max(_CHUNK_ELEMENTS // pixels, _MIN_PLANES), _MAX_PLANES)
    c_step = max(1, -(-c // max(1, round(c / planes))))
    n_step = max(1, planes // max(1, c))
    for n_start in range(0, n, n_step):
        for c_start in range(0, c, c_step):
            yield slice(n_start, min(n, n_start + n_step)), slice(c_start, min(c, c_start + c_step))


def load_chunk(x: torch.Tensor, dtype: torch.dtype, b: torch.Tensor | None = None) -> torch.Tensor:
    """Return x [n, c, H, W] plus bias b [c] as a new tensor [H, W, P] with P = n * c."""
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
        # torch transposes matrices of the same dtype in blocks; a copy with four axes is up to eight times
        # slower.
        part.view(h * w, n * c).copy_(x.to(dtype).view(n * c, h * w).t())
        if b is not None:
            part += b
    return part.view(h, w, n * c)


def store_chunk(y: torch.Tensor, target: torch.Tensor) -> None:
    """Write y [h, w, P] to target [n, c, h, w]."""
    n, c, h, w = target.shape
    if target.is_contiguous():
        target.view(n * c, h * w).copy_(y.to(target.dtype).view(h * w, n * c).t())
    else:
        target.copy_(y.view(h, w, n, c).permute(2, 3, 0, 1))


def new_images(like: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return uninitialised images of another size with the memory format, dtype and device of `like`."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(
        (*like.shape[:2], *size), dtype=like.dtype, device=like.device, memory_format=memory_format
    )


def resample(x: torch.Tensor, resampler: Resampler) -> torch.Tensor:
    """Apply a map to x [N, C, H, W] chunk by chunk. The result has x's memory format and dtype."""
    y = new_images(x, resampler.out_size)
    dtype = compute_dtype(x.dtype)
    for chunk in chunks(x, resampler.max_pixels):
        store_chunk(resampler(load_chunk(x[chunk], dtype)), y[chunk])
    return y


class Resample(torch.autograd.Function):
    """(x [N, C, H, W], resampler) -> [N, C, h, w].

    It is linear, so its derivatives of any order are given by the map and its adjoint.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, resampler: Resampler) -> torch.Tensor:
        """Apply the map."""
        ctx.resampler = resampler
        return resample(x, resampler)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, None]:
        """Apply the adjoint."""
        return Resample.apply(dy, ctx.resampler.adjoint), None
