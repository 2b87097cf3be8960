// SPDX-License-Identifier: Apache-2.0
// bias_act and its derivatives: one pass over memory with 16 bytes per access if the pointers are aligned. The speed is
// limited by memory bandwidth.
//
// The family of formulas is selected at run time, once per 16 bytes, so that few kernels have to be compiled.
#include "activations.h"
#include "ops.h"
#include "platform.h"

namespace ops {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSlice = int64_t{1} << 30;  // elements per launch: the kernel uses 32-bit indices

// The elements of one launch. Element i has the bias biases[(channel + (within + i) / step) % channels].
struct Slice {
    const void* biases;
    int32_t count, within, step, channel, channels;
    bool aligned;
};

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
    T value[V];
};

// Computes V elements from `first` on, or the remaining ones.
template <class T, int V>
__device__ __forceinline__ Pack<T, V> load(const void* source, int32_t first, int32_t left, bool aligned) {
    const T* x = static_cast<const T*>(source) + first;
    if (aligned && left >= V) return *reinterpret_cast<const Pack<T, V>*>(x);
    Pack<T, V> pack;
    OPS_UNROLL
    for (int i = 0; i < V; i++) pack.value[i] = x[i < left ? i : 0];
    return pack;
}

template <class T, int V>
__device__ __forceinline__ void store(void* target, int32_t first, int32_t left, bool aligned, const Pack<T, V>& pack) {
    T* x = static_cast<T*>(target) + first;
    if (aligned && left >= V) {
        *reinterpret_cast<Pack<T, V>*>(x) = pack;
        return;
    }
    OPS_UNROLL
    for (int i = 0; i < V; i++) {
        if (i < left) x[i] = pack.value[i];
    }
}

template <class T, Family F, int ORDER, int V>
__device__ __forceinline__ void compute(
    const Constants<typename Compute<T>::type>& c, const Pack<T, V>& saved, const typename Compute<T>::type (&bias)[V], const Pack<T, V>& dy,
    const Pack<T, V>& ddx, Pack<T, V>& out
) {
    typedef typename Compute<T>::type A;
    // An output at the clamp is the clamp rounded to T.
    T rounded;
    from_float(c.clamp, rounded);
    const A bound = c.from_output ? to_float(rounded) : c.clamp;
    OPS_UNROLL
    for (int i = 0; i < V; i++) {
        const A first = ORDER >= 1 ? to_float(dy.value[i]) : A(0), second = ORDER >= 2 ? to_float(ddx.value[i]) : A(0);
        from_float(element<F, ORDER, A>(c, bound, to_float(saved.value[i]), bias[i], first, second), out.value[i]);
    }
}

template <class T, int ORDER>
__global__ void __launch_bounds__(kThreads) bias_act_kernel(BiasActParams p, Slice slice, Constants<typename Compute<T>::type> c) {
    typedef typename Compute<T>::type A;
    constexpr int V = 16 / static_cast<int>(sizeof(T));
    const void* source = ORDER > 0 && c.from_output ? p.y : p.x;
    const T* biases = static_cast<const T*>(slice.biases);
    const int32_t stride = static_cast<int32_t>(gridDim.x) * kThreads * V;
    for (int32_t first = static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x) * V; first < slice.count; first += stride) {
        const int32_t left = slice.count - first;
        Pack<T, V> dy, ddx, out;
        const Pack<T, V> saved = load<T, V>(source, first, left, slice.aligned);
        if (ORDER >= 1) dy = load<T, V>(p.dy, first, left, slice.aligned);
        if (ORDER >= 2) ddx = load<T, V>(p.ddx, first, left, slice.aligned);
        A bias[V];
        if (biases == nullptr) {
            OPS_UNROLL
            for (int i = 0; i < V; i++) bias[i] = A(0);
        } else {
            const int32_t position = slice.within + first, before = position / slice.step;
            int32_t within = position - before * slice.step, channel = (slice.channel + before) % slice.channels;
            OPS_UNROLL
            for (int i = 0; i < V; i++) {
                bias[i] = to_float(biases[channel]);
                if (++within == slice.step) {
                    within = 0;
                    if (++channel == slice.channels) channel = 0;
                }
            }
        }
        switch (c.family) {
            case kPiecewise: compute<T, kPiecewise, ORDER, V>(c, saved, bias, dy, ddx, out); break;
            case kHyperbolic: compute<T, kHyperbolic, ORDER, V>(c, saved, bias, dy, ddx, out); break;
            case kLogistic: compute<T, kLogistic, ORDER, V>(c, saved, bias, dy, ddx, out); break;
            case kExponential: compute<T, kExponential, ORDER, V>(c, saved, bias, dy, ddx, out); break;
            default: compute<T, kLogarithmic, ORDER, V>(c, saved, bias, dy, ddx, out); break;
        }
        store<T, V>(p.out, first, left, slice.aligned, out);
    }
}

