# The C interface for Cython: `from fastrms cimport fastrms_api, import_fastrms`, call
# `import_fastrms()` once, then `fastrms_api.rms_norm(...)`, with or without the GIL. fastrms.h, in
# the folder fastrms.get_include(), documents every function and its arguments.

cdef extern from "fastrms.h" nogil:
    enum:
        FASTRMS_API_VERSION

    enum fastrms_error:
        FASTRMS_OK
        FASTRMS_BAD_SIZE
        FASTRMS_BAD_STRIDE
        FASTRMS_BAD_POINTER
        FASTRMS_BAD_EPS
        FASTRMS_BAD_FLAG
        FASTRMS_BAD_SCRATCH
        FASTRMS_BAD_KIND

    enum fastrms_kind:
        FASTRMS_FLOAT32
        FASTRMS_FLOAT64
        FASTRMS_FLOAT16
        FASTRMS_BFLOAT16

    enum fastrms_accumulate:
        FASTRMS_DX
        FASTRMS_DWEIGHT

    enum fastrms_flag:
        FASTRMS_ROUND_FIRST

    ctypedef struct fastrms_array:
        void* data
        ptrdiff_t stride
        int kind

    ctypedef struct fastrms_call:
        fastrms_array x, residual, out, dy, dx, weight, dweight
        ptrdiff_t rows, n
        double eps, weight_offset, scale
        int flags
        int threads
        void* scratch
        size_t scratch_size

    ctypedef struct fastrms_functions:
        size_t size
        int version
        int (*rms_norm)(
            const float* x, ptrdiff_t x_stride, const float* weight,
            float* out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n,
            double eps, double weight_offset, int accumulate, int threads) noexcept nogil
        int (*add_rms_norm)(
            const float* x, ptrdiff_t x_stride,
            float* residual, ptrdiff_t residual_stride, const float* weight,
            float* out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n,
            double eps, double weight_offset, int threads) noexcept nogil
        int (*rms_norm_backward)(
            const float* dy, ptrdiff_t dy_stride,
            const float* x, ptrdiff_t x_stride, const float* weight,
            float* dx, ptrdiff_t dx_stride, float* dweight, void* scratch,
            ptrdiff_t rows, ptrdiff_t n,
            double eps, double weight_offset, int accumulate, int threads) noexcept nogil
        int (*residual_add)(
            const float* x, ptrdiff_t x_stride,
            float* residual, ptrdiff_t residual_stride, ptrdiff_t rows, ptrdiff_t n,
            double scale, int threads) noexcept nogil
        int (*sum_squares)(
            const float* x, ptrdiff_t x_stride, double* out,
            ptrdiff_t rows, ptrdiff_t n, int threads) noexcept nogil
        int (*sum_products)(
            const float* dy, ptrdiff_t dy_stride, const float* x, ptrdiff_t x_stride,
            const float* weight, double* out, ptrdiff_t rows, ptrdiff_t n,
            double weight_offset, int threads) noexcept nogil
        int (*rms_scale)(
            const float* x, ptrdiff_t x_stride, const double* sum_squares,
            const float* weight, float* out, ptrdiff_t out_stride,
            ptrdiff_t rows, ptrdiff_t n, ptrdiff_t size,
            double eps, double weight_offset, int threads) noexcept nogil
        int (*rms_scale_backward)(
            const float* dy, ptrdiff_t dy_stride,
            const float* x, ptrdiff_t x_stride, const double* sum_squares,
            const double* sum_products, const float* weight,
            float* dx, ptrdiff_t dx_stride, float* dweight, void* scratch,
            ptrdiff_t rows, ptrdiff_t n, ptrdiff_t size,
            double eps, double weight_offset, int accumulate, int threads) noexcept nogil
        size_t (*scratch_bytes)(ptrdiff_t rows, ptrdiff_t n, int threads) noexcept nogil
        int (*rms_norm_any)(const fastrms_call* call) noexcept nogil
        int (*add_rms_norm_any)(const fastrms_call* call) noexcept nogil
        int (*rms_norm_backward_any)(const fastrms_call* call) noexcept nogil
        int (*residual_add_any)(const fastrms_call* call) noexcept nogil
        size_t (*any_scratch_bytes)(ptrdiff_t rows, ptrdiff_t n, int threads) noexcept nogil

    const fastrms_functions* fastrms_api

cdef extern from "fastrms.h":
    int import_fastrms() except -1
