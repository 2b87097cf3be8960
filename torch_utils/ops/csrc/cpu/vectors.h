// SPDX-License-Identifier: Apache-2.0
// A vector holds one pixel of several planes (sample, channel), so every filter and activation is plain arithmetic between vectors. Images of
// any strides are read and written through transposition where planes do not lie side by side. Arithmetic is float32 throughout.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace cpu {

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define OPS_AVX512 1
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float V __attribute__((vector_size(4 * kLanes)));
typedef int32_t I __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef uint16_t H __attribute__((vector_size(2 * kLanes)));

inline V splat(float x) { return x - V{}; }

template <class T>
inline V load(const T* p);
template <>
inline V load(const float* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

typedef uint16_t bf16;

template <>
inline V load(const bf16* p) {
    H h;
    std::memcpy(&h, p, sizeof h);
    return (V)(__builtin_convertvector(h, U) << 16);
}

inline void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }

// To nearest, ties to even; NaN stays NaN.
inline void store(bf16* p, V v) {
    const U bits = (U)v;
    const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const I regular = v == v;
    const U out = ((U)regular & rounded) | (~(U)regular & 0x7fc0u);
    const H h = __builtin_convertvector(out, H);
    std::memcpy(p, &h, sizeof h);
}

inline float load_one(const float* p) { return *p; }
inline float load_one(const bf16* p) {
    const uint32_t bits = static_cast<uint32_t>(*p) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline void store_one(float* p, float x) { *p = x; }
inline void store_one(bf16* p, float x) {
    bf16 all[kLanes];
    store(all, splat(x));
    *p = all[0];
}

// The first `count` lanes; the others are zero, and their memory is not touched.
template <class T>
inline V load_part(const T* p, int count) {
    V v{};
    for (int lane = 0; lane < count; ++lane) v[lane] = load_one(p + lane);
    return v;
}

template <class T>
inline void store_part(T* p, V v, int count) {
    T all[kLanes];
    store(all, v);
    for (int lane = 0; lane < count; ++lane) p[lane] = all[lane];
}

#ifdef OPS_AVX512
template <>
inline V load_part(const float* p, int count) {
    return (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
}
template <>
inline void store_part(float* p, V v, int count) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
}
#endif

// One bit per lane: does the comparison hold?
#ifdef OPS_AVX512
inline uint32_t not_above_zero(V v) { return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_NGT_UQ); }
inline uint32_t magnitude_reaches(V v, V bound) { return _mm512_cmp_ps_mask(_mm512_abs_ps((__m512)v), (__m512)bound, _CMP_GE_OQ); }
inline V scale_where(V v, uint32_t lanes, V factor) { return (V)_mm512_mask_mul_ps((__m512)v, static_cast<__mmask16>(lanes), (__m512)v, (__m512)factor); }
inline V zero_where(V v, uint32_t lanes) { return (V)_mm512_maskz_mov_ps(static_cast<__mmask16>(~lanes), (__m512)v); }
#else
inline uint32_t lane_bits(I m) {
#ifdef __AVX2__
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)m));
#else
    uint32_t bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= (m[lane] & 1u) << lane;
    return bits;
#endif
}
inline I lanes_of(uint32_t bits) {
    I mine;
    for (int lane = 0; lane < kLanes; ++lane) mine[lane] = 1 << lane;
    return (mine & static_cast<int32_t>(bits)) != 0;
}
inline uint32_t not_above_zero(V v) { return lane_bits(~(v > 0)); }
inline uint32_t magnitude_reaches(V v, V bound) { return lane_bits((v >= bound) | (-v >= bound)); }
inline V scale_where(V v, uint32_t lanes, V factor) { return lanes_of(lanes) ? v * factor : v; }
inline V zero_where(V v, uint32_t lanes) { return (V)((I)v & ~lanes_of(lanes)); }
#endif

// Exchanges pixels and planes of a square block.
inline void transpose(V (&rows)[kLanes]) {
#pragma GCC unroll 4
    for (int step = 1; step < kLanes; step *= 2) {
        I low, high;
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; ++lane) {
            low[lane] = lane & step ? kLanes + (lane ^ step) : lane;
            high[lane] = lane & step ? kLanes + lane : lane ^ step;
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
            if (i & step) continue;
            const V a = rows[i], b = rows[i | step];
            rows[i] = __builtin_shuffle(a, b, low);
            rows[i | step] = __builtin_shuffle(a, b, high);
        }
    }
}

// Where up to kLanes planes of an image lie: plane of lane l begins at data + l * plane (all strides in elements).
template <class T>
struct Planes {
    T* data;
    int64_t plane, row, pixel;
    int count;
};

// Pixels [0, count) of row y, plus a bias, to dst.
template <class T>
void load_row(V* dst, const Planes<const T>& from, int64_t y, int64_t count, V bias) {
    const T* source = from.data + y * from.row;
    if (from.plane == 1 && from.count == kLanes) {
        for (int64_t x = 0; x < count; ++x) dst[x] = load(source + x * from.pixel) + bias;
    } else if (from.plane == 1) {
        for (int64_t x = 0; x < count; ++x) dst[x] = load_part(source + x * from.pixel, from.count) + bias;
    } else if (from.pixel == 1 && count >= kLanes) {
        for (int64_t x = 0; x < count; x += kLanes) {
            const int64_t start = x + kLanes > count ? count - kLanes : x;
            V block[kLanes];
            for (int lane = 0; lane < kLanes; ++lane) block[lane] = lane < from.count ? load(source + lane * from.plane + start) : V{};
            transpose(block);
            for (int i = 0; i < kLanes; ++i) dst[start + i] = block[i] + bias;
        }
    } else {
        for (int64_t x = 0; x < count; ++x) {
            V v{};
            for (int lane = 0; lane < from.count; ++lane) v[lane] = load_one(source + lane * from.plane + x * from.pixel);
            dst[x] = v + bias;
        }
    }
}

template <class T>
void store_row(const V* source, const Planes<T>& to, int64_t y, int64_t count) {
    T* target = to.data + y * to.row;
    if (to.plane == 1 && to.count == kLanes) {
        for (int64_t x = 0; x < count; ++x) store(target + x * to.pixel, source[x]);
    } else if (to.plane == 1) {
        for (int64_t x = 0; x < count; ++x) store_part(target + x * to.pixel, source[x], to.count);
    } else if (to.pixel == 1 && count >= kLanes) {
        for (int64_t x = 0; x < count; x += kLanes) {
            const int64_t start = x + kLanes > count ? count - kLanes : x;
            V block[kLanes];
            for (int i = 0; i < kLanes; ++i) block[i] = source[start + i];
            transpose(block);
            for (int lane = 0; lane < to.count; ++lane) store(target + lane * to.plane + start, block[lane]);
        }
    } else {
        for (int64_t x = 0; x < count; ++x) {
            for (int lane = 0; lane < to.count; ++lane) store_one(target + lane * to.plane + x * to.pixel, source[x][lane]);
        }
    }
}

}  // namespace cpu
