/* What Cython cannot say: which CPU this is, the bits of a float, the flags in use.
 * It knows nothing of RMSNorm and refuses to hold arithmetic of its own.
 */
#ifndef FASTRMS_MACHINE_H
#define FASTRMS_MACHINE_H

#include <stdint.h>
#include <string.h>

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
