# Rows in float64: the kernels of float64 rows, whose job has pointers to doubles and strides that
# count doubles; and rows of floats that float32 arithmetic does not hold, or that are split.
# Products are rounded, so none is fused with a sum. u = 2**-53 in this file.
#
# Where squares or products of doubles could leave float64, a row is computed again from inputs
# scaled by powers of two. docs/numerics.md derives the bounds.

from libc.math cimport INFINITY, fabs, frexp, ldexp, sqrt

from kernels.job cimport ACCUMULATE, STORE, STREAM, GradientSums, Job, Store
from kernels.kinds cimport FLOAT64, convert_kind
from kernels.simd cimport (
    LANES, SIXTEEN, VEC, WIDE, WIDES, keep_part, load_wide, put_vec, splat_wide, store_wide, stream,
    stream_fence, take, take_vec, vec, wide,
)
from machine.caches cimport floats_to_line

# A row is scaled if its mean square + eps, or in backward its sum of g**2, is outside these bounds.
cdef double SMALL_SUM = 2.0 ** -400
cdef double LARGE_SUM = 2.0 ** 800

cdef enum:      # flags of what to compute: constants, because the functions are inlined
    ADD = 1     # add x to the residual first
    BACKWARD = 2
    WEIGHTED = 4
    SCALED = 8
    FLOATS = 16     # rows and weight are floats: widened, and rounded once at the end


cdef struct Row64:          # of doubles, or of FLOATS
    const void* x           # with ADD the residual
    const void* dy
    const void* weight
    void* out               # y or dx; NULL for phase one alone
    double* dweight         # or NULL
    double offset
    double inv_rms, mean    # the mean of g * xhat
    double x_scale, dy_scale, factor_scale      # powers of two, for a row that is SCALED
    double[2] undo          # takes its dx to dx, in two steps


cdef inline wide take_64(const void* row, Py_ssize_t i, Py_ssize_t count, int flags) noexcept nogil:
    """Load at most WIDE elements from i on as doubles, and zeros."""
    cdef const double* source = <const double*>row + i
    if flags & FLOATS:
        return take(<const float*>row + i, count)
    return load_wide(source) if count >= WIDE else <wide>take_vec(<const float*>source, 2 * count)


cdef inline wide weigh_64(const Row64* row, wide value, Py_ssize_t i, Py_ssize_t count,
                          int flags) noexcept nogil:
    """Return dy or xhat times weight_offset + weight for at most WIDE elements from i on."""
    cdef wide factor
    if flags & SCALED:
        value = value * splat_wide(row.dy_scale)
    if flags & WEIGHTED:
        factor = splat_wide(row.offset) + take_64(row.weight, i, count, flags)
        value = value * (factor * splat_wide(row.factor_scale) if flags & SCALED else factor)
    return value


cdef inline void add_products_64(wide* xx, wide* gx, wide* gg, const Row64* row, Py_ssize_t i,
                                 Py_ssize_t left, int wides, int flags) noexcept nogil:
    """Add the products of at most `left` elements from i on to `wides` vectors of lanes."""
    cdef wide g, x
    cdef int k
    for k in range(wides):
        if left > 0:
            x = take_64(row.x, i, left, flags)
            x = x * splat_wide(row.x_scale) if flags & SCALED else x
            xx[k] = xx[k] + x * x
            if flags & BACKWARD:
                g = weigh_64(row, take_64(row.dy, i, left, flags), i, left, flags)
                if left < WIDE:     # past the end, an infinite weight_offset gives NaN
                    g = keep_part(g, left)
                gx[k] = gx[k] + g * x
                gg[k] = gg[k] + g * g
        i += WIDE
        left -= WIDE


cdef inline void sum_row_64(double* sums, const Row64* row, Py_ssize_t n, int flags) noexcept nogil:
    """Phase one: x * x on 32 lanes; in backward x * x, g * x and g * g on 16 each.

    Lane k takes elements k, k + 32, ... in forward: an error of at most (n / 32 + 6) u. In backward
    it takes k, k + 16, ...: at most (n / 16 + 7) u of the sum of the terms' magnitudes.
    """
    cdef wide[WIDES] xx, gx, gg
    cdef int k, wides = SIXTEEN if flags & BACKWARD else WIDES
    cdef Py_ssize_t i = 0
    for k in range(wides):
        xx[k] = gx[k] = gg[k] = splat_wide(0)
    while i + wides * WIDE <= n:
        add_products_64(xx, gx, gg, row, i, wides * WIDE, wides, flags)
        i += wides * WIDE
    if i < n:
        add_products_64(xx, gx, gg, row, i, n - i, wides, flags)
    sums[0] = fold(xx, wides)
    if flags & BACKWARD:
        sums[1], sums[2] = fold(gx, wides), fold(gg, wides)


