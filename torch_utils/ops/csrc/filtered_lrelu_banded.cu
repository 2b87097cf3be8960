// SPDX-License-Identifier: Apache-2.0
// filtered_lrelu with separable filters on tensor cores: each of the four filter passes is a product with a banded
// matrix. Float16 or bfloat16 in, sums in float32, and the results of every pass are rounded to the type of the image.
//
// A warp computes a strip of outputs, up to 8 blocks of 16 samples wide, from top to bottom in steps of 16 samples. For
// each block of 16 x 16 samples:
//
//   v [samples y, pixels x] = up_y [16, 16] pixels [16, 8], for each group of 8 columns of pixels
//   u [samples y, samples x] = v [16, 16] up_x [16, 8], twice
//   z [outputs x, samples y] += down_x [16, 16] transposed phi(u) [16, 8], twice
//   y [outputs y, outputs x] += down_y [16, 16] transposed z [16, 8]
//
// 16 samples depend on at most 16 pixels and contribute to at most 16 outputs. Of these, the first half is complete
// after the block, and the second half goes on in the next one. An accumulator [16, 8] is, without any exchange between
// threads, a part of the left operand of the next product, and transposed of the right operand. So pixels pass through
// shared memory on their way in, outputs and codes on their way out, and nothing else does (docs/kernels.md).
//
// The columns of u are in the order in which each thread has four consecutive samples of a row: a byte of codes.
#include <algorithm>
#include <cmath>

#include "filtered_lrelu.h"

