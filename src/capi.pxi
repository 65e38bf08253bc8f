# The door for C: the functions behind fastrms.h, which says what they compute and ask for. The same
# jobs as in the Python functions, from pointers; it checks what a pointer tells, answers with a
# code, and refuses to allocate, to touch an object or to look up for Ctrl-C.

from cpython.pycapsule cimport PyCapsule_New

from fastrms cimport (
    FASTRMS_API_VERSION,
    FASTRMS_BAD_EPS,
    FASTRMS_BAD_FLAG,
    FASTRMS_BAD_POINTER,
    FASTRMS_BAD_SCRATCH,
    FASTRMS_BAD_SIZE,
    FASTRMS_BAD_STRIDE,
    FASTRMS_DWEIGHT,
    FASTRMS_DX,
    FASTRMS_OK,
    fastrms_functions,
)

# rows * n is at most this, and its bytes 2**63.
cdef Py_ssize_t MOST_FLOATS = <Py_ssize_t>1 << 61


cdef inline int bad_pointer(const void* data, size_t alignment) noexcept nogil:
    return FASTRMS_BAD_POINTER if data == NULL or <size_t>data & (alignment - 1) else FASTRMS_OK


cdef int bad_output(const float* data, Py_ssize_t stride, Py_ssize_t rows,
                    Py_ssize_t n) noexcept nogil:
    """Rows that overlap would be written by two threads at once, and read after they were.

    Those too far apart for an address would be written around the end of memory, onto others.
    """
    cdef Py_ssize_t most
    if rows > 1:
        most = MOST_FLOATS // rows
        if -n < stride < n or not -most <= stride <= most:
            return FASTRMS_BAD_STRIDE
    return bad_pointer(data, sizeof(float))


cdef inline int bad_weight(const float* weight) noexcept nogil:
    return FASTRMS_OK if weight == NULL else bad_pointer(weight, sizeof(float))


