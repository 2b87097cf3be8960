// SPDX-License-Identifier: Apache-2.0
// upfirdn2d, filtered_lrelu, bias_act and channel sums for CPUs, as plain functions of pointers and numbers. They
// include no torch header, so they compile in seconds and work with any torch. The division of a call into tasks
// depends only on the shapes, and every output is computed in the same way, so results do not depend on the number of
// threads.
#include <cmath>
#include <limits>

#include "bias_act.h"
#include "parallel.h"
#include "resample.h"

namespace cpu {

enum Dtype { kFloat32 = 0, kBFloat16 = 1 };
enum Mode { kPlain = 0, kSave = 1, kGated = 2 };

// Mirrored by the ctypes structures in cpu_kernels.py. Strides are in elements.
struct Image {
    void* data;
    int64_t n, c, h, w, stride_n, stride_c, stride_h, stride_w;
};

struct Resampling {
    int64_t up_x, up_y, down_x, down_y, pad_x, pad_y, taps_x, taps_y, full, reverse;
    const float* f;
    double gain;

    Stage stage(int64_t in_h, int64_t in_w, int64_t out_h, int64_t out_w) const {
        return {{in_h, out_h, up_y, down_y, pad_y, taps_y}, {in_w, out_w, up_x, down_x, pad_x, taps_x}, {f, full != 0, reverse != 0}, static_cast<float>(gain)};
    }
};

struct Activation {
    uint8_t* codes;  // [n, ceil(c / 16), mid_h, mid_w, 4]: one bit per channel for "not above zero" (2 bytes), then for "zero slope" (2 bytes)
    int64_t mode, mid_h, mid_w;
    double slope, clamp;
};

// Groups of channels that are computed together row by row if their pixels share pages of memory.
constexpr int64_t kTogether = 4;

Scratch& scratch() {
    static thread_local Scratch buffers;
    return buffers;
}

template <class T>
Planes<T> planes(const Image& image, int64_t n, int64_t c, int64_t count) {
    T* data = static_cast<T*>(image.data) + n * image.stride_n + c * image.stride_c;
    return {data, image.stride_c, image.stride_h, image.stride_w, static_cast<int>(count)};
}

// Divides [0, total) into parts of about equal size, in multiples of the blocks of a row.
struct Parts {
    int64_t total, size, count;
    Parts(int64_t total, int64_t wanted) : total(total), size(std::max<int64_t>(4, ceil_div(ceil_div(total, wanted), 4) * 4)), count(ceil_div(total, size)) {}
    int64_t start(int64_t i) const { return i * size; }
    int64_t stop(int64_t i) const { return std::min(total, (i + 1) * size); }
};

// The extent of one tile of filtered_lrelu.
struct Bounds {
    const Span rows, columns;
    int64_t low, high;                                  // columns of the middle image that exist
    int64_t own_low, own_high, own_top, own_bottom;     // middle samples whose codes this tile writes; each belongs to one tile
    const Span inputs;                                  // of the columns
    int64_t origin, mid_width, out_width;               // of the tile's rows in memory

    Bounds(const Stage& up, const Stage& down, const Activation& act, int64_t row_start, int64_t row_stop, int64_t start, int64_t stop)
        : rows(down.y, row_start, row_stop),
          columns(down.x, start, stop),
          low(std::max<int64_t>(columns.origin, 0)),
          high(std::min(columns.origin + columns.inputs, act.mid_w)),
          own_low(start * down.x.down),
          own_high(stop == down.x.out ? act.mid_w : std::min(act.mid_w, stop * down.x.down)),
          own_top(row_start * down.y.down),
          own_bottom(row_stop == down.y.out ? act.mid_h : std::min(act.mid_h, row_stop * down.y.down)),
          inputs(up.x, std::min(low, act.mid_w - 1), std::max(high, low + 1)),
          origin(std::min(inputs.base(up.x), columns.origin)),
          mid_width(std::max(columns.origin + columns.inputs, high) - origin + kSlack + 4 * up.x.up),
          out_width(stop - start + kSlack) {}
};

// Computes one tile of one group of planes of filtered_lrelu, row by row.
template <class T>
class LreluTile {
  public:
    LreluTile(
        Scratch& space, const Stage& up, const Stage& down, const Activation& act, const Bounds& bounds, const Planes<const T>& from, const Planes<T>& to,
        V bias, uint8_t* codes
    )
        : up_(up), down_(down), act_(act), at_(bounds), to_(to), codes_(codes), reader_(space, up, bounds.inputs, from, bias),
          single_(space.take(bounds.mid_width)), kept_(space, down.y.window(), down.full ? bounds.mid_width : bounds.out_width),
          out_(space.take(bounds.out_width)), rows_(down.y.window()), next_(std::max<int64_t>(bounds.rows.origin, 0)) {
        to_.data += bounds.columns.start * to.pixel;
    }
    static int64_t vectors(const Stage& up, const Stage& down, const Bounds& bounds) {
        const int64_t kept = down.full ? bounds.mid_width : bounds.out_width;
        return Reader<T>::vectors(up, bounds.inputs) + bounds.mid_width + down.y.window() * kept + bounds.out_width;
    }