namespace ops {
namespace {

using namespace fused;

constexpr int kWarps = 4;       // of a thread block; each works for itself
constexpr int kBlocks = 8;      // of 16 samples in a strip: a row of codes has as many bytes as a warp has threads
constexpr int kMargin = 40;     // zeros on both sides of the taps of a table
constexpr int kTable = 2 * kMargin + 32;
constexpr int kCodePitch = 36;  // bytes; nine words, so that eight rows are in different banks
constexpr int64_t kMostBlocks = 2048;  // of a grid, so that a block does several tiles where there are many
constexpr int64_t kManyTiles = 4096;   // enough to occupy a device
constexpr int kLeastRows = 32;         // of a tile, unless the image has fewer

// Sizes for factors UP and DOWN.
template <int UP, int DOWN>
struct Strip {
    static constexpr int kGroups = 16 / DOWN - 1;       // of 8 outputs
    static constexpr int kWidth = 8 * kGroups;
    static constexpr int kSources = 16 / UP + 1;        // groups of 8 pixels
    static constexpr int kSourceWords = 4 * kSources;   // pairs of pixels in a row
    static constexpr int kOutWords = 4 * kGroups;
    static constexpr int kAtOnce = UP == 2 ? 32 : 16;   // words of a row that a warp loads at once, the last four excepted
    static constexpr int kOutAtOnce = DOWN == 2 ? 32 : 16;
    static_assert(kAtOnce + 4 == kSourceWords && kOutWords <= kOutAtOnce, "rows are loaded and stored whole");
};

// Shared memory of a block: tables of the taps (along y, along x, down), factors of codes, then for each warp pixels,
// outputs and codes.
template <int UP, int DOWN>
struct Layout {
    typedef Strip<UP, DOWN> S;
    static constexpr int kPixels = 8 * S::kSourceWords * 4, kOutputs = 8 * S::kOutWords * 4, kCodes = 16 * kCodePitch;
    static constexpr int kFactors = 3 * kTable * 2, kFirstWarp = kFactors + 16 * 4, kWarpBytes = kPixels + kOutputs + kCodes;
    static constexpr int kBytes = kFirstWarp + kWarps * kWarpBytes;
    static_assert(kFactors % 16 == 0 && kWarpBytes % 16 == 0, "rows of pixels begin at multiples of 16 bytes");
};

// The geometry that is the same for all tiles. Sample `s` of a strip depends on pixel `i` through the tap
// up * i + shift - s, and contributes to output `o` through the tap s + reach - down * o; outputs 8 and up are the strip's.
struct Axis {
    int lead;   // samples before the first one that the outputs depend on
    int shift;
    int reach;
};

__device__ __forceinline__ int first_sample(int out0, int down, int crop, int lead) { return out0 * down - crop - lead; }

// The first pixel of a strip whose first sample is `mid0`; a multiple of `unit`.
__device__ __forceinline__ int first_pixel(int mid0, int up, int pad, int unit) { return floor_div(floor_div(up - 1 + mid0 - pad, up), unit) * unit; }

__device__ __forceinline__ Axis make_axis(int up, int down, int pad, int crop, int mid_unit, int pixel_unit) {
    Axis a;
    a.lead = -crop - floor_div(-crop, mid_unit) * mid_unit;
    const int mid0 = first_sample(0, down, crop, a.lead);
    a.shift = up * first_pixel(mid0, up, pad, pixel_unit) + pad - mid0;
    a.reach = 8 * down - a.lead;
    return a;
}

// A thread's fragments of the banded matrices, from a table of taps that has zeros on both sides. Index 1: for every
// second block.
template <int UP, int DOWN>
struct Matrices {
    uint32_t up_y[2][4], up_x[2][2][2], down_x[2][4], down_y[2][4];
};

__device__ __forceinline__ uint32_t two_taps(const uint16_t* table, int tap, int next) {
    return table[kMargin + tap] | static_cast<uint32_t>(table[kMargin + next]) << 16;
}

template <int UP, int DOWN>
__device__ __forceinline__ Matrices<UP, DOWN> make_matrices(const uint16_t* tables, const Axis& x, const Axis& y) {
    const uint16_t *up_y = tables, *up_x = tables + kTable, *down = tables + 2 * kTable;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    Matrices<UP, DOWN> m;
    OPS_UNROLL
    for (int h = 0; h < 2; h++) {
        // With a factor of 4, the pixels of every second block begin in the middle of a group, and its outputs too.
        const int pixel = UP == 4 ? 4 * h : 0, sample = DOWN == 4 ? 16 * h : 0;
        OPS_UNROLL
        for (int i = 0; i < 4; i++) {
            const int row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
            const int tap = UP * (column - pixel) + y.shift - row;
            m.up_y[h][i] = two_taps(up_y, tap, tap + UP);
            const int from = column + sample + y.reach - DOWN * row;
            m.down_y[h][i] = two_taps(down, from, from + 1);
            // With a factor of 2, the halves of the sums change places after every block.
            const int out = DOWN == 2 ? (row + 8 * h) % 16 : row;
            const int along = 4 * t + i / 2 * 2 + sample + x.reach - DOWN * out;
            m.down_x[h][i] = two_taps(down, along, along + 1);
        }
        OPS_UNROLL
        for (int n = 0; n < 2; n++) {
            OPS_UNROLL
            for (int i = 0; i < 2; i++) {
                const int source = UP == 2 ? 2 * t + (i + h) % 2 * 8 : 2 * t + i * 8 - pixel;
                const int tap = UP * source + x.shift - (g / 2 * 4 + n * 2 + g % 2);
                m.up_x[h][n][i] = two_taps(up_x, tap, tap + UP);
            }
        }
    }
    return m;
}

// Fills the tables of taps, in the order of make_matrices, and the factors of two codes.
template <class T>
__device__ __forceinline__ void make_tables(const FilteredLreluParams& p, uint16_t* tables, uint32_t* factors) {
    const float up_gain = sqrtf(p.up_gain);
    for (int item = threadIdx.x; item < 3 * kTable; item += blockDim.x) {
        const int which = item / kTable, tap = item % kTable - kMargin;
        const int taps = which == 2 ? p.down_taps : p.up_taps;
        const bool reverse = which == 2 ? p.reverse_down : p.reverse_up;
        const float gain = which == 2 ? 1.f : which == 1 ? up_gain * p.gain : up_gain;
        float value = 0.f;
        if (tap >= 0 && tap < taps) value = (which == 2 ? p.fd : p.fu)[reverse ? taps - 1 - tap : tap] * gain;
        tables[item] = static_cast<uint16_t>(pair_of<T>(value, 0.f));
    }
    if (threadIdx.x < 16) {
        const auto factor = [&](int code) { return code == 0 ? 1.f : code == 1 ? p.slope : 0.f; };
        factors[threadIdx.x] = pair_of<T>(factor(threadIdx.x % 4), factor(threadIdx.x / 4));
    }
}

// A warp's tile: a strip of outputs, where the samples and pixels that it depends on begin, and its memory.
struct Work : Outputs {
    int mid_x0, mid_y0, in_x0, in_y0;
};

template <int UP, int DOWN>
__device__ __forceinline__ Work make_work(const FilteredLreluParams& p, int64_t index, const Axis& x, const Axis& y) {
    Work w;
    static_cast<Outputs&>(w) = tile_outputs(p, index);
    w.mid_x0 = first_sample(w.out_x0, DOWN, p.crop_x, x.lead);
    w.mid_y0 = first_sample(w.out_y0, DOWN, p.crop_y, y.lead);
    w.in_x0 = first_pixel(w.mid_x0, UP, p.pad_x, 2);
    w.in_y0 = first_pixel(w.mid_y0, UP, p.pad_y, 1);
    return w;
}

// Reads pairs of pixels, 8 rows at a time, and stores them as rows of S::kSourceWords words in shared memory: first the
// read, which may be long before the store. Pixels outside the image are zero, the others get the bias.
template <class T, int UP, int DOWN>
class Pixels {
    typedef Strip<UP, DOWN> S;
    static constexpr int kRowsAtOnce = 32 / S::kAtOnce, kMain = 8 / kRowsAtOnce;