cdef inline void write_64(const Row64* row, Py_ssize_t i, Py_ssize_t count, int flags,
                          Store mode) noexcept nogil:
    """Phase two for at most WIDE elements from i on."""
    cdef wide inv_rms = splat_wide(row.inv_rms), x = take_64(row.x, i, count, flags)
    cdef wide dy, xhat, value
    cdef double* out = <double*>row.out + i
    xhat = (x * splat_wide(row.x_scale) if flags & SCALED else x) * inv_rms
    if flags & BACKWARD:
        dy = take_64(row.dy, i, count, flags)
        if row.dweight != NULL:
            value = dy * xhat
            if count < WIDE:    # where inv_rms is Inf, 0 * inv_rms would be NaN in a next column
                value = keep_part(value, count)
            store_wide(row.dweight + i, load_wide(row.dweight + i) + value)
        value = inv_rms * (weigh_64(row, dy, i, count, flags) - xhat * splat_wide(row.mean))
        if flags & SCALED:
            value = value * splat_wide(row.undo[0]) * splat_wide(row.undo[1])
    else:
        value = weigh_64(row, xhat, i, count, flags)
    if flags & FLOATS:
        put(<float*>row.out + i, value, count, mode == ACCUMULATE)
        return
    if mode == ACCUMULATE:
        value = take_64(row.out, i, count, flags) + value
    if count < WIDE:
        put_vec(<float*>out, <vec>value, 2 * count)
    elif mode == STREAM and VEC > 1:
        stream(<float*>out, <vec>value)
    else:
        store_wide(out, value)


