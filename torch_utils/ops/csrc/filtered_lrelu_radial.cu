// SPDX-License-Identifier: Apache-2.0
// filtered_lrelu with one non-separable filter in a single pass. This is the downsampling filter in the forward pass
// and the upsampling filter in the gradient. The samples at the middle resolution are in shared memory; the taps of the
// full filter are loaded into registers column by column. The speed is limited by multiplications: taps^2 per output
// (docs/kernels.md).
#include "filtered_lrelu.h"

namespace ops {
namespace {

using namespace fused;

constexpr int kRun = 6;       // outputs of a column that a thread computes at once
constexpr int kChunk = 16;    // samples of a row that a thread computes at once: a word of codes
constexpr int kUnit = 4;      // tile widths are multiples of it, so that the codes of a tile start at a whole byte

__host__ __device__ __forceinline__ int mid_size(int out, int down, int taps) { return (out - 1) * down + taps; }

// Shared arrays of the kernel with a full downsampling filter.
template <int UP, int K, int DOWN, int TAPS>
struct DownShape {
    static constexpr int kGroups = (kChunk + 2 * (UP - 1)) / UP;  // groups that cover a chunk for any position of its first sample in its group
    static __host__ __device__ int chunks(int out_w) { return (mid_size(out_w, DOWN, TAPS) + kChunk - 1) / kChunk; }
    static __host__ __device__ int columns(int out_w) { return (chunks(out_w) - 1) * (kChunk / UP) + kGroups + K - 1; }
    // The samples of a row are ordered by their index modulo DOWN, so that adjacent outputs read adjacent words.
    static __host__ __device__ int part(int out_w) { return (mid_size(out_w, DOWN, TAPS) + DOWN - 1) / DOWN; }
    // A warp that reaches the last column of a run continues with the next run, kRun * DOWN rows below. With an odd
    // pitch for which this step equals the width modulo the 32 banks of shared memory, the warp uses no bank twice.
    static __host__ __device__ int mid_pitch(int out_w) {
        const int least = odd(DOWN * part(out_w));
        for (int pitch = least; pitch < least + 8; pitch += 2) {
            if ((kRun * DOWN * pitch - out_w) % 32 == 0) return pitch;
        }
        return least;
    }
    static __host__ __device__ int code_pitch(int out_w) { return 2 * chunks(out_w); }
    static size_t bytes(int out_w, int out_h) {
        const size_t row = sizeof(float) * (odd(columns(out_w)) + mid_pitch(out_w)) + sizeof(uint16_t) * code_pitch(out_w);
        return row * mid_size(out_h, DOWN, TAPS) + sizeof(float) * TAPS * TAPS;
    }
};

// Upsamples along x and applies phi: `up` [mid_h, up_pitch] to `mid` [mid_h, DOWN, part]. The threads of a warp process
// adjacent rows.
template <int UP, int K, int DOWN, int TAPS, int MODE>
__device__ __forceinline__ void up_horizontal(
    const FilteredLreluParams& p, const Tile& t, const float* up, int up_pitch, float* mid, int mid_pitch, int part, uint16_t* codes, int code_pitch
) {
    typedef DownShape<UP, K, DOWN, TAPS> S;
    constexpr int kWords = (S::kGroups * UP + 15) / 16;
    float taps[UP * K];
    load_taps<UP * K>(p.fu, p.reverse_up, 1.f, taps);
    const int chunks = S::chunks(t.out_w);
    for (int item = threadIdx.x; item < t.mid_h * chunks; item += blockDim.x) {
        const int chunk = item / t.mid_h, row = item - chunk * t.mid_h;
        const float* source = up + row * up_pitch + chunk * (kChunk / UP);
        uint16_t* units = codes + row * code_pitch + 2 * chunk;
        uint32_t words[kWords + 1], saved = 0;
        OPS_UNROLL
        for (int i = 0; i <= kWords; i++) words[i] = 0;
        if (MODE == kGated) saved = units[0] | static_cast<uint32_t>(units[1]) << 16;
        float v[S::kGroups + K - 1];
        OPS_UNROLL
        for (int k = 0; k < S::kGroups + K - 1; k++) v[k] = source[k];
        OPS_UNROLL
        for (int g = 0; g < S::kGroups; g++) {
            OPS_UNROLL
            for (int r = UP - 1; r >= 0; r--) {
                const int place = g * UP + UP - 1 - r, sample = place - t.lead_x, column = chunk * kChunk + sample;
                float u = 0.f;
                OPS_UNROLL
                for (int k = 0; k < K; k++) u += v[g + k] * taps[r + k * UP];
                if (MODE == kGated) {
                    u = gated(p, u, saved >> (2 * (sample & 15)));
                } else {
                    uint32_t code;
                    u = activate(p, u, code);
                    if (MODE == kSave) words[place / 16] |= code << (2 * (place % 16));
                }
                if (sample >= 0 && sample < kChunk && column < t.mid_w) mid[row * mid_pitch + column % DOWN * part + column / DOWN] = u;
            }
        }
        if (MODE == kSave) {
            const uint32_t word = funnel_right(words[0], words[1], 2 * t.lead_x);
            units[0] = static_cast<uint16_t>(word);
            units[1] = static_cast<uint16_t>(word >> 16);
        }
    }
}

// Downsamples with a full filter `taps` [x][y] in shared memory. The threads of a warp process adjacent columns.
template <class T, int DOWN, int TAPS>
__device__ __forceinline__ void down_full(const FilteredLreluParams& p, const Tile& t, const float* mid, int mid_pitch, int part, const float* taps) {
    constexpr int kRows = (kRun - 1) * DOWN + TAPS;
    const int runs = (t.out_h + kRun - 1) / kRun;
    T* y = static_cast<T*>(p.y) + (t.plane * p.out_h + t.out_y0) * p.out_w + t.out_x0;
    for (int item = threadIdx.x; item < t.out_w * runs; item += blockDim.x) {
        const int run = item / t.out_w, column = item - run * t.out_w, first = run * kRun * DOWN;
        float sums[kRun];
        OPS_UNROLL
        for (int j = 0; j < kRun; j++) sums[j] = 0.f;
        for (int tap = 0; tap < TAPS; tap++) {
            float f[TAPS];
            OPS_UNROLL
            for (int i = 0; i < TAPS; i++) f[i] = taps[tap * TAPS + i];
            const float* source = mid + first * mid_pitch + tap % DOWN * part + column + tap / DOWN;
            OPS_UNROLL
            for (int i = 0; i < kRows; i++) {
                const float value = first + i < t.mid_h ? source[i * mid_pitch] : 0.f;
                OPS_UNROLL
                for (int j = 0; j < kRun; j++) {
                    if (i - j * DOWN >= 0 && i - j * DOWN < TAPS) sums[j] += value * f[i - j * DOWN];
                }
            }
        }
        OPS_UNROLL
        for (int j = 0; j < kRun; j++) {
            if (run * kRun + j < t.out_h) from_float(sums[j], y[static_cast<int64_t>(run * kRun + j) * p.out_w + column]);
        }
    }
}

// Loads a full filter of N x N taps into shared memory as [x][y], in the order of the samples or pixels.
template <int N>
__device__ __forceinline__ void load_full(const float* f, bool reverse, float factor, float* taps) {
    for (int i = threadIdx.x; i < N * N; i += blockDim.x) {
        const int x = i / N, y = i - x * N;
        taps[i] = f[reverse ? (N - 1 - y) * N + N - 1 - x : y * N + x] * factor;
    }
}

template <int UP, int K, int DOWN, int TAPS, int MODE>
__global__ void __launch_bounds__(kMaxThreads, 2) full_down_kernel(FilteredLreluParams p) {
    typedef DownShape<UP, K, DOWN, TAPS> S;
    OPS_SHARED(shared);
    const int up_pitch = odd(S::columns(p.tile_w)), part = S::part(p.tile_w), mid_pitch = S::mid_pitch(p.tile_w);
    const int code_pitch = S::code_pitch(p.tile_w), mid_h = mid_size(p.tile_h, DOWN, TAPS);
    float* taps = reinterpret_cast<float*>(shared);
    float* up = taps + TAPS * TAPS;
    float* mid = up + mid_h * up_pitch;
    uint16_t* codes = reinterpret_cast<uint16_t*>(mid + mid_h * mid_pitch);
    load_full<TAPS>(p.fd, p.reverse_down, 1.f, taps);
    const int64_t work_end = p.planes * p.tiles_x * p.tiles_y;
    for (int64_t work = p.first_tile + blockIdx.x; work < work_end; work += gridDim.x) {
        const Tile t = make_tile(p, work);
        up_vertical<UP, K>(p, t, S::columns(t.out_w), up_pitch, up);
        if (MODE == kGated) read_codes(p, t, code_pitch, codes);
        __syncthreads();
        up_horizontal<UP, K, DOWN, TAPS, MODE>(p, t, up, up_pitch, mid, mid_pitch, part, codes, code_pitch);
        __syncthreads();
        if (p.dtype == kFloat16) {
            down_full<half_t, DOWN, TAPS>(p, t, mid, mid_pitch, part, taps);
        } else if (p.dtype == kBFloat16) {
            down_full<bfloat_t, DOWN, TAPS>(p, t, mid, mid_pitch, part, taps);
        } else {
            down_full<float, DOWN, TAPS>(p, t, mid, mid_pitch, part, taps);
        }
        if (MODE == kSave) write_codes(p, t, code_pitch, codes);
    }
}

// Shared arrays of the kernel with a full upsampling filter.
template <int UP, int K, int DOWN, int TAPS>
struct UpShape {
    static constexpr int kGroups = 12;  // groups of a column that a thread computes at once
    static __host__ __device__ int pixels(int out) { return (mid_size(out, DOWN, TAPS) + UP - 1) / UP + K; }
    static __host__ __device__ int code_pitch(int out_w) { return (mid_size(out_w, DOWN, TAPS) + 7) / 8; }
    static size_t bytes(int out_w, int out_h) {
        const size_t mid_w = mid_size(out_w, DOWN, TAPS), mid_h = mid_size(out_h, DOWN, TAPS);
        const size_t floats = static_cast<size_t>(pixels(out_w)) * pixels(out_h) + mid_h * (odd(static_cast<int>(mid_w)) + odd(out_w)) + UP * K * UP * K;
        return sizeof(float) * floats + sizeof(uint16_t) * mid_h * code_pitch(out_w);
    }
};

// Loads the tile's pixels into shared memory, [pixels, pitch].
template <class T>
__device__ __forceinline__ void load_pixels(const FilteredLreluParams& p, const Tile& t, int width, int height, float* pixels) {
    const T* x = static_cast<const T*>(p.x) + t.plane * p.in_h * p.in_w;
    const float bias = p.b == nullptr ? 0.f : to_float(static_cast<const T*>(p.b)[t.plane % p.channels]);
    for (int i = threadIdx.x; i < width * height; i += blockDim.x) {
        const int r = i / width, row = t.group_y0 + r, column = t.group_x0 + i - r * width;
        const bool inside = row >= 0 && row < p.in_h && column >= 0 && column < p.in_w;
        pixels[i] = inside ? to_float(x[static_cast<int64_t>(row) * p.in_w + column]) + bias : 0.f;
    }
}

// Upsamples with a full filter and applies the codes, to `mid` [mid_h, mid_pitch]. The threads of a warp process
// adjacent columns.
template <int UP, int K, int DOWN, int TAPS>
__device__ __forceinline__ void up_full(
    const FilteredLreluParams& p, const Tile& t, const float* pixels, int width, int height, const float* taps, float* mid, int mid_pitch,
    const uint16_t* codes, int code_pitch
) {
    constexpr int kGroups = UpShape<UP, K, DOWN, TAPS>::kGroups, kTaps = UP * K;
    const int runs = ((t.lead_y + t.mid_h + UP - 1) / UP + kGroups - 1) / kGroups;
    for (int item = threadIdx.x; item < t.mid_w * runs; item += blockDim.x) {
        const int run = item / t.mid_w, column = item - run * t.mid_w, place = column + t.lead_x, group = place / UP, r_x = UP - 1 - place % UP;
        float sums[kGroups * UP];
        OPS_UNROLL
        for (int i = 0; i < kGroups * UP; i++) sums[i] = 0.f;
        for (int k_x = 0; k_x < K; k_x++) {
            float f[kTaps], v[kGroups + K - 1];
            OPS_UNROLL
            for (int i = 0; i < kTaps; i++) f[i] = taps[(r_x + k_x * UP) * kTaps + i];
            OPS_UNROLL
            for (int i = 0; i < kGroups + K - 1; i++) {
                const int row = run * kGroups + i;
                v[i] = row < height ? pixels[row * width + group + k_x] : 0.f;
            }
            OPS_UNROLL
            for (int g = 0; g < kGroups; g++) {
                OPS_UNROLL
                for (int r = UP - 1; r >= 0; r--) {
                    OPS_UNROLL
                    for (int k = 0; k < K; k++) sums[g * UP + UP - 1 - r] += v[g + k] * f[r + k * UP];
                }
            }
        }
        OPS_UNROLL
        for (int i = 0; i < kGroups * UP; i++) {
            const int row = run * kGroups * UP + i - t.lead_y;
            if (row >= 0 && row < t.mid_h) mid[row * mid_pitch + column] = gated(p, sums[i], codes[row * code_pitch + column / 8] >> (2 * (column % 8)));
        }
    }
}

// Downsamples along x: `mid` [mid_h, mid_pitch] to `out` [mid_h, out_pitch]. The threads of a warp process adjacent
// rows.
template <int DOWN, int TAPS>
__device__ __forceinline__ void down_horizontal(const FilteredLreluParams& p, const Tile& t, const float* mid, int mid_pitch, float* out, int out_pitch) {
    constexpr int kSamples = (kRun - 1) * DOWN + TAPS;
    float taps[TAPS];
    load_taps<TAPS>(p.fd, p.reverse_down, 1.f, taps);
    const int runs = (t.out_w + kRun - 1) / kRun;
    for (int item = threadIdx.x; item < t.mid_h * runs; item += blockDim.x) {
        const int run = item / t.mid_h, row = item - run * t.mid_h, first = run * kRun * DOWN;
        float sums[kRun];
        OPS_UNROLL
        for (int j = 0; j < kRun; j++) sums[j] = 0.f;
        OPS_UNROLL
        for (int i = 0; i < kSamples; i++) {
            const float value = first + i < t.mid_w ? mid[row * mid_pitch + first + i] : 0.f;
            OPS_UNROLL
            for (int j = 0; j < kRun; j++) {
                if (i - j * DOWN >= 0 && i - j * DOWN < TAPS) sums[j] += value * taps[i - j * DOWN];
            }
        }
        OPS_UNROLL
        for (int j = 0; j < kRun; j++) {
            if (run * kRun + j < t.out_w) out[row * out_pitch + run * kRun + j] = sums[j];
        }
    }
}

template <int UP, int K, int DOWN, int TAPS>
__global__ void __launch_bounds__(kMaxThreads, 2) full_up_kernel(FilteredLreluParams p) {
    typedef UpShape<UP, K, DOWN, TAPS> S;
    OPS_SHARED(shared);
    const int mid_pitch = odd(mid_size(p.tile_w, DOWN, TAPS)), out_pitch = odd(p.tile_w), code_pitch = S::code_pitch(p.tile_w);
    const int mid_h = mid_size(p.tile_h, DOWN, TAPS);
    float* taps = reinterpret_cast<float*>(shared);
    float* pixels = taps + UP * K * UP * K;
    float* mid = pixels + S::pixels(p.tile_w) * S::pixels(p.tile_h);
    float* out = mid + mid_h * mid_pitch;
    uint16_t* codes = reinterpret_cast<uint16_t*>(out + mid_h * out_pitch);
    load_full<UP * K>(p.fu, p.reverse_up, p.up_gain, taps);
    const int64_t work_end = p.planes * p.tiles_x * p.tiles_y;
    for (int64_t work = p.first_tile + blockIdx.x; work < work_end; work += gridDim.x) {
        const Tile t = make_tile(p, work);
        const int width = S::pixels(t.out_w), height = S::pixels(t.out_h);
        if (p.dtype == kFloat16) {
            load_pixels<half_t>(p, t, width, height, pixels);
        } else if (p.dtype == kBFloat16) {
            load_pixels<bfloat_t>(p, t, width, height, pixels);
        } else {
            load_pixels<float>(p, t, width, height, pixels);
        }
        read_codes(p, t, code_pitch, codes);
        __syncthreads();
        up_full<UP, K, DOWN, TAPS>(p, t, pixels, width, height, taps, mid, mid_pitch, codes, code_pitch);
        __syncthreads();
        down_horizontal<DOWN, TAPS>(p, t, mid, mid_pitch, out, out_pitch);
        __syncthreads();
        down_vertical<DOWN, TAPS>(p, t, out_pitch, out);
    }
}

template <class Shape, int DOWN, int TAPS>
size_t fit(FilteredLreluParams& p) {
    for (int size = 40;; size -= 4) {
        choose_tiles(p, kUnit, size, size);
        const size_t bytes = Shape::bytes(p.tile_w, p.tile_h);
        if (bytes <= kMaxShared) return bytes;
    }
}

template <int UP, int K, int DOWN, int TAPS>
bool launch_full_down(FilteredLreluParams p, void* stream) {
    const size_t bytes = fit<DownShape<UP, K, DOWN, TAPS>, DOWN, TAPS>(p);
    [[maybe_unused]] Stream s = static_cast<Stream>(stream);
    if (p.mode == kGated) {
        OPS_LAUNCH((full_down_kernel<UP, K, DOWN, TAPS, kGated>), grid_size(p), kMaxThreads, bytes, s, p);
    } else if (p.mode == kSave) {
        OPS_LAUNCH((full_down_kernel<UP, K, DOWN, TAPS, kSave>), grid_size(p), kMaxThreads, bytes, s, p);
    } else {
        OPS_LAUNCH((full_down_kernel<UP, K, DOWN, TAPS, kPlain>), grid_size(p), kMaxThreads, bytes, s, p);
    }
    return true;
}

template <int UP, int K, int DOWN, int TAPS>
bool launch_full_up(FilteredLreluParams p, void* stream) {
    const size_t bytes = fit<UpShape<UP, K, DOWN, TAPS>, DOWN, TAPS>(p);
    [[maybe_unused]] Stream s = static_cast<Stream>(stream);
    OPS_LAUNCH((full_up_kernel<UP, K, DOWN, TAPS>), grid_size(p), kMaxThreads, bytes, s, p);
    return true;
}

}  // namespace

bool filtered_lrelu_radial(const FilteredLreluParams& p, void* stream, bool probe) {
    if (p.dtype == kFloat64) return false;
    const bool up2 = p.up == 2 && p.up_taps == 12, up4 = p.up == 4 && p.up_taps == 24;
    const bool down2 = p.down == 2 && p.down_taps == 12, down4 = p.down == 4 && p.down_taps == 24;
    if (p.down_full && !p.up_full) {
        if (up2 && down2) return probe || launch_full_down<2, 6, 2, 12>(p, stream);
        if (up4 && down2) return probe || launch_full_down<4, 6, 2, 12>(p, stream);
    }
    if (p.up_full && !p.down_full && p.mode == kGated) {
        if (up2 && down2) return probe || launch_full_up<2, 6, 2, 12>(p, stream);
        if (up2 && down4) return probe || launch_full_up<2, 6, 4, 24>(p, stream);
    }
    return false;
}

}  // namespace ops
