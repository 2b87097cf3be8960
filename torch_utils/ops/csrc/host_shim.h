// SPDX-License-Identifier: Apache-2.0
// Runs the kernel sources on a CPU, for tests: blocks run one after the other, and the threads of a block are fibres
// that switch at barriers and at the operations of a warp.
//
// The order of the threads changes at each barrier, so that a thread that reads data before another one writes it
// changes the results. Shared memory has exactly the requested size, is filled with NaN patterns before each block, and
// is followed by a guard that is checked after the block. If the threads of a block do not all reach the same barriers,
// or those of a warp the same operation, the program stops.
//
// In an operation of a warp each thread leaves its operands and waits for the other 31. Then it computes its own part of
// the result from the operands of all.
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
constexpr unsigned kWarp = 32;

enum Stop { kNone, kBarrier, kWarpBarrier, kGather, kDone };

// The operands of a thread in an operation of its warp.
struct Operands {
    float values[12];
};

struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Stop stop = kNone;
    // Two sets in turns, because a thread may reach the next operation before others have read those of the last one.
    Operands operands[2];
    bool turn = false;
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
    s.fibres[s.current].stop = kDone;
    swapcontext(&s.fibres[s.current].context, &s.scheduler);
}

OPS_UNOBSERVED inline void wait(Stop stop) {
    OPS_OBSERVE(leave());
    State& s = state();
    s.fibres[s.current].stop = stop;
    swapcontext(&s.fibres[s.current].context, &s.scheduler);
}

// The operands of all threads of a warp, once each has given its own.
struct Gathered {
    const Fibre* warp;
    unsigned lane;
    bool turn;
    OPS_UNOBSERVED const float* operator[](unsigned i) const { return warp[i].operands[turn].values; }
};

OPS_UNOBSERVED inline Gathered gather(const Operands& own) {
    State& s = state();
    Fibre& f = s.fibres[s.current];
    const bool turn = f.turn = !f.turn;
    f.operands[turn] = own;
    wait(kGather);
    return {&s.fibres[s.current / kWarp * kWarp], s.current % kWarp, turn};
}

// sum [16, 8] += a [16, 16] b [16, 8]: this thread's part, from its values of a (eight) and b (four).
OPS_UNOBSERVED inline void multiply_add(float* sum, const Operands& own) {
    const Gathered all = gather(own);
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = all.lane / 4, column = all.lane % 4 * 2 + i % 2, half = i / 2;  // row + 8 * half
        for (unsigned k = 0; k < 16; k++) {
            const unsigned owner = k % 8 / 2;
            sum[i] += all[row * 4 + owner][2 * half + 4 * (k / 8) + k % 2] * all[column * 4 + owner][8 + 2 * (k / 8) + k % 2];
        }
    }
}

// Each thread has a row of 8 values of 16 bits, thread 8 * i + r that of matrix i. Words: two rows of this thread's column
// of each matrix.
struct alignas(16) MatrixRow {
    uint16_t values[8];
};

