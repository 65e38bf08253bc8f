# The door's rows: what goes to a kernel are rows of one stride in each array, its last axis being
# contiguous. Leading axes that need several strides are walked by runs of rows that need one, and
# not copied.
# Nothing here writes to an array but NumPy's own copy back into an output.

cdef enum:
    MOST_AXES = 64      # as many as NumPy has


cdef inline Py_ssize_t count_rows(cnp.ndarray array) noexcept:
    cdef Py_ssize_t rows = 1
    cdef int axis
    for axis in range(cnp.PyArray_NDIM(array) - 1):
        rows *= cnp.PyArray_DIM(array, axis)
    return rows


cdef inline Py_ssize_t last_axis(cnp.ndarray array) noexcept:
    return cnp.PyArray_DIM(array, cnp.PyArray_NDIM(array) - 1)


cdef inline cnp.ndarray new_like(cnp.ndarray array):
    return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), cnp.NPY_FLOAT, 0)


cdef inline cnp.ndarray copy_of(cnp.ndarray array):
    return cnp.PyArray_NewCopy(array, cnp.NPY_CORDER)


# ---- arrays that a kernel can walk ------------------------------------------------------------

cdef inline bint has_rows(cnp.ndarray array) noexcept:
    """Whether it is aligned, and its last axis contiguous."""
    cdef int last = cnp.PyArray_NDIM(array) - 1
    return cnp.PyArray_ISALIGNED(array) and (
        cnp.PyArray_IS_C_CONTIGUOUS(array) or cnp.PyArray_DIM(array, last) == 1
        or cnp.PyArray_STRIDE(array, last) == sizeof(float))


cdef inline cnp.ndarray input_rows(cnp.ndarray array):
    """The array itself if a kernel can walk it, else NumPy's contiguous copy."""
    return array if has_rows(array) else copy_of(array)


cdef inline cnp.ndarray output_rows(cnp.ndarray array):
    """The array itself if a kernel can walk it, else a copy that write_back takes home.

    Rows that overlap each other go by copy too: which of them is written last must not depend on
    the threads.
    """
    if has_rows(array) and (cnp.PyArray_IS_C_CONTIGUOUS(array) or rows_are_apart(array)):
        return array
    return copy_of(array)


cdef bint rows_are_apart(cnp.ndarray array) noexcept:
    """Whether each step along a leading axis clears all that the shorter steps span. Rows that
    interlock in another way may be apart as well, but few would make them."""
    cdef int axis, other, last = cnp.PyArray_NDIM(array) - 1
    cdef Py_ssize_t span, step
    for axis in range(last):
        span = last_axis(array) * sizeof(float)
        for other in range(last):
            step = llabs(cnp.PyArray_STRIDE(array, other))
            if other != axis and step <= llabs(cnp.PyArray_STRIDE(array, axis)):
                span += step * (cnp.PyArray_DIM(array, other) - 1)
        if cnp.PyArray_DIM(array, axis) > 1 and llabs(cnp.PyArray_STRIDE(array, axis)) < span:
            return False
    return True


cdef inline int write_back(cnp.ndarray target, cnp.ndarray rows) except -1:
    """Copy the rows that output_rows made into the array that they stand for.

    Not NumPy's WRITEBACKIFCOPY: a call that ends early only drops this copy, and an array that
    came with that flag (an operand of np.nditer) keeps it.
    """
    if rows is not target:
        cnp.PyArray_CopyAnyInto(target, rows)
    return 0


# ---- their leading axes -----------------------------------------------------------------------

cdef inline bint is_straight(cnp.ndarray array) noexcept:
    return array is None or cnp.PyArray_IS_C_CONTIGUOUS(array)


cdef inline float* data_of(cnp.ndarray array) noexcept:
    return NULL if array is None else <float*>cnp.PyArray_DATA(array)


cdef inline void place(Job* job, Axis* axes, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray y,
                       cnp.ndarray residual, cnp.ndarray dx) noexcept:
    """Where the arrays of a job lie, all of one shape; None for those that it does not have.

    axes (MOST_AXES,) is room for what job.axes, NULL so far, may have to be.
    """
    job.x, job.dy, job.y = data_of(x), data_of(dy), data_of(y)
    job.residual, job.dx = data_of(residual), data_of(dx)
    job.x_stride = job.dy_stride = job.y_stride = job.residual_stride = job.dx_stride = job.n
    if not (is_straight(x) and is_straight(dy) and is_straight(y) and is_straight(residual)
            and is_straight(dx)):
        merge_axes(job, axes, x, dy, y, residual, dx)


