# The C interface for arrays of any kind: fastrms.h's functions `*_any`, each of a fastrms_call.
# Rows are staged in the caller's scratch; so is a weight or dweight of another kind than the
# arithmetic.

from cpython.pycapsule cimport PyCapsule_New

from fastrms cimport (
    FASTRMS_API_VERSION, FASTRMS_BAD_FLAG, FASTRMS_BAD_KIND, FASTRMS_BAD_POINTER,
    FASTRMS_BAD_SCRATCH, FASTRMS_DWEIGHT, FASTRMS_DX, FASTRMS_OK, FASTRMS_ROUND_FIRST,
    fastrms_array, fastrms_call, fastrms_functions,
)
from kernels.job cimport Axis, Job, Table, rows_kernel
from kernels.kinds cimport BFLOAT16, FLOAT64

cdef enum Operation:
    NORM
    ADD_NORM
    ADD
    BACKWARD


cdef int take_any(Job* job, const fastrms_array* array, const float** data, Py_ssize_t* stride,
                  int* kind, bint output) noexcept nogil:
    """Check an array of rows, and set a job's fields for it."""
    cdef int error = bad_kind(array)
    data[0], stride[0], kind[0] = <const float*>array.data, array.stride, array.kind
    if error or job.rows * job.n == 0:
        return error
    if output:
        return bad_output(data[0], stride[0], job.rows, job.n, kind_size(array.kind))
    return bad_pointer(data[0], kind_size(array.kind))


cdef inline int bad_kind(const fastrms_array* array) noexcept nogil:
    return FASTRMS_OK if 0 <= array.kind <= BFLOAT16 else FASTRMS_BAD_KIND


cdef int bad_vectors(const Job* job, const fastrms_array* weight,
                     const fastrms_array* dweight) noexcept nogil:
    """Check a weight, and its gradient unless dweight is NULL."""
    cdef int error = bad_vector(weight)
    if error or dweight == NULL:
        return error
    if ((weight.data == NULL) != (dweight.data == NULL)
            or (dweight.data == job.dx and job.rows > 0)):
        return FASTRMS_BAD_POINTER
    return bad_vector(dweight)


cdef int bad_vector(const fastrms_array* array) noexcept nogil:
    if array.data == NULL:
        return FASTRMS_OK
    return bad_kind(array) or bad_pointer(array.data, kind_size(array.kind))


cdef inline int flags_of(const fastrms_call* call, Operation operation) noexcept nogil:
    """Return `flags`, 0 for a function that has none."""
    return 0 if operation == ADD else call.flags


cdef inline bint has_flags(Operation operation, int flags) noexcept nogil:
    """Return whether a function takes these flags. Nothing is rounded first and added."""
    if operation == BACKWARD:
        return not flags & ~(FASTRMS_DX | FASTRMS_DWEIGHT)
    return flags == 0 or flags == FASTRMS_ROUND_FIRST or (operation == NORM
                                                          and flags == FASTRMS_DX)


cdef int init_any(Job* job, const fastrms_call* call, Operation operation) noexcept nogil:
    """Check a call, and set up its job."""
    cdef int error = init_c_job(job, call.rows, call.n, call.n,
                                0.0 if operation == ADD else call.eps, call.weight_offset,
                                call.threads)
    job.scale = call.scale
    job.kinds.y = job.kinds.residual = job.kinds.dx = job.kinds.dy = ABSENT
    error = error or take_any(job, &call.x, &job.x, &job.x_stride, &job.kinds.x, False)
    if operation in (NORM, ADD_NORM):
        error = error or take_any(job, &call.out, <const float**>&job.y, &job.y_stride,
                                  &job.kinds.y, True)
    if operation in (ADD, ADD_NORM):
        error = error or take_any(job, &call.residual, <const float**>&job.residual,
                                  &job.residual_stride, &job.kinds.residual, True)
    if operation == BACKWARD:
        error = (error or take_any(job, &call.dy, &job.dy, &job.dy_stride, &job.kinds.dy, False)
                 or take_any(job, &call.dx, <const float**>&job.dx, &job.dx_stride,
                             &job.kinds.dx, True))
    if error == FASTRMS_OK and not has_flags(operation, flags_of(call, operation)):
        error = FASTRMS_BAD_FLAG
    if error or job.n == 0:
        return error
    if operation == ADD_NORM and job.y == job.residual and job.rows > 0:
        return FASTRMS_BAD_POINTER
    if operation == ADD:
        return FASTRMS_OK
    return bad_vectors(job, &call.weight, &call.dweight if operation == BACKWARD else NULL)


cdef int run_any(const fastrms_call* call, Operation operation) noexcept nogil:
    """Check a call, and run it. Without rows dweight is zeros."""
    cdef Job job
    cdef Axis axis
    cdef const Table* table
    cdef rows_kernel kernel
    cdef int error = init_any(&job, call, operation)
    cdef char* free = <char*>call.scratch
    cdef void* dweight = NULL
    cdef int flags = flags_of(call, operation)
    if error or call.n == 0 or (call.rows == 0 and operation != BACKWARD):
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
    kernel = (table.rms_norm if operation == NORM else table.add_rms_norm if operation == ADD_NORM
              else table.residual_add if operation == ADD else table.backward)
    run_c(table, kernel, &job, dweight, flags & FASTRMS_DWEIGHT != 0,
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
