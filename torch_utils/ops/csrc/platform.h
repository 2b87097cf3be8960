// SPDX-License-Identifier: Apache-2.0
// Platform dependencies of the kernels: CUDA, or the host shim that runs the same sources in tests.
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define OPS_UNROLL _Pragma("unroll")
#define OPS_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
// A kernel with more than 48 KB of shared memory must request it. The attribute applies to the current device and is
// cheap to set.
#define OPS_LAUNCH(kernel, grid, threads, shared_bytes, stream, ...)                                                       \
    do {                                                                                                                   \
        auto launched = &kernel;                                                                                           \
        if ((shared_bytes) > 48 * 1024)                                                                                    \
            cudaFuncSetAttribute(launched, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));   \
        launched<<<grid, threads, shared_bytes, stream>>>(__VA_ARGS__);                                                    \
    } while (0)

__device__ __forceinline__ uint32_t funnel_left(uint32_t low, uint32_t high, int bits) { return __funnelshift_l(low, high, bits); }
__device__ __forceinline__ uint32_t funnel_right(uint32_t low, uint32_t high, int bits) { return __funnelshift_r(low, high, bits); }

typedef cudaStream_t Stream;
typedef __half half_t;
typedef __nv_bfloat16 bfloat_t;

__device__ __forceinline__ float to_float(half_t x) { return __half2float(x); }
__device__ __forceinline__ void from_float(float x, half_t& y) { y = __float2half_rn(x); }
__device__ __forceinline__ float to_float(bfloat_t x) { return __bfloat162float(x); }
__device__ __forceinline__ void from_float(float x, bfloat_t& y) { y = __float2bfloat16_rn(x); }

#else

#include "host_shim.h"

#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ double to_float(double x) { return x; }
__device__ __forceinline__ void from_float(float x, float& y) { y = x; }
__device__ __forceinline__ void from_float(double x, double& y) { y = x; }

// The type in which values of a type are computed.
template <class T>
struct Compute {
    typedef float type;
};
template <>
struct Compute<double> {
    typedef double type;
};

// floor(a / b) and ceil(a / b) for b > 0 and any a.
__host__ __device__ __forceinline__ int floor_div(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
__host__ __device__ __forceinline__ int ceil_div(int a, int b) { return -floor_div(-a, b); }
