// SPDX-License-Identifier: Apache-2.0
// bias_act for CPUs (the formulas of ../activations.h on vectors of floats) and the sums for the gradient of a bias,
// over dense tensors in memory order.
#pragma once

#include <algorithm>
#include <vector>

#include "../activations.h"
#include "parallel.h"
#include "vectors.h"

namespace cpu {

// A vector to which scalars convert, for formulas that are written for both.
struct Floats {
    V v;
    Floats() = default;
    Floats(V v) : v(v) {}
    explicit Floats(double x) : v(splat(static_cast<float>(x))) {}
};
inline Floats operator+(Floats a, Floats b) { return a.v + b.v; }
inline Floats operator-(Floats a, Floats b) { return a.v - b.v; }
inline Floats operator*(Floats a, Floats b) { return a.v * b.v; }
inline Floats operator/(Floats a, Floats b) { return a.v / b.v; }
inline Floats operator-(Floats a) { return -a.v; }
inline I operator>(Floats a, Floats b) { return a.v > b.v; }
inline I operator<(Floats a, Floats b) { return a.v < b.v; }
inline I operator>=(Floats a, Floats b) { return a.v >= b.v; }
inline I operator==(Floats a, Floats b) { return a.v == b.v; }
inline Floats select(I lanes, Floats a, Floats b) { return lanes ? a.v : b.v; }
inline Floats fabs(Floats x) { return (V)((I)x.v & 0x7fffffff); }

// x = n ln 2 + r with |r| <= ln 2 / 2, for |x| < 2^21. ln 2 is split into two parts, so that n times the first is exact
// (Cody and Waite 1980).
struct Reduced {
    V n, r;
    explicit Reduced(V x) {
        const V shift = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
        n = (x * 1.44269504089f + shift) - shift;
        r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    }
};

// (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2: Taylor series; the next term is below 3e-9.
inline V exp_series(V r) {
    V p = splat(1.f / 40320);
    for (const float c : {1.f / 5040, 1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2}) p = p * r + c;
    return p;
}

// 2^n for integers -126 <= n <= 127.
inline V power_of_two(V n) { return (V)((__builtin_convertvector(n, I) + 127) << 23); }

inline Floats exp(Floats x) {
    const V bounded_x = bounded(x.v, splat(110.f));  // beyond the range of float; NaN stays NaN
    const Reduced a(bounded_x);
    // In two steps, for results below the smallest normal number and above the largest power of 2.
    const V half = power_of_two(__builtin_convertvector(__builtin_convertvector(a.n, I) >> 1, V));
    const V rest = power_of_two(a.n - __builtin_convertvector(__builtin_convertvector(a.n, I) >> 1, V));
    return (1.f + (a.r + a.r * a.r * exp_series(a.r))) * half * rest;
}

// e^x - 1 for x <= 0. It overflows too early above 88, which is not used.
inline Floats expm1(Floats x) {
    const V bounded_x = bounded(x.v, splat(88.f));
    const Reduced a(bounded_x);
    const V power = power_of_two(a.n);
    return power * (a.r + a.r * a.r * exp_series(a.r)) + (power - 1.f);
}

inline Floats tanh(Floats x) {
    const V e = expm1(Floats(-2.f * fabs(x).v)).v;
    const V magnitude = -e / (2.f + e);
    return (V)(((I)magnitude & 0x7fffffff) | ((I)x.v & ~0x7fffffff));
}

// log(1 + u) for 0 <= u <= 1: series of 2 artanh(s) with s = u / (2 + u) <= 1/3.
inline Floats log1p(Floats u) {
    const V s = u.v / (2.f + u.v), q = s * s;
    V p = splat(2.f / 17);
    for (const float c : {2.f / 15, 2.f / 13, 2.f / 11, 2.f / 9, 2.f / 7, 2.f / 5, 2.f / 3}) p = p * q + c;
    return 2.f * s + s * q * p;
}

// The memory order of a dense tensor's channels: runs of `step` elements, cycling through the channels.
struct Channels {
    int64_t count, step, channels;
    // Short runs are combined into rows of whole periods that fill a few vectors.
    bool short_runs() const { return step < 4 * kLanes; }
    int64_t period() const { return step * channels; }
    int64_t row() const { return period() * std::max<int64_t>(1, 16 * kLanes / period()); }
    int64_t of(int64_t element) const { return element / step % channels; }
};

// Mirrored by cpu_kernels.py. Operands are as in BiasActParams of ../ops.h: dense, all with the same memory order.
struct BiasAct {
    const void *x, *y, *dy, *ddx;
    const float* b;
    void* out;
    int64_t activation, order;
    double alpha, gain, clamp;
    Channels layout;
};

constexpr int64_t kTaskElements = 1 << 14;

// Runs task(first, last) over parts of [0, count). All bounds except the last are multiples of `unit`.
template <class Task>
void run_parts(int64_t count, int64_t unit, int64_t threads, const Task& task) {
    const int64_t size = std::max<int64_t>(1, kTaskElements / unit) * unit;
    run(ceil_div(count, size), threads, [&](int64_t i) { task(i * size, std::min(count, (i + 1) * size)); });
}

// Common to all elements of a call. bound: the clamp rounded like the saved tensor.
struct Common {
    ops::Constants<Floats> constants;
    Floats bound;
    const void *saved, *dy, *ddx;
    void* out;
};

// Computes the elements [first, last). Element first + i has the bias biases[i * stride]; with stride 0, kLanes of
// them are read.
template <class T, ops::Family F, int ORDER>
void make(const Common& common, int64_t first, int64_t last, const float* biases, int64_t stride) {
    const ops::Constants<Floats> c = common.constants;  // a copy, which no store can change
    const Floats bound = common.bound;
    const T *saved = static_cast<const T*>(common.saved), *dy = static_cast<const T*>(common.dy), *ddx = static_cast<const T*>(common.ddx);
    T* const out = static_cast<T*>(common.out);
    int64_t i = first;
    for (; i + kLanes <= last; i += kLanes) {
        const V one = ORDER >= 1 ? load(dy + i) : V{}, two = ORDER >= 2 ? load(ddx + i) : V{};
        store(out + i, ops::element<F, ORDER, Floats>(c, bound, load(saved + i), load(biases + (i - first) * stride), one, two).v);
    }
    if (i < last) {
        const int n = static_cast<int>(last - i);
        const V one = ORDER >= 1 ? load_part(dy + i, n) : V{}, two = ORDER >= 2 ? load_part(ddx + i, n) : V{};
        const V bias = load_part(biases + (i - first) * stride, n);
        store_part(out + i, ops::element<F, ORDER, Floats>(c, bound, load_part(saved + i, n), bias, one, two).v, n);
    }
}

typedef void (*Make)(const Common&, int64_t, int64_t, const float*, int64_t);

template <class T, ops::Family F>
Make choose(int64_t order) {
    return order == 0 ? make<T, F, 0> : order == 1 ? make<T, F, 1> : make<T, F, 2>;
}

template <class T>
Make choose(ops::Family family, int64_t order) {
    switch (family) {
        case ops::kPiecewise: return choose<T, ops::kPiecewise>(order);
        case ops::kHyperbolic: return choose<T, ops::kHyperbolic>(order);
        case ops::kLogistic: return choose<T, ops::kLogistic>(order);
        case ops::kExponential: return choose<T, ops::kExponential>(order);
        default: return choose<T, ops::kLogarithmic>(order);
    }
}

template <class T>
void bias_act(const BiasAct& p, int64_t threads) {
    Common common{ops::make_constants<Floats>(p.activation, p.order > 0 && p.y != nullptr, p.alpha, p.gain, p.clamp), {}, p.x, p.dy, p.ddx, p.out};
    common.bound = common.constants.clamp;
    if (common.constants.from_output) {
        T rounded[kLanes];  // an output at the clamp is the rounded clamp
        store(rounded, common.bound.v);
        common.bound = load(rounded);
        common.saved = p.y;
    }
    const Make make = choose<T>(common.constants.family, p.order);
    const Channels& at = p.layout;
    if (p.b == nullptr || !at.short_runs()) {
        run_parts(at.count, kLanes, threads, [&](int64_t first, int64_t last) {
            while (first < last) {
                const int64_t stop = p.b == nullptr ? last : std::min(last, (first / at.step + 1) * at.step);
                float bias[kLanes];
                std::fill(bias, bias + kLanes, p.b == nullptr ? 0.f : p.b[at.of(first)]);
                make(common, first, stop, bias, 0);
                first = stop;
            }
        });
        return;
    }
    const int64_t row = at.row();
    std::vector<float> repeated;
    if (at.step > 1 || row > at.period()) {
        repeated.reserve(row);
        for (int64_t i = 0; i < row; ++i) repeated.push_back(p.b[at.of(i)]);
    }
    const float* const biases = repeated.empty() ? p.b : repeated.data();
    run_parts(at.count, row, threads, [&](int64_t first, int64_t last) {
        for (; first < last; first += row) make(common, first, std::min(last, first + row), biases, 1);
    });
}

template <class T>
float sum(const T* x, int64_t count) {
    V sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
        for (int j = 0; j < 4; ++j) sums[j] += load(x + i + j * kLanes);
    }
    for (; i < count; i += kLanes) sums[0] += load_part(x + i, static_cast<int>(std::min<int64_t>(kLanes, count - i)));
    const V all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += all[lane];
    return total;
}

