// SPDX-License-Identifier: Apache-2.0
// Runs the kernel sources on a CPU, for tests: blocks run one after the other, and the threads of a block are fibres
// that switch at barriers.
//
// The order of the threads changes at each barrier, so that a thread that reads data before another one writes it
// changes the results. Shared memory has exactly the requested size, is filled with NaN patterns before each block, and
// is followed by a guard that is checked after the block. If the threads of a block do not all reach the same barriers,
// the program stops.
//
// OPS_OBSERVER is an optional header with hooks for what runs (tests/torch_utils/ops/checker/hooks.h).
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#ifdef OPS_OBSERVER
#include OPS_OBSERVER
#else
#define __forceinline__ inline
#define OPS_UNOBSERVED
#define OPS_OBSERVE(call)
#define OPS_OVERRUN_STOPS true  // observers report overruns themselves
#endif

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace shim {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kPoison = 0xff;

struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done = false;
};

struct State {
    dim3 thread, block, block_dim, grid_dim;
    ucontext_t scheduler;
    std::vector<Fibre> fibres;
    unsigned current = 0;
    uint32_t random = 1;
    std::vector<unsigned char> memory;
    const std::function<void()>* body = nullptr;
};

OPS_UNOBSERVED inline State& state() {
    static State instance;
    return instance;
}

OPS_UNOBSERVED inline void fibre_main() {
    State& s = state();
    (*s.body)();
    OPS_OBSERVE(leave());
    s.fibres[s.current].done = true;
    swapcontext(&s.fibres[s.current].context, &s.scheduler);
}

OPS_UNOBSERVED inline void barrier() {
    OPS_OBSERVE(leave());
    State& s = state();
    swapcontext(&s.fibres[s.current].context, &s.scheduler);
}

// A pseudorandom order of n threads: a start and a step that visit all of them.
struct Order {
    unsigned start, step;
};

OPS_UNOBSERVED inline Order next_order(unsigned n) {
    State& s = state();
    s.random = s.random * 1664525u + 1013904223u;
    const unsigned value = s.random >> 8;
    return {value % n, (n & (n - 1)) == 0 ? (value | 1) % n : value % 2 == 0 ? 1 : n - 1};
}

OPS_UNOBSERVED inline void run_block(unsigned threads) {
    State& s = state();
    for (unsigned i = 0; i < threads; i++) {
        Fibre& f = s.fibres[i];
        if (!f.stack) f.stack.reset(new char[kStackBytes]);
        f.done = false;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get();
        f.context.uc_stack.ss_size = kStackBytes;
        f.context.uc_link = nullptr;
        makecontext(&f.context, fibre_main, 0);
    }
    // Each round runs every thread to its next barrier or to its end. If only some reach a barrier, it is divergent.
    for (unsigned finished = 0; finished < threads;) {
        finished = 0;
        const Order order = next_order(threads);
        for (unsigned turn = 0; turn < threads; turn++) {
            const unsigned i = static_cast<unsigned>((order.start + static_cast<uint64_t>(turn) * order.step) % threads);
            s.current = i;
            s.thread = dim3(i);
            OPS_OBSERVE(enter(i, s.fibres[i].stack.get(), kStackBytes));
            swapcontext(&s.scheduler, &s.fibres[i].context);
            finished += s.fibres[i].done;
        }
        if (finished != 0 && finished != threads) {
            std::fprintf(stderr, "host shim: %u of %u threads missed a barrier\n", finished, threads);
            std::abort();
        }
        OPS_OBSERVE(end_interval());
    }
}

OPS_UNOBSERVED inline void launch(const std::function<void()>& body, unsigned grid, unsigned threads, size_t shared_bytes) {
    State& s = state();
    s.body = &body;
    s.block_dim = dim3(threads);
    s.grid_dim = dim3(grid);
    if (s.fibres.size() < threads) s.fibres.resize(threads);
    s.memory.resize(shared_bytes + kGuardBytes);
    for (unsigned b = 0; b < grid; b++) {
        s.block = dim3(b);
        std::memset(s.memory.data(), kPoison, s.memory.size());
        OPS_OBSERVE(begin_block(b, s.memory.data(), shared_bytes, kGuardBytes));
        run_block(threads);
        for (size_t i = shared_bytes; i < s.memory.size(); i++) {
            if (OPS_OVERRUN_STOPS && s.memory[i] != kPoison) {
                std::fprintf(stderr, "host shim: shared memory of %zu bytes overrun at byte %zu\n", shared_bytes, i);
                std::abort();
            }
        }
    }
}

}  // namespace shim

#define OPS_UNROLL
#define threadIdx (shim::state().thread)
#define blockIdx (shim::state().block)
#define blockDim (shim::state().block_dim)
#define gridDim (shim::state().grid_dim)
#define __syncthreads() shim::barrier()
#define OPS_SHARED(name) unsigned char* name = shim::state().memory.data()
#define OPS_LAUNCH(kernel, grid, threads, shared_bytes, stream, ...)                \
    do {                                                                            \
        OPS_OBSERVE(begin_launch<(&kernel)>(grid, threads, __VA_ARGS__));           \
        const auto body = [&] { kernel(__VA_ARGS__); };                             \
        shim::launch(std::cref(body), grid, threads, shared_bytes);                 \
        OPS_OBSERVE(end_launch());                                                  \
    } while (0)

inline uint32_t funnel_left(uint32_t low, uint32_t high, int bits) { return bits == 0 ? high : (high << bits) | (low >> (32 - bits)); }
inline uint32_t funnel_right(uint32_t low, uint32_t high, int bits) { return bits == 0 ? low : (low >> bits) | (high << (32 - bits)); }

typedef void* Stream;

struct half_t {
    _Float16 value;
};

struct bfloat_t {
    uint16_t bits;
};

inline float to_float(half_t x) { return static_cast<float>(x.value); }
inline void from_float(float x, half_t& y) { y.value = static_cast<_Float16>(x); }

inline float to_float(bfloat_t x) {
    uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

inline void from_float(float x, bfloat_t& y) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) {
        y.bits = 0x7fc0;
    } else {
        y.bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}
