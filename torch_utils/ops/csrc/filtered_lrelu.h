// SPDX-License-Identifier: Apache-2.0
// Stages of the fused filtered_lrelu kernels. A block computes one output tile of one plane.
//
// Along an axis, middle samples form groups of UP: group g has the samples pad + UP * g - r, r = UP-1 .. 0. All of them
// depend on the pixels g .. g + K-1, sample r through the taps r, r + UP, ... (K = taps / UP). A run of samples starts
// at a group boundary, so that the compiler knows the position of every tap. The up to UP-1 samples before the first
// needed one (the `lead`) are computed and not used.
//
// Each thread keeps a window of pixels and the taps in registers and computes a run of samples, so that one read of
// shared memory is used in many multiplications. The pitch of shared arrays is odd if the threads of a warp access
// different rows.
#pragma once

#include "ops.h"
#include "platform.h"

namespace ops {
namespace fused {

constexpr int kMaxThreads = 256;
constexpr size_t kMaxShared = 64 * 1024;
constexpr uint32_t kOutside = 0xaaaaaaaau;  // codes of samples with zero slope

// Outputs of a tile: the plane, the first one, how many, and whether the tile is the last one of its row or column.
struct Outputs {
    int64_t plane;
    int out_x0, out_y0, out_w, out_h;
    bool last_x, last_y;
};

__device__ __forceinline__ Outputs tile_outputs(const FilteredLreluParams& p, int64_t work) {
    Outputs o;
    const int tiles = p.tiles_x * p.tiles_y, index = static_cast<int>(work % tiles), column = index % p.tiles_x, row = index / p.tiles_x;
    o.plane = work / tiles;
    o.out_x0 = column * p.tile_w;
    o.out_y0 = row * p.tile_h;
    o.last_x = column == p.tiles_x - 1;
    o.last_y = row == p.tiles_y - 1;
    o.out_w = o.last_x ? p.out_w - o.out_x0 : p.tile_w;
    o.out_h = o.last_y ? p.out_h - o.out_y0 : p.tile_h;
    return o;
}

// Position of a tile. Samples are numbered from (mid_x0, mid_y0), the first one that the tile's outputs depend on.
struct Tile : Outputs {
    int mid_x0, mid_y0, mid_w, mid_h;
    int lead_x, lead_y;    // samples from the group boundary to mid_x0, mid_y0
    int group_x0, group_y0;
};

__device__ __forceinline__ Tile make_tile(const FilteredLreluParams& p, int64_t work) {
    Tile t;
    static_cast<Outputs&>(t) = tile_outputs(p, work);
    t.mid_x0 = t.out_x0 * p.down - p.crop_x;
    t.mid_y0 = t.out_y0 * p.down - p.crop_y;
    t.mid_w = (t.out_w - 1) * p.down + p.down_taps;
    t.mid_h = (t.out_h - 1) * p.down + p.down_taps;
    t.group_x0 = ceil_div(t.mid_x0 - p.pad_x, p.up);
    t.group_y0 = ceil_div(t.mid_y0 - p.pad_y, p.up);
    t.lead_x = t.mid_x0 - (p.pad_x + p.up * (t.group_x0 - 1) + 1);
    t.lead_y = t.mid_y0 - (p.pad_y + p.up * (t.group_y0 - 1) + 1);
    return t;
}

__host__ __device__ __forceinline__ int odd(int n) { return n | 1; }

// Taps of a separable filter in registers, in the order of the samples or pixels they are multiplied with.
template <int N>
__device__ __forceinline__ void load_taps(const float* f, bool reverse, float factor, float (&taps)[N]) {
    OPS_UNROLL
    for (int i = 0; i < N; i++) taps[i] = f[reverse ? N - 1 - i : i] * factor;
}

template <class T, int N>
__device__ __forceinline__ void load_column(const FilteredLreluParams& p, const Tile& t, int column, int row0, float (&v)[N]) {
    const T* x = static_cast<const T*>(p.x) + t.plane * p.in_h * p.in_w + column;
    const float bias = p.b == nullptr ? 0.f : to_float(static_cast<const T*>(p.b)[t.plane % p.channels]);
    const bool inside = column >= 0 && column < p.in_w;
    OPS_UNROLL
    for (int i = 0; i < N; i++) {
        const int row = row0 + i;
        v[i] = inside && row >= 0 && row < p.in_h ? to_float(x[static_cast<int64_t>(row) * p.in_w]) + bias : 0.f;
    }
}

// Reads N pixels of a column from row0 on and adds the bias; zeros outside the image.
template <int N>
__device__ __forceinline__ void load_column(const FilteredLreluParams& p, const Tile& t, int column, int row0, float (&v)[N]) {
    if (p.dtype == kFloat16) {
        load_column<half_t, N>(p, t, column, row0, v);
    } else if (p.dtype == kBFloat16) {
        load_column<bfloat_t, N>(p, t, column, row0, v);
    } else {
        load_column<float, N>(p, t, column, row0, v);
    }
}

// Upsamples along y: pixels of `columns` columns from group_x0 on to `up` [mid_h, pitch] in shared memory.
template <int UP, int K>
__device__ __forceinline__ void up_vertical(const FilteredLreluParams& p, const Tile& t, int columns, int pitch, float* up) {
    constexpr int kGroups = 24 / UP;  // groups per run: 24 samples
    float taps[UP * K];
    load_taps<UP * K>(p.fu, p.reverse_up, p.up_gain, taps);
    const int runs = ((t.lead_y + t.mid_h + UP - 1) / UP + kGroups - 1) / kGroups;
    for (int item = threadIdx.x; item < columns * runs; item += blockDim.x) {
        const int run = item / columns, column = item - run * columns;
        float v[kGroups + K - 1];
        load_column<kGroups + K - 1>(p, t, t.group_x0 + column, t.group_y0 + run * kGroups, v);
        const int row0 = run * kGroups * UP - t.lead_y;
        OPS_UNROLL
        for (int g = 0; g < kGroups; g++) {
            OPS_UNROLL
            for (int r = UP - 1; r >= 0; r--) {
                float sum = 0.f;
                OPS_UNROLL
                for (int k = 0; k < K; k++) sum += v[g + k] * taps[r + k * UP];
                const int row = row0 + g * UP + UP - 1 - r;
                if (row >= 0 && row < t.mid_h) up[row * pitch + column] = sum;
            }
        }
    }
}

// Computes phi and its code for a sample.
__device__ __forceinline__ float activate(const FilteredLreluParams& p, float u, uint32_t& code) {
    const bool negative = !(u > 0.f);
    float value = (negative ? u * p.slope : u) * p.gain;
    code = negative ? 1u : 0u;
    if (p.clamp >= 0.f) {
        if (!(fabsf(value) < p.clamp)) code |= 2u;
        value = value < -p.clamp ? -p.clamp : (value > p.clamp ? p.clamp : value);
    }
    return value;
}

__device__ __forceinline__ float gated(const FilteredLreluParams& p, float u, uint32_t code) {
    return (code & 2u) ? 0.f : u * ((code & 1u) ? p.slope * p.gain : p.gain);
}

// Codes of the tile in shared memory: rows of `pitch` 16-bit units with eight samples each, starting at mid_x0.
__device__ __forceinline__ void read_codes(const FilteredLreluParams& p, const Tile& t, int pitch, uint16_t* codes) {
    const uint8_t* source = p.codes + t.plane * p.mid_h * p.code_bytes;
    const int byte0 = floor_div(t.mid_x0, 4), shift = 2 * (t.mid_x0 - 4 * byte0);
    for (int item = threadIdx.x; item < t.mid_h * pitch; item += blockDim.x) {
        const int r = item / pitch, unit = item - r * pitch, row = t.mid_y0 + r;
        uint32_t bits = 0;
        OPS_UNROLL
        for (int i = 0; i < 3; i++) {
            const int byte = byte0 + 2 * unit + i;
            const bool inside = row >= 0 && row < p.mid_h && byte >= 0 && byte < p.code_bytes;
            bits |= (inside ? source[static_cast<int64_t>(row) * p.code_bytes + byte] : kOutside & 0xffu) << (8 * i);
        }
        codes[item] = static_cast<uint16_t>(bits >> shift);
    }
}

// Writes the tile's codes to memory. The codes of samples that two tiles compute are written by the first of them.
// Requires mid_x0 % 4 == 0, which holds without crop.
__device__ __forceinline__ void write_codes(const FilteredLreluParams& p, const Tile& t, int pitch, const uint16_t* codes) {
    uint8_t* target = p.codes + t.plane * p.mid_h * p.code_bytes;
    const int byte0 = t.mid_x0 / 4;
    const int bytes = t.last_x ? p.code_bytes - byte0 : p.tile_w * p.down / 4;
    const int rows = t.last_y ? p.mid_h - t.mid_y0 : p.tile_h * p.down;
    for (int item = threadIdx.x; item < rows * bytes; item += blockDim.x) {
        const int row = item / bytes, byte = item - row * bytes;
        uint32_t bits = codes[row * pitch + byte / 2] >> (8 * (byte & 1)) & 0xffu;
        const int samples = p.mid_w - 4 * (byte0 + byte);
        if (samples < 4) bits = (bits & ((1u << (2 * samples)) - 1)) | (kOutside << (2 * samples) & 0xffu);
        target[static_cast<int64_t>(t.mid_y0 + row) * p.code_bytes + byte0 + byte] = static_cast<uint8_t>(bits);
    }
}

// Downsamples along y: rows [mid_h, pitch] that are already downsampled along x to the output. The threads of a warp
// process adjacent columns.
template <class T, int DOWN, int TAPS>
__device__ __forceinline__ void down_vertical(const FilteredLreluParams& p, const Tile& t, int pitch, const float* rows) {
    constexpr int kRun = 6, kRows = (kRun - 1) * DOWN + TAPS;
    float taps[TAPS];
    load_taps<TAPS>(p.fd, p.reverse_down, 1.f, taps);
    const int runs = (t.out_h + kRun - 1) / kRun;
    T* y = static_cast<T*>(p.y) + (t.plane * p.out_h + t.out_y0) * p.out_w + t.out_x0;
    for (int item = threadIdx.x; item < t.out_w * runs; item += blockDim.x) {
        const int run = item / t.out_w, column = item - run * t.out_w, first = run * kRun * DOWN;
        float sums[kRun];
        OPS_UNROLL
        for (int j = 0; j < kRun; j++) sums[j] = 0.f;
        OPS_UNROLL
        for (int i = 0; i < kRows; i++) {
            const float value = first + i < t.mid_h ? rows[(first + i) * pitch + column] : 0.f;
            OPS_UNROLL
            for (int j = 0; j < kRun; j++) {
                if (i - j * DOWN >= 0 && i - j * DOWN < TAPS) sums[j] += value * taps[i - j * DOWN];
            }
        }
        OPS_UNROLL
        for (int j = 0; j < kRun; j++) {
            if (run * kRun + j < t.out_h) from_float(sums[j], y[static_cast<int64_t>(run * kRun + j) * p.out_w + column]);
        }
    }
}

template <int DOWN, int TAPS>
__device__ __forceinline__ void down_vertical(const FilteredLreluParams& p, const Tile& t, int pitch, const float* rows) {
    if (p.dtype == kFloat16) {
        down_vertical<half_t, DOWN, TAPS>(p, t, pitch, rows);
    } else if (p.dtype == kBFloat16) {
        down_vertical<bfloat_t, DOWN, TAPS>(p, t, pitch, rows);
    } else {
        down_vertical<float, DOWN, TAPS>(p, t, pitch, rows);
    }
}

// Divides the output into tiles of about equal size: widths are multiples of `unit` up to max_w, heights up to max_h.
inline void choose_tiles(FilteredLreluParams& p, int unit, int max_w, int max_h) {
    p.tiles_x = (p.out_w + max_w - 1) / max_w;
    p.tile_w = ((p.out_w + p.tiles_x - 1) / p.tiles_x + unit - 1) / unit * unit;
    p.tiles_x = (p.out_w + p.tile_w - 1) / p.tile_w;
    p.tiles_y = (p.out_h + max_h - 1) / max_h;
    p.tile_h = (p.out_h + p.tiles_y - 1) / p.tiles_y;
    p.tiles_y = (p.out_h + p.tile_h - 1) / p.tile_h;
    p.first_tile = p.limits.first(p.planes * p.tiles_x * p.tiles_y);
}

inline unsigned grid_size(const FilteredLreluParams& p) { return p.limits.grid(p.planes * p.tiles_x * p.tiles_y); }

}  // namespace fused
}  // namespace ops
