// SPDX-License-Identifier: Apache-2.0
// bias_act for one element: nine activations as five families of formulas. A is float or double in the CUDA kernels
// and a vector of floats in the CPU kernels. Choices that differ between elements use select(condition, a, b); plain
// `if` and `?:` are for choices that are equal for all elements.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define OPS_FORMULA __host__ __device__ __forceinline__
#else
#define OPS_FORMULA inline
#endif

namespace ops {

// For scalars, in addition to the overloads for vectors.
using std::exp;
using std::expm1;
using std::fabs;
using std::log1p;
using std::tanh;

// The order is that of activation_funcs in bias_act.py.
enum Activation { kLinear, kRelu, kLrelu, kTanh, kSigmoid, kElu, kSelu, kSoftplus, kSwish };

// kPiecewise: x, or negative * x below zero (linear, relu, lrelu). kLogistic: sigmoid, or x * sigmoid (swish).
// kExponential: positive * x, or negative * (e^x - 1) below zero (elu, selu).
enum Family { kPiecewise, kHyperbolic, kLogistic, kExponential, kLogarithmic };

constexpr double kSeluScale = 1.0507009873554804934193349852946;  // Klambauer et al. 2017
constexpr double kSeluAlpha = 1.6732632423543772848170429916717;

template <class A>
struct Constants {
    Family family;
    bool swish, relu, from_output, clamps;
    A positive, negative, gain, inverse_gain, clamp;
};

template <class A>
Constants<A> make_constants(int activation, bool from_output, double alpha, double gain, double clamp) {
    Constants<A> c;
    switch (activation) {
        case kTanh: c.family = kHyperbolic; break;
        case kSigmoid:
        case kSwish: c.family = kLogistic; break;
        case kElu:
        case kSelu: c.family = kExponential; break;
        case kSoftplus: c.family = kLogarithmic; break;
        default: c.family = kPiecewise; break;
    }
    const double negative = activation == kSelu ? kSeluScale * kSeluAlpha : activation == kRelu ? 0 : activation == kLrelu ? alpha : 1;
    c.swish = activation == kSwish;
    c.relu = c.family == kPiecewise && negative == 0;
    c.from_output = from_output;
    c.clamps = clamp >= 0;
    c.positive = A(activation == kSelu ? kSeluScale : 1.);
    c.negative = A(negative);
    c.gain = A(gain);
    c.inverse_gain = A(gain == 0 ? 0. : 1 / gain);
    c.clamp = A(clamp);
    return c;
}

OPS_FORMULA float select(bool condition, float a, float b) { return condition ? a : b; }
OPS_FORMULA double select(bool condition, double a, double b) { return condition ? a : b; }

template <class A>
OPS_FORMULA A sigmoid(A x) {
    const A e = exp(-fabs(x));
    return select(x >= A(0), A(1), e) / (A(1) + e);
}

template <Family F, class A>
OPS_FORMULA A activate(A x, const Constants<A>& c) {
    if (F == kPiecewise) return select(x > A(0), x, c.relu ? select(x == x, A(0), x) : x * c.negative);  // relu(-inf) is 0
    if (F == kHyperbolic) return tanh(x);
    if (F == kLogistic) return c.swish ? x * sigmoid(x) : sigmoid(x);
    if (F == kExponential) return select(x > A(0), c.positive * x, c.negative * expm1(x));
    return select(x > A(0), x, A(0)) + log1p(exp(-fabs(x)));
}

// First (order 1) and second (order 2) derivative of the activation at x. Used only for activations whose derivative
// is not a function of their value, and for the others if the gain is zero.
template <Family F, int ORDER, class A>
OPS_FORMULA A slope_at(A x, const Constants<A>& c) {
    if (F == kPiecewise) return ORDER == 1 ? select(x > A(0), A(1), c.negative) : A(0);
    if (F != kLogistic) return A(0);
    const A s = sigmoid(x);
    return ORDER == 1 ? s * (A(1) + x * (A(1) - s)) : s * (A(1) - s) * (A(2) + x * (A(1) - A(2) * s));
}

// The slope as a function of the activation's value v (order 1), and the derivative of that function (order 2), so
// that x need not be saved.
template <Family F, int ORDER, class A>
OPS_FORMULA A slope_from_value(A v, const Constants<A>& c) {
    if (F == kPiecewise) return ORDER == 1 ? select(v > A(0), A(1), c.negative) : A(0);
    if (F == kHyperbolic) return ORDER == 1 ? A(1) - v * v : A(-2) * v;
    if (F == kLogistic) return ORDER == 1 ? v * (A(1) - v) : A(1) - A(2) * v;
    if (F == kExponential) return select(v > A(0), ORDER == 1 ? c.positive : A(0), ORDER == 1 ? v + c.negative : A(1));
    return ORDER == 1 ? -expm1(-v) : exp(-v);
}

// Order 0: clamp(gain * act(saved + bias)). Order 1: dy * G. Order 2: ddx * dy * (derivative of G with respect to the
// saved tensor). G is the slope of the whole operation, computed from the saved output or input. `bound` is the clamp
// rounded like the saved tensor.
template <Family F, int ORDER, class A>
OPS_FORMULA A element(const Constants<A>& c, A bound, A saved, A bias, A dy, A ddx) {
    if (ORDER == 0) {
        const A value = activate<F, A>(saved + bias, c) * c.gain;
        return c.clamps ? select(value < -c.clamp, -c.clamp, select(value > c.clamp, c.clamp, value)) : value;
    }
    A y = saved, value;
    if (c.from_output) {
        const A slope = slope_from_value<F, ORDER, A>(y * c.inverse_gain, c);
        value = ORDER == 1 ? slope * c.gain : slope;  // order 2: d(gain * slope(y / gain)) / dy
    } else {
        const A x = saved + bias;
        value = slope_at<F, ORDER, A>(x, c) * c.gain;
        if (F == kPiecewise || F == kLogistic) y = c.clamps ? activate<F, A>(x, c) * c.gain : A(0);
    }
    if (c.clamps) value = select(fabs(y) < bound, value, A(0));
    value = value * dy;
    return ORDER == 2 ? value * ddx : value;
}

}  // namespace ops
