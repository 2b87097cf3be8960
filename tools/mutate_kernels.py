# SPDX-License-Identifier: Apache-2.0
"""Mutation tests of the kernels: checks that their tests detect mistakes.

    python -m tools.mutate_kernels                     # all; exit status 1 if a mistake is not detected
    python -m tools.mutate_kernels --only upfirdn2d    # mutants whose file or description contains this
    python -m tools.mutate_kernels --kernels cpu       # only the CPU kernels, with the shared formulas
    python -m tools.mutate_kernels --list

It inserts one small mistake at a time into the sources and runs their tests in tests/torch_utils/ops:
backend/test_kernels.py for the CUDA kernels, backend/test_cpu_kernels.py for the CPU kernels, and both for
the formulas that they share. Missing barriers, and mistakes that change no result, must be detected by the
access checker (test_kernel_checker.py) as well: the order in which the host runs threads can hide a missing
barrier from the results, but not from the checker.

Each mutant is a build of the sources with one replacement, loaded into a separate process. CUDA sources are
compiled for the host, CPU sources as for users. This is not part of the default test run: a mutant costs a
compilation of the affected files and the tests up to the first failure.
"""

import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click

ROOT = Path(__file__).resolve().parent.parent
TESTS = "tests/torch_utils/ops"
_LIMIT_SECONDS = 900


class Mutant(NamedTuple):
    """One replacement of a text that occurs exactly once in a file."""

    file: str
    old: str
    new: str
    what: str


def _m(file: str, what: str, old: str, new: str) -> Mutant:
    return Mutant(file, old, new, what)


