// SPDX-License-Identifier: Apache-2.0
// filtered_lrelu with separable filters in a single pass: upsampling along y from memory; then upsampling, activation
// and downsampling along x in registers; then downsampling along y to memory. The image at the middle resolution is
// never stored, not even in shared memory. The speed is limited by instruction issue (docs/kernels.md).
#include "filtered_lrelu.h"

namespace ops {
namespace {

using namespace fused;

constexpr int kRun = 12;  // outputs of a row that a thread computes at once

template <int UP, int K, int DOWN, int TAPS>
struct Shape {
    static constexpr int kLong = TAPS + UP - 1;  // taps and the zeros of the lead
    static constexpr int kGroups = ((kRun - 1) * DOWN + kLong + UP - 1) / UP;
    static constexpr int kSamples = kGroups * UP;
    static constexpr int kWords = (kSamples + 15) / 16;
    static constexpr int kOwnUnits = kRun * DOWN / 8;
    static_assert(kRun * DOWN % 8 == 0 && kRun * DOWN % UP == 0, "runs start at whole units of codes and at group boundaries");

    static __host__ __device__ int runs(int out_w) { return (out_w + kRun - 1) / kRun; }
    static __host__ __device__ int columns(int out_w) { return (runs(out_w) - 1) * (kRun * DOWN / UP) + kGroups + K - 1; }
    static __host__ __device__ int code_pitch(int out_w) { return ((out_w - 1) * DOWN + TAPS + 7) / 8; }
    static __host__ __device__ int mid_h(int out_h) { return (out_h - 1) * DOWN + TAPS; }
};

// Upsampling, phi and downsampling along x: `up` [mid_h, up_pitch] to `out` [mid_h, out_pitch]. The threads of a warp
// process adjacent rows.
template <int UP, int K, int DOWN, int TAPS, int MODE>
__device__ __forceinline__ void horizontal(
    const FilteredLreluParams& p, const Tile& t, const float* up, int up_pitch, float* out, int out_pitch, uint16_t* codes, int code_pitch
) {
    typedef Shape<UP, K, DOWN, TAPS> S;
    float up_taps[UP * K], down_taps[S::kLong];
    load_taps<UP * K>(p.fu, p.reverse_up, 1.f, up_taps);
    OPS_UNROLL
    for (int i = 0; i < S::kLong; i++) {
        const int tap = i - t.lead_x;
        down_taps[i] = tap >= 0 && tap < TAPS ? p.fd[p.reverse_down ? TAPS - 1 - tap : tap] : 0.f;
    }
    const int runs = S::runs(t.out_w);
    for (int item = threadIdx.x; item < t.mid_h * runs; item += blockDim.x) {
        const int run = item / t.mid_h, row = item - run * t.mid_h;
        const float* source = up + row * up_pitch + run * (kRun * DOWN / UP);
        float* target = out + row * out_pitch + run * kRun;
        uint16_t* units = codes + row * code_pitch + run * S::kOwnUnits;
        const int units_left = code_pitch - run * S::kOwnUnits;
        uint32_t words[S::kWords];
        if (MODE == kGated) {
            uint32_t before = 0;
            OPS_UNROLL
            for (int i = 0; i < S::kWords; i++) {
                uint32_t word = 2 * i < units_left ? units[2 * i] : kOutside & 0xffffu;
                word |= (2 * i + 1 < units_left ? units[2 * i + 1] : kOutside & 0xffffu) << 16;
                words[i] = funnel_left(before, word, 2 * t.lead_x);
                before = word;
            }
        } else {
            OPS_UNROLL
            for (int i = 0; i < S::kWords; i++) words[i] = 0;
        }
        float v[S::kGroups + K - 1], sums[kRun];
        OPS_UNROLL
        for (int k = 0; k < K - 1; k++) v[k] = source[k];
        OPS_UNROLL
        for (int j = 0; j < kRun; j++) sums[j] = 0.f;
        OPS_UNROLL
        for (int g = 0; g < S::kGroups; g++) {
            v[g + K - 1] = source[g + K - 1];
            OPS_UNROLL
            for (int r = UP - 1; r >= 0; r--) {
                const int sample = g * UP + UP - 1 - r;
                float u = 0.f;
                OPS_UNROLL
                for (int k = 0; k < K; k++) u += v[g + k] * up_taps[r + k * UP];
                if (MODE == kGated) {
                    u = gated(p, u, words[sample / 16] >> (2 * (sample % 16)));
                } else {
                    uint32_t code;
                    u = activate(p, u, code);
                    if (MODE == kSave) words[sample / 16] |= code << (2 * (sample % 16));
                }
                OPS_UNROLL
                for (int j = 0; j < kRun; j++) {
                    if (sample - j * DOWN >= 0 && sample - j * DOWN < S::kLong) sums[j] += u * down_taps[sample - j * DOWN];
                }
            }
        }
        OPS_UNROLL
        for (int j = 0; j < kRun; j++) {
            if (run * kRun + j < t.out_w) target[j] = sums[j];
        }
        if (MODE == kSave) {
            const int count = run == runs - 1 ? units_left : S::kOwnUnits;
            OPS_UNROLL
            for (int i = 0; i < S::kWords; i++) {
                const uint32_t word = funnel_right(words[i], i + 1 < S::kWords ? words[i + 1] : 0u, 2 * t.lead_x);
                if (2 * i < count) units[2 * i] = static_cast<uint16_t>(word);
                if (2 * i + 1 < count) units[2 * i + 1] = static_cast<uint16_t>(word >> 16);
            }
        }
    }
}

template <int UP, int K, int DOWN, int TAPS, int MODE>
__global__ void __launch_bounds__(kMaxThreads, 2) separable_kernel(FilteredLreluParams p) {
    typedef Shape<UP, K, DOWN, TAPS> S;
    OPS_SHARED(shared);
    const int up_pitch = odd(S::columns(p.tile_w)), out_pitch = odd(p.tile_w), code_pitch = S::code_pitch(p.tile_w), mid_h = S::mid_h(p.tile_h);
    float* up = reinterpret_cast<float*>(shared);
    float* out = up + mid_h * up_pitch;
    uint16_t* codes = reinterpret_cast<uint16_t*>(out + mid_h * out_pitch);
    const int64_t work_end = p.planes * p.tiles_x * p.tiles_y;
    for (int64_t work = p.first_tile + blockIdx.x; work < work_end; work += gridDim.x) {
        const Tile t = make_tile(p, work);
        up_vertical<UP, K>(p, t, S::columns(t.out_w), up_pitch, up);
        if (MODE == kGated) read_codes(p, t, code_pitch, codes);
        __syncthreads();
        horizontal<UP, K, DOWN, TAPS, MODE>(p, t, up, up_pitch, out, out_pitch, codes, code_pitch);
        __syncthreads();
        down_vertical<DOWN, TAPS>(p, t, out_pitch, out);
        if (MODE == kSave) write_codes(p, t, code_pitch, codes);
        // No barrier is needed here: before its first barrier, the next tile writes only `up` and codes that were read,
        // which no thread reads after the second barrier.
    }
}

template <int UP, int K, int DOWN, int TAPS>
bool launch(FilteredLreluParams p, void* stream) {
    typedef Shape<UP, K, DOWN, TAPS> S;
    size_t bytes = 0;
    for (int max_w = 60, max_h = 40;; max_w = max_w > 24 ? max_w - 12 : max_w, max_h -= 8) {
        choose_tiles(p, kRun, max_w, max_h);
        const size_t row = sizeof(float) * (odd(S::columns(p.tile_w)) + odd(p.tile_w)) + sizeof(uint16_t) * S::code_pitch(p.tile_w);
        bytes = row * S::mid_h(p.tile_h);
        if (bytes <= kMaxShared) break;
    }
    const unsigned threads = S::mid_h(p.tile_h) * S::runs(p.tile_w) <= 160 ? 128 : kMaxThreads;
    [[maybe_unused]] Stream s = static_cast<Stream>(stream);
    if (p.mode == kGated) {
        OPS_LAUNCH((separable_kernel<UP, K, DOWN, TAPS, kGated>), grid_size(p), threads, bytes, s, p);
    } else if constexpr (DOWN <= 2) {
        // Larger factors occur only in backward passes.
        if (p.mode == kSave) {
            OPS_LAUNCH((separable_kernel<UP, K, DOWN, TAPS, kSave>), grid_size(p), threads, bytes, s, p);
        } else {
            OPS_LAUNCH((separable_kernel<UP, K, DOWN, TAPS, kPlain>), grid_size(p), threads, bytes, s, p);
        }
    }
    return true;
}

}  // namespace

bool filtered_lrelu_separable(const FilteredLreluParams& p, void* stream, bool probe) {
    if (p.up_full || p.down_full || p.dtype == kFloat64) return false;
    const bool up2 = p.up == 2 && p.up_taps == 12, down2 = p.down == 2 && p.down_taps == 12;
    if (up2 && down2) return probe || launch<2, 6, 2, 12>(p, stream);
    if (p.up == 4 && p.up_taps == 24 && down2) return probe || launch<4, 6, 2, 12>(p, stream);
    if (up2 && p.down == 4 && p.down_taps == 24 && p.mode == kGated) return probe || launch<2, 6, 4, 24>(p, stream);
    return false;
}

}  // namespace ops
