// SPDX-License-Identifier: Apache-2.0
// FIR resampling of rows of vectors: zero insertion, padding, a filter and decimation, axis by axis or with a full
// filter.
//
// Along an axis out[o] = sum_i in[i] f[i * up + pad - o * down], with in = 0 outside [0, size). The inputs of an output
// start at first(o); their taps depend only on one of `up` phases. Loops over x process whole blocks, so rows have
// space for kSlack more vectors.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "vectors.h"

namespace cpu {

constexpr int64_t kSlack = 16;

struct Axis {
    int64_t in, out, up, down, pad, taps;
    int64_t window() const { return ceil_div(taps, up); }
    int64_t first(int64_t o) const { return ceil_div(o * down - pad, up); }
    int64_t phase(int64_t o) const { return o * down - pad - first(o) * up + up - 1; }
    // The tap of the k-th input of a window; indices from `taps` on have no tap.
    int64_t tap(int64_t phase, int64_t k) const { return k * up + up - 1 - phase; }
};

// A filter: [taps y, taps x] if full, else [taps] for both axes; null: one tap of 1. reverse: stored last tap first.
struct Taps {
    const float* f;
    bool full, reverse;
};

// A resampling of both axes with its coefficients. Separable: y [phase][k] and x [phase][k]; full: [phase y][k y][phase x][k x].
struct Stage {
    Axis y, x;
    bool full;
    std::vector<float> along_y, along_x;

    Stage(const Axis& y, const Axis& x, const Taps& taps, float gain) : y(y), x(x), full(taps.full) {
        if (!full) {
            along_y = polyphase(y, taps, 1.0f);
            along_x = polyphase(x, taps, gain);
            return;
        }
        for (int64_t py = 0; py < y.up; ++py) {
            for (int64_t ky = 0; ky < y.window(); ++ky) {
                const int64_t t = y.tap(py, ky), row = taps.reverse ? y.taps - 1 - t : t;
                const Taps line{taps.f + row * x.taps, false, taps.reverse};
                const std::vector<float> part = t < y.taps ? polyphase(x, line, gain) : std::vector<float>(x.up * x.window());
                along_x.insert(along_x.end(), part.begin(), part.end());
            }
        }
    }

    const float* rows_of(int64_t o) const { return along_y.data() + y.phase(o) * y.window(); }
    const float* columns_of(int64_t o) const { return along_x.data() + (full ? y.phase(o) * y.window() * x.up * x.window() : 0); }

