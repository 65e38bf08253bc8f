# The C interface: the functions of fastrms.h, where they are documented. They set up the same jobs
# as the Python functions, from pointers, check as much as a pointer allows, and return an error
# code. They never allocate, touch a Python object or check for Ctrl-C.

from libc.string cimport memset

from fastrms cimport (
    FASTRMS_BAD_EPS, FASTRMS_BAD_FLAG, FASTRMS_BAD_POINTER, FASTRMS_BAD_SCRATCH,
    FASTRMS_BAD_SIZE, FASTRMS_BAD_STRIDE, FASTRMS_DWEIGHT, FASTRMS_DX, FASTRMS_OK,
)
from kernels.job cimport Job, rows_kernel

# rows * n is at most this, and its bytes 2**63.
cdef Py_ssize_t MOST_FLOATS = <Py_ssize_t>1 << 61


cdef inline int bad_pointer(const void* data, size_t alignment) noexcept nogil:
    return FASTRMS_BAD_POINTER if data == NULL or <size_t>data & (alignment - 1) else FASTRMS_OK


cdef int bad_output(const void* data, Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n,
                    int size=sizeof(float)) noexcept nogil:
    """Check an output's pointer and stride. size: the bytes of a number.

    Rows that overlap would be written by two threads at once, and read after that. Rows too far
    apart for an address would wrap around the end of memory, onto others.
    """
    cdef Py_ssize_t most
    if rows > 1:
        most = MOST_FLOATS // rows * 4 // size
        if -n < stride < n or not -most <= stride <= most:
            return FASTRMS_BAD_STRIDE
    return bad_pointer(data, size)


cdef inline int bad_weight(const float* weight) noexcept nogil:
    return FASTRMS_OK if weight == NULL else bad_pointer(weight, sizeof(float))


