/* What Cython cannot say of a C compiler: forced inlining, its name, the flags of this build. */
#pragma once

/* Force inlining: GCC treats `inline` as a hint. Kernel functions take constants (path, store) that
 * must vanish from their loops, and the door's functions serve Python and C (a Python call of 1 x 64
 * takes 7 to 12 % fewer instructions than with GCC 12's own choice). */
#if defined(__GNUC__) && !defined(__NO_INLINE__)
#undef CYTHON_INLINE
#define CYTHON_INLINE inline __attribute__((always_inline))
#endif

#if defined(__clang__)
#define FASTRMS_COMPILER __VERSION__
#elif defined(__GNUC__)
#define FASTRMS_COMPILER "GCC " __VERSION__
#else
#define FASTRMS_COMPILER "unknown"
#endif

/* setup.py defines it. */
#ifndef FASTRMS_FLAGS
#define FASTRMS_FLAGS ""
#endif
