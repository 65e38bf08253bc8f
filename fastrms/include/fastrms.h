/* fastrms' C interface: its kernels without the price of a Python call, and without the GIL.
 *
 *     if (import_fastrms() < 0) return NULL;   // once in each source file, with the GIL
 *     error = fastrms_api->rms_norm(x, n, weight, y, n, rows, n, 1e-5, 0.0, 0, 1);
 *
 * Each function does what the Python function of its name does, with the same kernels, the same
 * bits and the same error bounds, in the default floating-point state, and leaves the caller's as it
 * was. None allocates, raises, or looks up for Ctrl-C. Any thread may call, with the GIL or without;
 * two calls at once are safe unless they write the same memory.
 *
 * Arguments, in all of them
 *   arrays      float32 of shape (rows, n), a row contiguous, aligned to 4 bytes (sums to 8), and
 *               not NULL unless said. `x_stride` is what lies between the first elements of two
 *               rows of `x`, counted in floats, of either sign. An input's may be anything (0: one
 *               row for all), an output's rows must not overlap.
 *   weight      (n,), or NULL: the factor is 1, and weight_offset has no say.
 *   rows, n     zero or more, n below 2**40. Of an empty array the address does not matter.
 *   eps         zero or more, inside the root; weight_offset: added to weight (1 for Gemma).
 *   accumulate  0, or 1: add to what the output holds. For a gradient FASTRMS_DX | FASTRMS_DWEIGHT.
 *   threads     1: stay on this thread. 0: take those that the Python call would take
 *               (fastrms.set_num_threads and the like), for large calls alone.
 *   scratch     fastrms_api->scratch_bytes(rows, n, threads) bytes, aligned to 8, shared with no
 *               other array. What it holds before and after is of no use.
 *
 * What the caller has to see to, since a pointer does not tell: that the memory is there, and what
 * overlaps. An output may be an input where this is said below, with the same address and stride.
 * Any other overlap of an output with another array gives undefined results. (Python copies then.)
 *
 * Every function returns FASTRMS_OK or, with nothing written, the first error that it found.
 */
#ifndef FASTRMS_H
#define FASTRMS_H

#include <Python.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FASTRMS_API_VERSION 1 /* another one: functions have changed, not only come after the last */

enum fastrms_error {
    FASTRMS_OK = 0,
    FASTRMS_BAD_SIZE,    /* rows, n or size below zero or too large; size below n */
    FASTRMS_BAD_STRIDE,  /* rows of an output that overlap */
    FASTRMS_BAD_POINTER, /* NULL, misaligned, two outputs in one place; one of weight, dweight alone */
    FASTRMS_BAD_EPS,     /* negative or NaN */
    FASTRMS_BAD_FLAG,    /* accumulate or threads is none of the values above */
    FASTRMS_BAD_SCRATCH  /* NULL with a weight, or misaligned */
};

enum fastrms_accumulate { FASTRMS_DX = 1, FASTRMS_DWEIGHT = 2 };

