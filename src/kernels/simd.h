/* Vectors as wide as the instruction set's, over the vector types of GCC and Clang, on which + - *
 * work as on a float. This adds loads and stores, of whole vectors and of the last floats of a row,
 * and conversions to float64 and back. Any other compiler gets vectors of one float. Nothing here
 * depends on RMSNorm.
 *
 * `vec` holds VEC floats, `wide` WIDE doubles; a row's sum of squares is kept in LANES doubles.
 */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#include "kinds.h"
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* X86(name) is the intrinsic of that name for vectors of this width. */
#if defined(VEC)  /* set by -DVEC: .ci/gates/plain */
#elif defined(__AVX512F__)
#define VEC 16
#define X86(name) _mm512_##name
#elif defined(__AVX__)
#define VEC 8
#define X86(name) _mm256_##name
#elif defined(__GNUC__)
#define VEC 4
#define X86(name) _mm_##name
#else
#define VEC 1
#endif

#if VEC > 1
#define WIDE (VEC / 2)
typedef float vec __attribute__((vector_size(VEC * 4)));
typedef double wide __attribute__((vector_size(VEC * 4)));
typedef float half __attribute__((vector_size(VEC * 2)));  /* converts to a wide */
typedef uint32_t vec_bits __attribute__((vector_size(VEC * 4)));
/* At any address, and aliasing any type. */
typedef float vec_at __attribute__((vector_size(VEC * 4), aligned(4), may_alias));
typedef double wide_at __attribute__((vector_size(VEC * 4), aligned(8), may_alias));
typedef float half_at __attribute__((vector_size(VEC * 2), aligned(4), may_alias));
#else
#define WIDE 1
typedef float vec, half, vec_at, half_at;
typedef double wide, wide_at;
typedef uint32_t vec_bits;
#endif
#define LANES 32
#define WIDES (LANES / WIDE)

static inline vec splat(float value) { return value - (vec){0}; }
static inline wide splat_wide(double value) { return value - (wide){0}; }

static inline vec load(const float *from) { return *(const vec_at *)from; }
static inline void store(float *to, vec value) { *(vec_at *)to = value; }
static inline wide load_wide(const double *from) { return *(const wide_at *)from; }
static inline void store_wide(double *to, wide value) { *(wide_at *)to = value; }

/* Return a half of a vec: number 0 or 1; only 0 if a vec is a single float. */
static inline half half_of(vec value, int number) {
#if defined(__AVX512F__)
    return number ? (half)_mm512_extractf64x4_pd((__m512d)value, 1)
                  : (half)_mm512_castps512_ps256(value);
#elif defined(__AVX__)
    return number ? _mm256_extractf128_ps(value, 1) : _mm256_castps256_ps128(value);
#else
    float values[VEC];
    store(values, value);
    return *(const half_at *)(values + number * WIDE);
#endif
}

/* By intrinsics, because GCC 12 splits __builtin_convertvector into narrower conversions. */
static inline wide to_wide(half value) {
#if defined(__AVX__)
    return X86(cvtps_pd)(value);
#elif VEC > 1
    return __builtin_convertvector(value, wide);
#else
    return value;
#endif
}

/* Load WIDE floats as doubles; narrow rounds and stores them. */
static inline wide widen(const float *from) {
#if VEC == 4 && defined(__SSE2__)
    return _mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)from)));
#else
    return to_wide(*(const half_at *)from);
#endif
}

/* Widen a half of a vec, as half_of. */
static inline wide widen_half(vec value, int number) {
#if VEC == 4 && defined(__SSE2__)
    return _mm_cvtps_pd(number ? _mm_movehl_ps(value, value) : (__m128)value);
#else
    return to_wide(half_of(value, number));
#endif
}

/* Widen the sum of both halves of a vec of 16 floats. */
static inline wide widen_folded(vec value) {
    const half upper = half_of(value, VEC > 1);  /* first: GCC 12 then copies no register */
    return to_wide(half_of(value, 0) + upper);
}

static inline void narrow(float *to, wide value) {
#if defined(__AVX__)
    *(half_at *)to = X86(cvtpd_ps)(value);
#elif defined(__SSE2__)
    _mm_storel_pi((__m64 *)to, _mm_cvtpd_ps(value));
#elif VEC > 1
    *(half_at *)to = __builtin_convertvector(value, half);
#else
    *to = (float)value;
#endif
}

/* Load the first `count` floats, VEC at most, and zeros. The memory past them is not touched. Where
 * `count` is a constant, the branch vanishes; so in the functions below. */
static inline vec take_vec(const float *from, ptrdiff_t count) {
    if (count >= VEC) return load(from);
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
#elif defined(__AVX__)
    static const int32_t mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return (vec)_mm256_maskload_ps(from, _mm256_loadu_si256((const __m256i *)(mask + 8 - count)));
#elif VEC > 1  /* in a register: to load what was just stored in parts would stall */
    vec value = splat(0);
    for (int k = 0; k < VEC - 1; k++)
        if (k < count) value[k] = from[k];
    return value;
#else
    return 0;
#endif
}

/* Store the first `count` floats, a part in halves: a masked store takes 20 times as long on Zen 3. */
static inline void put_vec(float *to, vec value, ptrdiff_t count) {
    float values[VEC];
    if (count >= VEC) { store(to, value); return; }
    store(values, value);
    if (VEC > 8 && (count & 8)) memcpy(to, values, 32);
    if (VEC > 4 && (count & 4)) memcpy(to + (count & 8), values + (count & 8), 16);
    if (VEC > 2 && (count & 2)) memcpy(to + (count & 12), values + (count & 12), 8);
    if (count & 1) to[count & 14] = values[count & 14];
}

