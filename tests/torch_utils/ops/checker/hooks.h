// SPDX-License-Identifier: Apache-2.0
// What csrc/host_shim.h tells the kernel checker (runtime.cpp): which kernel, block, thread and barrier interval runs, and which memory each
// launch may touch. Included by the shim through OPS_OBSERVER.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ops.h"

// One function per kernel, so that addresses within it order its code as it stands in the source.
#define __forceinline__ inline __attribute__((always_inline))
#define OPS_UNOBSERVED __attribute__((no_sanitize("thread"), no_sanitize_coverage, noinline))
#define OPS_OBSERVE(call) ::checker::call
#define OPS_OVERRUN_STOPS false

namespace checker {

// kWrite: all of it is written by the launch, and read by nobody. kWritePart: written in part (only the last work items are done).
enum Use { kRead, kUpdate, kWrite, kWritePart };

struct Buffer {
    const char* name;
    const void* data;
    size_t bytes;
    Use use;
};
typedef std::vector<Buffer> Buffers;

void start(const char* kernel, const Buffers& buffers, unsigned grid, unsigned threads);
void begin_block(unsigned block, const void* shared, size_t shared_bytes, size_t guard_bytes);
void enter(unsigned thread, const void* stack, size_t stack_bytes);
void leave();
void end_interval();
void end_warp_interval(unsigned first);
void end_launch();

inline size_t size_of(ops::Dtype dtype) { return dtype == ops::kFloat64 ? 8 : dtype == ops::kFloat32 ? 4 : 2; }
inline const char* name_of(ops::Dtype dtype) {
    return dtype == ops::kFloat64 ? "float64" : dtype == ops::kFloat32 ? "float32" : dtype == ops::kFloat16 ? "float16" : "bfloat16";
}
inline Use written(const ops::Limits& limits) { return limits.tail > 0 ? kWritePart : kWrite; }

// The buffers of a launch, from the kernel's own arguments; `about` is the operation and what else tells launches of a kernel apart.
template <class Slice, class Constants>
Buffers describe(std::string& about, const ops::BiasActParams& p, const Slice& slice, const Constants& c) {
    const size_t size = size_of(p.dtype), bytes = slice.count * size;
    about = std::string("bias_act|") + name_of(p.dtype);
    const bool from_output = p.order > 0 && c.from_output;
    return {
        {"out", p.out, bytes, kWrite}, {"x", from_output ? nullptr : p.x, bytes, kRead}, {"y", from_output ? p.y : nullptr, bytes, kRead},
        {"dy", p.dy, bytes, kRead},    {"ddx", p.ddx, bytes, kRead},                     {"biases", slice.biases, slice.channels * size, kRead},
    };
}

template <class... Rest>
Buffers describe(std::string& about, const ops::UpfirdnParams& p, const Rest&...) {
    const size_t tap = p.in_dtype == ops::kFloat64 ? 8 : 4, taps = p.separable ? (p.taps_x > p.taps_y ? p.taps_x : p.taps_y) : p.taps_x * p.taps_y;
    about = std::string("upfirdn2d|") + name_of(p.in_dtype) + (p.in_dtype != p.out_dtype ? std::string(" to ") + name_of(p.out_dtype) : "");
    about += p.channels_last ? ", channels last" : "";
    return {
        {"y", p.y, p.planes * p.out_h * p.out_w * size_of(p.out_dtype), written(p.limits)},
        {"x", p.x, p.planes * p.in_h * p.in_w * size_of(p.in_dtype), kRead},
        {"f", p.f, taps * tap, kRead},
        {"b", p.b, p.channels * size_of(p.in_dtype), kRead},
    };
}

inline Buffers describe(std::string& about, const ops::FilteredLreluParams& p) {
    const size_t size = size_of(p.dtype), codes = p.planes * p.mid_h * p.code_bytes;
    about = std::string("filtered_lrelu|") + name_of(p.dtype);
    const auto taps = [](int n, bool full) { return sizeof(float) * n * (full ? n : 1); };
    return {
        {"y", p.y, p.planes * p.out_h * p.out_w * size, written(p.limits)},
        {"codes", p.codes, codes, p.mode == ops::kSave ? written(p.limits) : kRead},
        {"x", p.x, p.planes * p.in_h * p.in_w * size, kRead},
        {"fu", p.fu, taps(p.up_taps, p.up_full), kRead},
        {"fd", p.fd, taps(p.down_taps, p.down_full), kRead},
        {"b", p.b, p.channels * size, kRead},
    };
}

inline Buffers describe(std::string& about, const ops::GateParams& p, int64_t, int64_t) {
    about = p.is_double ? "gate|float64" : "gate|float32";
    return {
        {"u", p.u, static_cast<size_t>(p.rows) * p.mid_w * (p.is_double ? 8 : 4), kUpdate},
        {"codes", p.mode == ops::kPlain ? nullptr : p.codes, static_cast<size_t>(p.rows) * p.code_bytes, p.mode == ops::kSave ? written(p.limits) : kRead},
    };
}

template <auto KERNEL>
const char* kernel_name() {
    return __PRETTY_FUNCTION__;
}

template <auto KERNEL, class... Arguments>
void begin_launch(unsigned grid, unsigned threads, const Arguments&... arguments) {
    std::string about;
    const Buffers buffers = describe(about, arguments...);
    start((std::string(kernel_name<KERNEL>()) + "|" + about).c_str(), buffers, grid, threads);
}

}  // namespace checker