typedef struct fastrms_functions {
    size_t size; /* of the struct; a later release may add functions at its end */
    int version; /* FASTRMS_API_VERSION */

    /* y = x / sqrt(mean(x**2) + eps) * (weight_offset + weight), over each row.
     * out: y, or += y to accumulate; may be x.
     * At most 3 ulp from the exact result, 2 without a weight, over the whole float32 range. */
    int (*rms_norm)(const float *x, ptrdiff_t x_stride, const float *weight,
                    float *out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n,
                    double eps, double weight_offset, int accumulate, int threads);

    /* residual += x, bit for bit as float addition; then out = rms_norm(residual).
     * residual may be x, or out may. Error: that of rms_norm, from the rounded sum. */
    int (*add_rms_norm)(const float *x, ptrdiff_t x_stride,
                        float *residual, ptrdiff_t residual_stride, const float *weight,
                        float *out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n,
                        double eps, double weight_offset, int threads);

    /* With g = dy * (weight_offset + weight), xhat = x / rms, rms = sqrt(mean(x**2) + eps):
     * dx = (g - xhat * mean(g * xhat)) / rms, and dweight (n,) = sum of dy * xhat over all rows.
     * dx may be dy or x. dweight is NULL without a weight, and only then; scratch may be, then.
     * Beside its own rounding, dx is within 2e-6 of its row's largest element plus
     * (n + 512) / 2**56 of the row's largest |g| / rms, dweight within 1e-6 of the sum of
     * |dy * xhat|. No bit depends on the threads. */
    int (*rms_norm_backward)(const float *dy, ptrdiff_t dy_stride,
                             const float *x, ptrdiff_t x_stride, const float *weight,
                             float *dx, ptrdiff_t dx_stride, float *dweight, void *scratch,
                             ptrdiff_t rows, ptrdiff_t n,
                             double eps, double weight_offset, int accumulate, int threads);

    /* residual += scale * x in float64, then rounded; with scale 1 bit for bit as float addition.
     * residual may be x. */
    int (*residual_add)(const float *x, ptrdiff_t x_stride,
                        float *residual, ptrdiff_t residual_stride, ptrdiff_t rows, ptrdiff_t n,
                        double scale, int threads);

    /* For rows of `size` floats that are split over several holders, who add up their sums.
     * out (rows,) = sum of x**2, the very sum that rms_norm takes. */
    int (*sum_squares)(const float *x, ptrdiff_t x_stride, double *out,
                       ptrdiff_t rows, ptrdiff_t n, int threads);

    /* out (rows,) = sum of dy * (weight_offset + weight) * x. */
    int (*sum_products)(const float *dy, ptrdiff_t dy_stride, const float *x, ptrdiff_t x_stride,
                        const float *weight, double *out, ptrdiff_t rows, ptrdiff_t n,
                        double weight_offset, int threads);

    /* rms_norm of n of the `size` floats of each row, from the whole row's sum of squares (rows,).
     * out may be x. n <= size < 2**40. */
    int (*rms_scale)(const float *x, ptrdiff_t x_stride, const double *sum_squares,
                     const float *weight, float *out, ptrdiff_t out_stride,
                     ptrdiff_t rows, ptrdiff_t n, ptrdiff_t size,
                     double eps, double weight_offset, int threads);

    /* rms_norm_backward of n of the `size` floats of each row, from both sums of the whole row. */
    int (*rms_scale_backward)(const float *dy, ptrdiff_t dy_stride,
                              const float *x, ptrdiff_t x_stride, const double *sum_squares,
                              const double *sum_products, const float *weight,
                              float *dx, ptrdiff_t dx_stride, float *dweight, void *scratch,
                              ptrdiff_t rows, ptrdiff_t n, ptrdiff_t size,
                              double eps, double weight_offset, int accumulate, int threads);

    /* What the backward functions need, n rounded up to a multiple of 16: with threads = 1 some 32 n
     * bytes, with 0 at most 800 n. Of bad sizes 0, which the call then refuses. */
    size_t (*scratch_bytes)(ptrdiff_t rows, ptrdiff_t n, int threads);
} fastrms_functions;

/* The functions, after import_fastrms(). */
static const fastrms_functions *fastrms_api = NULL;

/* Import fastrms: 0, or -1 with an ImportError set. Needs the GIL. */
static inline int import_fastrms(void) {
    const fastrms_functions *found =
        (const fastrms_functions *)PyCapsule_Import("fastrms._core._C_API", 0);
    if (found == NULL) return -1;
    if (found->version != FASTRMS_API_VERSION || found->size < sizeof *found) {
        PyErr_Format(PyExc_ImportError,
                     "compiled for version %d of fastrms' C interface, of %zu bytes, and the fastrms "
                     "that is installed has version %d, of %zu: build this module against it",
                     FASTRMS_API_VERSION, sizeof *found, found->version, found->size);
        return -1;
    }
    fastrms_api = found;
    return 0;
}

#ifdef __cplusplus
}
#endif

#endif