    // Computes row n of the output. Rows are computed in order.
    void make(int64_t n) {
        const int64_t offset = at_.columns.origin - at_.origin, count = at_.columns.stop - at_.columns.start;
        const Window needed(down_.y, n);
        for (next_ = std::max(next_, needed.first); next_ < needed.first + needed.count; ++next_) {
            V* const mid = down_.full ? kept_.at(next_) : single_;
            make_mid(mid, next_);
            if (!down_.full) {
                const V* in = mid + offset;
                resample_row(kept_.at(next_), &in, down_.columns_of(n), 1, down_.x, at_.columns);
            }
        }
        for (int64_t k = 0; k < needed.count; ++k) rows_[k] = kept_.at(needed.first + k) + (down_.full ? offset : 0);
        if (down_.full) {
            const float* c = down_.columns_of(n) + needed.skip * down_.x.window();
            resample_row(out_, rows_.data(), c, needed.count, down_.x, at_.columns);
        } else {
            combine_rows(out_, rows_.data(), down_.rows_of(n) + needed.skip, needed.count, count);
        }
        store_row(out_, to_, n, count);
    }

  private:
    // Returns row `y` of the middle image after the activation; zeros outside the image.
    void make_mid(V* mid, int64_t y) {
        if (at_.high > at_.low) {
            reader_.make(mid + (at_.inputs.base(up_.x) - at_.origin), y);
            activate(mid - at_.origin, y, codes_ + y * act_.mid_w * 4);
        }
        for (int64_t x = at_.columns.origin; x < at_.low; ++x) mid[x - at_.origin] = V{};
        for (int64_t x = std::max(at_.high, at_.low); x < at_.columns.origin + at_.columns.inputs; ++x) mid[x - at_.origin] = V{};
    }

    void activate(V* mid, int64_t y, uint8_t* codes) const {
        const V slope = splat(static_cast<float>(act_.slope)), clamp = splat(static_cast<float>(act_.clamp));
        if (act_.mode == kGated) {
            for (int64_t x = at_.low; x < at_.high; ++x) mid[x] = zero_where(scale_where(mid[x], read(codes + 4 * x), slope), read(codes + 4 * x + 2));
            return;
        }
        const bool own = act_.mode == kSave && y >= at_.own_top && y < at_.own_bottom;
        const int64_t begin = own ? std::min(std::max(at_.own_low, at_.low), at_.high) : at_.high, end = own ? std::min(at_.own_high, at_.high) : at_.high;
        for (int64_t x = at_.low; x < begin; ++x) mid[x] = bounded(scale_where(mid[x], not_above_zero(mid[x]), slope), clamp);
        for (int64_t x = begin; x < end; ++x) {
            const uint32_t negative = not_above_zero(mid[x]);
            const V v = scale_where(mid[x], negative, slope);
            write(codes + 4 * x, negative);
            write(codes + 4 * x + 2, magnitude_reaches(v, clamp));
            mid[x] = bounded(v, clamp);
        }
        for (int64_t x = end; x < at_.high; ++x) mid[x] = bounded(scale_where(mid[x], not_above_zero(mid[x]), slope), clamp);
    }

    typedef std::conditional_t<kLanes == 16, uint16_t, uint8_t> Bits;
    static uint32_t read(const uint8_t* p) {
        Bits bits;
        std::memcpy(&bits, p, sizeof bits);
        return bits;
    }
    static void write(uint8_t* p, uint32_t value) {
        const Bits bits = static_cast<Bits>(value);
        std::memcpy(p, &bits, sizeof bits);
    }

