// SPDX-License-Identifier: Apache-2.0
// A vector contains one pixel of several planes (sample, channel), so all filters and activations are plain arithmetic
// on vectors. Images can have any strides; they are transposed on reading and writing if planes are not adjacent in
// memory. All arithmetic is in float32.
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

inline int64_t ceil_div(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

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

// Rounds to nearest, ties to even; NaN stays NaN.
inline void store(bf16* p, V v) {
    const U bits = (U)v;
    const U rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
#ifdef OPS_AVX512
    const __mmask16 irregular = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32((__m512i)rounded, irregular, _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
#else
    const I regular = v == v;
    const U out = ((U)regular & (rounded >> 16)) | (~(U)regular & 0x7fc0u);
    const H h = __builtin_convertvector(out, H);
    std::memcpy(p, &h, sizeof h);
#endif
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

// Loads the first `count` lanes; the others are zero, and their memory is not read.
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

// One bit per lane: whether the comparison is true.
#ifdef OPS_AVX512
inline uint32_t not_above_zero(V v) { return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_NGT_UQ); }
inline uint32_t magnitude_reaches(V v, V bound) { return _mm512_cmp_ps_mask(_mm512_abs_ps((__m512)v), (__m512)bound, _CMP_GE_OQ); }
inline V scale_where(V v, uint32_t lanes, V factor) { return (V)_mm512_mask_mul_ps((__m512)v, static_cast<__mmask16>(lanes), (__m512)v, (__m512)factor); }
inline V zero_where(V v, uint32_t lanes) { return (V)_mm512_maskz_mov_ps(static_cast<__mmask16>(~lanes), (__m512)v); }
// Limits v to [-bound, bound]. With this order of operands, NaN stays NaN.
inline V bounded(V v, V bound) { return (V)_mm512_max_ps((__m512)-bound, _mm512_min_ps((__m512)bound, (__m512)v)); }
#else
inline V bounded(V v, V bound) {
    v = bound < v ? bound : v;
    return v < -bound ? -bound : v;
}
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

// Stores that bypass the cache, one full cache line each, in steps of about a page. The lines of a row would map to few
// sets of the first-level cache and evict each other. Bypassing it, 1024 channels take 46 ns per vector instead of 83
// (36 x 36 pixels).
template <class T>
inline bool past_the_cache([[maybe_unused]] const T* p, [[maybe_unused]] int64_t step) {
#ifdef OPS_AVX512
    return sizeof(T) == 4 && reinterpret_cast<uintptr_t>(p) % sizeof(V) == 0 && step % kLanes == 0 && step >= 512;
#else
    return false;
#endif
}
inline void store_past_the_cache(float* p, V v) {
#ifdef OPS_AVX512
    _mm512_stream_ps(p, (__m512)v);
#else
    store(p, v);
#endif
}
inline void store_past_the_cache(bf16* p, V v) { store(p, v); }
// Must be called before another thread reads data stored in this way.
inline void finish_stores() {
#ifdef OPS_AVX512
    _mm_sfence();
#endif
}

// Transposes pixels and planes of a square block.
#ifdef OPS_AVX512
inline void transpose(V (&rows)[kLanes]) {
    __m512 a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps((__m512)rows[i], (__m512)rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps((__m512)rows[i], (__m512)rows[i + 1]);
    }
    // Now quarter q of b[4 g + j] contains column 4 q + j of rows 4 g to 4 g + 3.
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + j + 2]);
            b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512 even = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), even2 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
        const __m512 odd = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd), odd2 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
        rows[j] = (V)_mm512_shuffle_f32x4(even, even2, 0x88);
        rows[4 + j] = (V)_mm512_shuffle_f32x4(odd, odd2, 0x88);
        rows[8 + j] = (V)_mm512_shuffle_f32x4(even, even2, 0xdd);
        rows[12 + j] = (V)_mm512_shuffle_f32x4(odd, odd2, 0xdd);
    }
}
#else
inline void exchange(V& a, V& b, I low, I high) {
    const V first = __builtin_shuffle(a, b, low);
    b = __builtin_shuffle(a, b, high);
    a = first;
}
inline void transpose(V (&r)[kLanes]) {
    for (int i = 0; i < 8; i += 2) exchange(r[i], r[i + 1], I{0, 8, 2, 10, 4, 12, 6, 14}, I{1, 9, 3, 11, 5, 13, 7, 15});
    for (int i : {0, 1, 4, 5}) exchange(r[i], r[i + 2], I{0, 1, 8, 9, 4, 5, 12, 13}, I{2, 3, 10, 11, 6, 7, 14, 15});
    for (int i = 0; i < 4; ++i) exchange(r[i], r[i + 4], I{0, 1, 2, 3, 8, 9, 10, 11}, I{4, 5, 6, 7, 12, 13, 14, 15});
}
#endif

// The memory of up to kLanes planes of an image: the plane of lane l starts at data + l * plane (strides in elements).
template <class T>
struct Planes {
    T* data;
    int64_t plane, row, pixel;
    int count;
};

// Writes the pixels [0, count) of row y plus a bias to dst.
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
    if (to.plane == 1 && to.count == kLanes && past_the_cache(target, to.pixel)) {
        for (int64_t x = 0; x < count; ++x) store_past_the_cache(target + x * to.pixel, source[x]);
    } else if (to.plane == 1 && to.count == kLanes) {
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