// sums[i] += x[i] for i < count.
template <class T>
void add_row(float* sums, const T* x, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(sums + i, load(sums + i) + load(x + i));
    if (i < count) store_part(sums + i, load_part(sums + i, static_cast<int>(count - i)) + load_part(x + i, static_cast<int>(count - i)), static_cast<int>(count - i));
}

// out[c] = sum of the elements of channel c, in float32.
template <class T>
void channel_sums(const T* x, float* out, const Channels& at, int64_t threads) {
    std::fill(out, out + at.channels, 0.f);
    if (!at.short_runs()) {
        const int64_t runs = at.count / at.step;
        std::vector<float> sums(runs);
        const int64_t per_task = std::max<int64_t>(1, kTaskElements / at.step);
        run(ceil_div(runs, per_task), threads, [&](int64_t task) {
            for (int64_t i = task * per_task; i < std::min(runs, (task + 1) * per_task); ++i) sums[i] = sum(x + i * at.step, at.step);
        });
        for (int64_t i = 0; i < runs; ++i) out[i % at.channels] += sums[i];
        return;
    }
    // Rows are summed in a few parts; their number depends only on the shape.
    const int64_t row = at.row(), rows = ceil_div(at.count, row), per_part = std::max(ceil_div(4 * kTaskElements, row), ceil_div(rows, 64));
    const int64_t parts = ceil_div(rows, per_part);
    std::vector<float> sums(parts * row);
    run(parts, threads, [&](int64_t part) {
        for (int64_t i = part * per_part; i < std::min(rows, (part + 1) * per_part); ++i) {
            add_row(&sums[part * row], x + i * row, std::min(row, at.count - i * row));
        }
    });
    for (int64_t i = 0; i < parts * row; ++i) out[at.of(i % row)] += sums[i];
}

}  // namespace cpu