OPS_UNOBSERVED inline void transpose(const MatrixRow& own, int matrices, uint32_t* words) {
    Operands operands{};
    std::memcpy(&operands, &own, sizeof(own));
    const Gathered all = gather(operands);
    for (int i = 0; i < matrices; i++) {
        uint16_t low, high;
        const unsigned row = 8 * i + all.lane % 4 * 2, offset = all.lane / 4 * 2;
        std::memcpy(&low, reinterpret_cast<const char*>(all[row]) + offset, 2);
        std::memcpy(&high, reinterpret_cast<const char*>(all[row + 1]) + offset, 2);
        words[i] = low | static_cast<uint32_t>(high) << 16;
    }
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

// Lets the warps go on that wait for an operation of theirs, and returns whether there are any.
OPS_UNOBSERVED inline bool release_warps(unsigned threads) {
    std::vector<Fibre>& fibres = state().fibres;
    bool released = false;
    for (unsigned first = 0; first < threads; first += kWarp) {
        const unsigned end = first + kWarp < threads ? first + kWarp : threads;
        unsigned waiting = 0, different = 0;
        for (unsigned i = first; i < end; i++) {
            waiting += fibres[i].stop == kWarpBarrier || fibres[i].stop == kGather;
            different += fibres[i].stop != fibres[first].stop;
        }
        if (waiting == 0) continue;
        if (different != 0 || waiting != kWarp) {
            std::fprintf(stderr, "host shim: the threads %u to %u are not all in the same operation of their warp\n", first, end - 1);
            std::abort();
        }
        if (fibres[first].stop == kWarpBarrier) OPS_OBSERVE(end_warp_interval(first));
        for (unsigned i = first; i < end; i++) fibres[i].stop = kNone;
        released = true;
    }
    return released;
}

OPS_UNOBSERVED inline void run_block(unsigned threads) {
    State& s = state();
    for (unsigned i = 0; i < threads; i++) {
        Fibre& f = s.fibres[i];
        if (!f.stack) f.stack.reset(new char[kStackBytes]);
        f.stop = kNone;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get();
        f.context.uc_stack.ss_size = kStackBytes;
        f.context.uc_link = nullptr;
        makecontext(&f.context, fibre_main, 0);
    }
    // Each round runs every thread to its next barrier or to its end. If only some reach a barrier, it is divergent.
    for (unsigned finished = 0; finished < threads;) {
        do {
            const Order order = next_order(threads);
            for (unsigned turn = 0; turn < threads; turn++) {
                const unsigned i = static_cast<unsigned>((order.start + static_cast<uint64_t>(turn) * order.step) % threads);
                if (s.fibres[i].stop != kNone) continue;
                s.current = i;
                s.thread = dim3(i);
                OPS_OBSERVE(enter(i, s.fibres[i].stack.get(), kStackBytes));
                swapcontext(&s.scheduler, &s.fibres[i].context);
            }
        } while (release_warps(threads));
        finished = 0;
        for (unsigned i = 0; i < threads; i++) {
            finished += s.fibres[i].stop == kDone;
            if (s.fibres[i].stop == kBarrier) s.fibres[i].stop = kNone;
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
#define __syncthreads() shim::wait(shim::kBarrier)
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

inline uint16_t bits_of(half_t x) {
    uint16_t bits;
    std::memcpy(&bits, &x.value, 2);
    return bits;
}
inline uint16_t bits_of(bfloat_t x) { return x.bits; }

template <class T>
inline uint32_t pair_of(float low, float high) {
    T a, b;
    from_float(low, a);
    from_float(high, b);
    return bits_of(a) | static_cast<uint32_t>(bits_of(b)) << 16;
}

// One value of a pair.
template <class T>
inline float value_of(uint32_t pair, int index) {
    const uint16_t bits = static_cast<uint16_t>(pair >> (16 * index));
    T x;
    std::memcpy(&x, &bits, 2);
    return to_float(x);
}

template <class T, class Function>
inline uint32_t pairwise(uint32_t a, uint32_t b, Function function) {
    return pair_of<T>(function(value_of<T>(a, 0), value_of<T>(b, 0)), function(value_of<T>(a, 1), value_of<T>(b, 1)));
}

template <class T>
inline uint32_t pair_add(uint32_t a, uint32_t b) {
    return pairwise<T>(a, b, [](float x, float y) { return x + y; });
}
template <class T>
inline uint32_t pair_multiply(uint32_t a, uint32_t b) {
    return pairwise<T>(a, b, [](float x, float y) { return x * y; });
}
template <class T>
inline uint32_t pair_maximum(uint32_t a, uint32_t b) {
    return pairwise<T>(a, b, [](float x, float y) { return x != x || x > y ? x : y; });
}
template <class T>
inline uint32_t pair_minimum(uint32_t a, uint32_t b) {
    return pairwise<T>(a, b, [](float x, float y) { return x != x || x < y ? x : y; });
}
template <class T>
inline uint32_t pair_positive(uint32_t a, int place) {
    return ((value_of<T>(a, 0) > 0) | static_cast<uint32_t>(value_of<T>(a, 1) > 0) << 16) << place;
}
template <class T>
inline uint32_t pair_within(uint32_t a, uint32_t b, int place) {
    const auto within = [&](int i) { return static_cast<uint32_t>(std::fabs(value_of<T>(a, i)) < value_of<T>(b, i)); };
    return (within(0) | within(1) << 16) << place;
}

inline void warp_barrier() { shim::wait(shim::kWarpBarrier); }

template <int N>
inline void load_transposed(const void* row, uint32_t (&values)[N]) {
    shim::MatrixRow own{};
    if (threadIdx.x % shim::kWarp < 8 * N) own = *static_cast<const shim::MatrixRow*>(row);
    shim::transpose(own, N, values);
}

template <class T>
inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    shim::Operands own;
    for (int i = 0; i < 12; i++) own.values[i] = value_of<T>(words[i / 2], i % 2);
    shim::multiply_add(sum, own);
}

inline bool has_tensor_cores() { return true; }
