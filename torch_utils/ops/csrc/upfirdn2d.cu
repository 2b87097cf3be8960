// SPDX-License-Identifier: Apache-2.0
// upfirdn2d for any factors, paddings and filters.
//
// Separable filters: a block computes one output tile of one plane. It filters the tile's input rows along x, from
// global to shared memory, and then along y from there to the output. Other filters, filters with too many taps for
// shared memory, and small windows of channels_last images: one thread per output, which reads its window through the
// cache. Only taps that fall on a pixel are evaluated (polyphase), never inserted zeros.
#include "ops.h"
#include "platform.h"

namespace ops {
namespace {

constexpr int kThreads = 256;
constexpr int kTileW = 64, kTileH = 32;
constexpr size_t kMaxShared = 64 * 1024;  // available to a block on all architectures since Turing

struct Tiling {
    int tile_w, tile_h, tiles_x, tiles_y;
    int64_t first, work;
};

// The nonzero taps of an output: `first_tap` at pixel `first_pixel`, then every up-th tap at the following pixels.
template <int UP, int DOWN>
__device__ __forceinline__ void meet(int out, int up, int down, int pad, int& first_pixel, int& first_tap) {
    const int u = UP > 0 ? UP : up, d = DOWN > 0 ? DOWN : down;
    first_pixel = ceil_div(out * d - pad, u);
    first_tap = first_pixel * u + pad - out * d;
}

template <class A>
__device__ __forceinline__ A tap_at(const A* f, int index, int taps, bool reverse) {
    return f == nullptr ? A(1) : f[reverse ? taps - 1 - index : index];
}

// Writes an output in the requested type: the images' type, or float32.
template <class In, class A>
__device__ __forceinline__ void store(const UpfirdnParams& p, int64_t index, A value) {
    if (p.out_dtype == p.in_dtype) {
        from_float(value, static_cast<In*>(p.y)[index]);
    } else if (p.out_dtype == kFloat32) {
        static_cast<float*>(p.y)[index] = static_cast<float>(value);
    } else if (p.out_dtype == kFloat16) {
        from_float(static_cast<float>(value), static_cast<half_t*>(p.y)[index]);
    } else {
        from_float(static_cast<float>(value), static_cast<bfloat_t*>(p.y)[index]);
    }
}

template <class In, int UP, int DOWN>
__global__ void __launch_bounds__(kThreads) separable_kernel(UpfirdnParams p, Tiling t) {
    typedef typename Compute<In>::type A;
    OPS_SHARED(shared);
    A* fx = reinterpret_cast<A*>(shared);
    A* fy = fx + p.taps_x;
    A* between = fy + p.taps_y;  // [rows, tile_w]
    const A* f = static_cast<const A*>(p.f);
    for (int i = threadIdx.x; i < p.taps_x; i += kThreads) fx[i] = tap_at(f, i, p.taps_x, p.reverse);
    for (int i = threadIdx.x; i < p.taps_y; i += kThreads) fy[i] = tap_at(f, i, p.taps_y, p.reverse) * static_cast<A>(p.gain);
    for (int64_t work = t.first + blockIdx.x; work < t.work; work += gridDim.x) {
        __syncthreads();
        const int tile = static_cast<int>(work % (t.tiles_x * t.tiles_y));
        const int64_t plane = work / (t.tiles_x * t.tiles_y);
        const int x0 = tile % t.tiles_x * t.tile_w, y0 = tile / t.tiles_x * t.tile_h;
        const int width = p.out_w - x0 < t.tile_w ? p.out_w - x0 : t.tile_w, height = p.out_h - y0 < t.tile_h ? p.out_h - y0 : t.tile_h;
        int row0, row_end, tap;
        meet<UP, DOWN>(y0, p.up_y, p.down_y, p.pad_y, row0, tap);
        row_end = floor_div((y0 + height - 1) * p.down_y - p.pad_y + p.taps_y - 1, p.up_y) + 1;
        const In* x = static_cast<const In*>(p.x) + plane * p.in_h * p.in_w;
        const A bias = p.b == nullptr ? A(0) : A(to_float(static_cast<const In*>(p.b)[plane % p.channels]));
        for (int item = threadIdx.x; item < (row_end - row0) * width; item += kThreads) {
            const int r = item / width, c = item - r * width, row = row0 + r;
            A sum = A(0);
            if (row >= 0 && row < p.in_h) {
                int pixel;
                meet<UP, DOWN>(x0 + c, p.up_x, p.down_x, p.pad_x, pixel, tap);
                const In* line = x + static_cast<int64_t>(row) * p.in_w;
                for (; tap < p.taps_x; tap += UP > 0 ? UP : p.up_x, pixel++) {
                    if (pixel >= 0 && pixel < p.in_w) sum += (A(to_float(line[pixel])) + bias) * fx[tap];
                }
            }
            between[r * t.tile_w + c] = sum;
        }
        __syncthreads();
        const int64_t y = (plane * p.out_h + y0) * p.out_w + x0;
        for (int item = threadIdx.x; item < height * width; item += kThreads) {
            const int r = item / width, c = item - r * width;
            int row;
            meet<UP, DOWN>(y0 + r, p.up_y, p.down_y, p.pad_y, row, tap);
            const A* column = between + (row - row0) * t.tile_w + c;
            A sum = A(0);
            for (; tap < p.taps_y; tap += UP > 0 ? UP : p.up_y, column += t.tile_w) sum += *column * fy[tap];
            store<In>(p, y + static_cast<int64_t>(r) * p.out_w + c, sum);
        }
    }
}

// Computes value = quotient * divisor + remainder. 64-bit divisions take several times as long as 32-bit ones.
__device__ __forceinline__ void divide(int64_t value, int divisor, int64_t& quotient, int& remainder) {
    if (value <= INT32_MAX) {
        const uint32_t q = static_cast<uint32_t>(value) / static_cast<uint32_t>(divisor);
        quotient = q;
        remainder = static_cast<int>(static_cast<uint32_t>(value) - q * static_cast<uint32_t>(divisor));
    } else {
        quotient = value / divisor;
        remainder = static_cast<int>(value - quotient * divisor);
    }
}

// Supports both memory formats: the pixels of a plane are `pitch` elements apart, and outputs are numbered in memory
// order.
template <class In>
__global__ void __launch_bounds__(kThreads) direct_kernel(UpfirdnParams p, int64_t first, int64_t count) {
    typedef typename Compute<In>::type A;
    const A* f = static_cast<const A*>(p.f);
    const int pitch = p.channels_last ? p.channels : 1;
    first += static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    for (int64_t k = first; k < count; k += static_cast<int64_t>(gridDim.x) * kThreads) {
        int64_t rest = k, plane;
        int channel = 0, column, line;
        if (p.channels_last) divide(rest, p.channels, rest, channel);
        divide(rest, p.out_w, rest, column);
        divide(rest, p.out_h, plane, line);  // channels_last: the sample
        const int64_t origin = plane * p.in_h * p.in_w * pitch + channel;
        if (!p.channels_last) divide(plane, p.channels, plane, channel);
        int first_x, tap_x, row, tap_y;
        meet<0, 0>(column, p.up_x, p.down_x, p.pad_x, first_x, tap_x);
        meet<0, 0>(line, p.up_y, p.down_y, p.pad_y, row, tap_y);
        const In* x = static_cast<const In*>(p.x) + origin;
        const A bias = p.b == nullptr ? A(0) : A(to_float(static_cast<const In*>(p.b)[channel]));
        A sum = A(0);
        for (; tap_y < p.taps_y; tap_y += p.up_y, row++) {
            if (row < 0 || row >= p.in_h) continue;
            const In* pixels = x + static_cast<int64_t>(row) * p.in_w * pitch;
            const A* taps = f == nullptr || p.separable ? f : f + static_cast<int64_t>(p.reverse ? p.taps_y - 1 - tap_y : tap_y) * p.taps_x;
            A line_sum = A(0);
            int pixel = first_x;
            for (int tap = tap_x; tap < p.taps_x; tap += p.up_x, pixel++) {
                if (pixel < 0 || pixel >= p.in_w) continue;
                line_sum += (A(to_float(pixels[static_cast<int64_t>(pixel) * pitch])) + bias) * tap_at(taps, tap, p.taps_x, p.reverse);
            }
            sum += p.separable ? line_sum * tap_at(f, tap_y, p.taps_y, p.reverse) : line_sum;
        }
        store<In>(p, k, sum * static_cast<A>(p.gain));
    }
}

int rows_of_tile(const UpfirdnParams& p, int tile_h) { return ((tile_h - 1) * p.down_y + p.taps_y - 1) / p.up_y + 2; }

// Sets the tiles of the separable kernel and returns its bytes of shared memory, or 0 if the other kernel must be used.
template <class A>
size_t choose_tiles(const UpfirdnParams& p, Tiling& t) {
    if (!p.separable || p.channels_last) return 0;
    t.tile_w = p.out_w < kTileW ? p.out_w : kTileW;
    t.tile_h = p.out_h < kTileH ? p.out_h : kTileH;
    size_t bytes = 0;
    // Long filters need many rows: halve the tile until they fit.
    for (;; t.tile_h = (t.tile_h + 1) / 2) {
        bytes = (static_cast<size_t>(rows_of_tile(p, t.tile_h)) * t.tile_w + p.taps_x + p.taps_y) * sizeof(A);
        if (bytes <= kMaxShared || t.tile_h == 1) break;
    }
    t.tiles_x = (p.out_w + t.tile_w - 1) / t.tile_w;
    t.tiles_y = (p.out_h + t.tile_h - 1) / t.tile_h;
    t.work = p.planes * t.tiles_x * t.tiles_y;
    t.first = p.limits.first(t.work);
    return bytes <= kMaxShared ? bytes : 0;
}

template <class In>
void launch(const UpfirdnParams& p, void* stream) {
    [[maybe_unused]] Stream s = static_cast<Stream>(stream);
    Tiling t;
    const size_t bytes = choose_tiles<typename Compute<In>::type>(p, t);
    if (bytes == 0) {
        const int64_t count = p.planes * p.out_h * p.out_w;
        const int64_t first = p.limits.first(count);
        const unsigned grid = Limits{p.limits.blocks, 0}.grid((count - first + kThreads - 1) / kThreads);
        OPS_LAUNCH((direct_kernel<In>), grid, kThreads, 0, s, p, first, count);
        return;
    }
    const unsigned grid = p.limits.grid(t.work);
    if constexpr (sizeof(In) <= 4) {
        // Common factors are compile-time constants, which removes the divisions.
        const bool square = p.up_x == p.up_y && p.down_x == p.down_y;
        if (square && p.up_x == 1 && p.down_x == 1) {
            OPS_LAUNCH((separable_kernel<In, 1, 1>), grid, kThreads, bytes, s, p, t);
            return;
        }
        if (square && p.up_x == 2 && p.down_x == 1) {
            OPS_LAUNCH((separable_kernel<In, 2, 1>), grid, kThreads, bytes, s, p, t);
            return;
        }
        if (square && p.up_x == 1 && p.down_x == 2) {
            OPS_LAUNCH((separable_kernel<In, 1, 2>), grid, kThreads, bytes, s, p, t);
            return;
        }
    }
    OPS_LAUNCH((separable_kernel<In, 0, 0>), grid, kThreads, bytes, s, p, t);
}

}  // namespace

void upfirdn2d(const UpfirdnParams& p, void* stream) {
    if (p.planes == 0) return;
    switch (p.in_dtype) {
        case kFloat32: launch<float>(p, stream); break;
        case kFloat16: launch<half_t>(p, stream); break;
        case kBFloat16: launch<bfloat_t>(p, stream); break;
        case kFloat64: launch<double>(p, stream); break;
    }
}

}  // namespace ops