  private:
    static std::vector<float> polyphase(const Axis& axis, const Taps& taps, float gain) {
        std::vector<float> out;
        for (int64_t phase = 0; phase < axis.up; ++phase) {
            for (int64_t k = 0; k < axis.window(); ++k) {
                const int64_t t = axis.tap(phase, k);
                const float value = t >= axis.taps ? 0.0f : taps.f == nullptr ? 1.0f : taps.f[taps.reverse ? axis.taps - 1 - t : t];
                out.push_back(gain * value);
            }
        }
        return out;
    }
};

// dst[x] = sum_k rows[k][x] * c[k].
template <int kCount>
void sum_rows(V* dst, const V* const* rows, const float* c, int64_t count, int64_t width) {
    if constexpr (kCount > 0) count = kCount;
    for (int64_t x = 0; x < width; x += 4) {
        V sum[4] = {};
#pragma GCC unroll 12
        for (int64_t k = 0; k < count; ++k) {
            const V factor = splat(c[k]);
            for (int j = 0; j < 4; ++j) sum[j] += rows[k][x + j] * factor;
        }
        for (int j = 0; j < 4; ++j) dst[x + j] = sum[j];
    }
}

inline void combine_rows(V* dst, const V* const* rows, const float* c, int64_t count, int64_t width) {
    switch (count) {
        case 6: return sum_rows<6>(dst, rows, c, count, width);
        case 12: return sum_rows<12>(dst, rows, c, count, width);
        default: return sum_rows<0>(dst, rows, c, count, width);
    }
}

// dst[n] = sum_r sum_k rows[r][n * kDown + k] * c[r][k] for n < count.
template <int kDown, int kTaps>
void decimate(V* dst, const V* const* rows, const float* c, int64_t row_count, int64_t taps, int64_t count) {
    constexpr int kBlock = 4;
    if constexpr (kTaps > 0) taps = kTaps;
    for (int64_t n = 0; n < count; n += kBlock) {
        V sum[kBlock] = {};
        for (int64_t r = 0; r < row_count; ++r) {
            const V* in = rows[r] + n * kDown;
            const float* factors = c + r * taps;
#pragma GCC unroll 12
            for (int64_t k = 0; k < taps; ++k) {
                const V factor = splat(factors[k]);
                for (int j = 0; j < kBlock; ++j) sum[j] += in[j * kDown + k] * factor;
            }
        }
        for (int j = 0; j < kBlock; ++j) dst[n + j] = sum[j];
    }
}

// dst[b * kUp + p] = sum_r sum_k rows[r][b + k] * c[r][p][k] for b < blocks.
template <int kUp, int kWindow>
void interpolate(V* dst, const V* const* rows, const float* c, int64_t row_count, int64_t window, int64_t blocks) {
    constexpr int kBlock = kLanes == 16 && kUp <= 4 ? 4 : 2;
    if constexpr (kWindow > 0) window = kWindow;
    for (int64_t b = 0; b < blocks; b += kBlock) {
        V sum[kBlock * kUp] = {};
        for (int64_t r = 0; r < row_count; ++r) {
            const V* in = rows[r] + b;
            const float* factors = c + r * kUp * window;
#pragma GCC unroll 6
            for (int64_t k = 0; k < window; ++k) {
#pragma GCC unroll 4
                for (int p = 0; p < kUp; ++p) {
                    const V factor = splat(factors[p * window + k]);
#pragma GCC unroll 4
                    for (int j = 0; j < kBlock; ++j) sum[j * kUp + p] += in[j + k] * factor;
                }
            }
        }
        for (int j = 0; j < kBlock * kUp; ++j) dst[b * kUp + j] = sum[j];
    }
}

// A tile's part of an axis: outputs [start, stop); rows contain their inputs from `origin` on.
struct Span {
    int64_t start, stop, origin, inputs;

    Span(const Axis& axis, int64_t start, int64_t stop)
        : start(start), stop(stop), origin(axis.first(start)), inputs(axis.first(stop - 1) + axis.window() - origin) {}
    // The index of the output in dst[0]: without decimation, whole blocks of `up` outputs are computed.
    int64_t base(const Axis& axis) const { return axis.down == 1 ? axis.pad + origin * axis.up - (axis.up - 1) : start; }
};

// Computes a row of outputs from rows of inputs, which start at pixel span.origin; dst[0] is output span.base(axis).
inline void resample_row(V* dst, const V* const* rows, const float* c, int64_t row_count, const Axis& axis, const Span& span) {
    const int64_t window = axis.window();
    if (axis.down == 1 && axis.up > 1) {
        const int64_t blocks = axis.first(span.stop - 1) - span.origin + 1;
        if (axis.up == 2 && window == 6) return interpolate<2, 6>(dst, rows, c, row_count, window, blocks);
        if (axis.up == 4 && window == 6) return interpolate<4, 6>(dst, rows, c, row_count, window, blocks);
        if (axis.up == 2) return interpolate<2, 0>(dst, rows, c, row_count, window, blocks);
    }
    const int64_t count = span.stop - span.start;
    if (axis.up == 1) {
        if (axis.down == 2 && window == 12) return decimate<2, 12>(dst, rows, c, row_count, window, count);
        if (axis.down == 4 && window == 24) return decimate<4, 24>(dst, rows, c, row_count, window, count);
        if (axis.down == 2) return decimate<2, 0>(dst, rows, c, row_count, window, count);
        if (axis.down == 1) return decimate<1, 0>(dst, rows, c, row_count, window, count);
    }
    V* out = dst + (span.start - span.base(axis));
    for (int64_t o = span.start; o < span.stop; ++o) {
        const int64_t offset = axis.first(o) - span.origin;
        const float* phase = c + axis.phase(o) * window;
        V sum{};
        for (int64_t r = 0; r < row_count; ++r) {
            for (int64_t k = 0; k < window; ++k) sum += rows[r][offset + k] * splat(phase[r * axis.up * window + k]);
        }
        *out++ = sum;
    }
}

// Rows of vectors that a thread reuses from call to call.
class Scratch {
  public:
    ~Scratch() { std::free(data_); }
    // Space for `count` zeroed vectors: the sums of whole blocks read zeros beyond the image, and write zeros there.
    void reset(int64_t count) {
        if (count > size_) {
            std::free(data_);
            data_ = static_cast<V*>(std::aligned_alloc(sizeof(V), count * sizeof(V)));
            if (data_ == nullptr) std::abort();
            size_ = count;
        }
        std::memset(static_cast<void*>(data_), 0, count * sizeof(V));
        used_ = 0;
    }
    V* take(int64_t count) { return data_ + std::exchange(used_, used_ + count); }