cdef void merge_axes(Job* job, Axis* axes, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray y,
                     cnp.ndarray residual, cnp.ndarray dx) noexcept:
    """Merge leading axes that follow each other with one stride in every array. The last that is
    left holds the rows of a run; if there are others, all become job.axes.

    One of the arrays is not C-contiguous, so it has two rows at least.
    """
    cdef Axis axis
    cdef int number, count = 0
    for number in range(cnp.PyArray_NDIM(x) - 2, -1, -1):
        axis.length = cnp.PyArray_DIM(x, number)
        if axis.length == 1:
            continue
        axis.x, axis.dy, axis.y = step(x, number), step(dy, number), step(y, number)
        axis.residual, axis.dx = step(residual, number), step(dx, number)
        if count > 0 and goes_on(&axes[count - 1], &axis):
            axes[count - 1].length *= axis.length
        else:
            axes[count] = axis
            count += 1
    job.x_stride, job.dy_stride, job.y_stride = axes[0].x, axes[0].dy, axes[0].y
    job.residual_stride, job.dx_stride = axes[0].residual, axes[0].dx
    if count > 1:
        job.axes = axes


cdef inline Py_ssize_t step(cnp.ndarray array, int axis) noexcept:
    if array is None:
        return 0
    return cnp.PyArray_STRIDE(array, axis) // <Py_ssize_t>sizeof(float)


cdef inline bint goes_on(const Axis* inner, const Axis* outer) noexcept:
    cdef Py_ssize_t length = inner.length
    return (outer.x == inner.x * length and outer.dy == inner.dy * length
            and outer.y == inner.y * length and outer.residual == inner.residual * length
            and outer.dx == inner.dx * length)


# ---- run by run -------------------------------------------------------------------------------

cdef Py_ssize_t start_at(Job* here, const Job* job, Py_ssize_t row) noexcept nogil:
    """A job whose row 0 is this row of one with axes; return how many rows its run still has.

    A run costs 20 to 30 ns, the kernel's own start with it; a row of 128 some 18 (AMD Zen 3).
    """
    cdef const Axis* axis = job.axes
    cdef Py_ssize_t index, left = axis.length - row % axis.length
    here[0] = job[0]
    if job.squares != NULL:
        here.squares += row
    if job.products != NULL:
        here.products += row
    while row > 0:
        index = row % axis.length
        here.x += index * axis.x
        here.dy += index * axis.dy
        here.y += index * axis.y
        here.residual += index * axis.residual
        here.dx += index * axis.dx
        row //= axis.length
        axis += 1
    return left


cdef inline void run_kernel(rows_kernel kernel, const Job* job, Py_ssize_t first,
                            Py_ssize_t last) noexcept nogil:
    """A kernel over rows [first, last)."""
    if job.axes == NULL:
        kernel(job, first, last)
    else:
        run_kernel_by_runs(kernel, job, first, last)


cdef void run_kernel_by_runs(rows_kernel kernel, const Job* job, Py_ssize_t first,
                             Py_ssize_t last) noexcept nogil:
    cdef Job here
    cdef Py_ssize_t count
    while first < last:
        count = min(last - first, start_at(&here, job, first))
        kernel(&here, 0, count)
        first += count


cdef inline void run_backward_kernel(const Job* job, Py_ssize_t first, Py_ssize_t last,
                                     double* dweight, float* group) noexcept nogil:
    """kernels.backward over rows [first, last), which begin with a group of 8."""
    if job.axes == NULL:
        kernels.backward(job, first, last, dweight, group, True, True)
    else:
        run_backward_by_runs(job, first, last, dweight, group)


cdef void run_backward_by_runs(const Job* job, Py_ssize_t first, Py_ssize_t last,
                               double* dweight, float* group) noexcept nogil:
    """Whole groups where a run has them; what it leaves of a group the next run goes on with."""
    cdef Job here
    cdef Py_ssize_t count, begun, row = first
    while row < last:
        count = min(last - row, start_at(&here, job, row))
        begun = (row - first) % GROUP
        if begun > 0:
            count = min(count, GROUP - begun)
        elif count > GROUP:
            count -= count % GROUP
        kernels.backward(&here, 0, count, dweight, group, begun == 0,
                         row + count == last or (begun + count) % GROUP == 0)
        row += count
