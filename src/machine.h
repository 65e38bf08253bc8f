/* What Cython cannot say of this machine: its compiler's `inline`, its floating-point state, its
 * cache lines and caches. It knows nothing of RMSNorm and refuses to hold arithmetic of its own.
 */
#ifndef FASTRMS_MACHINE_H
#define FASTRMS_MACHINE_H

#include <stdint.h>
#include <string.h>
#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif !defined(_WIN32)
#include <unistd.h>
#endif

/* What is inline is inlined: to GCC the word is a hint, and it counts callers. A kernel's functions
 * are written for constants of their callers (the path, the way), on which no loop may be left to
 * decide; the door's serve C beside Python, and a Python call must not pay for that (1 x 64 takes 7
 * to 12 % fewer instructions than as GCC 12 chooses, and as many as without the C interface).
 */
#if defined(__GNUC__) && !defined(__NO_INLINE__)
#undef CYTHON_INLINE
#define CYTHON_INLINE inline __attribute__((always_inline))
#endif

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
#if defined(__SSE2__) || defined(_M_X64)
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

/* How many floats of `address` come before its first whole cache line. */
static inline long floats_to_line(const float *address) {
    return (long)((64 - ((uintptr_t)address & 63)) & 63) / 4;
}

/* The size of a cache in bytes (of level 1, for data), or what is usual where the system does not
 * say. */
static inline int64_t cache_size(int level) {
    int64_t size = 0;
#if defined(__APPLE__)
    size_t bytes = sizeof size;
    sysctlbyname(level == 1 ? "hw.l1dcachesize" : level == 2 ? "hw.l2cachesize" : "hw.l3cachesize",
                 &size, &bytes, NULL, 0);
#elif defined(_SC_LEVEL1_DCACHE_SIZE)
    size = sysconf(level == 1 ? _SC_LEVEL1_DCACHE_SIZE
                   : level == 2 ? _SC_LEVEL2_CACHE_SIZE : _SC_LEVEL3_CACHE_SIZE);
#endif
    return size > 0 ? size : level == 1 ? 32 << 10 : level == 2 ? 512 << 10 : 32 << 20;
}

/* The flags that setup.py compiled this module with, for `fastrms info`. */
#ifndef FASTRMS_FLAGS
#define FASTRMS_FLAGS ""
#endif

#endif
