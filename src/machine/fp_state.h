/* The floating-point state of a thread: rounding mode, flush-to-zero, traps, sticky flags. Another
 * library may have changed it (any -ffast-math object that GCC 12 links flushes to zero from its
 * loading on), and a new thread inherits it. Kernels run between default_fp_state and
 * restore_fp_state, called through a pointer, since inlined arithmetic may move past these. In
 * the common case, a default state with the inexact flag set, that is two reads and two compares.
 */
#pragma once

#include <stdint.h>

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
typedef unsigned int fp_state;
#define read_fp_state _mm_getcsr
#define write_fp_state _mm_setcsr
#define FP_FLAGS 0x3fu
#define FP_DEFAULT 0x1f80u  /* no flush to zero, round to nearest even, every trap masked */
#elif defined(__aarch64__) && defined(__GNUC__)
typedef uint64_t fp_state;  /* FPCR in the upper 32 bits, FPSR in the lower */
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

/* Set this thread's state to the default; return the previous one. */
static inline fp_state default_fp_state(void) {
    fp_state state = read_fp_state();
    if ((state & ~(fp_state)FP_FLAGS) != FP_DEFAULT) write_fp_state(FP_DEFAULT);
    return state;
}

static inline void restore_fp_state(fp_state state) {
    if (read_fp_state() != state) write_fp_state(state);
}