_BIAS, _FORMULAS, _FIR, _GATE, _SHARED = (
    "bias_act.cu",
    "activations.h",
    "upfirdn2d.cu",
    "gate.cu",
    "filtered_lrelu.h",
)
_SEPARABLE, _RADIAL, _BINDINGS = "filtered_lrelu_separable.cu", "filtered_lrelu_radial.cu", "bindings.cpp"
_BANDED = "filtered_lrelu_banded.cu"
_CPU, _CPU_FIR, _CPU_VECTORS, _CPU_BIAS, _CPU_THREADS = (
    f"cpu/{name}" for name in ("kernels.cpp", "resample.h", "vectors.h", "bias_act.h", "parallel.h")
)
MUTANTS = (
    # bias_act
    _m(
        _FORMULAS,
        "swish without its factor",
        "return c.swish ? x * sigmoid(x) : sigmoid(x);",
        "return sigmoid(x);",
    ),
    _m(_FORMULAS, "sigmoid mirrored", "select(x >= A(0), A(1), e)", "select(x >= A(0), e, A(1))"),
    _m(
        _FORMULAS,
        "softplus without its linear part",
        "return select(x > A(0), x, A(0)) + log1p",
        "return log1p",
    ),
    _m(_FORMULAS, "wrong slope of tanh", "A(1) - v * v : A(-2) * v", "A(1) + v * v : A(-2) * v"),
    _m(_FORMULAS, "second derivative of tanh halved", "A(-2) * v", "A(-1) * v"),
    _m(
        _FORMULAS,
        "second derivative of sigmoid",
        "v * (A(1) - v) : A(1) - A(2) * v",
        "v * (A(1) - v) : A(1) - v",
    ),
    _m(_FORMULAS, "second derivative of elu dropped", "v + c.negative : A(1));", "v + c.negative : A(0));"),
    _m(_FORMULAS, "second derivative of softplus negated", ": exp(-v);", ": -exp(-v);"),
    _m(_FORMULAS, "second derivative of swish", "(A(2) + x * (A(1) - A(2) * s))", "(A(2) + x * (A(1) - s))"),
    _m(_FORMULAS, "selu's scale", "kSeluScale : 1", "1 : 1"),
    _m(_FORMULAS, "lrelu's slope ignored", "kLrelu ? alpha : 1", "kLrelu ? 0.2 : 1"),
    _m(_FORMULAS, "gain dropped", "(saved + bias, c) * c.gain", "(saved + bias, c)"),
    _m(_FORMULAS, "gain dropped in the gradient", "ORDER == 1 ? slope * c.gain : slope", "slope"),
    _m(
        _FORMULAS,
        "gain doubled in the second derivative",
        "ORDER == 1 ? slope * c.gain : slope",
        "slope * c.gain",
    ),
    _m(_FORMULAS, "gradient at output instead of value", "y * c.inverse_gain", "y"),
    _m(
        _FORMULAS,
        "clamp below dropped",
        "select(value < -c.clamp, -c.clamp, select(value > c.clamp, c.clamp, value))",
        "select(value > c.clamp, c.clamp, value)",
    ),
    _m(
        _FORMULAS,
        "gradient passes the clamp",
        "if (c.clamps) value = select(fabs(y) < bound, value, A(0));",
        "",
    ),
    _m(
        _FORMULAS,
        "gradient passes on the clamp itself",
        "select(fabs(y) < bound, value, A(0))",
        "select(fabs(y) > bound, A(0), value)",
    ),
    _m(_BIAS, "clamp not rounded like the output", "c.from_output ? to_float(rounded) : c.clamp", "c.clamp"),
    _m(
        _FORMULAS,
        "bias added after the activation",
        "activate<F, A>(saved + bias, c)",
        "(activate<F, A>(saved, c) + bias)",
    ),
    _m(_FORMULAS, "bias missing in the gradient", "const A x = saved + bias;", "const A x = saved;"),
    _m(_BIAS, "next bias one element late", "if (++within == slice.step)", "if (within++ == slice.step)"),
    _m(_BIAS, "biases do not start over", "if (++channel == slice.channels) channel = 0;", "++channel;"),
    _m(_BIAS, "channel not wrapped", "(slice.channel + before) % slice.channels", "slice.channel + before"),
    _m(
        _BIAS,
        "slice begins at the first channel",
        "slice.channel = static_cast<int32_t>(channel);",
        "slice.channel = 0;",
    ),
    _m(
        _BIAS,
        "slice begins at a channel's first element",
        "slice.within = static_cast<int32_t>(within);",
        "slice.within = 0;",
    ),
    _m(_BIAS, "slice crosses a bias", "size = size < p.step - within ? size : p.step - within;", ""),
    _m(
        _BIAS,
        "last pack left out",
        "first < slice.count; first += stride",
        "first + V <= slice.count; first += stride",
    ),
    _m(_BIAS, "pack stored past the tail", "if (i < left) x[i] = pack.value[i];", "x[i] = pack.value[i];"),
    _m(
        _BIAS,
        "grids do not loop",
        "first < slice.count; first += stride",
        "first < slice.count; first = slice.count",
    ),
    _m(_FORMULAS, "third operand ignored", "return ORDER == 2 ? value * ddx : value;", "return value;"),
    _m(
        _BIAS,
        "offsets of slices in 32 bits",
        "const void* advance(const void* pointer, int64_t elements)",
        "const void* advance(const void* pointer, int32_t elements)",
    ),
    _m(
        _BIAS,
        "offsets of outputs in 32 bits",
        "static_cast<T*>(p.out) + elements",
        "static_cast<T*>(p.out) + static_cast<int32_t>(elements)",
    ),
    # upfirdn2d
    _m(
        _FIR,
        "first pixel rounded down",
        "first_pixel = ceil_div(out * d - pad, u);",
        "first_pixel = floor_div(out * d - pad, u);",
    ),
    _m(
        _FIR,
        "padding of the wrong sign",
        "first_tap = first_pixel * u + pad - out * d;",
        "first_tap = first_pixel * u - pad - out * d;",
    ),
    _m(_FIR, "taps not reversed", "reverse ? taps - 1 - index : index", "index"),
    _m(
        _FIR,
        "gain lost by separable filters",
        "* static_cast<A>(p.gain);\n    for (int64_t work",
        ";\n    for (int64_t work",
    ),
    _m(_FIR, "gain lost by other filters", "sum * static_cast<A>(p.gain)", "sum"),
    _m(
        _FIR,
        "paddings swapped (separable, x)",
        "meet<UP, DOWN>(x0 + c, p.up_x, p.down_x, p.pad_x, pixel, tap);",
        "meet<UP, DOWN>(x0 + c, p.up_x, p.down_x, p.pad_y, pixel, tap);",
    ),
    _m(
        _FIR,
        "paddings swapped (direct)",
        "meet<0, 0>(line, p.up_y, p.down_y, p.pad_y, row, tap_y);",
        "meet<0, 0>(line, p.up_y, p.down_y, p.pad_x, row, tap_y);",
    ),
    _m(_FIR, "factors swapped", "meet<0, 0>(column, p.up_x, p.down_x", "meet<0, 0>(column, p.up_y, p.down_y"),
    _m(
        _FIR, "row bound off by one", "if (row >= 0 && row < p.in_h) {", "if (row >= 0 && row < p.in_h - 1) {"
    ),
    _m(_FIR, "column bound missing", "if (pixel >= 0 && pixel < p.in_w) sum +=", "if (pixel >= 0) sum +="),
    _m(
        _FIR,
        "row bound of the direct kernel",
        "if (row < 0 || row >= p.in_h) continue;",
        "if (row < 0 || row > p.in_h) continue;",
    ),
    _m(
        _FIR,
        "no barrier between the passes",
        "        __syncthreads();\n        const int64_t y",
        "        const int64_t y",
    ),
    _m(
        _FIR,
        "no barrier between tiles",
        "work += gridDim.x) {\n        __syncthreads();",
        "work += gridDim.x) {",
    ),
    _m(_FIR, "last tile of full width", "p.out_w - x0 < t.tile_w ? p.out_w - x0 : t.tile_w", "t.tile_w"),
    _m(_FIR, "last tile of full height", "p.out_h - y0 < t.tile_h ? p.out_h - y0 : t.tile_h", "t.tile_h"),
    _m(
        _FIR,
        "too few tiles",
        "t.tiles_x = (p.out_w + t.tile_w - 1) / t.tile_w;",
        "t.tiles_x = p.out_w / t.tile_w;",
    ),
    _m(_FIR, "shared rows one too few", "/ p.up_y + 2; }", "/ p.up_y; }"),
    _m(_FIR, "rows of a tile one too few", "+ p.taps_y - 1, p.up_y) + 1;", "+ p.taps_y - 1, p.up_y);"),
    _m(_FIR, "channels_last pitch ignored", "p.channels_last ? p.channels : 1;", "1;"),
    _m(
        _FIR,
        "plane offset in 32 bits",
        "static_cast<const In*>(p.x) + plane * p.in_h * p.in_w;",
        "static_cast<const In*>(p.x) + static_cast<int32_t>(plane * p.in_h * p.in_w);",
    ),
    _m(
        _FIR,
        "line offset in 32 bits",
        "x + static_cast<int64_t>(row) * p.in_w;\n",
        "x + static_cast<int32_t>(row * p.in_w);\n",
    ),
    _m(_FIR, "origin in 32 bits", "const int64_t origin =", "const int32_t origin ="),
    _m(_FIR, "pixels in 32 bits", "pixels[static_cast<int64_t>(pixel) * pitch]", "pixels[pixel * pitch]"),
    _m(_FIR, "output offset in 32 bits", "const int64_t y = (plane", "const int32_t y = (plane"),
    _m(
        _FIR,
        "output count in 32 bits",
        "for (int64_t k = first; k < count;",
        "for (int64_t k = first; k < static_cast<int32_t>(count);",
    ),
    _m(_FIR, "division in 32 bits", "if (value <= INT32_MAX) {", "if (value >= 0) {"),
    _m(_FIR, "bias of the wrong channel", "(p.b)[plane % p.channels]", "(p.b)[0]"),
    _m(
        _FIR,
        "float32 output rounded",
        "} else if (p.out_dtype == kFloat32) {",
        "} else if (p.out_dtype == kFloat64) {",
    ),
    # gate
    _m(
        _GATE,
        "gated by the neighbour's code",
        "const unsigned code = codes >> (2 * i);",
        "const unsigned code = codes >> (2 * (i ^ 1));",
    ),
    _m(_GATE, "codes shifted by one bit", "(outside ? 2u : 0u) << (2 * i)", "(outside ? 2u : 0u) << i"),
    _m(_GATE, "padding without its code", "codes |= 2u << (2 * i);", ""),
    _m(_GATE, "slope without gain", "(code & 1) ? gain * slope : gain", "(code & 1) ? slope : gain"),
    _m(_GATE, "clamp passes itself", "!(fabs(value) < clamp)", "!(fabs(value) <= clamp)"),
    _m(
        _GATE,
        "row offset in 32 bits",
        "static_cast<A*>(p.u) + row * p.mid_w",
        "static_cast<A*>(p.u) + static_cast<int32_t>(row * p.mid_w)",
    ),
    # filtered_lrelu, all fused kernels
    _m(
        _SHARED,
        "crop of the wrong axis",
        "t.mid_x0 = t.out_x0 * p.down - p.crop_x;",
        "t.mid_x0 = t.out_x0 * p.down - p.crop_y;",
    ),
    _m(
        _SHARED,
        "lead off by one",
        "t.lead_x = t.mid_x0 - (p.pad_x + p.up * (t.group_x0 - 1) + 1);",
        "t.lead_x = t.mid_x0 - (p.pad_x + p.up * (t.group_x0 - 1));",
    ),
    _m(
        _SHARED,
        "vertical lead off by one",
        "t.lead_y = t.mid_y0 - (p.pad_y + p.up * (t.group_y0 - 1) + 1);",
        "t.lead_y = t.mid_y0 - (p.pad_y + p.up * (t.group_y0 - 1));",
    ),
    _m(
        _SHARED,
        "last tile of full height",
        "o.out_h = o.last_y ? p.out_h - o.out_y0 : p.tile_h;",
        "o.out_h = p.tile_h;",
    ),
    _m(
        _SHARED,
        "bias beside the image",
        ": 0.f;\n    }\n}\n\n// Reads N pixels",
        ": bias;\n    }\n}\n\n// Reads N pixels",
    ),
    _m(_SHARED, "bias of the first channel", "(p.b)[t.plane % p.channels]", "(p.b)[0]"),
    _m(
        _SHARED,
        "row bound missing",
        "inside && row >= 0 && row < p.in_h ?",
        "inside && row >= 0 && row <= p.in_h ?",
    ),
    _m(
        _SHARED,
        "upsampling gain lost",
        "load_taps<UP * K>(p.fu, p.reverse_up, p.up_gain, taps);",
        "load_taps<UP * K>(p.fu, p.reverse_up, 1.f, taps);",
    ),
    _m(
        _SHARED,
        "taps of the wrong phase",
        "sum += v[g + k] * taps[r + k * UP];",
        "sum += v[g + k] * taps[UP - 1 - r + k * UP];",
    ),
    _m(
        _SHARED,
        "zero counts as positive",
        "const bool negative = !(u > 0.f);",
        "const bool negative = u < 0.f;",
    ),
    _m(_SHARED, "clamp above dropped", "(value > p.clamp ? p.clamp : value)", "value"),
    _m(_SHARED, "clamped samples keep their slope", "if (!(fabsf(value) < p.clamp)) code |= 2u;", ""),
    _m(
        _SHARED,
        "sign codes inverted",
        "u * ((code & 1u) ? p.slope * p.gain : p.gain)",
        "u * ((code & 1u) ? p.gain : p.slope * p.gain)",
    ),
    _m(
        _SHARED,
        "codes read one sample off",
        "shift = 2 * (t.mid_x0 - 4 * byte0);",
        "shift = 2 * (t.mid_x0 - 4 * byte0) ^ 2;",
    ),
    _m(
        _SHARED,
        "third byte of codes forgotten",
        "for (int i = 0; i < 3; i++) {\n            const int byte",
        "for (int i = 0; i < 2; i++) {\n            const int byte",
    ),
    _m(_SHARED, "codes written in the wrong half", "(8 * (byte & 1))", "(8 * (~byte & 1))"),
    _m(
        _SHARED,
        "last codes not written",
        "t.last_x ? p.code_bytes - byte0 : p.tile_w * p.down / 4;",
        "p.tile_w * p.down / 4;",
    ),
    _m(
        _SHARED,
        "last rows of codes not written",
        "t.last_y ? p.mid_h - t.mid_y0 : p.tile_h * p.down;",
        "p.tile_h * p.down;",
    ),
    _m(_SHARED, "padding of codes left", "if (samples < 4) bits", "if (samples < 0) bits"),
    _m(
        _SHARED,
        "downsampling starts a row late",
        "first = run * kRun * DOWN;\n        float sums[kRun];",
        "first = run * kRun * DOWN + 1;\n        float sums[kRun];",
    ),
    _m(
        _SHARED,
        "last outputs of a run left",
        "if (run * kRun + j < t.out_h) from_float",
        "if (run * kRun + j < t.out_h - 1) from_float",
    ),
    _m(
        _SHARED,
        "column offset in 32 bits",
        "const T* x = static_cast<const T*>(p.x) + t.plane * p.in_h * p.in_w + column;",
        "const T* x = static_cast<const T*>(p.x) + static_cast<int32_t>(t.plane * p.in_h * p.in_w + column);",
    ),
    _m(
        _SHARED,
        "output offset in 32 bits",
        "static_cast<T*>(p.y) + (t.plane * p.out_h + t.out_y0) * p.out_w + t.out_x0;",
        "static_cast<T*>(p.y) + static_cast<int32_t>((t.plane * p.out_h + t.out_y0) * p.out_w + t.out_x0);",
    ),
    _m(
        _SHARED,
        "offset of read codes in 32 bits",
        "const uint8_t* source = p.codes + t.plane * p.mid_h * p.code_bytes;",
        "const uint8_t* source = p.codes + static_cast<int32_t>(t.plane * p.mid_h * p.code_bytes);",
    ),
    _m(
        _SHARED,
        "offset of written codes in 32 bits",
        "uint8_t* target = p.codes + t.plane * p.mid_h * p.code_bytes;",
        "uint8_t* target = p.codes + static_cast<int32_t>(t.plane * p.mid_h * p.code_bytes);",
    ),
    # filtered_lrelu, separable filters
    _m(
        _SEPARABLE,
        "no barrier after upsampling",
        "read_codes(p, t, code_pitch, codes);\n        __syncthreads();",
        "read_codes(p, t, code_pitch, codes);",
    ),
    _m(
        _SEPARABLE,
        "no barrier before downsampling",
        "code_pitch);\n        __syncthreads();\n        down_vertical",
        "code_pitch);\n        down_vertical",
    ),
    _m(_SEPARABLE, "taps not reversed", "p.fd[p.reverse_down ? TAPS - 1 - tap : tap]", "p.fd[tap]"),
    _m(_SEPARABLE, "lead's taps not cleared", "tap >= 0 && tap < TAPS ? ", "tap < TAPS ? "),
    _m(
        _SEPARABLE,
        "codes not moved by the lead",
        "words[i] = funnel_left(before, word, 2 * t.lead_x);",
        "words[i] = word;",
    ),
    _m(
        _SEPARABLE,
        "saved codes not moved by the lead",
        "funnel_right(words[i], i + 1 < S::kWords ? words[i + 1] : 0u, 2 * t.lead_x)",
        "words[i]",
    ),
    _m(
        _SEPARABLE,
        "high codes lost",
        "if (2 * i + 1 < count) units[2 * i + 1]",
        "if (2 * i + 3 < count) units[2 * i + 1]",
    ),
    _m(
        _SEPARABLE,
        "last output of a run left",
        "if (run * kRun + j < t.out_w) target[j]",
        "if (run * kRun + j + 1 < t.out_w) target[j]",
    ),
    _m(_SEPARABLE, "shared columns one too few", "+ kGroups + K - 1; }", "+ kGroups + K - 2; }"),
    _m(
        _SEPARABLE,
        "shared rows one too few",
        "return (out_h - 1) * DOWN + TAPS; }",
        "return (out_h - 1) * DOWN + TAPS - 1; }",
    ),
    # filtered_lrelu, separable filters on tensor cores
    _m(
        _BANDED,
        "no barrier after the tables",
        "make_tables<T>(p, tables, factors);\n    __syncthreads();",
        "make_tables<T>(p, tables, factors);",
    ),
    _m(
        _BANDED,
        "no barrier after the first pixels",
        "next.read();\n        warp_barrier();\n        load_operands",
        "next.read();\n        load_operands",
    ),
    _m(
        _BANDED,
        "second pixels overwrite the first ones",
        "load_operands<UP, DOWN>(pixels, below);\n        warp_barrier();",
        "load_operands<UP, DOWN>(pixels, below);",
    ),
    _m(
        _BANDED,
        "no barrier before pixels are operands",
        "warp_barrier();\n            if (moves) {",
        "if (moves) {",
    ),
    _m(
        _BANDED,
        "no barrier before outputs are stored",
        "            warp_barrier();\n            if (complete && out_row",
        "            if (complete && out_row",
    ),
    _m(
        _BANDED,
        "taps not reversed",
        "[reverse ? taps - 1 - tap : tap]",
        "[tap]",
    ),
    _m(
        _BANDED,
        "gain lost",
        "which == 1 ? up_gain * p.gain : up_gain",
        "up_gain",
    ),
    _m(
        _BANDED,
        "gradient passes the clamp",
        "code == 1 ? p.slope : 0.f",
        "code == 1 ? p.slope : 1.f",
    ),
    _m(
        _BANDED,
        "strips not at a byte of codes",
        "a.lead = -crop - floor_div(-crop, mid_unit) * mid_unit;",
        "a.lead = 0;",
    ),
    _m(
        _BANDED,
        "first pixel rounded up",
        "floor_div(floor_div(up - 1 + mid0 - pad, up), unit)",
        "-floor_div(-floor_div(up - 1 + mid0 - pad, up), unit)",
    ),
    _m(
        _BANDED,
        "halves of the sums do not change places",
        "DOWN == 2 ? (row + 8 * h) % 16 : row",
        "row",
    ),
    _m(
        _BANDED,
        "halves of the pixels do not change places",
        "2 * t + (i + h) % 2 * 8 :",
        "2 * t + i * 8 :",
    ),
    _m(
        _BANDED,
        "pixels of every second block",
        "pixel = UP == 4 ? 4 * h : 0",
        "pixel = 0",
    ),
    _m(
        _BANDED,
        "samples of every second block",
        "sample = DOWN == 4 ? 16 * h : 0",
        "sample = 0",
    ),
    _m(
        _BANDED,
        "order of samples along x",
        "(g / 2 * 4 + n * 2 + g % 2)",
        "(n * 8 + g)",
    ),
    _m(
        _BANDED,
        "order of samples along x, down",
        "4 * t + i / 2 * 2 + sample",
        "2 * t + i / 2 * 8 + sample",
    ),
    _m(
        _BANDED,
        "bias of the first channel",
        "b[w.plane % p.channels] * 0x10001u",
        "b[0] * 0x10001u",
    ),
    _m(
        _BANDED,
        "column bound missing",
        "&& w.in_x0 + 2 * word < p.in_w; };",
        "; };",
    ),
    _m(
        _BANDED,
        "column before the image",
        "return w.in_x0 + 2 * word >= 0 && ",
        "return ",
    ),
    _m(
        _BANDED,
        "last words beyond the image",
        "last_height_ = inside(last_word) ? p.in_h : 0;",
        "last_height_ = p.in_h;",
    ),
    _m(
        _BANDED,
        "bias outside the image",
        "inside ? pair_add<T>(words_[i], bias_) : 0u;",
        "pair_add<T>(words_[i], bias_);",
    ),
    _m(
        _BANDED,
        "last words get the bias outside the image",
        "inside ? pair_add<T>(words_[kMain], bias_) : 0u;",
        "pair_add<T>(words_[kMain], bias_);",
    ),
    _m(
        _BANDED,
        "clamp below dropped",
        "pair_minimum<T>(pair_maximum<T>(value, low), high)",
        "pair_minimum<T>(value, high)",
    ),
    _m(
        _BANDED,
        "second codes at the wrong bits",
        "plain >> 14",
        "plain >> 15",
    ),
    _m(
        _BANDED,
        "codes of the lower rows at the wrong bits",
        "place = 4 * (i / 2) + 8 * (i % 2)",
        "place = 4 * (i / 2)",
    ),
    _m(
        _BANDED,
        "gated by the codes of another row",
        "factors[high & 15u]",
        "factors[low & 15u]",
    ),
    _m(
        _BANDED,
        "codes beyond the middle grid",
        "outside = kOutside & 0xffu & ~kept",
        "outside = 0u",
    ),
    _m(
        _BANDED,
        "codes at the right edge not written",
        "w.last_x ? p.code_bytes : ",
        "",
    ),
    _m(
        _BANDED,
        "codes at the lower edge not written",
        "(w.last_y ? p.mid_h : w.mid_y0 + 2 * p.tile_h)",
        "(w.mid_y0 + 2 * p.tile_h)",
    ),
    _m(
        _BANDED,
        "sums along x go on",
        "                        z[n][DOWN == 4 ? 2 + i : done + i] = 0.f;\n",
        "",
    ),
    _m(
        _BANDED,
        "sums along y go on",
        "                    sums[q][2] = sums[q][3] = 0.f;\n",
        "",
    ),
    _m(
        _BANDED,
        "last row left out",
        "if (row + i < rows) *y =",
        "if (row + i + 1 < rows) *y =",
    ),
    _m(
        _BANDED,
        "outputs beyond the strip",
        "2 * word < w.out_w ? w.out_y0",
        "2 * word <= w.out_w ? w.out_y0",
    ),
    _m(
        _BANDED,
        "plane offset in 32 bits",
        "static_cast<const uint32_t*>(p.x) + w.plane * p.in_h * pitch_",
        "static_cast<const uint32_t*>(p.x) + static_cast<int32_t>(w.plane * p.in_h * pitch_ * 2) / 2",
    ),
    _m(
        _BANDED,
        "output offset in 32 bits",
        "(w.plane * p.out_h + row0 + row) * pitch +",
        "static_cast<int32_t>((w.plane * p.out_h + row0 + row) * pitch * 2) / 2 +",
    ),
    _m(
        _BANDED,
        "offset of read codes in 32 bits",
        "const uint8_t* source = p.codes + (w.plane * p.mid_h + row0) * p.code_bytes",
        "const uint8_t* source = p.codes + static_cast<int>((w.plane * p.mid_h + row0) * p.code_bytes)",
    ),
    _m(
        _BANDED,
        "offset of written codes in 32 bits",
        "uint8_t* target = p.codes + (w.plane * p.mid_h + row0) * p.code_bytes",
        "uint8_t* target = p.codes + static_cast<int>((w.plane * p.mid_h + row0) * p.code_bytes)",
    ),
    _m(
        _BANDED,
        "grids do not loop",
        "index += static_cast<int64_t>(gridDim.x) * kWarps) {",
        "index = work_end) {",
    ),
    _m(
        _BANDED,
        "odd inputs",
        "p.in_w % 2 != 0 || p.out_w % 2 != 0",
        "p.out_w % 2 != 0",
    ),
    _m(
        _BANDED,
        "odd outputs",
        "p.in_w % 2 != 0 || p.out_w % 2 != 0",
        "p.in_w % 2 != 0",
    ),
    _m(
        _BANDED,
        "unaligned inputs",
        " || reinterpret_cast<uintptr_t>(p.x) % 4 != 0",
        "",
    ),
    _m(
        _BANDED,
        "slopes beyond one",
        "p.slope > 0.f && p.slope <= 1.f",
        "p.slope > 0.f",
    ),
    _m(
        _BANDED,
        "negative slopes",
        "p.slope > 0.f && p.slope <= 1.f",
        "p.slope <= 1.f",
    ),
    _m(
        _BANDED,
        "negative gains",
        " && p.gain > 0.f)",
        ")",
    ),
    # filtered_lrelu, radial filters
    _m(
        _RADIAL,
        "no barrier after upsampling",
        "if (MODE == kGated) read_codes(p, t, code_pitch, codes);\n        __syncthreads();",
        "if (MODE == kGated) read_codes(p, t, code_pitch, codes);",
    ),
    _m(
        _RADIAL,
        "no barrier before downsampling",
        "codes, code_pitch);\n        __syncthreads();\n        if (p.dtype",
        "codes, code_pitch);\n        if (p.dtype",
    ),
    _m(
        _RADIAL,
        "no barrier after loading pixels",
        "        read_codes(p, t, code_pitch, codes);\n        __syncthreads();\n        up_full",
        "        read_codes(p, t, code_pitch, codes);\n        up_full",
    ),
    _m(
        _RADIAL,
        "no barrier after the full filter",
        "code_pitch);\n        __syncthreads();\n        down_horizontal",
        "code_pitch);\n        down_horizontal",
    ),
    _m(
        _RADIAL,
        "no barrier before the last pass",
        "out, out_pitch);\n        __syncthreads();",
        "out, out_pitch);",
    ),
    _m(
        _RADIAL,
        "full filter transposed",
        "const int x = i / N, y = i - x * N;",
        "const int y = i / N, x = i - y * N;",
    ),
    _m(
        _RADIAL,
        "full filter not reversed",
        "f[reverse ? (N - 1 - y) * N + N - 1 - x : y * N + x]",
        "f[y * N + x]",
    ),
    _m(
        _RADIAL,
        "samples in the wrong part",
        "column % DOWN * part + column / DOWN",
        "column % DOWN * part + (column + 1) / DOWN",
    ),
    _m(_RADIAL, "phase of the full filter", "r_x = UP - 1 - place % UP;", "r_x = place % UP;"),
    _m(_RADIAL, "last row not read", "row < height ? pixels", "row < height - 1 ? pixels"),
    _m(
        _RADIAL,
        "column bound missing",
        "column >= 0 && column < p.in_w;\n        pixels",
        "column >= 0;\n        pixels",
    ),
    _m(_RADIAL, "gated by the neighbour's code", "(2 * (column % 8))", "(2 * (column % 4))"),
    _m(
        _RADIAL,
        "plane offset in 32 bits",
        "static_cast<const T*>(p.x) + t.plane * p.in_h * p.in_w;",
        "static_cast<const T*>(p.x) + static_cast<int32_t>(t.plane * p.in_h * p.in_w);",
    ),
    _m(
        _RADIAL,
        "output offset in 32 bits",
        "static_cast<T*>(p.y) + (t.plane * p.out_h + t.out_y0) * p.out_w + t.out_x0;",
        "static_cast<T*>(p.y) + static_cast<int32_t>((t.plane * p.out_h + t.out_y0) * p.out_w + t.out_x0);",
    ),
    # what leads to the kernels
    _m(
        _BINDINGS,
        "padding of the transposed map",
        "plan.crop_x = taps_x(fu) - 1 - plan.pad_x",
        "plan.crop_x = taps_x(fu) - plan.pad_x",
    ),
    _m(_BINDINGS, "factors not exchanged", "std::swap(plan.up_y, plan.down_y);", ""),
    _m(
        _BINDINGS,
        "taps not reversed in the gradient",
        "plan.reverse_up = plan.reverse_down = flip;",
        "plan.reverse_up = plan.reverse_down = !flip;",
    ),
    _m(
        _BINDINGS,
        "groups of planes begin at the wrong pixel",
        "static_cast<const char*>(x.const_data_ptr()) + first * u.in_w * u.in_h * size",
        "static_cast<const char*>(x.const_data_ptr())",
    ),
    _m(
        _BINDINGS,
        "elements that share a bias",
        "p.step = b.has_value() && out.size(dim) > 1 ? out.stride(dim) : 1;",
        "p.step = 1;",
    ),
    _m(_BINDINGS, "other order in memory not copied", "!same(t.strides(), out.strides())", "false"),
    _m(_BINDINGS, "channels_last not recognised", "return !x.is_contiguous();", "return true;"),
    # the CPU's resampling
    _m(
        _CPU_FIR,
        "first input rounded down",
        "return ceil_div(o * down - pad, up); }",
        "return ceil_div(o * down - pad - up + 1, up); }",
    ),
    _m(_CPU_FIR, "taps of the wrong phase", "return k * up + up - 1 - phase; }", "return k * up + phase; }"),
    _m(_CPU_VECTORS, "negative quotients rounded down", "-(-a / b); }", "-((-a + b - 1) / b); }"),
    _m(_CPU_FIR, "taps not reversed", "taps.f[taps.reverse ? axis.taps - 1 - t : t]", "taps.f[t]"),
    _m(_CPU_FIR, "gain lost by separable filters", "polyphase(x, taps, gain);", "polyphase(x, taps, 1.0f);"),
    _m(
        _CPU_FIR,
        "phases of the full filter at the wrong place",
        "* y.window() * x.up * x.window() : 0)",
        "* y.window() * x.window() : 0)",
    ),
    _m(
        _CPU_FIR,
        "rows of the full filter share taps",
        "const float* factors = c + r * taps;",
        "const float* factors = c;",
    ),
    _m(
        _CPU_FIR,
        "too little slack behind rows",
        "constexpr int64_t kSlack = 16;",
        "constexpr int64_t kSlack = 2;",
    ),
    _m(
        _CPU_FIR,
        "scratch memory not cleared",
        "std::memset(static_cast<void*>(data_), 0, count * sizeof(V));",
        "",
    ),
    _m(
        _CPU_FIR,
        "ring of rows too small",
        "stage.y.window(), width(span)), line_",
        "std::max<int64_t>(1, stage.y.window() - 1), width(span)), line_",
    ),
    _m(
        _CPU_FIR,
        "last row of the image not read",
        "std::min(begin + axis.window(), axis.in) - first);",
        "std::min(begin + axis.window(), axis.in - 1) - first);",
    ),
    _m(
        _CPU_FIR, "rows above the image not skipped", "stage_.rows_of(o) + window.skip,", "stage_.rows_of(o),"
    ),
    _m(
        _CPU_FIR,
        "rows above the image not skipped (full filter)",
        "+ window.skip * stage_.x.up * stage_.x.window();",
        ";",
    ),
    _m(
        _CPU_FIR,
        "pixels beside the image read",
        "high_ = std::min(span.origin + span.inputs, stage.x.in);",
        "high_ = span.origin + span.inputs;",
    ),
    # the CPU's filtered_lrelu and upfirdn2d
    _m(
        _CPU,
        "last part left out",
        "count(ceil_div(total, size)) {}",
        "count(total > size ? total / size : 1) {}",
    ),
    _m(_CPU, "last part of full size", "std::min(total, (i + 1) * size); }", "(i + 1) * size; }"),
    _m(
        _CPU,
        "tasks miscounted",
        "row = task / wide.count % high.count, bundle",
        "row = task % high.count, bundle",
    ),
    _m(
        _CPU,
        "tasks miscounted in upfirdn2d",
        "row = task / wide.count % high.count, group",
        "row = task % high.count, group",
    ),
    _m(
        _CPU,
        "groups of channels left out",
        "begin = bundle % bundles * together,",
        "begin = bundle % bundles,",
    ),
    _m(
        _CPU,
        "codes at a tile's left edge not written",
        "own_low(start * down.x.down)",
        "own_low(start * down.x.down + (start > 0))",
    ),
    _m(
        _CPU,
        "codes at a tile's right edge not written",
        "std::min(act.mid_w, stop * down.x.down)",
        "std::min(act.mid_w, stop * down.x.down - 1)",
    ),
    _m(
        _CPU,
        "codes at a tile's lower edge not written",
        "std::min(act.mid_h, row_stop * down.y.down)",
        "std::min(act.mid_h, row_stop * down.y.down - 1)",
    ),
    _m(
        _CPU,
        "kept rows too few",
        "kept_(space, down.y.window(), ",
        "kept_(space, std::max<int64_t>(1, down.y.window() - 1), ",
    ),
    _m(
        _CPU,
        "rows above the middle image not skipped",
        "down_.rows_of(n) + needed.skip,",
        "down_.rows_of(n),",
    ),
    _m(
        _CPU,
        "gated by the sign alone",
        "zero_where(scale_where(mid[x], read(codes + 4 * x), slope), read(codes + 4 * x + 2));",
        "scale_where(mid[x], read(codes + 4 * x), slope);",
    ),
    _m(_CPU, "samples of all groups share codes", "(n * code_groups + c / 16)", "(n + c / 16)"),
    _m(_CPU, "bytes of codes share their place", "+ c % 16 / 8;", ";"),
    _m(_CPU, "bias of the first channels", "bias_of(b, c, count)", "bias_of(b, 0, count)"),
    _m(_CPU, "last group of full width", "count = std::min<int64_t>(kLanes, x.c - c);", "count = kLanes;"),
    _m(_CPU, "uneven planes taken as even", "x.stride_n == x.c * x.stride_c && y.stride_n", "y.stride_n"),
    _m(
        _CPU,
        "threads share scratch memory",
        "static thread_local Scratch buffers;",
        "static Scratch buffers;",
    ),
    # vectors
    _m(_CPU_VECTORS, "ties rounded up", "0x7fffu + ((bits >> 16) & 1u)", "0x8000u"),
    _m(
        _CPU_VECTORS,
        "NaN rounded like numbers",
        "_mm512_mask_mov_epi32((__m512i)rounded, irregular, _mm512_set1_epi32(0x7fc00000))",
        "(irregular, (__m512i)rounded)",
    ),
    _m(
        _CPU_VECTORS,
        "NaN rounded like numbers (short vectors)",
        "((U)regular & (rounded >> 16)) | (~(U)regular & 0x7fc0u)",
        "((U)regular, rounded >> 16)",
    ),
    _m(_CPU_VECTORS, "zero counts as positive", "_CMP_NGT_UQ", "_CMP_LT_OQ"),
    _m(_CPU_VECTORS, "gradient passes on the clamp itself", "_CMP_GE_OQ", "_CMP_GT_OQ"),
    _m(
        _CPU_VECTORS,
        "NaN clamped",
        "_mm512_min_ps((__m512)bound, (__m512)v)",
        "_mm512_min_ps((__m512)v, (__m512)bound)",
    ),
    _m(
        _CPU_VECTORS,
        "parts stored whole",
        "_mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1)",
        "_mm512_mask_storeu_ps(p, static_cast<__mmask16>(count | 0xffff)",
    ),
    _m(
        _CPU_VECTORS,
        "parts of bfloat16 stored whole",
        "for (int lane = 0; lane < count; ++lane) p[lane] = all[lane];",
        "for (int lane = 0; lane < kLanes; ++lane) p[lane] = all[lane];",
    ),
    _m(
        _CPU_VECTORS,
        "blocks read past a row's end",
        "count - kLanes : x;\n            V block[kLanes];\n            for (int lane",
        "x : x;\n            V block[kLanes];\n            for (int lane",
    ),
    _m(
        _CPU_VECTORS,
        "blocks written past a row's end",
        "count - kLanes : x;\n            V block[kLanes];\n            for (int i",
        "x : x;\n            V block[kLanes];\n            for (int i",
    ),
    _m(
        _CPU_VECTORS,
        "block exchanged wrongly",
        "rows[12 + j] = (V)_mm512_shuffle_f32x4(odd, odd2, 0xdd);",
        "rows[12 + j] = (V)_mm512_shuffle_f32x4(odd, odd2, 0x88);",
    ),
    _m(
        _CPU_VECTORS,
        "stores around the cache at any step",
        "step % kLanes == 0 && step >= 512;",
        "step >= 512;",
    ),
    _m(
        _CPU_VECTORS,
        "stores around the cache lose lanes",
        "_mm512_stream_ps(p, (__m512)v);",
        "_mm512_stream_ps(p, _mm512_maskz_mov_ps(0x7fff, (__m512)v));",
    ),
    # the CPU's bias_act
    _m(_CPU_BIAS, "ln 2 in one part", "(x - n * 0.693359375f) + n * 2.12194440e-4f;", "x - n * 0.69314718f;"),
    _m(_CPU_BIAS, "a coefficient of exp", "1.f / 120,", "1.f / 119,"),
    _m(_CPU_BIAS, "exp bounded too early", "splat(110.f)", "splat(90.f)"),
    _m(
        _CPU_BIAS,
        "expm1 cancels",
        "return power * (a.r + a.r * a.r * exp_series(a.r)) + (power - 1.f);",
        "return power * (1.f + (a.r + a.r * a.r * exp_series(a.r))) - 1.f;",
    ),
    _m(_CPU_BIAS, "a coefficient of log1p", "2.f / 9,", "2.f / 10,"),
    _m(_CPU_BIAS, "run crosses a bias", "(first / at.step + 1) * at.step)", "first + at.step)"),
    _m(
        _CPU_BIAS,
        "biases of short rows not repeated",
        "if (at.step > 1 || row > at.period()) {",
        "if (at.step > 1) {",
    ),
    _m(
        _CPU_BIAS,
        "last row of full length",
        "make(common, first, std::min(last, first + row), biases, 1);",
        "make(common, first, first + row, biases, 1);",
    ),
    _m(
        _CPU_BIAS,
        "tasks begin within a period",
        "std::max<int64_t>(1, kTaskElements / unit) * unit;",
        "std::max<int64_t>(unit, kTaskElements);",
    ),
    _m(_CPU_BIAS, "clamp not rounded like the output", "common.bound = load(rounded);", ""),
    _m(
        _CPU_BIAS,
        "last elements of a sum left out",
        "for (; i < count; i += kLanes) sums[0]",
        "for (; i + kLanes <= count; i += kLanes) sums[0]",
    ),
    _m(_CPU_BIAS, "parts of sums of one place", "add_row(&sums[part * row],", "add_row(&sums[0],"),
    # the CPU's threads
    _m(
        _CPU_THREADS,
        "first task left to nobody",
        "num_threads(threads)\n    for (int64_t i = 0;",
        "num_threads(threads)\n    for (int64_t i = 1;",
    ),
)


