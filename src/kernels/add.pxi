# The residual add: in float32, or with a scale in float64; and of float64 rows.

from kernels.job cimport GradientSums, Job
from kernels.simd cimport (
    VEC, WIDE, load, narrow, put_vec, splat_wide, store, take, take_vec, widen,
)
from machine.caches cimport floats_to_line


cdef void add_row(float* residual, const float* x, Py_ssize_t n) noexcept nogil:
    """residual += x in float32, as NumPy adds. residual (n,) IN-OUT; x (n,) IN."""
    cdef Py_ssize_t i = 0
    if n >= 256:
        i = floats_to_line(residual)
        add_row(residual, x, i)
    while i + VEC <= n:
        store(residual + i, load(residual + i) + load(x + i))
        i += VEC
    if i < n:
        put_vec(residual + i, take_vec(residual + i, n - i) + take_vec(x + i, n - i), n - i)


cdef void add_scaled(float* residual, const float* x, double scale, Py_ssize_t n) noexcept nogil:
    """residual += scale * x in float64, rounded once. residual (n,) IN-OUT; x (n,) IN."""
    cdef Py_ssize_t i = 0
    while i + WIDE <= n:
        narrow(residual + i, widen(residual + i) + splat_wide(scale) * widen(x + i))
        i += WIDE
    if i < n:
        put(residual + i, take(residual + i, n - i) + splat_wide(scale) * take(x + i, n - i), n - i,
            False)


cdef void residual_add(const Job* job, Py_ssize_t first, Py_ssize_t last,
                       const GradientSums* _) noexcept nogil:
    """residual += scale * x. job.residual (rows, n) IN-OUT; job.x (rows, n) IN."""
    cdef Py_ssize_t row, n = job.n, rows = last - first
    cdef float* residual = job.residual + first * job.residual_stride
    cdef const float* x = job.x + first * job.x_stride
    if job.residual_stride == n and job.x_stride == n:      # as one long row
        n = n * rows
        rows = 1
    for row in range(rows):
        if job.scale == 1.0:
            add_row(residual + row * job.residual_stride, x + row * job.x_stride, n)
        else:
            add_scaled(residual + row * job.residual_stride, x + row * job.x_stride, job.scale, n)


cdef void residual_add_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                          const GradientSums* _) noexcept nogil:
    """residual += scale * x, rounded twice, as NumPy does. job.residual IN-OUT; job.x IN."""
    cdef double* residual
    cdef const double* x
    cdef double scale = job.scale
    cdef Py_ssize_t i, n = job.n
    for first in range(first, last):
        residual = <double*>job.residual + first * job.residual_stride
        x = <const double*>job.x + first * job.x_stride
        for i in range(n):
            residual[i] = residual[i] + scale * x[i]