  private:
    V* data_ = nullptr;
    int64_t size_ = 0, used_ = 0;
};

// A ring buffer of the latest `rows` rows, all of the same size.
class Ring {
  public:
    Ring(Scratch& scratch, int64_t rows, int64_t width) : rows_(rows), width_(width), data_(scratch.take(rows * width)) {}
    V* at(int64_t row) const { return data_ + (row % rows_) * width_; }

  private:
    int64_t rows_, width_;
    V* data_;
};

// The inputs of output row `o` inside the image: the first one, their number, and the first one's index in the window.
struct Window {
    int64_t first, count, skip;
    Window(const Axis& axis, int64_t o) {
        const int64_t begin = axis.first(o);
        first = std::max<int64_t>(begin, 0);
        skip = first - begin;
        count = std::max<int64_t>(0, std::min(begin + axis.window(), axis.in) - first);
    }
};

// Rows of an image: each is loaded once and gets the bias; zeros outside the image.
template <class T>
class Reader {
  public:
    Reader(Scratch& scratch, const Stage& stage, const Span& span, const Planes<const T>& from, V bias)
        : stage_(stage), span_(span), from_(from), bias_(bias), ring_(scratch, stage.y.window(), width(span)), line_(scratch.take(width(span))) {
        low_ = std::max<int64_t>(span.origin, 0);
        high_ = std::min(span.origin + span.inputs, stage.x.in);
        rows_.resize(stage.y.window());
    }
    static int64_t width(const Span& span) { return span.inputs + kSlack; }
    static int64_t vectors(const Stage& stage, const Span& span) { return (stage.y.window() + 1) * width(span); }

    // Computes row o of the resampled image; dst[0] is column span.base(stage.x).
    void make(V* dst, int64_t o) {
        const Window window(stage_.y, o);
        next_ = std::max(next_, window.first);
        for (; next_ < window.first + window.count; ++next_) {
            if (high_ <= low_) continue;
            Planes<const T> from = from_;
            from.data += low_ * from.pixel;
            load_row(ring_.at(next_) + (low_ - span_.origin), from, next_, high_ - low_, bias_);
        }
        const int64_t begin = stage_.full ? 0 : std::max<int64_t>(low_ - span_.origin, 0);
        for (int64_t k = 0; k < window.count; ++k) rows_[k] = ring_.at(window.first + k) + begin;
        if (stage_.full) {
            const float* c = stage_.columns_of(o) + window.skip * stage_.x.up * stage_.x.window();
            resample_row(dst, rows_.data(), c, window.count, stage_.x, span_);
        } else {
            combine_rows(line_ + begin, rows_.data(), stage_.rows_of(o) + window.skip, window.count, std::max<int64_t>(high_ - low_, 0));
            const V* line = line_;
            resample_row(dst, &line, stage_.columns_of(o), 1, stage_.x, span_);
        }
    }

  private:
    const Stage& stage_;
    const Span span_;
    const Planes<const T> from_;
    const V bias_;
    Ring ring_;
    V* line_;
    std::vector<const V*> rows_;
    int64_t low_, high_, next_ = 0;
};

}  // namespace cpu