class _Judge(NamedTuple):
    """Tests, and the build of the kernels that they use.

    Attributes:
        name: name of the folder with the objects.
        tests: path of the tests.
        module: module whose build() returns the library.
        commands: build commands by the name of their result, for the sources in work/csrc.
    """

    name: str
    tests: str
    module: str
    commands: dict[str, str]


def _cuda_judges(work: Path) -> tuple[_Judge, ...]:
    """Return the tests of results and those of accesses, and build their unchanged objects."""
    from tests.torch_utils.ops import kernel_checker
    from torch_utils.ops.backend import extension

    extension.SOURCE_FOLDER = work / "csrc"

    def judge(name: str, tests: str, module: str, ninja_file: str) -> _Judge:
        (work / "build.ninja").write_text(ninja_file)
        command = [str(extension.ninja()), "-C", str(work), "-t", "commands"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        commands = {line.rsplit(" -o ", 1)[1].strip(): line for line in lines if " -o " in line}
        (work / name).mkdir()
        for line in commands.values():
            subprocess.run(line, shell=True, cwd=work / name, check=True, capture_output=True)
        return _Judge(name, tests, module, commands)

    results = judge(
        "results",
        f"{TESTS}/backend/test_kernels.py",
        "torch_utils.ops.backend.extension",
        extension._ninja_file((), host=True),
    )
    accesses = judge(
        "accesses",
        f"{TESTS}/test_kernel_checker.py",
        "tests.torch_utils.ops.kernel_checker",
        kernel_checker.ninja_file(),
    )
    return results, accesses


def _cpu_judges(work: Path) -> tuple[_Judge, ...]:
    """Return the tests of the CPU kernels, which build them with cpu_extension.py."""
    return (
        _Judge("cpu", f"{TESTS}/backend/test_cpu_kernels.py", "torch_utils.ops.backend.cpu_extension", {}),
    )


def _groups(m: Mutant, kernels: str) -> list[str]:
    """Return which of the requested kernels use the file: their tests must detect the mistake."""
    users = ["cpu"] if m.file.startswith("cpu/") else ["cuda", "cpu"] if m.file == _FORMULAS else ["cuda"]
    return [name for name in users if kernels in (name, "all")]


def _users(work: Path, file: str) -> list[str]:
    """Return the sources that depend on a file."""
    if not file.endswith(".h"):
        return [file]
    texts = {
        path.name: path.read_text() for path in (work / "csrc").iterdir() if path.suffix in (".cu", ".cpp")
    }
    return [name for name, text in texts.items() if f'#include "{file}"' in text]


def _build(work: Path, judge: _Judge, sources: list[str]) -> Path:
    """Compile sources and link them with the judge's unchanged objects.

    Returns:
        The library; for the CPU kernels, the folder of the sources.

    Raises:
        click.ClickException: the compiler failed.
    """
    if not judge.commands:
        return work / "csrc" / "cpu"
    target = work / "mutant"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(work / judge.name, target, symlinks=True)
    for name in [source.replace(".cpp", "") + ".o" for source in sources] + ["ops.so"]:
        if subprocess.run(judge.commands[name], shell=True, cwd=target, capture_output=True).returncode != 0:
            raise click.ClickException(f"{', '.join(sources)}: a mistake does not compile")
    return target / "ops.so"


def _survives(judge: _Judge, library: Path, log: Path) -> bool:
    """Run the tests against the result of _build() in a separate process, and return whether they pass.

    Raises:
        click.ClickException: the tests could not be run.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.alarm(_LIMIT_SECONDS)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os._exit(_run_tests(judge, library))
    status = os.waitpid(child, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # processes that it left behind
    # pytest's exit status: 0 passed, 1 failed, more: the tests did not run. A signal: an abort or a timeout.
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) > 1:
        raise click.ClickException("the tests could not be run:\n" + log.read_text()[-2000:])
    return status == 0


def _run_tests(judge: _Judge, library: Path) -> int:
    import hypothesis
    import pytest

    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # without shrinking
    hypothesis.settings.register_profile("mutants", database=None, derandomize=True, phases=phases)
    hypothesis.settings.load_profile("mutants")
    module: Any = importlib.import_module(judge.module)
    if judge.commands:
        module.build = lambda *_, **__: library
    elif not _build_cpu(module, library):
        return 2
    return int(pytest.main(["-q", "-x", "--tb=line", "-p", "no:cacheprovider", judge.tests]))


def _build_cpu(cpu_extension: Any, sources: Path) -> bool:
    """Make this process build the CPU kernels from these sources, and build them as for users.

    Returns:
        Whether they were built.
    """
    from torch_utils.ops.backend import extension

    folder = sources.parents[1] / "cache"
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["DNNLIB_CACHE_DIR"] = str(folder)
    os.environ.pop(extension.FOLDER_VARIABLE, None)
    cpu_extension.SOURCE_FOLDER = sources
    try:
        cpu_extension.build(cpu_extension.folders()[-1])
    except cpu_extension.BuildError as error:
        print(error, flush=True)
        return False
    return True


def _verdict(work: Path, m: Mutant, judges: tuple[_Judge, ...]) -> tuple[bool, str]:
    """Return whether the required judges detect the mutant in the sources, and the tests that failed."""
    killers: list[str] = []
    wanted = 2 if m.what.startswith("no barrier") else 1
    for judge in judges:
        if len(killers) == wanted:
            break
        if not _survives(judge, _build(work, judge, _users(work, m.file)), work / "log"):
            found = re.findall(r"^FAILED (?:\S+::)?(.+?)(?: - .*)?$", (work / "log").read_text(), re.M)
            killers.append(f"{judge.name}: {found[0] if found else 'an abort'}")
    return len(killers) == wanted, ", ".join(killers) or "by nobody"


@click.command(help=__doc__)
@click.option("--only", default="", help="Only mutants whose file or description contains this.")
@click.option(
    "--kernels", type=click.Choice(["cuda", "cpu", "all"]), default="all", help="Kernels whose tests are run."
)
@click.option("--list", "list_only", is_flag=True, help="List the mutants without running tests.")
def main(only: str, kernels: str, list_only: bool) -> None:
    """Run the chosen mutants; the help text is the module's docstring."""
    os.chdir(ROOT)
    chosen = [m for m in MUTANTS if (only in m.file or only in m.what) and _groups(m, kernels)]
    if list_only:
        for m in chosen:
            click.echo(f"{m.file:28s}{m.what}")
        return
    import torch  # noqa: F401  # before the forks, so that they need not import it

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shutil.copytree(ROOT / "torch_utils" / "ops" / "csrc", work / "csrc")
        for m in chosen:
            if (work / "csrc" / m.file).read_text().count(m.old) != 1:
                raise click.ClickException(
                    f"{m.file}: the text of '{m.what}' must occur exactly once: {m.old!r}"
                )
        wanted = {group for m in chosen for group in _groups(m, kernels)}
        judges = {
            group: make(work)
            for group, make in (("cuda", _cuda_judges), ("cpu", _cpu_judges))
            if group in wanted
        }
        for judge in (judge for group in judges.values() for judge in group):
            if not _survives(
                judge, work / judge.name / "ops.so" if judge.commands else work / "csrc" / "cpu", work / "log"
            ):
                raise click.ClickException(
                    "the tests fail without a mutant:\n" + (work / "log").read_text()[-2000:]
                )
        survivors = sum(
            not _noticed(work, m, [judges[group] for group in _groups(m, kernels)]) for m in chosen
        )
    click.echo(f"{len(chosen)} mutants, {len(chosen) - survivors} killed")
    sys.exit(1 if survivors else 0)


def _noticed(work: Path, m: Mutant, groups: list[tuple[_Judge, ...]]) -> bool:
    """Run one mutant, print the result, and return whether all groups of judges detect it."""
    start, source = time.monotonic(), work / "csrc" / m.file
    original = source.read_text()
    source.write_text(original.replace(m.old, m.new))
    verdicts = [_verdict(work, m, judges) for judges in groups]
    source.write_text(original)
    noticed = all(noticed for noticed, _ in verdicts)
    killers = ", ".join(killers for _, killers in verdicts)
    click.echo(
        f"{m.file:28s}{m.what:45s}{'killed' if noticed else 'SURVIVES'} ({killers}) "
        f"{time.monotonic() - start:.0f} s"
    )
    sys.stdout.flush()
    return noticed


if __name__ == "__main__":
    main()
