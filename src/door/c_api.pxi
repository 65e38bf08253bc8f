# The C interface: the functions of fastrms.h, where they are documented. They set up the same jobs
# as the Python functions, from pointers, check as much as a pointer allows, and return an error
# code. They never allocate, touch a Python object or check for Ctrl-C.

from libc.string cimport memset

from fastrms cimport (
    FASTRMS_BAD_EPS, FASTRMS_BAD_FLAG, FASTRMS_BAD_KIND, FASTRMS_BAD_POINTER, FASTRMS_BAD_SCRATCH,
    FASTRMS_BAD_SIZE, FASTRMS_BAD_STRIDE, FASTRMS_DWEIGHT, FASTRMS_DX, FASTRMS_OK,
    FASTRMS_ROUND_FIRST,
)
from kernels.job cimport Job, Kinds, Table, rows_kernel
from kernels.kinds cimport BFLOAT16, FLOAT32, FLOAT64

# rows * n is at most this, and its bytes 2**63.
cdef Py_ssize_t MOST_FLOATS = <Py_ssize_t>1 << 61

cdef enum Operation:
    NORM
    ADD_NORM
    ADD
    BACKWARD


cdef inline int init_c_job(Job* job, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t size, double eps,
                           double weight_offset, int threads) noexcept nogil:
    """Check the arguments that are no arrays, and set up a job for arrays of float32."""
    if rows < 0 or n < 0 or not n <= size < MOST_SIZE or (n > 0 and rows > MOST_FLOATS // n):
        return FASTRMS_BAD_SIZE
    if not is_eps(eps):
        return FASTRMS_BAD_EPS
    if threads & ~1:
        return FASTRMS_BAD_FLAG
    init_job(job, rows, n)
    job.kinds = Kinds(FLOAT32, FLOAT32, FLOAT32, FLOAT32, FLOAT32, FLOAT32)
    job.scale = 1.0
    job.size, job.eps, job.weight_offset = size, eps, weight_offset
    return FASTRMS_OK


cdef inline int bad_kind(int kind) noexcept nogil:
    return FASTRMS_OK if 0 <= kind <= BFLOAT16 else FASTRMS_BAD_KIND


cdef inline int bad_pointer(const void* data, size_t alignment) noexcept nogil:
    return FASTRMS_BAD_POINTER if data == NULL or <size_t>data & (alignment - 1) else FASTRMS_OK


cdef inline int bad_vector(const void* data, int kind) noexcept nogil:
    return FASTRMS_OK if data == NULL else bad_kind(kind) or bad_pointer(data, kind_size(kind))


cdef inline int bad_output(const Job* job, const void* data, Py_ssize_t stride,
                           int kind) noexcept nogil:
    """Check an output's pointer and stride.

    Rows that overlap would be written by two threads at once, and read after that. Rows too far
    apart for an address would wrap around the end of memory, onto others.
    """
    cdef Py_ssize_t most
    if job.rows > 1:
        most = MOST_FLOATS // job.rows
        if kind == FLOAT64:
            most = most // 2
        if -job.n < stride < job.n or not -most <= stride <= most:
            return FASTRMS_BAD_STRIDE
    return bad_pointer(data, kind_size(kind))


cdef inline int bad_rows(const Job* job, Operation operation) noexcept nogil:
    """Check a job's arrays of rows, which are not empty."""
    cdef int error = bad_pointer(job.x, kind_size(job.kinds.x))
    if operation == BACKWARD:
        return (error or bad_pointer(job.dy, kind_size(job.kinds.dy))
                or bad_output(job, job.dx, job.dx_stride, job.kinds.dx))
    if operation != ADD:
        error = error or bad_output(job, job.y, job.y_stride, job.kinds.y)
    if operation != NORM:
        error = error or bad_output(job, job.residual, job.residual_stride, job.kinds.residual)
    if operation == ADD_NORM and job.y == job.residual:
        return error or FASTRMS_BAD_POINTER
    return error


cdef inline int bad_arrays(const Job* job, Operation operation, const void* weight, int weight_kind,
                           const void* dweight, int dweight_kind) noexcept nogil:
    """Check a call's arrays; the addresses of empty ones are ignored."""
    cdef int error = FASTRMS_OK
    if job.n == 0:
        return FASTRMS_OK
    if job.rows > 0:
        error = bad_rows(job, operation)
    if operation != ADD:
        error = error or bad_vector(weight, weight_kind)
    if operation == BACKWARD:
        error = error or bad_vector(dweight, dweight_kind)
        if (weight == NULL) != (dweight == NULL) or (dweight == job.dx and job.rows > 0):
            return error or FASTRMS_BAD_POINTER
    return error


cdef inline bint has_flags(Operation operation, int flags) noexcept nogil:
    """Return whether a function takes these flags. Nothing is rounded first and added."""
    if operation == BACKWARD:
        return not flags & ~(FASTRMS_DX | FASTRMS_DWEIGHT)
    return flags == 0 or flags == FASTRMS_ROUND_FIRST or (operation == NORM
                                                          and flags == FASTRMS_DX)


cdef inline bint is_done(const Job* job, Operation operation) noexcept nogil:
    """Return whether nothing is to be written. Without rows dweight is zeros."""
    return job.n == 0 or (job.rows == 0 and operation != BACKWARD)


cdef inline rows_kernel kernel_of(const Table* table, Operation operation) noexcept nogil:
    return (table.rms_norm if operation == NORM else table.add_rms_norm if operation == ADD_NORM
            else table.residual_add if operation == ADD else table.backward)


cdef inline int run_single(Job* job, Operation operation, float* dweight, void* scratch, int flags,
                           int threads) noexcept nogil:
    """Run a function for float32 arrays, once they and the flags are checked too."""
    cdef int error = bad_arrays(job, operation, job.weight, FLOAT32, dweight, FLOAT32)
    cdef bint adds = flags & FASTRMS_DX
    if flags & FASTRMS_ROUND_FIRST or not has_flags(operation, flags):
        return FASTRMS_BAD_FLAG
    if error or is_done(job, operation):
        return error
    if dweight != NULL and bad_pointer(scratch, sizeof(double)):
        return FASTRMS_BAD_SCRATCH
    if operation == BACKWARD:
        tune(job, 3, job.dx, job.dx_stride, adds, job.dx == job.x or job.dx == job.dy)
    elif operation != ADD:
        tune(job, 3 if operation == ADD_NORM else 2, job.y, job.y_stride, adds, job.y == job.x)
    run_c(kernels, kernel_of(kernels, operation), job, dweight, flags & FASTRMS_DWEIGHT != 0,
          <double*>scratch, NULL, 0, threads)
    return FASTRMS_OK


cdef int c_rms_norm(const float* x, ptrdiff_t x_stride, const float* weight,
                    float* out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n,
                    double eps, double weight_offset, int accumulate, int threads) noexcept nogil:
    cdef Job job
    cdef int error = init_c_job(&job, rows, n, n, eps, weight_offset, threads)
    job.x, job.x_stride, job.weight = x, x_stride, weight
    job.y, job.y_stride = out, out_stride
    return error or run_single(&job, NORM, NULL, NULL, accumulate, threads)


cdef int c_add_rms_norm(const float* x, ptrdiff_t x_stride,
                        float* residual, ptrdiff_t residual_stride, const float* weight,
                        float* out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t n,
                        double eps, double weight_offset, int threads) noexcept nogil:
    cdef Job job
    cdef int error = init_c_job(&job, rows, n, n, eps, weight_offset, threads)
    job.x, job.x_stride, job.weight = x, x_stride, weight
    job.residual, job.residual_stride = residual, residual_stride
    job.y, job.y_stride = out, out_stride
    return error or run_single(&job, ADD_NORM, NULL, NULL, 0, threads)


cdef int c_residual_add(const float* x, ptrdiff_t x_stride,
                        float* residual, ptrdiff_t residual_stride, ptrdiff_t rows, ptrdiff_t n,
                        double scale, int threads) noexcept nogil:
    cdef Job job
    cdef int error = init_c_job(&job, rows, n, n, 0.0, 0.0, threads)
    job.x, job.x_stride = x, x_stride
    job.residual, job.residual_stride, job.scale = residual, residual_stride, scale
    return error or run_single(&job, ADD, NULL, NULL, 0, threads)


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
    return error or run_single(&job, BACKWARD, dweight, scratch, accumulate, threads)


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
    return error or run_c_sums(kernels.rms_norm, &job, x, out, threads)


cdef int c_sum_products(const float* dy, ptrdiff_t dy_stride, const float* x, ptrdiff_t x_stride,
                        const float* weight, double* out, ptrdiff_t rows, ptrdiff_t n,
                        double weight_offset, int threads) noexcept nogil:
    cdef Job job
    cdef int error = init_c_job(&job, rows, n, n, 0.0, weight_offset, threads)
    job.x, job.x_stride, job.products = x, x_stride, out
    job.dy, job.dy_stride, job.weight = dy, dy_stride, weight
    return error or run_c_sums(kernels.backward, &job, dy, out, threads)


cdef int run_c_sums(rows_kernel kernel, Job* job, const float* other, double* out,
                    int threads) noexcept nogil:
    """Run a kernel that reads x and another array, and computes one sum a row: 0 for n = 0."""
    cdef int error
    if job.rows == 0:
        return FASTRMS_OK
    error = bad_pointer(out, sizeof(double))
    if error == FASTRMS_OK and job.n > 0:
        error = (bad_pointer(job.x, sizeof(float)) or bad_pointer(other, sizeof(float))
                 or bad_vector(job.weight, FLOAT32))
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
    return error or run_single(&job, NORM, NULL, NULL, 0, threads)


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
    return error or run_single(&job, BACKWARD, dweight, scratch, accumulate, threads)