    const Stage& up_;
    const Stage& down_;
    const Activation& act_;
    const Bounds& at_;
    Planes<T> to_;
    uint8_t* const codes_;
    Reader<T> reader_;
    V* const single_;
    Ring kept_;
    V* const out_;
    std::vector<const V*> rows_;
    int64_t next_;
};

V bias_of(const float* b, int64_t first, int64_t count) { return b == nullptr ? V{} : load_part(b + first, static_cast<int>(count)); }

template <class T>
void filtered_lrelu(const Image& x, const Image& y, const float* b, const Resampling& up, const Resampling& down, const Activation& act, int64_t threads) {
    const Stage first = up.stage(x.h, x.w, act.mid_h, act.mid_w), second = down.stage(act.mid_h, act.mid_w, y.h, y.w);
    const int64_t groups = ceil_div(x.c, kLanes), together = x.stride_c == 1 && y.stride_c == 1 ? std::min<int64_t>(groups, kTogether) : 1;
    const int64_t bundles = ceil_div(groups, together), code_groups = ceil_div(x.c, 16), all = x.n * bundles;
    // Rows of at most 112 outputs fit into the first two cache levels. With few planes, tiles are cut along y as well,
    // so that all threads have work.
    const Parts wide(y.w, ceil_div(y.w, 112));
    const Parts high(y.h, std::clamp<int64_t>(ceil_div(32, std::max<int64_t>(1, all * wide.count)), 1, std::max<int64_t>(1, y.h / 48)));
    run(all * wide.count * high.count, threads, [&](int64_t task) {
        const int64_t part = task % wide.count, row = task / wide.count % high.count, bundle = task / wide.count / high.count;
        const int64_t n = bundle / bundles, begin = bundle % bundles * together, end = std::min(groups, begin + together);
        const Bounds bounds(first, second, act, high.start(row), high.stop(row), wide.start(part), wide.stop(part));
        Scratch& space = scratch();
        space.reset((end - begin) * LreluTile<T>::vectors(first, second, bounds));
        std::vector<LreluTile<T>> tiles;
        tiles.reserve(end - begin);
        for (int64_t group = begin; group < end; ++group) {
            const int64_t c = group * kLanes, count = std::min<int64_t>(kLanes, x.c - c);
            uint8_t* codes = act.codes == nullptr ? nullptr : act.codes + (n * code_groups + c / 16) * act.mid_h * act.mid_w * 4 + c % 16 / 8;
            tiles.emplace_back(space, first, second, act, bounds, planes<const T>(x, n, c, count), planes<T>(y, n, c, count), bias_of(b, c, count), codes);
        }
        for (int64_t r = bounds.rows.start; r < bounds.rows.stop; ++r) {
            for (LreluTile<T>& tile : tiles) tile.make(r);
        }
        finish_stores();
    });
}

template <class T>
void upfirdn2d(const Image& x, const Image& y, const Resampling& map, int64_t threads) {
    const Stage stage = map.stage(x.h, x.w, y.h, y.w);
    // Planes that are evenly spaced over all samples share the lanes, because images have only three channels.
    const bool even = x.stride_n == x.c * x.stride_c && y.stride_n == y.c * y.stride_c && x.stride_c != 1;
    const int64_t in_a_row = even ? x.n * x.c : x.c, groups = ceil_div(in_a_row, kLanes), all = even ? groups : x.n * groups;
    const Parts wide(y.w, ceil_div(y.w, 112));
    const Parts high(y.h, std::clamp<int64_t>(ceil_div(32, std::max<int64_t>(1, all * wide.count)), 1, std::max<int64_t>(1, y.h / 48)));
    run(all * wide.count * high.count, threads, [&](int64_t task) {
        const int64_t part = task % wide.count, row = task / wide.count % high.count, group = task / wide.count / high.count;
        const int64_t n = group / groups, c = group % groups * kLanes, count = std::min<int64_t>(kLanes, in_a_row - c);
        const Span span(stage.x, wide.start(part), wide.stop(part));
        const int64_t base = span.base(stage.x), width = span.stop - base + kSlack + 4 * stage.x.up;
        Scratch& space = scratch();
        space.reset(Reader<T>::vectors(stage, span) + width);
        Reader<T> reader(space, stage, span, planes<const T>(x, n, c, count), V{});
        V* const out = space.take(width);
        Planes<T> to = planes<T>(y, n, c, count);
        to.data += span.start * to.pixel;
        for (int64_t o = high.start(row); o < high.stop(row); ++o) {
            reader.make(out, o);
            store_row(out + (span.start - base), to, o, span.stop - span.start);
        }
        finish_stores();
    });
}

}  // namespace cpu

extern "C" {

int ops_lanes() { return cpu::kLanes; }

void ops_filtered_lrelu(
    int64_t dtype, const cpu::Image* x, const cpu::Image* y, const float* b, const cpu::Resampling* up, const cpu::Resampling* down,
    const cpu::Activation* act, int64_t threads
) {
    (dtype == cpu::kBFloat16 ? cpu::filtered_lrelu<cpu::bf16> : cpu::filtered_lrelu<float>)(*x, *y, b, *up, *down, *act, threads);
}

void ops_upfirdn2d(int64_t dtype, const cpu::Image* x, const cpu::Image* y, const cpu::Resampling* map, int64_t threads) {
    (dtype == cpu::kBFloat16 ? cpu::upfirdn2d<cpu::bf16> : cpu::upfirdn2d<float>)(*x, *y, *map, threads);
}

void ops_bias_act(int64_t dtype, const cpu::BiasAct* p, int64_t threads) {
    (dtype == cpu::kBFloat16 ? cpu::bias_act<cpu::bf16> : cpu::bias_act<float>)(*p, threads);
}

void ops_channel_sums(int64_t dtype, const void* x, float* out, int64_t count, int64_t step, int64_t channels, int64_t threads) {
    const cpu::Channels layout{count, step, channels};
    if (dtype == cpu::kBFloat16) {
        cpu::channel_sums(static_cast<const cpu::bf16*>(x), out, layout, threads);
    } else {
        cpu::channel_sums(static_cast<const float*>(x), out, layout, threads);
    }
}
}