/* Load the first `count` floats as doubles, WIDE at most, and zeros. */
static inline wide take(const float *from, ptrdiff_t count) {
    if (count >= WIDE) return widen(from);
    return widen_half(take_vec(from, count), 0);
}

/* Keep the first `count` < WIDE doubles; zero the rest, NaNs included. */
static inline wide keep_part(wide value, ptrdiff_t count) {
    double values[WIDE];
    store_wide(values, value);
    return (wide)take_vec((const float *)values, 2 * count);
}

/* Round the first `count` doubles, WIDE at most, and store them. */
static inline void narrow_part(float *to, wide value, ptrdiff_t count) {
    float values[VEC] = {0};
    if (count >= WIDE) { narrow(to, value); return; }
    narrow(values, value);
    put_vec(to, load(values), count);
}

/* Store past the caches, without reading the line first; `to` is aligned to the vector. */
static inline void stream(float *to, vec value) {
#ifdef __SSE2__
    X86(stream_ps)(to, value);
#else
    store(to, value);
#endif
}

/* Order streamed stores before all later ones of this thread. */
static inline void stream_fence(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* sum + a * b, where a and b hold floats: the product is exact, so fusing changes no bit. */
static inline wide add_product(wide sum, wide a, wide b) {
#if defined(__AVX512F__) || defined(__FMA__)
    return X86(fmadd_pd)(a, b, sum);
#elif defined(__aarch64__)
    return (wide)vfmaq_f64((float64x2_t)sum, (float64x2_t)a, (float64x2_t)b);
#else
    return sum + a * b;
#endif
}

static inline wide root(wide value) {
#ifdef __SSE2__
    return X86(sqrt_pd)(value);
#else
    double values[WIDE];
    store_wide(values, value);
    for (int k = 0; k < WIDE; k++) values[k] = sqrt(values[k]);
    return load_wide(values);
#endif
}

/* Round the results of arithmetic, whose NaNs are quiet, to the numbers that a half has. */
static inline vec round_bfloat16(vec value) {
#if VEC > 1
    const vec_bits bits = (vec_bits)value, number = (vec_bits)(value == value);
    return (vec)((bits + ((0x7fff + (bits >> 16 & 1)) & number)) & 0xffff0000);
#else
    return from_bfloat16(to_bfloat16(value));
#endif
}

static inline vec round_float16(vec value) {
#ifdef __F16C__
    return X86(cvtph_ps)(X86(cvtps_ph)(value, 0));
#else
    float values[VEC];
    store(values, value);
    for (int k = 0; k < VEC; k++) values[k] = from_float16(to_float16(values[k]));
    return load(values);
#endif
}

/* Add all WIDE doubles: the upper half to the lower, down to one. */
static inline double total(wide value) {
#if defined(__AVX__)
#if defined(__AVX512F__)
    const __m256d four = _mm256_add_pd((__m256d)half_of((vec)value, 0),
                                       (__m256d)half_of((vec)value, 1));
#else
    const __m256d four = value;
#endif
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
#elif VEC > 1
    return value[0] + value[1];
#else
    return value;
#endif
}

/* Return a bit for each double: whether it is in [low, high], and so no NaN. */
static inline unsigned between(wide value, double low, double high) {
#if defined(__AVX512F__)
    return (unsigned)_mm512_mask_cmp_pd_mask(_mm512_cmp_pd_mask(value, splat_wide(low), _CMP_GE_OQ),
                                             value, splat_wide(high), _CMP_LE_OQ);
#elif defined(__AVX__)
    return (unsigned)_mm256_movemask_pd(
        _mm256_and_pd(_mm256_cmp_pd(value, splat_wide(low), _CMP_GE_OQ),
                      _mm256_cmp_pd(value, splat_wide(high), _CMP_LE_OQ)));
#else
    double values[WIDE];
    unsigned bits = 0;
    store_wide(values, value);
    for (int k = 0; k < WIDE; k++) bits |= (unsigned)(values[k] >= low && values[k] <= high) << k;
    return bits;
#endif
}

/* |value|; and the larger of each pair, b if one is NaN. */
static inline vec absolute(vec value) {
#if VEC > 1
    return (vec)((vec_bits)value & 0x7fffffff);
#else
    return fabsf(value);
#endif
}

static inline vec larger(vec a, vec b) {
#if defined(__SSE2__)
    return X86(max_ps)(a, b);
#elif VEC > 1
    const vec_bits first = (vec_bits)(a > b);
    return (vec)(((vec_bits)a & first) | ((vec_bits)b & ~first));
#else
    return a > b ? a : b;
#endif
}

static inline float largest(vec value) {
#ifdef __SSE2__
#if defined(__AVX512F__)
    const __m256 eight = _mm256_max_ps(half_of(value, 0), half_of(value, 1));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#elif defined(__AVX__)
    __m128 four = _mm_max_ps(half_of(value, 0), half_of(value, 1));
#else
    __m128 four = value;
#endif
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
#else
    float values[VEC], most;
    store(values, value);
    most = values[0];
    for (int k = 1; k < VEC; k++) most = values[k] > most ? values[k] : most;
    return most;
#endif
}
