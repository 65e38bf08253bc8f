# Staging: rows of another kind than the call's arithmetic are converted into scratch, some at a
# time, a kernel runs on them there, in cache, and what it wrote is rounded once into the arrays.

from kernels.job cimport ACCUMULATE, STORE, Axis, GradientSums, Job, Kinds, Table, rows_kernel
from kernels.kinds cimport FLOAT32, FLOAT64
from machine.fp_state cimport default_fp_state, fp_state, restore_fp_state

# Elements of an array that are staged at once, or one row if that is more: half of a level 1 of 32
# KiB. Backward, which takes rows in pairs, stages twice as many (once takes 1.13 of the time at
# 64 x 4096, twice 1.1 in forward; Zen 4).
cdef Py_ssize_t STAGED = 4096

cdef enum:
    ABSENT = -1         # the kind of an array that a job lacks


cdef inline Py_ssize_t kind_size(int kind) noexcept nogil:
    """Return the bytes of a number."""
    return 4 if kind == FLOAT32 else 8 if kind == FLOAT64 else 2


cdef inline Py_ssize_t staged_rows(const Job* job) noexcept nogil:
    cdef Py_ssize_t elements = STAGED if job.dx == NULL else 2 * STAGED
    return max(1, min(job.rows, elements // max(<Py_ssize_t>1, job.n)))


cdef inline Py_ssize_t area_bytes(const Job* job) noexcept nogil:
    """Return the bytes of one array's scratch: whole lines, and two more, so that the same columns
    of two arrays are not a multiple of 4 KiB apart."""
    return (staged_rows(job) * job.n * kind_size(job.kinds.arithmetic) + 63) // 64 * 64 + 128


cdef Py_ssize_t staging_bytes(const Job* job) noexcept nogil:
    """Return the bytes of scratch that a thread needs; 0 if nothing is staged."""
    cdef int kind = job.kinds.arithmetic
    cdef Py_ssize_t areas
    if not job.staged:
        return 0
    areas = ((job.kinds.x != kind) + (job.kinds.dy != kind) + (job.kinds.y != kind)
             + (job.kinds.residual != kind) + (job.kinds.dx != kind))
    return areas * area_bytes(job)


cdef void convert_vector(void* to, int to_kind, const void* source, int kind,
                         Py_ssize_t n) noexcept nogil:
    """Convert n numbers of a weight or dweight, before a job is started or after it."""
    cdef fp_state state = default_fp_state()
    kernels.convert(to, to_kind, source, kind, n)
    restore_fp_state(state)


cdef struct Stage:
    const Table* table
    const Job* job
    Py_ssize_t rows
    char* free              # scratch for the next array


cdef void convert_rows(const Stage* stage, void* to, Py_ssize_t to_stride, int to_kind,
                       const void* source, Py_ssize_t stride, int kind) noexcept nogil:
    """Convert the rows of an array. Strides count elements."""
    cdef Py_ssize_t row, n = stage.job.n
    if stride == n and to_stride == n:
        stage.table.convert(to, to_kind, source, kind, n * stage.rows)
        return
    for row in range(stage.rows):
        stage.table.convert(<char*>to + row * to_stride * kind_size(to_kind), to_kind,
                            <const char*>source + row * stride * kind_size(kind), kind, n)


cdef void* take_rows(Stage* stage, const void* array, Py_ssize_t* stride, int kind,
                     bint reads) noexcept nogil:
    """Return where a kernel finds an array's rows: themselves, or scratch. stride OUT."""
    cdef char* scratch = stage.free
    cdef Py_ssize_t array_stride = stride[0]
    if kind == stage.job.kinds.arithmetic:
        return <void*>array
    stage.free += area_bytes(stage.job)
    stride[0] = stage.job.n
    if reads:
        convert_rows(stage, scratch, stride[0], stage.job.kinds.arithmetic, array, array_stride,
                     kind)
    return scratch


cdef void* output_rows(Stage* stage, const void* array, Py_ssize_t* stride, int kind,
                       const void* source, int source_kind) noexcept nogil:
    """Return where a kernel writes an array's rows: themselves, or scratch, that of an input if it
    is not read again."""
    cdef bint adds = stage.job.store == ACCUMULATE
    if adds or kind == stage.job.kinds.arithmetic or source_kind == stage.job.kinds.arithmetic:
        return take_rows(stage, array, stride, kind, adds)
    stride[0] = stage.job.n
    return <void*>source


cdef void give_rows(const Stage* stage, void* array, Py_ssize_t stride, int kind,
                    const void* scratch) noexcept nogil:
    """Round rows into an array, unless the kernel wrote them there."""
    if kind != stage.job.kinds.arithmetic:
        convert_rows(stage, array, stride, kind, scratch, stage.job.n, stage.job.kinds.arithmetic)


cdef void run_staged(const Table* table, rows_kernel kernel, const Job* job, Py_ssize_t rows,
                     const GradientSums* sums, char* scratch) noexcept nogil:
    """Run a kernel over the first `rows` rows of a segment, staged_rows of them at most.

    Where the residual is staged, add_rms_norm normalises what was stored, in two steps.
    """
    cdef Job here = job[0]
    cdef Stage stage = Stage(table, job, rows, scratch)
    cdef bint in_steps = (kernel == table.add_rms_norm
                          and job.kinds.residual != job.kinds.arithmetic)
    here.x = <float*>take_rows(&stage, job.x, &here.x_stride, job.kinds.x, True)
    here.dy = <float*>take_rows(&stage, job.dy, &here.dy_stride, job.kinds.dy, True)
    here.residual = <float*>take_rows(&stage, job.residual, &here.residual_stride,
                                      job.kinds.residual, True)
    here.y = <float*>output_rows(&stage, job.y, &here.y_stride, job.kinds.y, here.x, job.kinds.x)
    here.dx = <float*>output_rows(&stage, job.dx, &here.dx_stride, job.kinds.dx, here.dy,
                                  job.kinds.dy)
    if in_steps:
        kernel = table.residual_add
    kernel(&here, 0, rows, sums)
    give_rows(&stage, job.residual, job.residual_stride, job.kinds.residual, here.residual)
    if in_steps:
        convert_rows(&stage, here.residual, job.n, job.kinds.arithmetic, job.residual,
                     job.residual_stride, job.kinds.residual)
        here.x, here.x_stride = here.residual, job.n
        table.rms_norm(&here, 0, rows, NULL)
    give_rows(&stage, job.y, job.y_stride, job.kinds.y, here.y)
    give_rows(&stage, job.dx, job.dx_stride, job.kinds.dx, here.dx)


cdef const Table* kernels_for(Job* job, Axis* axes) noexcept nogil:
    """Return the kernels of a job's arithmetic, once its pointers and kinds are set; have rows of
    another kind staged. axes: storage for job.axes.

    The arithmetic is float64's if one of the arrays is float64, else float32's.
    """
    cdef Kinds* kinds = &job.kinds
    kinds.arithmetic = FLOAT32
    if (kinds.x == FLOAT64 or kinds.dy == FLOAT64 or kinds.y == FLOAT64
            or kinds.residual == FLOAT64 or kinds.dx == FLOAT64):
        kinds.arithmetic = FLOAT64
    job.staged = (settle(&kinds.x, &job.x_stride, kinds.arithmetic)
                  | settle(&kinds.dy, &job.dy_stride, kinds.arithmetic)
                  | settle(&kinds.y, &job.y_stride, kinds.arithmetic)
                  | settle(&kinds.residual, &job.residual_stride, kinds.arithmetic)
                  | settle(&kinds.dx, &job.dx_stride, kinds.arithmetic))
    job.round_kind = kinds.arithmetic
    if job.staged and job.store != ACCUMULATE:      # staged rows are in cache
        job.store = STORE
    if job.staged and job.axes == NULL:
        axes[0].length = job.rows
        axes[0].x, axes[0].y = job.x_stride * kind_size(kinds.x), job.y_stride * kind_size(kinds.y)
        axes[0].dy = job.dy_stride * kind_size(kinds.dy)
        axes[0].dx = job.dx_stride * kind_size(kinds.dx)
        axes[0].residual = job.residual_stride * kind_size(kinds.residual)
        job.axes = axes
    return kernels + (kinds.arithmetic == FLOAT64)


cdef inline bint settle(int* kind, Py_ssize_t* stride, int arithmetic) noexcept nogil:
    """Return whether an array is to be staged; one that the job lacks is not."""
    if kind[0] == ABSENT:
        kind[0], stride[0] = arithmetic, 0
    return kind[0] != arithmetic
