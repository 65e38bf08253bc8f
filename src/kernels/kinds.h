/* How numbers lie in memory: four kinds, and conversions from one to another, rounded once to nearest
 * even. Plain loops, which the compiler makes vectors of, but where the CPU has an instruction. NaN
 * stays NaN, with its first bits, and is quiet if it was rounded. Nothing here depends on RMSNorm.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

enum { FLOAT32, FLOAT64, FLOAT16, BFLOAT16, KINDS };  /* the numbers of fastrms.h */

static inline uint32_t bits_of(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
static inline float float_of(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }

/* In units of the last place of its power of two, taken from a float32 with that unit: no operand is
 * subnormal. */
static inline float from_float16(uint16_t half) {
    const uint32_t size = half & 0x7fff, power = size < 0x400 ? 0x400 : size & 0x7c00;
    const uint32_t unit = (power << 13) + (125u << 23);
    const float value = float_of(unit + size - power + 0x400) - float_of(unit);
    const uint32_t quiet = size > 0x7c00 ? 0x400000 : 0;
    const uint32_t bits = size >= 0x7c00 ? 0x7f800000 | quiet | (size & 0x3ff) << 13 : bits_of(value);
    return float_of(bits | (uint32_t)(half & 0x8000) << 16);
}

static inline float from_bfloat16(uint16_t half) { return float_of((uint32_t)half << 16); }

static inline uint16_t to_float16(float value) {
    const uint32_t bits = bits_of(value), size = bits & 0x7fffffff;
    /* Below 2**-14 a sum with 0.5 is rounded where a float16 ends. */
    const uint32_t small = bits_of(float_of(size < 0x38800000 ? size : 0) + 0.5f) - 0x3f000000;
    uint32_t half = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
    half = size >= 0x47800000 ? 0x7c00 : half;
    half = size > 0x7f800000 ? 0x7e00 | (size >> 13 & 0x3ff) : half;
    half = size < 0x38800000 ? small : half;
    return (uint16_t)(half | (bits >> 16 & 0x8000));
}

static inline uint16_t to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = value != value ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    return (uint16_t)(rounded >> 16);
}

/* Keep 24 bits, and set the last of them if another is lost: what is then rounded to fewer bits is
 * rounded once. Float32 holds them all from 2**-126 on. */
static inline float to_odd(double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    bits = (bits | ((bits & 0x1fffffff) + 0x1fffffff)) & ~(uint64_t)0x1fffffff;
    memcpy(&value, &bits, 8);
    return (float)value;
}

static inline uint16_t double_to_float16(double value) { return to_float16(to_odd(value)); }

static inline uint16_t double_to_bfloat16(double value) {
    const uint16_t half = to_bfloat16(to_odd(value));
    const double size = value < 0 ? -value : value;
    const int small = size < 0x1p-126;
    /* There a sum with 2**-81 is rounded where a bfloat16 ends. */
    const double sum = (small ? size : 0) + 0x1p-81;
    uint64_t bits;
    memcpy(&bits, &sum, 8);
    return small ? (uint16_t)((bits & 0xff) | (half & 0x8000)) : half;
}

#define CONVERT(TO, FROM, VALUE) \
    for (; k < n; k++) ((TO *)to)[k] = (TO)VALUE(((const FROM *)from)[k])

/* Convert n numbers of a kind to another kind, elsewhere in memory. */
static inline void convert_kind(void *restrict to, int to_kind, const void *restrict from, int kind,
                                ptrdiff_t n) {
    ptrdiff_t k = 0;
    switch (to_kind * KINDS + kind) {
    case FLOAT32 * KINDS + FLOAT64: CONVERT(float, double, ); break;
    case FLOAT32 * KINDS + FLOAT16:
#if defined(__F16C__)
        for (; k + 8 <= n; k += 8)
            _mm256_storeu_ps((float *)to + k, _mm256_cvtph_ps(
                _mm_loadu_si128((const __m128i *)((const uint16_t *)from + k))));
#elif defined(__aarch64__) && defined(__GNUC__)
        CONVERT(float, __fp16, );
#endif
        CONVERT(float, uint16_t, from_float16);
        break;
    case FLOAT32 * KINDS + BFLOAT16: CONVERT(float, uint16_t, from_bfloat16); break;
    case FLOAT64 * KINDS + FLOAT32: CONVERT(double, float, ); break;
    case FLOAT64 * KINDS + FLOAT16: CONVERT(double, uint16_t, from_float16); break;
    case FLOAT64 * KINDS + BFLOAT16: CONVERT(double, uint16_t, from_bfloat16); break;
    case FLOAT16 * KINDS + FLOAT32:
#if defined(__F16C__)
        for (; k + 8 <= n; k += 8)
            _mm_storeu_si128((__m128i *)((uint16_t *)to + k),
                             _mm256_cvtps_ph(_mm256_loadu_ps((const float *)from + k), 0));
#elif defined(__aarch64__) && defined(__GNUC__)
        CONVERT(__fp16, float, );
#endif
        CONVERT(uint16_t, float, to_float16);
        break;
    case FLOAT16 * KINDS + FLOAT64: CONVERT(uint16_t, double, double_to_float16); break;
    case BFLOAT16 * KINDS + FLOAT32: CONVERT(uint16_t, float, to_bfloat16); break;
    case BFLOAT16 * KINDS + FLOAT64: CONVERT(uint16_t, double, double_to_bfloat16); break;
    }
}
#undef CONVERT
