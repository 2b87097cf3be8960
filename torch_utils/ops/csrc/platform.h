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

// Pairs of 16-bit values in a word, the first one in the low half.
__device__ __forceinline__ uint32_t word(__half2 x) { return *reinterpret_cast<uint32_t*>(&x); }
__device__ __forceinline__ uint32_t word(__nv_bfloat162 x) { return *reinterpret_cast<uint32_t*>(&x); }

template <class T>
struct PairOf;
template <>
struct PairOf<half_t> {
    typedef __half2 type;
    static __device__ __forceinline__ type round(float low, float high) { return __floats2half2_rn(low, high); }
};
template <>
struct PairOf<bfloat_t> {
    typedef __nv_bfloat162 type;
    static __device__ __forceinline__ type round(float low, float high) { return __floats2bfloat162_rn(low, high); }
};

template <class T>
__device__ __forceinline__ typename PairOf<T>::type pair(uint32_t x) {
    return *reinterpret_cast<typename PairOf<T>::type*>(&x);
}

template <class T>
__device__ __forceinline__ uint32_t pair_of(float low, float high) {
    return word(PairOf<T>::round(low, high));
}

template <class T>
__device__ __forceinline__ uint32_t pair_add(uint32_t a, uint32_t b) {
    return word(__hadd2(pair<T>(a), pair<T>(b)));
}

template <class T>
__device__ __forceinline__ uint32_t pair_multiply(uint32_t a, uint32_t b) {
    return word(__hmul2(pair<T>(a), pair<T>(b)));
}

// NaN if a or b is.
template <class T>
__device__ __forceinline__ uint32_t pair_maximum(uint32_t a, uint32_t b) {
    return word(__hmax2_nan(pair<T>(a), pair<T>(b)));
}

template <class T>
__device__ __forceinline__ uint32_t pair_minimum(uint32_t a, uint32_t b) {
    return word(__hmin2_nan(pair<T>(a), pair<T>(b)));
}

// A bit at `place` for each a > 0, otherwise zeros.
template <class T>
__device__ __forceinline__ uint32_t pair_positive(uint32_t a, int place);
template <>
__device__ __forceinline__ uint32_t pair_positive<half_t>(uint32_t a, int place) {
    return __hgt2_mask(pair<half_t>(a), pair<half_t>(0u)) & (0x00010001u << place);
}

// A bit at `place` for each |a| < b, otherwise zeros, for |a| <= b.
template <class T>
__device__ __forceinline__ uint32_t pair_within(uint32_t a, uint32_t b, int place);
template <>
__device__ __forceinline__ uint32_t pair_within<half_t>(uint32_t a, uint32_t b, int place) {
    return __hlt2_mask(__habs2(pair<half_t>(a)), pair<half_t>(b)) & (0x00010001u << place);
}

// compute_80 cannot compare pairs of bfloat16. But the smallest positive number is the integer 1.
__device__ __forceinline__ uint32_t bounded_by_one(__nv_bfloat162 a, int place) { return word(__hmin2(a, pair<bfloat_t>(0x00010001u))) << place; }
template <>
__device__ __forceinline__ uint32_t pair_positive<bfloat_t>(uint32_t a, int place) {
    return bounded_by_one(__hmax2(pair<bfloat_t>(a), pair<bfloat_t>(0u)), place);
}
template <>
__device__ __forceinline__ uint32_t pair_within<bfloat_t>(uint32_t a, uint32_t b, int place) {
    return bounded_by_one(__hsub2(pair<bfloat_t>(b), __habs2(pair<bfloat_t>(a))), place);
}

// Operations of a warp, whose 32 threads must all take part. A fragment is a thread's part of a matrix, as in PTX's
// "Matrix Fragments for mma.m16n8k16".
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }

// Reads N matrices of 8 x 8 values of 16 bits and transposes them: thread 8 * i + r has the address of row r of matrix i.
template <int N>
__device__ __forceinline__ void load_transposed(const void* row, uint32_t (&values)[N]) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    static_assert(N == 1 || N == 4, "ldmatrix");
    if constexpr (N == 4) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(values[0]) : "r"(address) : "memory");
    }
}

#define OPS_MMA(type)                                                                                                           \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                                                \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// sum [16, 8] += a [16, 16] b [16, 8].
template <class T>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply_add<half_t>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    OPS_MMA("f16");
}
template <>
__device__ __forceinline__ void multiply_add<bfloat_t>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    OPS_MMA("bf16");
}

// Whether the current device has these operations.
inline bool has_tensor_cores() {
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 8;
}

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