cdef int init_c_job(Job* job, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t size, double eps,
                    double weight_offset, int threads) noexcept nogil:
    """Check the arguments that are no arrays, and set up a job."""
    if rows < 0 or n < 0 or not n <= size < MOST_SIZE or (n > 0 and rows > MOST_FLOATS // n):
        return FASTRMS_BAD_SIZE
    if not is_eps(eps):
        return FASTRMS_BAD_EPS
    if threads & ~1:
        return FASTRMS_BAD_FLAG
    init_job(job, rows, n)
    job.scale = 1.0
    job.size, job.eps, job.weight_offset = size, eps, weight_offset
    return FASTRMS_OK


cdef inline int run_c_norm(Job* job, bint add, int accumulate, int threads) noexcept nogil:
    """Run rms_norm or add_rms_norm, once the arrays are checked too."""
    cdef int error
    if accumulate & ~1:
        return FASTRMS_BAD_FLAG
    if job.rows * job.n == 0:
        return FASTRMS_OK
    error = (bad_output(job.y, job.y_stride, job.rows, job.n)
             or bad_pointer(job.x, sizeof(float)) or bad_weight(job.weight))
    if add and error == FASTRMS_OK:
        error = bad_output(job.residual, job.residual_stride, job.rows, job.n)
    if error or (add and job.y == job.residual):
        return error or FASTRMS_BAD_POINTER
    tune(job, 3 if add else 2, job.y, job.y_stride, accumulate, job.y == job.x)
    run_c(kernels, kernels.add_rms_norm if add else kernels.rms_norm, job, NULL, False, NULL, NULL,
          0, threads)
    return FASTRMS_OK


cdef int c_rms_norm(const float* x, ptrdiff_t x_stride, const float* weight,
                    float* out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n,
                    double eps, double weight_offset, int accumulate, int threads) noexcept nogil:
    cdef Job job
    cdef int error = init_c_job(&job, rows, n, n, eps, weight_offset, threads)
    job.x, job.x_stride, job.weight = x, x_stride, weight
    job.y, job.y_stride = out, out_stride
    return error or run_c_norm(&job, False, accumulate, threads)


cdef int c_add_rms_norm(const float* x, ptrdiff_t x_stride,
                        float* residual, ptrdiff_t residual_stride, const float* weight,
                        float* out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n,
                        double eps, double weight_offset, int threads) noexcept nogil:
    cdef Job job
    cdef int error = init_c_job(&job, rows, n, n, eps, weight_offset, threads)
    job.x, job.x_stride, job.weight = x, x_stride, weight
    job.residual, job.residual_stride, job.scale = residual, residual_stride, 1.0
    job.y, job.y_stride = out, out_stride
    return error or run_c_norm(&job, True, False, threads)


cdef int c_residual_add(const float* x, ptrdiff_t x_stride,
                        float* residual, ptrdiff_t residual_stride, ptrdiff_t rows, ptrdiff_t n,
                        double scale, int threads) noexcept nogil:
    cdef Job job
    cdef int error = init_c_job(&job, rows, n, n, 0.0, 0.0, threads)
    if error or rows * n == 0:
        return error
    error = bad_output(residual, residual_stride, rows, n) or bad_pointer(x, sizeof(float))
    if error:
        return error
    job.x, job.x_stride = x, x_stride
    job.residual, job.residual_stride, job.scale = residual, residual_stride, scale
    run_c(kernels, kernels.residual_add, &job, NULL, False, NULL, NULL, 0, threads)
    return FASTRMS_OK


cdef int c_rms_norm_backward(const float* dy, ptrdiff_t dy_stride,
                             const float* x, ptrdiff_t x_stride, const float* weight,
                             float* dx, ptrdiff_t dx_stride, float* dweight, void* scratch,
                             ptrdiff_t rows, ptrdiff_t n, double eps, double weight_offset,
                             int accumulate, int threads) noexcept nogil:
    cdef Job job
    cdef int error = init_c_job(&job, rows, n, n, eps, weight_offset, threads)
    job.dy, job.dy_stride = dy, dy_stride
    job.x, job.x_stride, job.weight = x, x_stride, weight
    job.dx, job.dx_stride = dx, dx_stride
    return error or run_c_backward(&job, dweight, <double*>scratch, accumulate, threads)


cdef int run_c_backward(Job* job, float* dweight, double* scratch, int accumulate,
                        int threads) noexcept nogil:
    """Run backward, once its arrays are checked too. Without rows dweight is zeros."""
    cdef int error = check_gradients(job, dweight, scratch, accumulate)
    if error or job.n == 0:
        return error
    tune(job, 3, job.dx, job.dx_stride, accumulate & FASTRMS_DX != 0,
         job.dx == job.x or job.dx == job.dy)
    run_c(kernels, kernels.backward, job, dweight, accumulate & FASTRMS_DWEIGHT != 0, scratch,
          NULL, 0, threads)
    return FASTRMS_OK


cdef int check_gradients(const Job* job, const float* dweight, const double* scratch,
                         int accumulate) noexcept nogil:
    cdef int error = FASTRMS_OK
    if accumulate & ~(FASTRMS_DX | FASTRMS_DWEIGHT):
        return FASTRMS_BAD_FLAG
    if job.n == 0:
        return FASTRMS_OK
    if job.rows > 0:
        error = (bad_output(job.dx, job.dx_stride, job.rows, job.n)
                 or bad_pointer(job.x, sizeof(float)) or bad_pointer(job.dy, sizeof(float)))
    if error or (job.weight == NULL and dweight == NULL):
        return error
    error = bad_pointer(job.weight, sizeof(float)) or bad_pointer(dweight, sizeof(float))
    if error or (dweight == job.dx and job.rows > 0):
        return FASTRMS_BAD_POINTER
    return FASTRMS_BAD_SCRATCH if bad_pointer(scratch, sizeof(double)) else FASTRMS_OK


cdef size_t c_scratch_bytes(ptrdiff_t rows, ptrdiff_t n, int threads) noexcept nogil:
    """Return enough for all blocks: how many run at once depends on the call's thread count."""
    cdef Job job
    cdef Plan plan
    if init_c_job(&job, rows, n, n, 0.0, 0.0, threads):
        return 0
    plan = make_plan(kernels, NULL, &job, True, 1)
    return plan.width * scratch_bytes(&plan, 1 if threads == 1 else plan.blocks)


cdef int c_sum_squares(const float* x, ptrdiff_t x_stride, double* out,
                       ptrdiff_t rows, ptrdiff_t n, int threads) noexcept nogil:
    cdef Job job
    cdef int error = init_c_job(&job, rows, n, n, 0.0, 0.0, threads)
    job.x, job.x_stride, job.squares = x, x_stride, out
    return error or run_c_sums(kernels.row_squares, &job, x, out, threads)


cdef int c_sum_products(const float* dy, ptrdiff_t dy_stride, const float* x, ptrdiff_t x_stride,
                        const float* weight, double* out, ptrdiff_t rows, ptrdiff_t n,
                        double weight_offset, int threads) noexcept nogil:
    cdef Job job
    cdef int error = init_c_job(&job, rows, n, n, 0.0, weight_offset, threads)
    job.x, job.x_stride, job.products = x, x_stride, out
    job.dy, job.dy_stride, job.weight = dy, dy_stride, weight
    return error or run_c_sums(kernels.row_products, &job, dy, out, threads)


cdef int run_c_sums(rows_kernel kernel, Job* job, const float* other, double* out,
                    int threads) noexcept nogil:
    """Run a kernel that reads x and another array, and computes one sum a row: 0 for n = 0."""
    cdef int error
    if job.rows == 0:
        return FASTRMS_OK
    error = bad_pointer(out, sizeof(double))
    if error == FASTRMS_OK and job.n > 0:
        error = (bad_pointer(job.x, sizeof(float)) or bad_pointer(other, sizeof(float))
                 or bad_weight(job.weight))
    if error:
        return error
    if job.n == 0:
        memset(out, 0, job.rows * sizeof(double))
    else:
        run_c(kernels, kernel, job, NULL, False, NULL, NULL, 0, threads)
    return FASTRMS_OK


cdef int c_rms_scale(const float* x, ptrdiff_t x_stride, const double* sum_squares,
                     const float* weight, float* out, ptrdiff_t out_stride,
                     ptrdiff_t rows, ptrdiff_t n, ptrdiff_t size,
                     double eps, double weight_offset, int threads) noexcept nogil:
    cdef Job job
    cdef int error = init_c_job(&job, rows, n, size, eps, weight_offset, threads)
    if error == FASTRMS_OK and rows * n > 0:
        error = bad_pointer(sum_squares, sizeof(double))
    job.x, job.x_stride, job.weight = x, x_stride, weight
    job.y, job.y_stride, job.squares = out, out_stride, <double*>sum_squares
    return error or run_c_norm(&job, False, False, threads)


cdef int c_rms_scale_backward(const float* dy, ptrdiff_t dy_stride,
                              const float* x, ptrdiff_t x_stride, const double* sum_squares,
                              const double* sum_products, const float* weight,
                              float* dx, ptrdiff_t dx_stride, float* dweight, void* scratch,
                              ptrdiff_t rows, ptrdiff_t n, ptrdiff_t size, double eps,
                              double weight_offset, int accumulate, int threads) noexcept nogil:
    cdef Job job
    cdef int error = init_c_job(&job, rows, n, size, eps, weight_offset, threads)
    if error == FASTRMS_OK and rows * n > 0:
        error = (bad_pointer(sum_squares, sizeof(double))
                 or bad_pointer(sum_products, sizeof(double)))
    job.dy, job.dy_stride = dy, dy_stride
    job.x, job.x_stride, job.weight = x, x_stride, weight
    job.dx, job.dx_stride = dx, dx_stride
    job.squares, job.products = <double*>sum_squares, <double*>sum_products
    return error or run_c_backward(&job, dweight, <double*>scratch, accumulate, threads)