    // Where the next read begins, for the first words of rows and for the last four of them.
    const uint32_t *main_, *last_;
    int main_row_, last_row_;
    unsigned main_height_, last_height_;  // of the image; 0 in columns outside it
    int64_t pitch_;
    uint32_t bias_, words_[kMain + 1];

public:
    __device__ __forceinline__ Pixels(const FilteredLreluParams& p, const Work& w) {
        const int lane = threadIdx.x % 32, main_word = lane % S::kAtOnce, last_word = S::kAtOnce + lane % 4;
        const auto inside = [&](int word) { return w.in_x0 + 2 * word >= 0 && w.in_x0 + 2 * word < p.in_w; };
        const uint16_t* b = static_cast<const uint16_t*>(p.b);
        bias_ = b == nullptr ? 0u : b[w.plane % p.channels] * 0x10001u;
        pitch_ = p.in_w / 2;
        main_row_ = w.in_y0 + lane / S::kAtOnce;
        last_row_ = w.in_y0 + lane / 4;
        const uint32_t* x = static_cast<const uint32_t*>(p.x) + w.plane * p.in_h * pitch_ + w.in_x0 / 2;
        main_ = x + main_row_ * pitch_ + main_word;
        last_ = x + last_row_ * pitch_ + last_word;
        main_height_ = inside(main_word) ? p.in_h : 0;
        last_height_ = inside(last_word) ? p.in_h : 0;
    }

    __device__ __forceinline__ void read() {
        OPS_UNROLL
        for (int i = 0; i < kMain; i++) {
            words_[i] = static_cast<unsigned>(main_row_ + i * kRowsAtOnce) < main_height_ ? *main_ : 0u;
            main_ += kRowsAtOnce * pitch_;
        }
        words_[kMain] = static_cast<unsigned>(last_row_) < last_height_ ? *last_ : 0u;
        last_ += 8 * pitch_;
        main_row_ += 8;
        last_row_ += 8;
    }

