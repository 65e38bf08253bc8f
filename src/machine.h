/* What Cython cannot say: which CPU this is, what its caches and its arithmetic are to do, the bits
 * of a float. It knows nothing of RMSNorm and refuses to hold arithmetic of its own.
 */
#ifndef FASTRMS_MACHINE_H
#define FASTRMS_MACHINE_H

#include <stdint.h>
#include <string.h>
#include <unistd.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

/* IEEE bits as an integer, and back: for non-negative floats integer order is float order, and GCC
 * vectorises an integer maximum (a float one only under -ffinite-math-only). */
static inline int32_t float_bits(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float bits_float(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int64_t double_bits(double value) {
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The floating-point state of a thread: rounding mode, flush-to-zero, traps, sticky flags. Another
 * library may have changed it (GCC 12 links code into any -ffast-math object that flushes to zero
 * from its loading on), and a new thread inherits it. Kernels run between these two, called through
 * a pointer: past an inline function the compiler may move arithmetic. The common case, defaults and
 * an inexact flag that was there already, costs two reads and two compares.
 */
#if defined(__SSE2__)
typedef unsigned int fp_state;
static inline fp_state read_fp_state(void) { return _mm_getcsr(); }
static inline void write_fp_state(fp_state state) { _mm_setcsr(state); }
#define FP_FLAGS 0x3fu
#define FP_DEFAULT 0x1f80u  /* nothing flushed, nearest even, every trap masked */
#elif defined(__aarch64__) && defined(__GNUC__)
typedef uint64_t fp_state;  /* FPCR above, FPSR below: each has 32 bits */
static inline fp_state read_fp_state(void) {
    uint64_t control, flags;
    __asm__ volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(control), "=r"(flags));
    return control << 32 | (flags & 0xffffffffu);
}
static inline void write_fp_state(fp_state state) {
    __asm__ volatile("msr fpcr, %0\n\tmsr fpsr, %1" : : "r"(state >> 32), "r"(state & 0xffffffffu));
}
#define FP_FLAGS 0xffffffffu
#define FP_DEFAULT 0u
#else
typedef unsigned int fp_state;
static inline fp_state read_fp_state(void) { return 0; }
static inline void write_fp_state(fp_state state) { (void)state; }
#define FP_FLAGS 0u
#define FP_DEFAULT 0u
#endif

/* Make this thread's arithmetic the default one; return what it was. */
static inline fp_state default_fp_state(void) {
    fp_state state = read_fp_state();
    if ((state & ~(fp_state)FP_FLAGS) != FP_DEFAULT) write_fp_state(FP_DEFAULT);
    return state;
}

static inline void restore_fp_state(fp_state state) {
    if (read_fp_state() != state) write_fp_state(state);
}

/* Ask for the cache line of an address before it is read. */
static inline void prefetch(const float *address) {
#ifdef __GNUC__
    __builtin_prefetch(address);
#endif
}

/* Ask for the cache line of an address before it is written: the line is fetched to be owned. */
static inline void prefetch_write(const float *address) {
#ifdef __GNUC__
    __builtin_prefetch(address, 1);
#endif
}

/* Write one 64-byte line, past the caches and without reading it first. `line` is aligned to it. */
static inline void stream(float *restrict line, const float *restrict values) {
#if defined(__AVX512F__)
    _mm512_stream_ps(line, _mm512_loadu_ps(values));
#elif defined(__AVX__)
    _mm256_stream_ps(line, _mm256_loadu_ps(values));
    _mm256_stream_ps(line + 8, _mm256_loadu_ps(values + 8));
#elif defined(__SSE2__)
    for (int k = 0; k < 16; k += 4) _mm_stream_ps(line + k, _mm_loadu_ps(values + k));
#else
    memcpy(line, values, 64);
#endif
}

/* Order streamed lines before whatever this thread does next. */
static inline void stream_fence(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* How many floats of `address` come before its first whole cache line. */
static inline long floats_to_line(const float *address) {
    return (long)((64 - ((uintptr_t)address & 63)) & 63) / 4;
}

/* The size of the last-level cache in bytes; 32 MiB where the system does not say. */
static inline long last_level_cache(void) {
    long size = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    size = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return size > 0 ? size : 32L << 20;
}

/* The flags that setup.py compiled this module with, for `fastrms info`. */
#ifndef FASTRMS_FLAGS
#define FASTRMS_FLAGS ""
#endif

/* Whether CPU and operating system run this instruction set (GCC and Clang ask the OS too). */
static inline int cpu_has_v3(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
#if __GNUC__ >= 12 && !defined(__clang__)
    return __builtin_cpu_supports("x86-64-v3") != 0;
#else
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
        && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
#endif
#else
    return 0;
#endif
}

static inline int cpu_has_v4(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    return cpu_has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl");
#else
    return 0;
#endif
}

#endif