bool aligned(const BiasActParams& p) {
    const void* all[] = {p.x, p.y, p.dy, p.ddx, p.out};
    for (const void* pointer : all) {
        if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
    }
    return true;
}

template <class T>
const void* advance(const void* pointer, int64_t elements) {
    return pointer == nullptr ? nullptr : static_cast<const T*>(pointer) + elements;
}

template <class T>
void skip(BiasActParams& p, int64_t elements) {
    p.x = advance<T>(p.x, elements);
    p.y = advance<T>(p.y, elements);
    p.dy = advance<T>(p.dy, elements);
    p.ddx = advance<T>(p.ddx, elements);
    p.out = static_cast<T*>(p.out) + elements;
}

template <class T, int ORDER>
void launch(BiasActParams p, void* stream) {
    const auto c = make_constants<typename Compute<T>::type>(p.activation, p.order > 0 && p.y != nullptr, p.alpha, p.gain, p.clamp);
    constexpr int64_t kPerBlock = kThreads * (16 / static_cast<int64_t>(sizeof(T)));
    const int64_t limit = p.max_slice > 0 && p.max_slice < kSlice ? p.max_slice : kSlice;
    [[maybe_unused]] Stream s = static_cast<Stream>(stream);
    const int64_t start = p.limits.first(p.count);
    skip<T>(p, start);
    for (int64_t first = start, size; first < p.count; first += size) {
        const int64_t channel = first / p.step % p.channels, within = first % p.step;
        size = p.count - first < limit ? p.count - first : limit;
        Slice slice;
        if (p.step < limit) {
            slice.within = static_cast<int32_t>(within);
            slice.step = static_cast<int32_t>(p.step);
            slice.channel = static_cast<int32_t>(channel);
            slice.channels = static_cast<int32_t>(p.channels);
            slice.biases = p.b;
        } else {
            // Too many elements have the same bias for 32-bit indices: the launch ends where the next bias begins.
            size = size < p.step - within ? size : p.step - within;
            slice.within = slice.channel = 0;
            slice.step = static_cast<int32_t>(size);
            slice.channels = 1;
            slice.biases = advance<T>(p.b, channel);
        }
        slice.count = static_cast<int32_t>(size);
        slice.aligned = aligned(p);
        // A few resident blocks per multiprocessor of the largest devices; each loops over the remaining elements.
        const unsigned grid = Limits{p.limits.blocks, 0}.grid((size + kPerBlock - 1) / kPerBlock, 8192);
        OPS_LAUNCH((bias_act_kernel<T, ORDER>), grid, kThreads, 0, s, p, slice, c);
        skip<T>(p, size);
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
    switch (p.dtype) {
        case kFloat32: dispatch_order<float>(p, stream); break;
        case kFloat16: dispatch_order<half_t>(p, stream); break;
        case kBFloat16: dispatch_order<bfloat_t>(p, stream); break;
        case kFloat64: dispatch_order<double>(p, stream); break;
    }
}

}  // namespace ops