cdef int start_c_job(Job* job, Py_ssize_t rows, Py_ssize_t n, double eps,
                     double weight_offset, int threads) noexcept nogil:
    """What each function is given beside its arrays."""
    if rows < 0 or n < 0 or n >= MOST_SIZE or (n > 0 and rows > MOST_FLOATS // n):
        return FASTRMS_BAD_SIZE
    if not is_eps(eps):
        return FASTRMS_BAD_EPS
    if threads & ~1:
        return FASTRMS_BAD_FLAG
    clear_job(job, n)
    job.accumulate = False
    job.eps, job.weight_offset = eps, weight_offset
    return FASTRMS_OK


cdef void run_c(rows_kernel kernel, Job* job, Py_ssize_t rows, int threads) noexcept nogil:
    """A kernel over all rows."""
    cdef int most = 1 if threads == 1 else threads_for(rows * job.n)
    cdef fp_state state = default_fp_state()
    kernels.start(job)
    if most == 1:
        kernel(job, 0, rows)
    restore_fp_state(state)
    if most > 1:
        run_rows(kernel, job, 0, rows, most)


cdef int c_rms_norm(const float* x, ptrdiff_t x_stride, const float* weight,
                    float* out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n,
                    double eps, double weight_offset, int accumulate, int threads) noexcept nogil:
    cdef Job job
    cdef int error = start_c_job(&job, rows, n, eps, weight_offset, threads)
    if error == FASTRMS_OK and accumulate & ~1:
        error = FASTRMS_BAD_FLAG
    if error or rows * n == 0:
        return error
    error = (bad_output(out, out_stride, rows, n) or bad_pointer(x, sizeof(float))
             or bad_weight(weight))
    if error:
        return error
    job.x, job.x_stride, job.weight = x, x_stride, weight
    job.y, job.y_stride, job.accumulate = out, out_stride, accumulate
    suit_caches(&job, rows, 2, out, out_stride, accumulate or out == x)
    run_c(kernels.rms_norm, &job, rows, threads)
    return FASTRMS_OK


cdef int c_add_rms_norm(const float* x, ptrdiff_t x_stride,
                        float* residual, ptrdiff_t residual_stride, const float* weight,
                        float* out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n,
                        double eps, double weight_offset, int threads) noexcept nogil:
    cdef Job job
    cdef int error = start_c_job(&job, rows, n, eps, weight_offset, threads)
    if error or rows * n == 0:
        return error
    error = (bad_output(residual, residual_stride, rows, n)
             or bad_output(out, out_stride, rows, n) or bad_pointer(x, sizeof(float))
             or bad_weight(weight))
    if error:
        return error
    if out == residual:
        return FASTRMS_BAD_POINTER
    job.x, job.x_stride, job.weight = x, x_stride, weight
    job.residual, job.residual_stride = residual, residual_stride
    job.y, job.y_stride = out, out_stride
    suit_caches(&job, rows, 3, out, out_stride, out == x)
    run_c(kernels.add_rms_norm, &job, rows, threads)
    return FASTRMS_OK


cdef int c_residual_add(const float* x, ptrdiff_t x_stride,
                        float* residual, ptrdiff_t residual_stride, ptrdiff_t rows, ptrdiff_t n,
                        double scale, int threads) noexcept nogil:
    cdef Job job
    cdef int error = start_c_job(&job, rows, n, 0.0, 0.0, threads)
    if error or rows * n == 0:
        return error
    error = bad_output(residual, residual_stride, rows, n) or bad_pointer(x, sizeof(float))
    if error:
        return error
    job.x, job.x_stride = x, x_stride
    job.residual, job.residual_stride, job.scale = residual, residual_stride, scale
    run_c(kernels.residual_add, &job, rows, threads)
    return FASTRMS_OK


cdef int c_rms_norm_backward(const float* dy, ptrdiff_t dy_stride,
                             const float* x, ptrdiff_t x_stride, const float* weight,
                             float* dx, ptrdiff_t dx_stride, float* dweight, void* scratch,
                             ptrdiff_t rows, ptrdiff_t n, double eps, double weight_offset,
                             int accumulate, int threads) noexcept nogil:
    cdef Job job
    cdef int error = start_c_job(&job, rows, n, eps, weight_offset, threads)
    if error:
        return error
    job.dy, job.dy_stride = dy, dy_stride
    job.x, job.x_stride, job.weight = x, x_stride, weight
    job.dx, job.dx_stride = dx, dx_stride
    return run_c_backward(&job, rows, dweight, <double*>scratch, accumulate, threads)


cdef int run_c_backward(Job* job, Py_ssize_t rows, float* dweight, double* scratch,
                        int accumulate, int threads) noexcept nogil:
    """Backward from a job whose arrays have yet to be checked. Of no rows dweight is zeros."""
    cdef int error = check_gradients(job, rows, dweight, scratch, accumulate)
    cdef bint add = accumulate & FASTRMS_DWEIGHT != 0
    if error or job.n == 0:
        return error
    job.accumulate = accumulate & FASTRMS_DX != 0
    if dweight != NULL:
        place_factor(job, rows, scratch)
        scratch = scratch + MOST_FACTOR * whole_lines(job.n) // 2
    suit_caches(job, rows, 3, job.dx, job.dx_stride,
                job.accumulate or job.dx == job.x or job.dx == job.dy)
    if not run_few(job, rows, dweight, add):
        run_all_blocks(job, rows, dweight, add, scratch,
                       1 if threads == 1 else threads_for(rows * job.n))
    return FASTRMS_OK


cdef int check_gradients(const Job* job, Py_ssize_t rows, const float* dweight,
                         const double* scratch, int accumulate) noexcept nogil:
    cdef int error = FASTRMS_OK
    if accumulate & ~(FASTRMS_DX | FASTRMS_DWEIGHT):
        return FASTRMS_BAD_FLAG
    if job.n == 0:
        return FASTRMS_OK
    if rows > 0:
        error = (bad_output(job.dx, job.dx_stride, rows, job.n)
                 or bad_pointer(job.x, sizeof(float)) or bad_pointer(job.dy, sizeof(float)))
    if error or (job.weight == NULL and dweight == NULL):
        return error
    error = bad_pointer(job.weight, sizeof(float)) or bad_pointer(dweight, sizeof(float))
    if error or (dweight == job.dx and rows > 0):
        return FASTRMS_BAD_POINTER
    return FASTRMS_BAD_SCRATCH if bad_pointer(scratch, sizeof(double)) else FASTRMS_OK


cdef size_t c_scratch_bytes(ptrdiff_t rows, ptrdiff_t n, int threads) noexcept nogil:
    """How many blocks run side by side depends on the threads of the moment: room for all."""
    cdef Job job
    cdef Blocks blocks
    if start_c_job(&job, rows, n, 0.0, 0.0, threads):
        return 0
    blocks = cut_blocks(rows, n, True, 1)
    return whole_lines(n) * (MOST_FACTOR * sizeof(float)
                             + block_bytes(blocks.count, 1 if threads == 1 else blocks.count))


cdef int c_sum_squares(const float* x, ptrdiff_t x_stride, double* out,
                       ptrdiff_t rows, ptrdiff_t n, int threads) noexcept nogil:
    cdef Job job
    cdef int error = start_c_job(&job, rows, n, 0.0, 0.0, threads)
    job.x, job.x_stride, job.squares = x, x_stride, out
    return error or run_c_sums(kernels.row_squares, &job, x, out, rows, threads)


cdef int c_sum_products(const float* dy, ptrdiff_t dy_stride, const float* x, ptrdiff_t x_stride,
                        const float* weight, double* out, ptrdiff_t rows, ptrdiff_t n,
                        double weight_offset, int threads) noexcept nogil:
    cdef Job job
    cdef int error = start_c_job(&job, rows, n, 0.0, weight_offset, threads)
    job.x, job.x_stride, job.products = x, x_stride, out
    job.dy, job.dy_stride, job.weight = dy, dy_stride, weight
    return error or run_c_sums(kernels.row_products, &job, dy, out, rows, threads)


cdef int run_c_sums(rows_kernel kernel, Job* job, const float* other, double* out,
                    Py_ssize_t rows, int threads) noexcept nogil:
    """A kernel that reads job.x and another array, and takes one sum a row: 0 of an empty one."""
    cdef int error
    if rows == 0:
        return FASTRMS_OK
    error = bad_pointer(out, sizeof(double))
    if error == FASTRMS_OK and job.n > 0:
        error = (bad_pointer(job.x, sizeof(float)) or bad_pointer(other, sizeof(float))
                 or bad_weight(job.weight))
    if error:
        return error
    if job.n == 0:
        memset(out, 0, rows * sizeof(double))
    else:
        run_c(kernel, job, rows, threads)
    return FASTRMS_OK


cdef int c_rms_scale(const float* x, ptrdiff_t x_stride, const double* sum_squares,
                     const float* weight, float* out, ptrdiff_t out_stride,
                     ptrdiff_t rows, ptrdiff_t n, ptrdiff_t size,
                     double eps, double weight_offset, int threads) noexcept nogil:
    cdef Job job
    cdef int error = start_c_job(&job, rows, n, eps, weight_offset, threads)
    if error == FASTRMS_OK and not n <= size < MOST_SIZE:
        error = FASTRMS_BAD_SIZE
    if error or rows * n == 0:
        return error
    error = (bad_output(out, out_stride, rows, n) or bad_pointer(x, sizeof(float))
             or bad_pointer(sum_squares, sizeof(double)) or bad_weight(weight))
    if error:
        return error
    job.x, job.x_stride, job.weight = x, x_stride, weight
    job.y, job.y_stride = out, out_stride
    job.squares, job.size = <double*>sum_squares, size
    run_c(kernels.rms_scale, &job, rows, threads)
    return FASTRMS_OK


cdef int c_rms_scale_backward(const float* dy, ptrdiff_t dy_stride,
                              const float* x, ptrdiff_t x_stride, const double* sum_squares,
                              const double* sum_products, const float* weight,
                              float* dx, ptrdiff_t dx_stride, float* dweight, void* scratch,
                              ptrdiff_t rows, ptrdiff_t n, ptrdiff_t size, double eps,
                              double weight_offset, int accumulate, int threads) noexcept nogil:
    cdef Job job
    cdef int error = start_c_job(&job, rows, n, eps, weight_offset, threads)
    if error == FASTRMS_OK and not n <= size < MOST_SIZE:
        error = FASTRMS_BAD_SIZE
    if error == FASTRMS_OK and rows * n > 0:
        error = (bad_pointer(sum_squares, sizeof(double))
                 or bad_pointer(sum_products, sizeof(double)))
    if error:
        return error
    job.dy, job.dy_stride = dy, dy_stride
    job.x, job.x_stride, job.weight = x, x_stride, weight
    job.dx, job.dx_stride = dx, dx_stride
    job.squares, job.products = <double*>sum_squares, <double*>sum_products
    job.size = size
    return run_c_backward(&job, rows, dweight, <double*>scratch, accumulate, threads)


cdef fastrms_functions C_FUNCTIONS = fastrms_functions(
    sizeof(fastrms_functions), FASTRMS_API_VERSION, c_rms_norm, c_add_rms_norm,
    c_rms_norm_backward, c_residual_add, c_sum_squares, c_sum_products, c_rms_scale,
    c_rms_scale_backward, c_scratch_bytes)

_C_API = PyCapsule_New(&C_FUNCTIONS, "fastrms._core._C_API", NULL)
