# Forward, and add + forward: phase one sums the squares of a batch of rows, phase two scales each
# of them in cache. A split row comes with its sum of squares. How a row is computed depends on its
# own values, weight and eps, never on the rows beside it.

from libc.string cimport memcpy

from kernels.job cimport BATCH, STREAM, GradientSums, Job
from kernels.simd cimport WIDE, splat_wide, store_wide, stream_fence


cdef inline void norm_rows(const Job* job, Py_ssize_t first, Py_ssize_t last,
                           bint add) noexcept nogil:
    """Normalise x, or with `add` the residual after x was added to it."""
    cdef double[BATCH] squares, inv_rms
    cdef Py_ssize_t count, ahead, stride = job.residual_stride if add else job.x_stride
    cdef const float* x
    cdef float* residual
    cdef bint within
    count = 0
    while count < min(job.batch, last - first):     # invert takes whole wides
        store_wide(squares + count, splat_wide(job.size))
        count += WIDE
    while first < last:
        count = min(job.batch, last - first)
        x = job.x + first * job.x_stride
        if add:
            residual = job.residual + first * stride
            if job.scale == 1.0:
                add_and_sum_squares(squares, residual, x, stride, job.x_stride, count, job.n)
            else:
                residual_add(job, first, first + count, NULL)
                sum_squares(squares, residual, stride, count, job.n)
            x = residual
        elif job.squares != NULL:
            memcpy(squares, job.squares + first, count * sizeof(double))
        else:
            sum_squares(squares, x, stride, count, job.n)
        within = invert(inv_rms, squares, count, job)
        ahead = max(<Py_ssize_t>0, min(first + job.ahead, last - job.batch))
        scale_batch(job.y + first * job.y_stride, x, stride, inv_rms,
                    job.x + ahead * job.x_stride, count, within, job)
        first += count
    if job.store == STREAM:
        stream_fence()


cdef void rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last,
                   const GradientSums* _) noexcept nogil:
    """Normalise rows. job.y (rows, n) OUT or IN-OUT; job.x (rows, n), job.weight (n,) IN.

    job.squares (rows,) IN, or NULL: the sums of squares over job.size floats. Without y, OUT.
    """
    if job.y != NULL:
        norm_rows(job, first, last, False)
    else:
        sum_squares(job.squares + first, job.x + first * job.x_stride, job.x_stride, last - first,
                    job.n)


cdef void add_rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last,
                       const GradientSums* _) noexcept nogil:
    """Add scale * x, with the bits of residual_add, then normalise.

    job.residual IN-OUT, job.y OUT, job.x IN (rows, n); job.weight (n,) IN.
    y may be x: the rows of x are read before those of y are written.
    """
    norm_rows(job, first, last, True)
