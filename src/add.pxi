# The residual add: alone, and as the first pass of add + forward.

cdef void add_few(float* restrict residual, const float* restrict x,
                  Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(16):
        if k < n:
            residual[k] = residual[k] + x[k]


cdef inline void add_lines(float* restrict residual, const float* restrict x,
                           Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n // 16 * 16):
        residual[i] = residual[i] + x[i]


cdef inline void add_scaled(float* restrict residual, const float* restrict x, double factor,
                            Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        residual[i] = <float>(<double>residual[i] + factor * <double>x[i])


cdef inline void add_row(float* residual, const float* x, double factor,
                         Py_ssize_t n) noexcept nogil:
    """residual += factor * x: NumPy's own addition for factor 1, else in float64, rounded once.

    residual (n,) IN-OUT; x (n,) IN. On cache lines, as scale_row.
    """
    cdef Py_ssize_t head = min(<Py_ssize_t>floats_to_line(residual), n) if n >= 256 else 0
    if factor != 1.0:
        add_scaled(residual, x, factor, n)
        return
    if head:
        add_few(residual, x, head)
    add_lines(residual + head, x + head, n - head)
    head += (n - head) // 16 * 16
    if head < n:
        add_few(residual + head, x + head, n - head)


cdef void add_short(float* restrict residual, const float* restrict x, Py_ssize_t residual_stride,
                    Py_ssize_t x_stride, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    """residual += x for a few rows of at least 16 floats, the last 16 as in scale_short.

    residual (rows, n) IN-OUT; x (rows, n) IN.
    """
    cdef float[16] last
    cdef float* r_row
    cdef const float* x_row
    cdef Py_ssize_t row, i, k, end = n - 16
    for row in range(rows):
        r_row = residual + row * residual_stride
        x_row = x + row * x_stride
        if n & 15:
            for k in range(LANES):
                last[k] = r_row[end + k] + x_row[end + k]
        for i in range(0, n - 15, 16):
            for k in range(LANES):
                r_row[i + k] = r_row[i + k] + x_row[i + k]
        if n & 15:
            for k in range(LANES):
                r_row[end + k] = last[k]


cdef void residual_add(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """residual += scale * x. job.residual (rows, n) IN-OUT; job.x (rows, n) IN."""
    cdef Py_ssize_t row
    for row in range(first, last):
        add_row(job.residual + row * job.residual_stride, job.x + row * job.x_stride,
                job.scale, job.n)
