# Forward and add + forward: a sum of squares, then one pass that scales the row in cache; and the
# two of them apart, for rows that are split. Which path a row takes depends on its own values,
# weight and eps, never on the rows beside it.

cdef inline void scale_by(float* y, const float* x, double inv_rms, const float* ahead,
                          const Job* job, Path path, bint accumulate) noexcept nogil:
    """y = x * inv_rms * (weight_offset + weight). y (n,) OUT or IN-OUT; x (n,) IN."""
    if path == WIDE or not SMALL_INV <= inv_rms <= LARGE_INV:
        scale_row_wide(y, x, job.weight, inv_rms, job.weight_offset, job.n, accumulate)
    elif path == LIFTED:
        scale_row(y, x, job.weight, <float>inv_rms * LIFT, job.n, ahead, LIFTED, job.stream,
                  accumulate)
    elif path == PLAIN:
        scale_row(y, x, job.weight, <float>inv_rms, job.n, ahead, PLAIN, job.stream, accumulate)
    else:
        scale_row(y, x, job.weight, <float>inv_rms, job.n, ahead, UNWEIGHTED, job.stream,
                  accumulate)


cdef inline void norm_row(float* y, const float* x, const double* lanes, const float* ahead,
                          const Job* job, Path path, bint accumulate) noexcept nogil:
    """y = x / rms * (weight_offset + weight), by whichever path is right for this row.

    y (n,) OUT, or IN-OUT to accumulate; x (n,), lanes (16,) IN; ahead (n,) is a row that will be
    read soon, NULL if the job does not stream.
    """
    cdef double squares = sum_squares(lanes, x, job.n, job.inv_n)
    scale_by(y, x, 1.0 / sqrt(squares * job.inv_n + job.eps), ahead, job, path, accumulate)


cdef void norm_rows(float* y, const float* x, Py_ssize_t x_stride, double* lanes,
                    Py_ssize_t rows, const Job* job, Path path, bint accumulate) noexcept nogil:
    """norm_row for a group of short rows: at once, unless one of them is not fit for float32, or
    there are too few (4 take as long as 8, and as 3 one by one).

    y (rows, n) OUT, or IN-OUT to accumulate; x (rows, n), lanes (rows, 16) IN. lanes has room for
    8 rows: copies of the first stand for those that the group lacks.
    """
    cdef double[8] inv_rms
    cdef Py_ssize_t row, k
    if rows > 3 and path != WIDE:
        for row in range(rows, GROUP):
            for k in range(LANES):
                lanes[row * LANES + k] = lanes[k]
        if invert_group(inv_rms, lanes, job.n, job.inv_n, job.eps):
            scale_group(y, x, job.weight, inv_rms, job.y_stride, x_stride, rows, job.n, path,
                        accumulate)
            return
    for row in range(rows):
        norm_row(y + row * job.y_stride, x + row * x_stride, lanes + row * LANES, NULL, job, path,
                 accumulate)


cdef inline bint in_groups(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Whether the rows are short enough to go 8 at a time, so that one's root and division run
    while others are summed: 27 -> 19 ns a row of 100, 43 -> 38 of 300. From 400 on add + norm
    loses what forward gains.
    """
    return 16 <= job.n <= 320 and last - first > 1


cdef inline bint fetches_next(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Whether the next row is fetched while this one is scaled: rows of up to 4 KB that come from
    beyond L2 (512 x 576 takes 0.88 of the time; 100 x 400, within it, 1.14).
    """
    return job.n <= 1024 and (last - first) * job.n >= 1 << 17


cdef void rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Forward. job.y (rows, n) OUT or IN-OUT; job.x (rows, n), job.weight (n,) IN."""
    cdef Py_ssize_t row, count = 1, distance = 1 + 1024 // job.n
    cdef double[135] space
    cdef double* lanes = on_line(space)
    cdef const float* x
    cdef const float* ahead = NULL
    cdef Path path = choose_path(job.weight, job.weight_offset, job.n)
    cdef bint fetch = fetches_next(job, first, last)
    if in_groups(job, first, last):
        for row in range(first, last, 8):
            count = min(<Py_ssize_t>GROUP, last - row)
            x = job.x + row * job.x_stride
            add_squares(lanes, x, job.x_stride, count, job.n, True)
            norm_rows(job.y + row * job.y_stride, x, job.x_stride, lanes, count, job, path,
                      job.accumulate)
        return
    for row in range(first, last):
        x = job.x + row * job.x_stride
        add_squares(lanes, x, 0, 1, job.n, True)
        if job.stream:      # the row to fetch: at least 4 KB further
            ahead = job.x + min(row + distance, last - 1) * job.x_stride
        elif fetch:
            ahead = x + job.x_stride
        norm_row(job.y + row * job.y_stride, x, lanes, ahead, job, path, job.accumulate)
    if job.stream:
        stream_fence()


cdef void add_rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Add, then forward. job.residual IN-OUT, job.y OUT, job.x IN (rows, n); job.weight (n,) IN.

    y may be x: the rows of x are spent before those of y are written. A long row is added and
    summed chunk by chunk, in L1.
    """
    cdef Py_ssize_t row, count, i, width, distance = 1 + 1024 // job.n
    cdef double[135] space
    cdef double* lanes = on_line(space)
    cdef const float* x
    cdef float* residual
    cdef const float* ahead = NULL
    cdef Path path = choose_path(job.weight, job.weight_offset, job.n)
    cdef bint fetch = fetches_next(job, first, last)
    if in_groups(job, first, last):
        for row in range(first, last, 8):
            count = min(<Py_ssize_t>GROUP, last - row)
            residual = job.residual + row * job.residual_stride
            add_short(residual, job.x + row * job.x_stride, job.residual_stride, job.x_stride,
                      count, job.n)
            add_squares(lanes, residual, job.residual_stride, count, job.n, True)
            norm_rows(job.y + row * job.y_stride, residual, job.residual_stride, lanes, count,
                      job, path, False)
        return
    for row in range(first, last):
        x = job.x + row * job.x_stride
        residual = job.residual + row * job.residual_stride
        for i in range(0, job.n, 1024):
            width = min(<Py_ssize_t>1024, job.n - i)
            add_row(residual + i, x + i, 1.0, width)
            add_squares(lanes, residual + i, 0, 1, width, i == 0)
        if job.stream:
            ahead = job.x + min(row + distance, last - 1) * job.x_stride
        elif fetch:
            ahead = x + job.x_stride
        norm_row(job.y + row * job.y_stride, residual, lanes, ahead, job, path, False)
    if job.stream:
        stream_fence()


cdef void row_squares(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The sums that rms_norm takes. job.squares (rows,) OUT; job.x (rows, n) IN."""
    cdef Py_ssize_t row
    cdef double[23] space
    cdef double* lanes = on_line(space)
    for row in range(first, last):
        add_squares(lanes, job.x + row * job.x_stride, 0, 1, job.n, True)
        job.squares[row] = sum_squares(lanes, job.x + row * job.x_stride, job.n, job.inv_n)


cdef void rms_scale(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Forward from sums of squares over job.size floats.

    job.y (rows, n) OUT; job.x (rows, n), job.squares (rows,), job.weight (n,) IN.
    """
    cdef Py_ssize_t row
    cdef double inv_rms
    cdef Path path = choose_path(job.weight, job.weight_offset, job.n)
    for row in range(first, last):
        inv_rms = 1.0 / sqrt(job.squares[row] * job.inv_n + job.eps)
        scale_by(job.y + row * job.y_stride, job.x + row * job.x_stride, inv_rms, NULL, job, path,
                 False)
