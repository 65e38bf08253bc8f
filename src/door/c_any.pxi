# The C interface for arrays of any kind: fastrms.h's functions `*_any`, each of a fastrms_call.
# Rows are staged in the caller's scratch; so is a weight or dweight of another kind than the
# arithmetic.

from cpython.pycapsule cimport PyCapsule_New

from fastrms cimport (
    FASTRMS_API_VERSION, FASTRMS_BAD_FLAG, FASTRMS_BAD_SCRATCH, FASTRMS_DWEIGHT, FASTRMS_DX,
    FASTRMS_OK, FASTRMS_ROUND_FIRST, fastrms_array, fastrms_call, fastrms_functions,
)
from kernels.job cimport Axis, Job, Table
from kernels.kinds cimport FLOAT64


cdef inline int take_array(const fastrms_array* array, const float** data, Py_ssize_t* stride,
                           int* kind) noexcept nogil:
    """Set a job's fields for an array of rows."""
    data[0], stride[0], kind[0] = <const float*>array.data, array.stride, array.kind
    return bad_kind(array.kind)


cdef int init_any(Job* job, const fastrms_call* call, Operation operation,
                  int flags) noexcept nogil:
    """Check a call, and set up its job."""
    cdef int error = init_c_job(job, call.rows, call.n, call.n,
                                0.0 if operation == ADD else call.eps, call.weight_offset,
                                call.threads)
    job.scale = call.scale
    job.kinds.y = job.kinds.residual = job.kinds.dx = job.kinds.dy = ABSENT
    error = error or take_array(&call.x, &job.x, &job.x_stride, &job.kinds.x)
    if operation in (NORM, ADD_NORM):
        error = error or take_array(&call.out, <const float**>&job.y, &job.y_stride, &job.kinds.y)
    if operation in (ADD, ADD_NORM):
        error = error or take_array(&call.residual, <const float**>&job.residual,
                                    &job.residual_stride, &job.kinds.residual)
    if operation == BACKWARD:
        error = (error or take_array(&call.dy, &job.dy, &job.dy_stride, &job.kinds.dy)
                 or take_array(&call.dx, <const float**>&job.dx, &job.dx_stride, &job.kinds.dx))
    if error == FASTRMS_OK and not has_flags(operation, flags):
        return FASTRMS_BAD_FLAG
    return error or bad_arrays(job, operation, call.weight.data, call.weight.kind,
                               call.dweight.data, call.dweight.kind)


cdef int run_any(const fastrms_call* call, Operation operation) noexcept nogil:
    """Check a call, and run it."""
    cdef Job job
    cdef Axis axis
    cdef const Table* table
    cdef int flags = 0 if operation == ADD else call.flags      # residual_add has none
    cdef int error = init_any(&job, call, operation, flags)
    cdef char* free = <char*>call.scratch
    cdef void* dweight = NULL
    if error or is_done(&job, operation):
        return error
    if bad_pointer(call.scratch, sizeof(double)):
        return FASTRMS_BAD_SCRATCH
    tune(&job, 3, job.y, 0, flags & FASTRMS_DX, True)
    table = kernels_for(&job, &axis)
    if flags & FASTRMS_ROUND_FIRST and call.weight.data != NULL:
        job.round_kind = job.kinds.y
        if job.kinds.y == job.kinds.arithmetic:
            job.round_kind = job.kinds.residual if operation == ADD_NORM else job.kinds.x
    if operation == BACKWARD:
        free += c_scratch_bytes(call.rows, call.n, call.threads)
    free += 2 * vector_bytes(call.n)
    free += -<size_t>free & 63
    if call.scratch_size < <size_t>(free - <char*>call.scratch + staging_bytes(&job)):
        return FASTRMS_BAD_SCRATCH
    if operation != ADD:
        job.weight = <const float*>any_vector(&job, &call.weight, free - vector_bytes(call.n))
    if operation == BACKWARD:
        dweight = any_vector(&job, &call.dweight, free - 2 * vector_bytes(call.n))
    run_c(table, kernel_of(table, operation), &job, dweight, flags & FASTRMS_DWEIGHT != 0,
          <double*>call.scratch, free, call.scratch_size - (free - <char*>call.scratch),
          call.threads)
    if dweight != NULL and dweight != call.dweight.data:
        convert_vector(call.dweight.data, call.dweight.kind, dweight, job.kinds.arithmetic, call.n)
    return FASTRMS_OK


cdef inline size_t vector_bytes(Py_ssize_t n) noexcept nogil:
    return whole_lines(n) * sizeof(double)


cdef void* any_vector(const Job* job, const fastrms_array* vector, void* scratch) noexcept nogil:
    """Return a vector in the job's arithmetic: itself, or in scratch. NULL for NULL."""
    if vector.data == NULL or vector.kind == job.kinds.arithmetic:
        return vector.data
    convert_vector(scratch, job.kinds.arithmetic, vector.data, vector.kind, job.n)
    return scratch


cdef int c_rms_norm_any(const fastrms_call* call) noexcept nogil:
    return run_any(call, NORM)


cdef int c_add_rms_norm_any(const fastrms_call* call) noexcept nogil:
    return run_any(call, ADD_NORM)


cdef int c_rms_norm_backward_any(const fastrms_call* call) noexcept nogil:
    return run_any(call, BACKWARD)


cdef int c_residual_add_any(const fastrms_call* call) noexcept nogil:
    return run_any(call, ADD)


cdef size_t c_any_scratch_bytes(ptrdiff_t rows, ptrdiff_t n, int threads) noexcept nogil:
    """Return enough for dweight's sums, both vectors, and three arrays staged in float64."""
    cdef Job job
    cdef size_t count = 1
    if init_c_job(&job, rows, n, n, 0.0, 0.0, threads):
        return 0
    job.kinds.arithmetic = FLOAT64
    job.dx = <float*>&job           # as for backward, which stages most rows
    if threads != 1:
        count = threads_for(rows * n)
    return (c_scratch_bytes(rows, n, threads) + 2 * vector_bytes(n) + 64
            + 3 * area_bytes(&job) * count)


cdef fastrms_functions C_FUNCTIONS = fastrms_functions(
    sizeof(fastrms_functions), FASTRMS_API_VERSION, c_rms_norm, c_add_rms_norm,
    c_rms_norm_backward, c_residual_add, c_sum_squares, c_sum_products, c_rms_scale,
    c_rms_scale_backward, c_scratch_bytes, c_rms_norm_any, c_add_rms_norm_any,
    c_rms_norm_backward_any, c_residual_add_any, c_any_scratch_bytes)

_C_API = PyCapsule_New(&C_FUNCTIONS, "fastrms._core._C_API", NULL)
