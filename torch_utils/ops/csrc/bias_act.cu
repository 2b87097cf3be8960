// SPDX-License-Identifier: Apache-2.0
// bias_act and its derivatives: one pass over memory, 16 bytes per access where the pointers allow it. Bound by memory bandwidth.
#include "ops.h"
#include "platform.h"

namespace ops {
namespace {

constexpr int kThreads = 256;
constexpr double kSeluScale = 1.0507009873554804934193349852946;
constexpr double kSeluAlpha = 1.6732632423543772848170429916717;

template <class A>
struct Constants {
    A alpha, gain, inverse_gain, clamp;
    bool from_output;
};

template <int F, class A>
__device__ __forceinline__ A activate(A x, A alpha) {
    if (F == kRelu) return x > A(0) || x != x ? x : A(0);
    if (F == kLrelu) return x > A(0) ? x : x * alpha;
    if (F == kTanh) return tanh(x);
    if (F == kSigmoid) return x >= A(0) ? A(1) / (A(1) + exp(-x)) : exp(x) / (A(1) + exp(x));
    if (F == kElu) return x > A(0) ? x : expm1(x);
    if (F == kSelu) return x > A(0) ? A(kSeluScale) * x : A(kSeluScale * kSeluAlpha) * expm1(x);
    if (F == kSoftplus) return x > A(0) ? x + log1p(exp(-x)) : log1p(exp(x));
    if (F == kSwish) return x * activate<kSigmoid, A>(x, alpha);
    return x;
}

// First (order 1) and second (order 2) derivative of the activation at x.
template <int F, int ORDER, class A>
__device__ __forceinline__ A slope_at(A x, A alpha) {
    if (F == kLinear) return ORDER == 1 ? A(1) : A(0);
    if (F == kRelu) return ORDER == 1 ? (x > A(0) ? A(1) : A(0)) : A(0);
    if (F == kLrelu) return ORDER == 1 ? (x > A(0) ? A(1) : alpha) : A(0);
    if (F == kElu) return x > A(0) ? A(ORDER == 1) : exp(x);
    if (F == kSelu) return x > A(0) ? A(ORDER == 1 ? kSeluScale : 0) : A(kSeluScale * kSeluAlpha) * exp(x);
    if (F == kTanh) {
        A t = tanh(x);
        return ORDER == 1 ? A(1) - t * t : A(-2) * t * (A(1) - t * t);
    }
    A s = activate<kSigmoid, A>(x, alpha);
    if (F == kSigmoid) return ORDER == 1 ? s * (A(1) - s) : s * (A(1) - s) * (A(1) - A(2) * s);
    if (F == kSoftplus) return ORDER == 1 ? s : s * (A(1) - s);
    // swish
    return ORDER == 1 ? s * (A(1) + x * (A(1) - s)) : s * (A(1) - s) * (A(2) + x * (A(1) - A(2) * s));
}

// The slope as a function of the activation's value v (order 1), and the derivative of that function (order 2): saves keeping x.
template <int F, int ORDER, class A>
__device__ __forceinline__ A slope_from_value(A v, A alpha) {
    if (F == kLinear) return ORDER == 1 ? A(1) : A(0);
    if (F == kRelu) return ORDER == 1 ? (v > A(0) ? A(1) : A(0)) : A(0);
    if (F == kLrelu) return ORDER == 1 ? (v > A(0) ? A(1) : alpha) : A(0);
    if (F == kTanh) return ORDER == 1 ? A(1) - v * v : A(-2) * v;
    if (F == kSigmoid) return ORDER == 1 ? v * (A(1) - v) : A(1) - A(2) * v;
    if (F == kElu) return v > A(0) ? A(ORDER == 1) : (ORDER == 1 ? v + A(1) : A(1));
    if (F == kSelu) return v > A(0) ? A(ORDER == 1 ? kSeluScale : 0) : (ORDER == 1 ? v + A(kSeluScale * kSeluAlpha) : A(1));
    // softplus; swish is not invertible and always keeps x
    return ORDER == 1 ? -expm1(-v) : exp(-v);
}

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
    T value[V];
};

template <class T, int F, int ORDER, int V>
__device__ __forceinline__ void compute(
    const Constants<typename Compute<T>::type>& c, const Pack<T, V>& saved, const typename Compute<T>::type (&bias)[V], const Pack<T, V>& dy,
    const Pack<T, V>& ddx, Pack<T, V>& out
) {
    typedef typename Compute<T>::type A;
    // An output on the clamp was rounded to T with it.
    T rounded;
    from_float(c.clamp, rounded);
    const A bound = c.from_output ? to_float(rounded) : c.clamp;
    OPS_UNROLL
    for (int i = 0; i < V; i++) {
        A value;
        if (ORDER == 0) {
            value = activate<F, A>(to_float(saved.value[i]) + bias[i], c.alpha) * c.gain;
            if (c.clamp >= A(0)) value = value < -c.clamp ? -c.clamp : (value > c.clamp ? c.clamp : value);
        } else {
            A y = to_float(saved.value[i]);
            if (c.from_output) {
                A factor = slope_from_value<F, ORDER, A>(y * c.inverse_gain, c.alpha);
                value = ORDER == 1 ? factor * c.gain : factor;  // order 2: d(gain * slope(y / gain)) / dy
            } else {
                A x = y + bias[i];
                value = slope_at<F, ORDER, A>(x, c.alpha) * c.gain;
                if (c.clamp >= A(0)) y = activate<F, A>(x, c.alpha) * c.gain;
            }
            if (c.clamp >= A(0) && !(fabs(y) < bound)) value = A(0);
            value *= to_float(dy.value[i]);
            if (ORDER == 2) value *= to_float(ddx.value[i]);
        }
        from_float(value, out.value[i]);
    }
}

template <class T, int ORDER, int V, class Index>
__global__ void __launch_bounds__(kThreads) bias_act_kernel(BiasActParams p, Constants<typename Compute<T>::type> c) {
    typedef typename Compute<T>::type A;
    typedef Pack<T, V> P;
    const T* saved = static_cast<const T*>(ORDER > 0 && c.from_output ? p.y : p.x);
    const T* biases = static_cast<const T*>(p.b);
    const Index packs = static_cast<Index>(p.count / V), step = static_cast<Index>(p.step), channels = static_cast<Index>(p.channels);
    const Index stride = static_cast<Index>(gridDim.x) * kThreads;
    for (Index k = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; k < packs; k += stride) {
        P s, dy, ddx, out;
        s = reinterpret_cast<const P*>(saved)[k];
        if (ORDER >= 1) dy = reinterpret_cast<const P*>(p.dy)[k];
        if (ORDER >= 2) ddx = reinterpret_cast<const P*>(p.ddx)[k];
        A bias[V];
        if (biases == nullptr) {
            OPS_UNROLL
            for (int i = 0; i < V; i++) bias[i] = A(0);
        } else {
            Index position = static_cast<Index>(p.phase) + k * V;
            Index channel = position / step, within = position - channel * step;
            channel %= channels;
            OPS_UNROLL
            for (int i = 0; i < V; i++) {
                bias[i] = to_float(biases[channel]);
                if (++within == step) {
                    within = 0;
                    if (++channel == channels) channel = 0;
                }
            }
        }
        switch (p.activation) {
            case kLinear: compute<T, kLinear, ORDER, V>(c, s, bias, dy, ddx, out); break;
            case kRelu: compute<T, kRelu, ORDER, V>(c, s, bias, dy, ddx, out); break;
            case kLrelu: compute<T, kLrelu, ORDER, V>(c, s, bias, dy, ddx, out); break;
            case kTanh: compute<T, kTanh, ORDER, V>(c, s, bias, dy, ddx, out); break;
            case kSigmoid: compute<T, kSigmoid, ORDER, V>(c, s, bias, dy, ddx, out); break;
            case kElu: compute<T, kElu, ORDER, V>(c, s, bias, dy, ddx, out); break;
            case kSelu: compute<T, kSelu, ORDER, V>(c, s, bias, dy, ddx, out); break;
            case kSoftplus: compute<T, kSoftplus, ORDER, V>(c, s, bias, dy, ddx, out); break;
            default: compute<T, kSwish, ORDER, V>(c, s, bias, dy, ddx, out); break;
        }
        reinterpret_cast<P*>(p.out)[k] = out;
    }
}

bool aligned(const BiasActParams& p, size_t bytes) {
    const void* all[] = {p.x, p.y, p.dy, p.ddx, p.out};
    for (const void* pointer : all) {
        if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) return false;
    }
    return true;
}

