# The kernels of float64 rows: a job's pointers are to doubles, and its strides count doubles. Here
# products are rounded, so none is fused with a sum. u = 2**-53 in this file.
#
# Where squares or products could leave float64, a row is computed again from inputs scaled by
# powers of two. docs/numerics.md derives the bounds.

from libc.math cimport INFINITY, fabs, frexp, ldexp, sqrt

from kernels.job cimport ACCUMULATE, STORE, STREAM, GradientSums, Job, Store
from kernels.simd cimport (
    LANES, SIXTEEN, VEC, WIDE, WIDES, keep_part, load_part, load_wide, splat_wide, store_part,
    store_wide, stream, stream_fence, vec, wide,
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


cdef struct Row64:
    const double* x
    const double* dy
    const double* weight
    double* residual
    double* out             # y or dx
    double* dweight         # NULL in forward and without a weight
    double offset
    double inv_rms
    double mean             # of g * xhat
    double x_scale          # job.scale to ADD
    double dy_scale
    double factor_scale
    double[2] undo          # factors that take the scaled row's dx to dx


cdef inline wide take_64(const double* source, Py_ssize_t count) noexcept nogil:
    """Load at most WIDE doubles, and zeros."""
    return load_wide(source) if count >= WIDE else <wide>load_part(<const float*>source, 2 * count)


cdef inline void put_64(double* target, wide value, Py_ssize_t count) noexcept nogil:
    """Store at most WIDE doubles."""
    if count >= WIDE:
        store_wide(target, value)
    else:
        store_part(<float*>target, <vec>value, 2 * count)


cdef inline wide weigh_64(const Row64* row, wide value, Py_ssize_t i, Py_ssize_t count,
                          int flags) noexcept nogil:
    """Return value * (weight_offset + weight) for at most WIDE elements from i on."""
    cdef wide factor
    if flags & WEIGHTED:
        factor = splat_wide(row.offset) + take_64(row.weight + i, count)
        value = value * (factor * splat_wide(row.factor_scale) if flags & SCALED else factor)
    return value


cdef inline wide g_64(const Row64* row, Py_ssize_t i, Py_ssize_t count, int flags) noexcept nogil:
    """Return dy * (weight_offset + weight) for at most WIDE elements from i on."""
    cdef wide dy = take_64(row.dy + i, count)
    return weigh_64(row, dy * splat_wide(row.dy_scale) if flags & SCALED else dy, i, count, flags)


cdef inline void add_products_64(wide* xx, wide* gx, wide* gg, const Row64* row, Py_ssize_t i,
                                 Py_ssize_t left, int wides, int flags) noexcept nogil:
    """Add the products of at most `left` elements from i on to `wides` vectors of lanes."""
    cdef wide g, x
    cdef Py_ssize_t count
    cdef int k
    for k in range(wides):
        count = left - WIDE * k
        if count > 0:
            x = take_64(row.x + i, count)
            if flags & (ADD | SCALED):
                x = x * splat_wide(row.x_scale)
            if flags & ADD:
                x = take_64(row.residual + i, count) + x
                put_64(row.residual + i, x, count)
            xx[k] = xx[k] + x * x
            if flags & BACKWARD:
                g = g_64(row, i, count, flags)
                if count < WIDE:    # past the end, an infinite weight_offset gives NaN
                    g = keep_part(g, count)
                gx[k] = gx[k] + g * x
                gg[k] = gg[k] + g * g
        i += WIDE


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
    cdef wide inv_rms = splat_wide(row.inv_rms), xhat = take_64(row.x + i, count), value
    if flags & SCALED:
        xhat = xhat * splat_wide(row.x_scale)
    xhat = xhat * inv_rms
    if flags & BACKWARD:
        value = inv_rms * (g_64(row, i, count, flags) - xhat * splat_wide(row.mean))
        if flags & SCALED:
            value = value * splat_wide(row.undo[0]) * splat_wide(row.undo[1])
        if row.dweight != NULL:
            store_wide(row.dweight + i,
                       load_wide(row.dweight + i) + take_64(row.dy + i, count) * xhat)
    else:
        value = weigh_64(row, xhat, i, count, flags & WEIGHTED)
    if mode == ACCUMULATE:
        value = take_64(row.out + i, count) + value
    if mode == STREAM and VEC > 1:
        stream(<float*>(row.out + i), <vec>value)
    else:
        put_64(row.out + i, value, count)


cdef inline void write_row_64(const Row64* source, const double* sums, double square,
                              const Job* job, int flags) noexcept nogil:
    """Phase two. square is the mean of x**2, plus eps.

    Errors, underflow aside: of y (n / 64 + 10) u of itself, of dx (n / 6 + 32) u of its terms'
    magnitudes, of dweight (n / 32 + rows / 64 + 105) u of sum |dy * xhat|.
    """
    cdef Row64 row = source[0]      # a copy: no store through a pointer may alias it
    cdef Py_ssize_t i = 0, head = 0, count, n = job.n   # head: the elements before a cache line
    cdef Store mode = job.store
    cdef int k
    row.inv_rms = 1 / sqrt(square)
    row.mean = sums[1] * row.inv_rms * job.inv_n if flags & BACKWARD else 0
    if n >= 256 or mode == STREAM:
        head = min(n, <Py_ssize_t>floats_to_line(<const float*>row.out) // 2)
    while i < n:
        if i == head:
            while i + LANES <= n:
                for k in range(WIDES):
                    write_64(&row, i + WIDE * k, WIDE, flags, mode)
                i += LANES
            while i + WIDE <= n:
                write_64(&row, i, WIDE, flags, mode)
                i += WIDE
        count = min(<Py_ssize_t>WIDE, (head if i < head else n) - i)
        if count > 0:
            write_64(&row, i, count, flags, STORE if mode == STREAM else mode)
        i += count


cdef inline bint fits_64(const double* sums, double square, const Row64* row, Py_ssize_t n,
                         int flags) noexcept nogil:
    """Return whether a row needs no scales. A dy of zeros needs none, and is common: padding."""
    cdef Py_ssize_t i = 0
    if flags & BACKWARD and not SMALL_SUM <= sums[2] <= LARGE_SUM:
        while sums[2] == 0 and i < n and row.dy[i] == 0:
            i += 1
        if i < n:
            return False
    return SMALL_SUM <= square <= LARGE_SUM


cdef int power_64(double* power, const double* values, double offset, double least, int target,
                  Py_ssize_t n) noexcept nogil:
    """Return the exponent of a power of two, OUT, that takes the largest finite |offset + value|,
    or `least` if that is larger, near 2**target."""
    cdef Py_ssize_t i
    cdef int exponent = 0       # frexp need not set that of Inf
    for i in range(n):
        if least < fabs(offset + values[i]) < INFINITY:
            least = fabs(offset + values[i])
    frexp(least, &exponent)
    exponent = max(-1000, min(1000, target - exponent))
    power[0] = ldexp(1, exponent)
    return exponent


cdef void write_scaled_64(Row64* row, const Job* job, int flags) noexcept nogil:
    """Both phases of a row whose sums may have left float64."""
    cdef double[3] sums
    # x goes near 2**100, so that it loses no bits before x / rms does.
    cdef int undo = power_64(&row.x_scale, row.x, -0.0, sqrt(job.eps), 100, job.n)
    if flags & BACKWARD:
        undo -= power_64(&row.dy_scale, row.dy, -0.0, 0, 0, job.n)
        if flags & WEIGHTED:
            undo -= power_64(&row.factor_scale, row.weight, row.offset, 0, 0, job.n)
        undo = max(-2000, min(2000, undo))
        row.undo[0], row.undo[1] = ldexp(1, undo // 2), ldexp(1, undo - undo // 2)
    flags |= SCALED
    sum_row_64(sums, row, job.n, flags)
    write_row_64(row, sums, sums[0] * job.inv_n + job.eps * row.x_scale * row.x_scale, job, flags)


cdef inline Row64 row_64(const Job* job, Py_ssize_t number, int flags) noexcept nogil:
    cdef Row64 row
    row.x, row.x_scale = <const double*>job.x + number * job.x_stride, job.scale
    row.weight, row.offset = <const double*>job.weight, job.weight_offset
    row.dy, row.residual, row.out, row.dweight = NULL, NULL, NULL, NULL
    # GCC would warn of copies.
    row.inv_rms = row.mean = row.dy_scale = row.factor_scale = row.undo[0] = row.undo[1] = 0
    if flags & BACKWARD:
        row.dy = <const double*>job.dy + number * job.dy_stride
    if flags & ADD:
        row.residual = <double*>job.residual + number * job.residual_stride
    return row


cdef inline void rows_64(const Job* job, Py_ssize_t first, Py_ssize_t last, double* dweight,
                         int flags) noexcept nogil:
    """Both phases of rows. A split row comes with its sums, which have to fit float64."""
    cdef Row64 row
    cdef double[3] sums
    cdef double square
    cdef bint split = not flags & ADD and job.squares != NULL
    for first in range(first, last):
        row = row_64(job, first, flags)
        row.dweight = dweight
        if flags & BACKWARD:
            row.out = <double*>job.dx + first * job.dx_stride
        else:
            row.out = <double*>job.y + first * job.y_stride
        if split:
            sums[0] = job.squares[first]
            if flags & BACKWARD:
                sums[1] = job.products[first]
        else:
            sum_row_64(sums, &row, job.n, flags)
        if flags & ADD:
            row.x = row.residual
        square = sums[0] * job.inv_n + job.eps
        if split or fits_64(sums, square, &row, job.n, flags):
            write_row_64(&row, sums, square, job, flags)
        else:
            write_scaled_64(&row, job, flags & ~ADD)
    if job.store == STREAM:
        stream_fence()


cdef inline void run_64(const Job* job, Py_ssize_t first, Py_ssize_t last, double* dweight,
                        int flags) noexcept nogil:
    """Call rows_64, compiled with and without a weight."""
    if job.weight == NULL:
        rows_64(job, first, last, NULL, flags)
    else:
        rows_64(job, first, last, dweight, flags | WEIGHTED)


cdef inline void sums_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                         int flags) noexcept nogil:
    """Phase one alone: job.squares or job.products OUT, or with ADD job.residual IN-OUT."""
    cdef Row64 row
    cdef double[3] sums
    for first in range(first, last):
        row = row_64(job, first, flags)
        sum_row_64(sums, &row, job.n, flags)
        if flags & BACKWARD:
            job.products[first] = sums[1]
        elif not flags & ADD:
            job.squares[first] = sums[0]


cdef void rms_norm_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                      const GradientSums* _) noexcept nogil:
    """Normalise rows: job.y (rows, n) OUT or IN-OUT; job.x (rows, n), job.weight (n,) IN."""
    run_64(job, first, last, NULL, 0)


cdef void add_rms_norm_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                          const GradientSums* _) noexcept nogil:
    """residual += scale * x, as residual_add_64, then normalise the residual.
    job.residual IN-OUT, job.y OUT, job.x IN (rows, n); job.weight (n,) IN."""
    run_64(job, first, last, NULL, ADD)


