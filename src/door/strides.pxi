# Strides: a kernel takes rows whose last axis is contiguous, at one stride per array. Leading axes
# that need several strides are walked segment by segment, without a copy. Nothing here writes to an
# array, except NumPy's own copy back into an output.

cimport numpy as cnp
from libc.stdlib cimport llabs

from kernels.job cimport Axis, Job, Kinds

cdef enum:
    MOST_AXES = 64      # as many as NumPy has


cdef inline cnp.ndarray rows_of(cnp.ndarray array, bint output=False):
    """Return the array itself, or a copy if a kernel cannot walk it.

    write_back copies an output back. Its rows may not overlap each other, since which of them is
    written last would depend on the threads.
    """
    cdef int last
    if cnp.PyArray_ISALIGNED(array):
        if cnp.PyArray_IS_C_CONTIGUOUS(array):
            return array
        last = cnp.PyArray_NDIM(array) - 1
        if ((cnp.PyArray_DIM(array, last) == 1
                or cnp.PyArray_STRIDE(array, last) == cnp.PyArray_ITEMSIZE(array))
                and (not output or rows_are_disjoint(array))):
            return array
    return copy_of(array)


cdef bint rows_are_disjoint(cnp.ndarray array) noexcept:
    """Return whether each leading axis steps over all that the shorter steps span.

    Conservative: some interleaved but disjoint layouts are copied too.
    """
    cdef int axis, other, last = cnp.PyArray_NDIM(array) - 1
    cdef Py_ssize_t span, step
    for axis in range(last):
        span = cnp.PyArray_DIM(array, last) * cnp.PyArray_ITEMSIZE(array)
        for other in range(last):
            step = llabs(cnp.PyArray_STRIDE(array, other))
            if other != axis and step <= llabs(cnp.PyArray_STRIDE(array, axis)):
                span += step * (cnp.PyArray_DIM(array, other) - 1)
        if cnp.PyArray_DIM(array, axis) > 1 and llabs(cnp.PyArray_STRIDE(array, axis)) < span:
            return False
    return True


cdef inline int write_back(cnp.ndarray target, cnp.ndarray rows) except -1:
    """Copy rows that stood in for an output back into it."""
    return 0 if rows is target else copy_back(target, rows)


cdef int copy_back(cnp.ndarray target, cnp.ndarray rows) except -1:
    """Not by NumPy's WRITEBACKIFCOPY: a call that ends early drops the copy, and an operand of
    np.nditer keeps its own flag."""
    cdef cnp.ndarray row
    if cnp.PyArray_TYPE(rows) != cnp.PyArray_TYPE(target):      # dweight's
        row = rows_of(target, output=True)
        convert_array(row, rows)
        rows = row
    if rows is not target:
        cnp.PyArray_CopyAnyInto(target, rows)
    return 0


cdef int convert_array(cnp.ndarray to, cnp.ndarray row) except -1:
    """Convert a contiguous vector into one of another kind."""
    convert_vector(cnp.PyArray_DATA(to), kind_of(to), cnp.PyArray_DATA(row), kind_of(row),
                   cnp.PyArray_SIZE(row))
    return 0


cdef inline void set_arrays(Job* job, Axis* axes, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray y,
                            cnp.ndarray residual, cnp.ndarray dx, bint other) noexcept:
    """Set the pointers and strides of a job's arrays, all of one shape; None for those it lacks.

    axes (MOST_AXES,): storage for job.axes, used only if several strides are needed. `other`: an
    array is no float32, so set the kinds too.
    """
    cdef bint straight = cnp.PyArray_IS_C_CONTIGUOUS(x)
    job.x = <float*>cnp.PyArray_DATA(x)
    job.x_stride = job.dy_stride = job.y_stride = job.residual_stride = job.dx_stride = job.n
    if dy is not None:
        job.dy = <float*>cnp.PyArray_DATA(dy)
        straight = straight and cnp.PyArray_IS_C_CONTIGUOUS(dy)
    if y is not None:
        job.y = <float*>cnp.PyArray_DATA(y)
        straight = straight and cnp.PyArray_IS_C_CONTIGUOUS(y)
    if residual is not None:
        job.residual = <float*>cnp.PyArray_DATA(residual)
        straight = straight and cnp.PyArray_IS_C_CONTIGUOUS(residual)
    if dx is not None:
        job.dx = <float*>cnp.PyArray_DATA(dx)
        straight = straight and cnp.PyArray_IS_C_CONTIGUOUS(dx)
    if not straight:
        merge_axes(job, axes, x, dy, y, residual, dx)
    if other:
        set_kinds(&job.kinds, x, dy, y, residual, dx)


cdef void merge_axes(Job* job, Axis* axes, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray y,
                     cnp.ndarray residual, cnp.ndarray dx) noexcept:
    """Merge leading axes that continue each other in every array. The innermost that is left holds
    the rows of a segment; if there are others, all become job.axes.

    One of the arrays is not C-contiguous, so it has at least two rows.
    """
    cdef Axis axis
    cdef int number, count = 0
    for number in range(cnp.PyArray_NDIM(x) - 2, -1, -1):
        axis.length = cnp.PyArray_DIM(x, number)
        if axis.length == 1:
            continue
        axis.x, axis.dy, axis.y = step(x, number), step(dy, number), step(y, number)
        axis.residual, axis.dx = step(residual, number), step(dx, number)
        if count > 0 and merges_with(&axes[count - 1], &axis):
            axes[count - 1].length *= axis.length
        else:
            axes[count] = axis
            count += 1
    job.x_stride, job.dy_stride = element_stride(x, axes[0].x), element_stride(dy, axes[0].dy)
    job.y_stride, job.dx_stride = element_stride(y, axes[0].y), element_stride(dx, axes[0].dx)
    job.residual_stride = element_stride(residual, axes[0].residual)
    if count > 1:
        job.axes = axes


cdef inline Py_ssize_t step(cnp.ndarray array, int axis) noexcept:
    """Return an axis's stride in bytes; 0 without an array."""
    return 0 if array is None else cnp.PyArray_STRIDE(array, axis)


cdef inline Py_ssize_t element_stride(cnp.ndarray array, Py_ssize_t bytes) noexcept:
    """Return a stride in elements; 0 without an array."""
    return 0 if array is None else bytes // <Py_ssize_t>cnp.PyArray_ITEMSIZE(array)


cdef inline bint merges_with(const Axis* inner, const Axis* outer) noexcept:
    """Return whether a step along `outer` continues where `inner` ends, in every array."""
    cdef Py_ssize_t length = inner.length
    return (outer.x == inner.x * length and outer.dy == inner.dy * length
            and outer.y == inner.y * length and outer.residual == inner.residual * length
            and outer.dx == inner.dx * length)


cdef void set_kinds(Kinds* kinds, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray y,
                    cnp.ndarray residual, cnp.ndarray dx) noexcept:
    kinds.x, kinds.dy, kinds.y = kind_or_absent(x), kind_or_absent(dy), kind_or_absent(y)
    kinds.residual, kinds.dx = kind_or_absent(residual), kind_or_absent(dx)


cdef inline int kind_or_absent(cnp.ndarray array) noexcept:
    return ABSENT if array is None else kind_of(array)