const void* advance(const void* pointer, int64_t bytes) { return pointer == nullptr ? nullptr : static_cast<const char*>(pointer) + bytes; }

template <class T, int ORDER>
void launch(BiasActParams p, void* stream) {
    typedef typename Compute<T>::type A;
    constexpr int kWide = 16 / static_cast<int>(sizeof(T));
    constexpr int64_t kSlice = int64_t{1} << 30;  // elements per launch: the wide kernel counts in 32 bits
    Constants<A> c;
    c.alpha = static_cast<A>(p.alpha);
    c.gain = static_cast<A>(p.gain);
    c.inverse_gain = static_cast<A>(p.gain == 0 ? 0 : 1 / p.gain);
    c.clamp = static_cast<A>(p.clamp);
    c.from_output = ORDER > 0 && p.y != nullptr;
    const int64_t period = p.step * p.channels, limit = p.max_slice > 0 && p.max_slice < kSlice ? p.max_slice : kSlice;
    const bool wide = p.count % kWide == 0 && aligned(p, 16) && period < kSlice;
    [[maybe_unused]] Stream s = static_cast<Stream>(stream);
    for (int64_t left = p.count, size; left > 0; left -= size) {
        size = wide && left > limit ? limit : left;
        p.count = size;
        const int64_t blocks = ((wide ? size / kWide : size) + kThreads - 1) / kThreads;
        // A few resident blocks per multiprocessor of the largest devices, each looping over what is left.
        const unsigned grid = static_cast<unsigned>(blocks < 8192 ? blocks : 8192);
        if (wide) {
            OPS_LAUNCH((bias_act_kernel<T, ORDER, kWide, int32_t>), grid, kThreads, 0, s, p, c);
        } else {
            OPS_LAUNCH((bias_act_kernel<T, ORDER, 1, int64_t>), grid, kThreads, 0, s, p, c);
        }
        const int64_t bytes = size * static_cast<int64_t>(sizeof(T));
        p.x = advance(p.x, bytes);
        p.y = advance(p.y, bytes);
        p.dy = advance(p.dy, bytes);
        p.ddx = advance(p.ddx, bytes);
        p.out = const_cast<void*>(advance(p.out, bytes));
        p.phase = (p.phase + size) % period;
    }
}

template <class T>
void dispatch_order(const BiasActParams& p, void* stream) {
    if (p.order == 0) {
        launch<T, 0>(p, stream);
    } else if (p.order == 1) {
        launch<T, 1>(p, stream);
    } else {
        launch<T, 2>(p, stream);
    }
}

}  // namespace

void bias_act(const BiasActParams& p, void* stream) {
    if (p.count == 0) return;
    switch (p.dtype) {
        case kFloat32: dispatch_order<float>(p, stream); break;
        case kFloat16: dispatch_order<half_t>(p, stream); break;
        case kBFloat16: dispatch_order<bfloat_t>(p, stream); break;
        case kFloat64: dispatch_order<double>(p, stream); break;
    }
}

}  // namespace ops
