/* fastrms' C interface: its kernels without the cost of a Python call, and without the GIL.
 *
 *     if (import_fastrms() < 0) return NULL;   // once in each source file, with the GIL
 *     error = fastrms_api->rms_norm(x, n, weight, y, n, rows, n, 1e-5, 0.0, 0, 1);
 *
 * Each function computes what the Python function of the same name does, with the same kernels,
 * bits and error bounds. It runs in the default floating-point state and restores the caller's. It
 * never allocates, raises, or checks for signals (Ctrl-C). Any thread may call, with the GIL or
 * without; concurrent calls are safe unless they write the same memory.
 *
 * Arguments of all functions
 *   arrays      float32 of shape (rows, n), each row contiguous, aligned to 4 bytes (sums: to 8),
 *               and not NULL unless stated. `x_stride` is the distance between the first elements
 *               of two rows of `x`, in floats, of either sign. An input may have any stride (0: one
 *               row for all); the rows of an output must not overlap.
 *   weight      (n,), or NULL: the factor is then 1, and weight_offset is ignored.
 *   rows, n     zero or more, n below 2**40. The address of an empty array is ignored.
 *   eps         zero or more, inside the root; weight_offset: added to weight (1 for Gemma).
 *   accumulate  0, or 1: add to the output. For gradients FASTRMS_DX, FASTRMS_DWEIGHT or both.
 *   threads     1: stay on this thread. 0: use as many as the Python call would
 *               (fastrms.set_num_threads and the like), for large calls only.
 *   scratch     fastrms_api->scratch_bytes(rows, n, threads) bytes, aligned to 8, shared with no
 *               other array. Its contents do not matter before the call, nor after it.
 *
 * The caller must ensure what a pointer cannot tell: that the memory exists, and what overlaps.
 * An output may be an input in these pairs alone, with the same address, stride and kind: out or
 * residual may be x, and dx may be x or dy. Results are undefined, silently, if an output shares
 * memory with another array in any other way: rows of x, dy or residual that are shifted, a weight
 * within an output (also where dweight is weight), scratch or sums within an array, a second output.
 * (The NumPy functions copy an input then, and raise for two outputs.)
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

#define FASTRMS_API_VERSION 1 /* raised if functions change, not if some are added at the end */

enum fastrms_error {
    FASTRMS_OK = 0,
    FASTRMS_BAD_SIZE,    /* rows, n or size below zero or too large; size below n */
    FASTRMS_BAD_STRIDE,  /* overlapping rows of an output */
    FASTRMS_BAD_POINTER, /* NULL, misaligned, equal outputs, one of weight and dweight alone */
    FASTRMS_BAD_EPS,     /* negative or NaN */
    FASTRMS_BAD_FLAG,    /* accumulate or threads is none of the values above */
    FASTRMS_BAD_SCRATCH, /* NULL where it is needed, misaligned, or too small */
    FASTRMS_BAD_KIND     /* none of fastrms_kind */
};

enum fastrms_kind { FASTRMS_FLOAT32 = 0, FASTRMS_FLOAT64, FASTRMS_FLOAT16, FASTRMS_BFLOAT16 };

enum fastrms_accumulate { FASTRMS_DX = 1, FASTRMS_DWEIGHT = 2 };
/* In fastrms_call's flags: round x / rms before the weight, to the kind of out or, where the call
 * computes in that, of the norm's input: what models do that keep the weight out of the norm (Llama). */
enum fastrms_flag { FASTRMS_ROUND_FIRST = 4 };

typedef struct fastrms_array {
    void *data;       /* NULL for an array that the call lacks */
    ptrdiff_t stride; /* elements from row to row; not used for weight and dweight */
    int kind;         /* of fastrms_kind */
} fastrms_array;

/* The arguments of a call for arrays of any kind; those that a function does not have are not read. */
typedef struct fastrms_call {
    fastrms_array x, residual, out, dy, dx, weight, dweight;
    ptrdiff_t rows, n;
    double eps, weight_offset, scale;
    int flags; /* FASTRMS_DX: add to out or dx; FASTRMS_DWEIGHT: to dweight; FASTRMS_ROUND_FIRST */
    int threads;
    void *scratch;
    size_t scratch_size; /* any_scratch_bytes(rows, n, threads); fewer limit the threads */
} fastrms_call;

typedef struct fastrms_functions {
    size_t size; /* of the struct; a later release may add functions at its end */
    int version; /* FASTRMS_API_VERSION */

    /* y = x / sqrt(mean(x**2) + eps) * (weight_offset + weight), over each row.
     * out = y, or out += y to accumulate. out may be x.
     * At most 4 ulp from the exact result, 3 without a weight_offset, 2 without a weight, over the
     * whole float32 range. */
    int (*rms_norm)(const float *x, ptrdiff_t x_stride, const float *weight,
                    float *out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n,
                    double eps, double weight_offset, int accumulate, int threads);

    /* residual += x, bit for bit as float addition; then out = rms_norm(residual).
     * x may be residual or out. The error is that of rms_norm of the rounded sum. */
    int (*add_rms_norm)(const float *x, ptrdiff_t x_stride,
                        float *residual, ptrdiff_t residual_stride, const float *weight,
                        float *out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n,
                        double eps, double weight_offset, int threads);

    /* With g = dy * (weight_offset + weight), xhat = x / rms, rms = sqrt(mean(x**2) + eps):
     * dx = (g - xhat * mean(g * xhat)) / rms, and dweight (n,) = sum of dy * xhat over all rows.
     * dx may be dy or x. dweight is NULL if and only if weight is; scratch may then be NULL too.
     * The error of an element of dx is at most 1e-6 of (|g| + |xhat| * mean(|g * xhat|)) / rms, the
     * magnitudes of its own terms, plus 2**-149; that of dweight, beyond its own rounding, at most
     * 1e-6 of the sum of |dy * xhat|. The bits do not depend on the threads. */
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

    /* For rows of `size` floats split over several holders, which add up their sums:
     * out (rows,) = sum of x**2, the same sum as inside rms_norm. */
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

    /* The scratch of the backward functions, in bytes: some 32 n with threads = 1, at most 800 n
     * with 0, n + 7 rounded up to a multiple of 16. 0 for bad sizes, for which the call fails. */
    size_t (*scratch_bytes)(ptrdiff_t rows, ptrdiff_t n, int threads);

    /* Functions above for arrays of any kind, in any mix. Each array is widened to the call's
     * arithmetic, also an output that is added to, and an output is rounded to its kind once. The
     * arithmetic is float64 if x, dy, residual, out or dx is float64, else float32: a weight in
     * float64 is then rounded. add_rms_norm_any normalises what was stored in residual. An output may
     * be an input, where stated above, if the kind is the same too. */
    int (*rms_norm_any)(const fastrms_call *call);
    int (*add_rms_norm_any)(const fastrms_call *call); /* residual += scale * x before the norm */
    int (*rms_norm_backward_any)(const fastrms_call *call);
    int (*residual_add_any)(const fastrms_call *call);
    size_t (*any_scratch_bytes)(ptrdiff_t rows, ptrdiff_t n, int threads);
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