    // Stores what was read last.
    __device__ __forceinline__ void store(uint32_t* shared) const {
        const int lane = threadIdx.x % 32;
        OPS_UNROLL
        for (int i = 0; i < kMain; i++) {
            const bool inside = static_cast<unsigned>(main_row_ - 8 + i * kRowsAtOnce) < main_height_;
            shared[(i * kRowsAtOnce + lane / S::kAtOnce) * S::kSourceWords + lane % S::kAtOnce] = inside ? pair_add<T>(words_[i], bias_) : 0u;
        }
        const bool inside = static_cast<unsigned>(last_row_ - 8) < last_height_;
        shared[lane / 4 * S::kSourceWords + S::kAtOnce + lane % 4] = inside ? pair_add<T>(words_[kMain], bias_) : 0u;
    }
};

// The pixels of 8 rows as right operands of up_y: one word per group of 8 columns.
template <int UP, int DOWN>
__device__ __forceinline__ void load_operands(const uint32_t* shared, uint32_t (&operands)[Strip<UP, DOWN>::kSources]) {
    typedef Strip<UP, DOWN> S;
    const int lane = threadIdx.x % 32;
    const uint32_t* row = shared + lane % 8 * S::kSourceWords + lane / 8 * 4;
    OPS_UNROLL
    for (int q = 0; q + 4 <= S::kSources; q += 4) {
        uint32_t four[4];
        load_transposed(row + 4 * q, four);
        OPS_UNROLL
        for (int i = 0; i < 4; i++) operands[q + i] = four[i];
    }
    uint32_t last[1];
    load_transposed(shared + lane % 8 * S::kSourceWords + 4 * (S::kSources - 1), last);
    operands[S::kSources - 1] = last[0];
}

// phi of a thread's samples of a block: word 2 * n + i has the samples 4 * t + 2 * n and the next one of row g + 8 * i.
template <class T>
struct Activation {
    uint32_t slope, low, high;

    explicit __device__ __forceinline__ Activation(const FilteredLreluParams& p) {
        const float bound = p.clamp >= 0.f ? p.clamp : INFINITY;
        slope = pair_of<T>(p.slope, p.slope);
        low = pair_of<T>(-bound, -bound);
        high = pair_of<T>(bound, bound);
    }