cdef inline void write_row_64(const Row64* row, Py_ssize_t n, int flags, Store mode) noexcept nogil:
    """Phase two, of doubles in whole vectors from a cache line on.

    Errors, underflow aside: of y (n / 64 + 10) u of itself, of dx (n / 6 + 32) u of its terms'
    magnitudes, of dweight (n / 32 + rows / 64 + 105) u of sum |dy * xhat|.
    """
    cdef Py_ssize_t i = 0, count, head = 0
    cdef int k
    if not flags & FLOATS and (n >= 256 or mode == STREAM):
        head = min(n, <Py_ssize_t>floats_to_line(<const float*>row.out) // 2)
    while i < n:
        if i >= head and i + LANES <= n:
            for k in range(WIDES):
                write_64(row, i + WIDE * k, WIDE, flags, mode)
            i += LANES
        else:
            count = min(<Py_ssize_t>WIDE, (head if i < head else n) - i)
            write_64(row, i, count, flags, STORE if mode == STREAM else mode)
            i += count


cdef inline bint row_64(Row64* row, Py_ssize_t number, const Job* job, int flags) noexcept nogil:
    """A row. Return False, and write nothing, if it has to be SCALED; a split row cannot be."""
    cdef double[3] sums
    cdef double square
    cdef Py_ssize_t zeros = 0
    cdef bint split = job.squares != NULL and row.out != NULL
    sums[0] = sums[1] = sums[2] = 1
    if not split:
        sum_row_64(sums, row, job.n, flags)
    else:
        sums[0], sums[1] = job.squares[number], job.products[number] if flags & BACKWARD else 0
    if row.out == NULL:
        if flags & BACKWARD:
            job.products[number] = sums[1]
        else:
            job.squares[number] = sums[0]
        return True
    if not flags & FLOATS:
        while sums[2] == 0 and zeros < job.n and (<const double*>row.dy)[zeros] == 0:
            zeros += 1              # common, as padding
    square = sums[0] * job.inv_n + job.eps * row.x_scale * row.x_scale
    if (flags & (SCALED | FLOATS) or split
            or (SMALL_SUM <= square <= LARGE_SUM
                and (SMALL_SUM <= sums[2] <= LARGE_SUM or zeros == job.n))):
        row.inv_rms = 1 / sqrt(square)
        row.mean = sums[1] * row.inv_rms * job.inv_n
        if job.store == STREAM:
            write_row_64(row, job.n, flags, STREAM)
        elif job.store == ACCUMULATE:
            write_row_64(row, job.n, flags, ACCUMULATE)
        else:
            write_row_64(row, job.n, flags, STORE)
        return True
    return False


cdef int power_64(const double* values, double offset, double least, Py_ssize_t n) noexcept nogil:
    """Return the exponent of the power of two that takes the largest finite |offset + value|, but
    at least `least`, near 2**100."""
    cdef Py_ssize_t i
    cdef int exponent = 0       # frexp need not set that of Inf
    for i in range(n):
        if least < fabs(offset + values[i]) < INFINITY:
            least = fabs(offset + values[i])
    frexp(least, &exponent)
    return max(-1000, min(1000, 100 - exponent))


cdef void scaled_row_64(Row64 row, Py_ssize_t number, const Job* job, int flags) noexcept nogil:
    """A row whose sums may have left float64. x loses no bits before x / rms does."""
    cdef int x = power_64(<const double*>row.x, -0.0, sqrt(job.eps), job.n)
    cdef int dy = 0, factor = 0, undo
    if flags & BACKWARD:
        dy = power_64(<const double*>row.dy, -0.0, 0, job.n)
        if flags & WEIGHTED:
            factor = power_64(<const double*>row.weight, row.offset, 0, job.n)
    undo = max(-2000, min(2000, x - dy - factor))
    row.x_scale, row.dy_scale, row.factor_scale = ldexp(1, x), ldexp(1, dy), ldexp(1, factor)
    row.undo[0], row.undo[1] = ldexp(1, undo // 2), ldexp(1, undo - undo // 2)
    row_64(&row, number, job, flags | SCALED)


cdef inline void rows_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                         double* dweight, int flags) noexcept nogil:
    """Rows with or without a weight."""
    cdef float* out = job.dx if flags & BACKWARD else job.y
    cdef Py_ssize_t stride = job.dx_stride if flags & BACKWARD else job.y_stride
    cdef Py_ssize_t floats = 1 if flags & FLOATS else 2     # in an element
    cdef Row64 row
    row.x_scale = row.dy_scale = row.factor_scale = row.undo[0] = row.undo[1] = 1
    row.dy, row.inv_rms, row.mean = NULL, 0, 0      # GCC would warn of copies
    row.weight, row.offset, row.dweight = job.weight, job.weight_offset, dweight
    for first in range(first, last):
        row.x = job.x + first * job.x_stride * floats
        if flags & ADD:
            residual_add_64(job, first, first + 1, NULL)
            row.x = job.residual + first * job.residual_stride * floats
        if flags & BACKWARD:
            row.dy = job.dy + first * job.dy_stride * floats
        row.out = out + first * stride * floats if out != NULL else NULL
        if not row_64(&row, first, job, flags):
            scaled_row_64(row, first, job, flags)
    if job.store == STREAM:
        stream_fence()


cdef void round_and_weigh_64(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Round job.y (rows, n), which is x / rms, and multiply it by weight_offset + weight."""
    cdef double[LANES] rounded
    cdef double* y
    cdef Py_ssize_t i, k, count
    for first in range(first, last):
        i = 0
        while i < job.n:
            y, count = <double*>job.y + first * job.y_stride + i, min(<Py_ssize_t>LANES, job.n - i)
            convert_kind(rounded, job.round_kind, y, FLOAT64, count)
            convert_kind(y, FLOAT64, rounded, job.round_kind, count)
            for k in range(count):
                y[k] = y[k] * (job.weight_offset + (<const double*>job.weight)[i + k])
            i += count


cdef inline void run_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                        double* dweight, int flags) noexcept nogil:
    """Call rows_64, compiled with and without a weight."""
    if job.weight != NULL and (flags & FLOATS or job.round_kind == FLOAT64):
        rows_64(job, first, last, dweight, flags | WEIGHTED)
    else:
        rows_64(job, first, last, dweight, flags)
        if job.weight != NULL:
            round_and_weigh_64(job, first, last)


cdef void gradient_in_float64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                              double* dweight) noexcept nogil:
    """Run backward_64 on floats. dweight (n,) IN-OUT, to the end of its last line, or NULL."""
    run_64(job, first, last, dweight, BACKWARD | FLOATS)


cdef void scale_in_float64(float* y, const float* x, double inv_rms, bint weighs,
                           const Job* job) noexcept nogil:
    """Phase two of a row of floats. y (n,) OUT, or IN-OUT to ACCUMULATE; x (n,) IN."""
    cdef Row64 row
    row.out, row.x, row.weight = y, x, job.weight
    row.inv_rms, row.offset = inv_rms, job.weight_offset
    if weighs:
        write_row_64(&row, job.n, FLOATS | WEIGHTED, job.store)
    else:
        write_row_64(&row, job.n, FLOATS, job.store)


cdef void rms_norm_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                      const GradientSums* _) noexcept nogil:
    """Normalise rows as rms_norm does; without y, sum their squares."""
    run_64(job, first, last, NULL, 0)


cdef void add_rms_norm_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                          const GradientSums* _) noexcept nogil:
    """Add with the bits of residual_add_64, then normalise, as add_rms_norm does."""
    run_64(job, first, last, NULL, ADD)


cdef void backward_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                      const GradientSums* sums) noexcept nogil:
    """Compute what backward does; without dx, sum its products. sums.dweight takes row after row,
    and sums.group is not used."""
    run_64(job, first, last, NULL if sums == NULL else sums.dweight, BACKWARD)
