// SPDX-License-Identifier: Apache-2.0
// A small kernel, right or with one of the mistakes that the checker must report. Each block reverses several stretches of its input.
#include "ops.h"
#include "platform.h"

namespace samples {

enum Fault {
    kNone,
    kNoBarrier,        // between writing shared memory and reading it
    kNoBarrierInLoop,  // between reading it and writing the next stretch
    kOutOfInput,
    kOutOfOutput,
    kOutOfShared,
    kUninitialised,  // one thread does not write its element
    kMisaligned,
    kUnwritten,  // one thread does not write its output
    kInputWritten,
    kSharedOutput,  // all blocks write the same output
    kConflicts,     // every thread of a warp in the same bank
    kScattered,     // every thread of a warp in another sector
    kOwnWarp,        // right: only what the same warp wrote, after its barrier
    kNoWarpBarrier,  // the same without the barrier
    kOtherWarp,      // what another warp wrote, after a barrier of the warp
    kFaults
};

constexpr int kThreads = 64, kStretches = 2, kBlocks = 2, kCount = kThreads * kStretches * kBlocks;

struct SampleParams {
    const int* in;
    int* out;
    int fault;
};

// Eight bytes: this processor stops at larger misaligned accesses by itself.
struct alignas(8) Pair {
    int value[2];
};

// A buffer, aligned as a tensor's memory, with room for what goes beyond its end.
struct alignas(128) Room {
    int value[kCount + 32];
};

checker::Buffers describe(std::string& about, const SampleParams& p) {
    about = "sample|" + std::to_string(p.fault);
    return {{"out", p.out, kCount * sizeof(int), checker::kWrite}, {"in", p.in, kCount * sizeof(int), checker::kRead}};
}

__global__ void reverse_kernel(SampleParams p) {
    OPS_SHARED(shared);
    int* stretch = reinterpret_cast<int*>(shared);
    const int t = threadIdx.x, pitch = p.fault == kConflicts ? 32 : 1;
    for (int i = 0; i < kStretches; i++) {
        const int first = p.fault == kSharedOutput ? i * kThreads : (blockIdx.x * kStretches + i) * kThreads;
        const int source = p.fault == kScattered ? t * 4 % 64 + t / 16 : t;
        int value = p.in[first + source + (p.fault == kOutOfInput ? 1 : 0)];
        if ((p.fault != kUninitialised || t != 7) && (p.fault != kMisaligned || t >= 2)) stretch[t * pitch + (p.fault == kOutOfShared ? 1 : 0)] = value;
        if (p.fault == kMisaligned && t == 0) *reinterpret_cast<Pair*>(stretch) = *reinterpret_cast<const Pair*>(p.in + first + 1);
        if (p.fault == kOwnWarp || p.fault == kOtherWarp) {
            warp_barrier();
        } else if (p.fault != kNoBarrier && p.fault != kNoWarpBarrier) {
            __syncthreads();
        }
        value = stretch[(p.fault == kOwnWarp || p.fault == kNoWarpBarrier ? t ^ 31 : kThreads - 1 - t) * pitch];
        if (p.fault == kInputWritten) const_cast<int*>(p.in)[first + t] = value;
        if (p.fault != kUnwritten || t != 7) p.out[first + t + (p.fault == kOutOfOutput ? 1 : 0)] = value;
        if (p.fault != kNoBarrierInLoop) __syncthreads();
    }
}

}  // namespace samples

extern "C" __attribute__((visibility("default"))) int checker_sample(int fault) {
    using namespace samples;
    if (fault < 0 || fault >= kFaults) return 0;
    const auto in = std::make_unique<Room>(), out = std::make_unique<Room>();
    SampleParams p{in->value, out->value, fault};
    OPS_LAUNCH(reverse_kernel, kBlocks, kThreads, (fault == kConflicts ? 32 : 1) * kThreads * sizeof(int), nullptr, p);
    return 1;
}