    // Returns the codes of row g in the first byte and those of row g + 8 in the second one, if SAVE.
    template <bool SAVE>
    __device__ __forceinline__ uint32_t apply(uint32_t (&words)[4]) const {
        uint32_t plain = 0;  // inverted codes, those of the second samples of the pairs in the upper half
        OPS_UNROLL
        for (int i = 0; i < 4; i++) {
            const uint32_t value = pair_maximum<T>(words[i], pair_multiply<T>(words[i], slope));
            const uint32_t bounded = pair_minimum<T>(pair_maximum<T>(value, low), high);
            if (SAVE) {
                const int place = 4 * (i / 2) + 8 * (i % 2);
                plain |= pair_positive<T>(words[i], place) | pair_within<T>(bounded, high, place + 1);
            }
            words[i] = bounded;
        }
        return ~(plain | plain >> 14);
    }
};

// Multiplies a thread's samples of a block with the factors of their codes: a byte for row g, one for row g + 8.
template <class T>
__device__ __forceinline__ void gate_block(const uint32_t* factors, uint32_t low, uint32_t high, uint32_t (&words)[4]) {
    words[0] = pair_multiply<T>(words[0], factors[low & 15u]);
    words[1] = pair_multiply<T>(words[1], factors[high & 15u]);
    words[2] = pair_multiply<T>(words[2], factors[low >> 4]);
    words[3] = pair_multiply<T>(words[3], factors[high >> 4]);
}

// Loads the codes of 16 rows of samples from row0 on into shared memory: a thread per byte of a row.
__device__ __forceinline__ void load_codes(const FilteredLreluParams& p, const Work& w, int row0, uint8_t* shared) {
    const int lane = threadIdx.x % 32, byte = w.mid_x0 / 4 + lane;
    const unsigned height = byte >= 0 && byte < p.code_bytes ? p.mid_h : 0;
    const uint8_t* source = p.codes + (w.plane * p.mid_h + row0) * p.code_bytes + byte;
    OPS_UNROLL
    for (int r = 0; r < 16; r++) {
        shared[r * kCodePitch + lane] = static_cast<unsigned>(row0 + r) < height ? *source : static_cast<uint8_t>(kOutside);
        source += p.code_bytes;
    }
}

// Stores the codes of 16 rows of samples from row0 on that belong to the tile.
__device__ __forceinline__ void store_codes(const FilteredLreluParams& p, const Work& w, int row0, const uint8_t* shared) {
    const int lane = threadIdx.x % 32, byte = w.mid_x0 / 4 + lane, samples = p.mid_w - 4 * byte;
    const int end = w.last_x ? p.code_bytes : (w.mid_x0 + 2 * p.tile_w) / 4;
    const int rows = byte < end ? (w.last_y ? p.mid_h : w.mid_y0 + 2 * p.tile_h) - row0 : 0;
    const uint32_t kept = samples < 4 ? (1u << (2 * samples & 7)) - 1 : 0xffu, outside = kOutside & 0xffu & ~kept;
    uint8_t* target = p.codes + (w.plane * p.mid_h + row0) * p.code_bytes + byte;
    OPS_UNROLL
    for (int r = 0; r < 16; r++) {
        if (r < rows) *target = static_cast<uint8_t>((shared[r * kCodePitch + lane] & kept) | outside);
        target += p.code_bytes;
    }
}

// Stores 8 rows of outputs from row0 on.
template <int UP, int DOWN>
__device__ __forceinline__ void store_outputs(const FilteredLreluParams& p, const Work& w, int row0, const uint32_t* shared) {
    typedef Strip<UP, DOWN> S;
    const int lane = threadIdx.x % 32, word = lane % S::kOutAtOnce, row = lane / S::kOutAtOnce;
    const int rows = 2 * word < w.out_w ? w.out_y0 + w.out_h - row0 : 0;
    const int64_t pitch = p.out_w / 2;
    uint32_t* y = static_cast<uint32_t*>(p.y) + (w.plane * p.out_h + row0 + row) * pitch + w.out_x0 / 2 + word;
    OPS_UNROLL
    for (int i = 0; i < 8; i += 32 / S::kOutAtOnce) {
        if (row + i < rows) *y = shared[(row + i) * S::kOutWords + word];
        y += 32 / S::kOutAtOnce * pitch;
    }
}

template <class T, int UP, int DOWN, int MODE>
__global__ void __launch_bounds__(kWarps * 32, 4) banded_kernel(FilteredLreluParams p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    typedef Strip<UP, DOWN> S;
    typedef Layout<UP, DOWN> L;
    OPS_SHARED(shared);
    uint16_t* tables = reinterpret_cast<uint16_t*>(shared);
    uint32_t* factors = reinterpret_cast<uint32_t*>(shared + L::kFactors);
    unsigned char* own = shared + L::kFirstWarp + threadIdx.x / 32 * L::kWarpBytes;
    uint32_t *pixels = reinterpret_cast<uint32_t*>(own), *outputs = reinterpret_cast<uint32_t*>(own + L::kPixels);
    uint8_t* codes = own + L::kPixels + L::kOutputs;
    make_tables<T>(p, tables, factors);
    __syncthreads();

    const Axis axis_x = make_axis(UP, DOWN, p.pad_x, p.crop_x, 4, 2), axis_y = make_axis(UP, DOWN, p.pad_y, p.crop_y, 1, 1);
    const Matrices<UP, DOWN> m = make_matrices<UP, DOWN>(tables, axis_x, axis_y);
    const Activation<T> phi(p);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int64_t work_end = p.planes * p.tiles_x * p.tiles_y;
    for (int64_t index = p.first_tile + static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; index < work_end; index += static_cast<int64_t>(gridDim.x) * kWarps) {
        const Work w = make_work<UP, DOWN>(p, index, axis_x, axis_y);
        const int groups = (w.out_w + 7) / 8, blocks = (groups + 1) * DOWN / 2;
        const int steps = ((w.out_h + 7) / 8 + 1) * DOWN / 2;

        uint32_t above[S::kSources], below[S::kSources];  // operands from the pixels of 16 rows
        float sums[S::kGroups][4];
        OPS_UNROLL
        for (int q = 0; q < S::kGroups; q++) {
            OPS_UNROLL
            for (int i = 0; i < 4; i++) sums[q][i] = 0.f;
        }
        Pixels<T, UP, DOWN> next(p, w);
        next.read();
        next.store(pixels);
        next.read();
        warp_barrier();
        load_operands<UP, DOWN>(pixels, below);
        warp_barrier();

        for (int step = 0; step < steps; step++) {
            const int half = step % 2, mid_row = w.mid_y0 + 16 * step;
            const bool moves = UP == 2 || half == 0;  // on to the next 8 rows of pixels
            if (moves) next.store(pixels);
            if (MODE == kGated) load_codes(p, w, mid_row, codes);
            warp_barrier();
            if (moves) {
                OPS_UNROLL
                for (int q = 0; q < S::kSources; q++) above[q] = below[q];
                load_operands<UP, DOWN>(pixels, below);
                next.read();
            }
            uint32_t up_y[4], down_y[4];
            OPS_UNROLL
            for (int i = 0; i < 4; i++) {
                up_y[i] = UP == 4 && half == 1 ? m.up_y[1][i] : m.up_y[0][i];
                down_y[i] = DOWN == 4 && half == 1 ? m.down_y[1][i] : m.down_y[0][i];
            }

            uint32_t v[4];
            const auto up_vertically = [&](int q, uint32_t& top, uint32_t& bottom) {
                float sum[4] = {0.f, 0.f, 0.f, 0.f};
                multiply_add<T>(sum, up_y, above[q], below[q]);
                top = pair_of<T>(sum[0], sum[1]);
                bottom = pair_of<T>(sum[2], sum[3]);
            };
            up_vertically(0, v[0], v[1]);
            float z[2][4] = {};
            OPS_UNROLL
            for (int j = 0; j < kBlocks; j++) {
                const int h = j % 2;
                if (h == 0 && j >= blocks) break;
                if (UP == 2) {
                    up_vertically(j + 1, v[h == 0 ? 2 : 0], v[h == 0 ? 3 : 1]);
                } else if (h == 0) {
                    if (j > 0) v[0] = v[2], v[1] = v[3];
                    up_vertically(j / 2 + 1, v[2], v[3]);
                }
                uint32_t samples[4];
                OPS_UNROLL
                for (int n = 0; n < 2; n++) {
                    float u[4] = {0.f, 0.f, 0.f, 0.f};
                    multiply_add<T>(u, v, m.up_x[h][n][0], m.up_x[h][n][1]);
                    samples[2 * n] = pair_of<T>(u[0], u[1]);
                    samples[2 * n + 1] = pair_of<T>(u[2], u[3]);
                }
                uint8_t* code = codes + g * kCodePitch + 4 * j + t;
                if (MODE == kGated) {
                    gate_block<T>(factors, code[0], code[8 * kCodePitch], samples);
                } else {
                    const uint32_t two = phi.template apply<MODE == kSave>(samples);
                    if (MODE == kSave) code[0] = static_cast<uint8_t>(two), code[8 * kCodePitch] = static_cast<uint8_t>(two >> 8);
                }
                multiply_add<T>(z[0], m.down_x[h], samples[0], samples[2]);
                multiply_add<T>(z[1], m.down_x[h], samples[1], samples[3]);
                if (DOWN == 4 && h == 0) continue;
                const int done = DOWN == 2 ? 2 * h : 0, q = (j + 1) * 2 / DOWN - 2;
                if (q >= 0) multiply_add<T>(sums[q], down_y, pair_of<T>(z[0][done], z[0][done + 1]), pair_of<T>(z[1][done], z[1][done + 1]));
                OPS_UNROLL
                for (int n = 0; n < 2; n++) {
                    OPS_UNROLL
                    for (int i = 0; i < 2; i++) {
                        if (DOWN == 4) z[n][i] = z[n][2 + i];
                        z[n][DOWN == 4 ? 2 + i : done + i] = 0.f;
                    }
                }
            }

            const bool complete = DOWN == 2 || half == 1;
            const int out_row = w.out_y0 + 8 * ((step + 1) * 2 / DOWN - 2);
            if (complete) {
                OPS_UNROLL
                for (int q = 0; q < S::kGroups; q++) {
                    outputs[g * S::kOutWords + 4 * q + t] = pair_of<T>(sums[q][0], sums[q][1]);
                    sums[q][0] = sums[q][2], sums[q][1] = sums[q][3];
                    sums[q][2] = sums[q][3] = 0.f;
                }
            }
            warp_barrier();
            if (complete && out_row >= w.out_y0) store_outputs<UP, DOWN>(p, w, out_row, outputs);
            if (MODE == kSave) store_codes(p, w, mid_row, codes);
        }
    }
#endif
}

template <class T, int UP, int DOWN>
bool launch(FilteredLreluParams p, void* stream) {
    p.tile_w = Strip<UP, DOWN>::kWidth;
    p.tiles_x = (p.out_w + p.tile_w - 1) / p.tile_w;
    // Tiles are as high as the image if there are enough of them.
    const int64_t strips = p.planes * p.tiles_x, wanted = (kManyTiles + strips - 1) / strips;
    const int64_t parts = std::min<int64_t>(wanted, (p.out_h + kLeastRows - 1) / kLeastRows);
    p.tile_h = static_cast<int>(((p.out_h + parts - 1) / parts + 7) / 8 * 8);
    p.tiles_y = (p.out_h + p.tile_h - 1) / p.tile_h;
    const int64_t tiles = strips * p.tiles_y;
    p.first_tile = p.limits.first(tiles);
    const unsigned grid = p.limits.fit((tiles - p.first_tile + kWarps - 1) / kWarps, kMostBlocks);
    constexpr size_t bytes = Layout<UP, DOWN>::kBytes;
    [[maybe_unused]] Stream s = static_cast<Stream>(stream);
    if (p.mode == kGated) {
        OPS_LAUNCH((banded_kernel<T, UP, DOWN, kGated>), grid, kWarps * 32, bytes, s, p);
    } else if constexpr (DOWN == 2) {
        // Larger factors occur only in backward passes.
        if (p.mode == kSave) {
            OPS_LAUNCH((banded_kernel<T, UP, DOWN, kSave>), grid, kWarps * 32, bytes, s, p);
        } else {
            OPS_LAUNCH((banded_kernel<T, UP, DOWN, kPlain>), grid, kWarps * 32, bytes, s, p);
        }
    }
    return true;
}

template <int UP, int DOWN>
bool launch(const FilteredLreluParams& p, void* stream) {
    return p.dtype == kFloat16 ? launch<half_t, UP, DOWN>(p, stream) : launch<bfloat_t, UP, DOWN>(p, stream);
}

}  // namespace

bool filtered_lrelu_banded(const FilteredLreluParams& p, void* stream) {
    if (p.up_full || p.down_full || (p.dtype != kFloat16 && p.dtype != kBFloat16) || !has_tensor_cores()) return false;
    // Pixels are read and written in pairs.
    if (p.in_w % 2 != 0 || p.out_w % 2 != 0 || reinterpret_cast<uintptr_t>(p.x) % 4 != 0) return false;
    // max(u, slope * u) is the leaky ReLU for these slopes, and takes the gain before it. 0 would make infinities NaN.
    if (p.mode != kGated && !(p.slope > 0.f && p.slope <= 1.f && p.gain > 0.f)) return false;
    const bool up2 = p.up == 2 && p.up_taps == 12, down2 = p.down == 2 && p.down_taps == 12;
    if (up2 && down2) return launch<2, 2>(p, stream);
    if (p.up == 4 && p.up_taps == 24 && down2) return launch<4, 2>(p, stream);
    if (up2 && p.down == 4 && p.down_taps == 24 && p.mode == kGated) return launch<2, 4>(p, stream);
    return false;
}

}  // namespace ops
