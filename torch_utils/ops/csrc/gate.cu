// SPDX-License-Identifier: Apache-2.0
// The leaky ReLU of filtered_lrelu and its 2-bit codes as a separate pass: one thread per byte of codes (four samples).
#include "ops.h"
#include "platform.h"

namespace ops {
namespace {

constexpr int kThreads = 256;

template <class A, int MODE>
__global__ void __launch_bounds__(kThreads) gate_kernel(GateParams p, int64_t first_byte, int64_t count) {
    const A gain = static_cast<A>(p.gain), slope = static_cast<A>(p.slope), clamp = static_cast<A>(p.clamp);
    for (int64_t k = first_byte + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < count; k += static_cast<int64_t>(gridDim.x) * kThreads) {
        const int64_t row = k / p.code_bytes;
        const int first = static_cast<int>(k - row * p.code_bytes) * 4;
        A* u = static_cast<A*>(p.u) + row * p.mid_w + first;
        unsigned codes = MODE == kGated ? p.codes[k] : 0;
        for (int i = 0; i < 4; i++) {
            if (first + i >= p.mid_w) {
                codes |= 2u << (2 * i);
                continue;
            }
            if (MODE == kGated) {
                const unsigned code = codes >> (2 * i);
                u[i] = (code & 2) ? A(0) : u[i] * ((code & 1) ? gain * slope : gain);
            } else {
                const bool negative = !(u[i] > A(0));
                A value = (negative ? u[i] * slope : u[i]) * gain;
                const bool outside = clamp >= A(0) && !(fabs(value) < clamp);
                if (clamp >= A(0)) value = value < -clamp ? -clamp : (value > clamp ? clamp : value);
                u[i] = value;
                codes |= (negative ? 1u : 0u) << (2 * i) | (outside ? 2u : 0u) << (2 * i);
            }
        }
        if (MODE == kSave) p.codes[k] = static_cast<uint8_t>(codes);
    }
}

template <class A>
void launch(const GateParams& p, void* stream) {
    [[maybe_unused]] Stream s = static_cast<Stream>(stream);
    const int64_t count = p.rows * p.code_bytes, first = p.limits.first(count);
    const unsigned grid = Limits{p.limits.blocks, 0}.grid((count - first + kThreads - 1) / kThreads, 1 << 20);
    if (p.mode == kPlain) OPS_LAUNCH((gate_kernel<A, kPlain>), grid, kThreads, 0, s, p, first, count);
    if (p.mode == kSave) OPS_LAUNCH((gate_kernel<A, kSave>), grid, kThreads, 0, s, p, first, count);
    if (p.mode == kGated) OPS_LAUNCH((gate_kernel<A, kGated>), grid, kThreads, 0, s, p, first, count);
}

}  // namespace

void gate(const GateParams& p, void* stream) {
    if (p.rows == 0) return;
    if (p.is_double) {
        launch<double>(p, stream);
    } else {
        launch<float>(p, stream);
    }
}

}  // namespace ops
