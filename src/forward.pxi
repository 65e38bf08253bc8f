# Forward and add + forward: the sums of squares of up to 8 rows, then one pass that scales each of
# them in cache; and the two apart, for rows that are split. Which path a row takes depends on its
# own values, weight and eps, never on the rows beside it.

cdef inline const float* ahead_of(Py_ssize_t row, Py_ssize_t last, const Job* job) noexcept nogil:
    """Where the rows of x begin that are fetched while those from `row` on are scaled."""
    return job.x + max(<Py_ssize_t>0, min(row + job.ahead, last - job.pass_rows)) * job.x_stride


cdef void rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Forward. job.y (rows, n) OUT or IN-OUT; job.x (rows, n), job.weight (n,) IN."""
    cdef double[PASS] squares, inv_rms
    cdef Py_ssize_t count
    cdef const float* x
    cdef Path path = choose_path(job.weight, job.weight_offset, job.n)
    cdef Way way = choose_way(job)
    memset(squares, 0, sizeof(squares))
    while first < last:
        count = min(job.pass_rows, last - first)
        x = job.x + first * job.x_stride
        sum_squares(squares, x, job.x_stride, count, job.n)
        invert(inv_rms, squares, job)
        scale_rows(job.y + first * job.y_stride, x, job.x_stride, inv_rms,
                   ahead_of(first, last, job), count, job, path, way)
        first += count
    if job.stream:
        stream_fence()


cdef void add_rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Add, then forward. job.residual IN-OUT, job.y OUT, job.x IN (rows, n); job.weight (n,) IN.

    y may be x: the rows of x are spent before those of y are written.
    """
    cdef double[PASS] squares, inv_rms
    cdef Py_ssize_t count
    cdef const float* x
    cdef float* residual
    cdef Path path = choose_path(job.weight, job.weight_offset, job.n)
    cdef Way way = choose_way(job)
    memset(squares, 0, sizeof(squares))
    while first < last:
        count = min(job.pass_rows, last - first)
        x = job.x + first * job.x_stride
        residual = job.residual + first * job.residual_stride
        add_and_sum_squares(squares, residual, x, job.residual_stride, job.x_stride, count, job.n)
        invert(inv_rms, squares, job)
        scale_rows(job.y + first * job.y_stride, residual, job.residual_stride, inv_rms,
                   ahead_of(first, last, job), count, job, path, way)
        first += count
    if job.stream:
        stream_fence()


cdef void row_squares(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The sums that rms_norm takes. job.squares (rows,) OUT; job.x (rows, n) IN."""
    sum_squares(job.squares + first, job.x + first * job.x_stride, job.x_stride, last - first,
                job.n)


cdef void rms_scale(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Forward from sums of squares over job.size floats.

    job.y (rows, n) OUT; job.x (rows, n), job.squares (rows,), job.weight (n,) IN.
    """
    cdef Py_ssize_t row
    cdef double inv_rms
    cdef const float* x
    cdef Path path = choose_path(job.weight, job.weight_offset, job.n)
    for row in range(first, last):
        x = job.x + row * job.x_stride
        inv_rms = 1.0 / sqrt(job.squares[row] * job.inv_n + job.eps)
        scale_rows(job.y + row * job.y_stride, x, job.x_stride, &inv_rms, x, 1, job, path,
                   STORE)