cdef void residual_add_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                          const GradientSums* _) noexcept nogil:
    """residual += scale * x, rounded twice, as NumPy does. job.residual IN-OUT; job.x IN."""
    sums_64(job, first, last, ADD)


cdef void row_squares_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                         const GradientSums* _) noexcept nogil:
    """Sum the squares of rows. job.squares (rows,) OUT; job.x (rows, n) IN."""
    sums_64(job, first, last, 0)


cdef void row_products_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                          const GradientSums* _) noexcept nogil:
    """Sum g * x over rows. job.products (rows,) OUT; job.dy, job.x (rows, n), weight (n,) IN."""
    sums_64(job, first, last, BACKWARD if job.weight == NULL else BACKWARD | WEIGHTED)


cdef void backward_64(const Job* job, Py_ssize_t first, Py_ssize_t last,
                      const GradientSums* sums) noexcept nogil:
    """Backward. job.dx (rows, n) OUT or IN-OUT; job.dy, job.x (rows, n), job.weight (n,) IN.
    sums.dweight takes row after row, and sums.group is not used."""
    run_64(job, first, last, NULL if sums == NULL else sums.dweight, BACKWARD)


cdef bint backward_few_64(const Job* job, void* dweight) noexcept nogil:
    """Return False: few rows have no kernel of their own."""
    return False


cdef void store_dweight_64(void* out, const double* dweight, Py_ssize_t n,
                           bint accumulate) noexcept nogil:
    """out = dweight, or out += dweight. out (n,) OUT or IN-OUT."""
    cdef double* target = <double*>out
    cdef Py_ssize_t i
    for i in range(n):
        target[i] = target[i] + dweight[i] if accumulate else dweight[i]


cdef void start_64(Job* job) noexcept nogil:
    """Compute inv_n, and turn no offset into -0.0: w + -0.0 is w for every w."""
    job.inv_n = 1.0 / job.size
    if job.weight_offset == 0:
        job.weight_offset = -0.0
