# Backward, phase one: a row's sums, and whether float32 is enough for its phase two.

from libc.math cimport fabs

from kernels.job cimport BY_FLOAT64, Job
from kernels.simd cimport (
    SIXTEEN, VEC, VECS, WIDE, absolute, add_product, keep_part, larger, largest, load_wide, splat,
    splat_wide, vec, wide,
)

# dx = dy / rms * weight - x * slope, with slope = mean / rms**2. In float32 dy / rms is scaled by
# LIFT_DY, a power of two, so that no term of dweight, dy / rms * x, is subnormal; LOWER_DY undoes
# it.
cdef float LIFT_DY = 2.0 ** 40
cdef float LOWER_DY = 2.0 ** -40

# Phase two runs in float64 if the row's 1 / rms, its largest (dy / rms)**2 or its largest |dx| is
# outside these bounds. Inside, dy / rms * LIFT_DY is normal, and nothing overflows.
cdef double SMALL_ROW_INV = 2.0 ** -17
cdef double LARGE_ROW_INV = 2.0 ** 40
cdef double SMALL_DX = 2.0 ** -50
cdef double LARGE_DX = 2.0 ** 100
cdef double LARGE_SQUARE = 2.0 ** 80


cdef enum Factor:
    NO_WEIGHT
    WEIGHT      # weight_offset + weight, computed for each row
    PREPARED    # job.factor, computed once for many rows


cdef struct Row:
    const float* dy
    const float* x
    const float* dy_ahead       # of the row that is prefetched meanwhile
    const float* x_ahead
    float* dx
    double inv_rms
    double mean
    float inv32             # 1 / rms, times LIFT_DY if there is a weight
    float slope32           # mean / rms**2
    bint fits_float32       # phase two may run in float32


cdef struct RowSums:
    double squares      # sum of x * x
    double products     # sum of g * x, g = dy * (weight_offset + weight)
    double dy_peak      # the largest of 16 partial sums of dy * dy


cdef struct Lanes:      # 16 a sum: as many as AVX2's registers hold
    wide[SIXTEEN] xx
    wide[SIXTEEN] gx
    vec[VECS] yy


cdef inline void add_16(Lanes* lanes, const float* dy, const float* x, Py_ssize_t i,
                        Py_ssize_t count, const Job* job, Factor factor) noexcept nogil:
    """Add at most 16 columns from i on.

    x * x and dy * weight are exact; their sums, and dy * weight * x, are rounded to float64.
    dy * dy only gauges magnitude, so float32 is enough.
    """
    cdef wide g, x_wide
    cdef vec y
    cdef Py_ssize_t j
    cdef int k
    for k in range(SIXTEEN):
        j = i + WIDE * k
        if count > WIDE * k:
            g = take(dy + j, count - WIDE * k)
            x_wide = take(x + j, count - WIDE * k)
            if factor == PREPARED:
                g = g * load_wide(job.factor + j)
            elif factor == WEIGHT:
                g = g * factor_at(job, j, count - WIDE * k)
            if count < WIDE * (k + 1):      # past the end, an infinite weight_offset gives NaN
                g = keep_part(g, count - WIDE * k)
            lanes.xx[k] = add_product(lanes.xx[k], x_wide, x_wide)
            lanes.gx[k] = lanes.gx[k] + g * x_wide
    for k in range(VECS):
        if count > VEC * k:
            y = take_vec(dy + i + VEC * k, count - VEC * k)
            lanes.yy[k] = lanes.yy[k] + y * y


cdef inline void sum_for_factor(RowSums* sums, const float* dy, const float* x, Py_ssize_t rows,
                                const Job* job, Factor factor) noexcept nogil:
    """Sum the rows of a batch, compiled for each factor."""
    cdef Lanes lanes
    cdef Py_ssize_t row, i
    cdef vec y
    cdef int k
    for row in range(rows):     # the loop over rows is here for the reason given in sum_squares
        for k in range(SIXTEEN):
            lanes.xx[k] = lanes.gx[k] = splat_wide(0)
        for k in range(VECS):
            lanes.yy[k] = splat(0)
        i = 0
        while i + 16 <= job.n:
            add_16(&lanes, dy, x, i, 16, job, factor)
            i += 16
        if i < job.n:
            add_16(&lanes, dy, x, i, job.n - i, job, factor)
        sums[row].squares = fold(lanes.xx, SIXTEEN)
        sums[row].products = fold(lanes.gx, SIXTEEN)
        y = lanes.yy[0]
        for k in range(1, VECS):
            y = larger(y, lanes.yy[k])
        sums[row].dy_peak = largest(y)
        dy += job.dy_stride
        x += job.x_stride


cdef void sum_batch(RowSums* sums, const float* dy, const float* x, Py_ssize_t rows,
                    const Job* job) noexcept nogil:
    """Phase one of a batch. sums (rows,) OUT; dy, x (rows, n), job.weight, job.factor (n,) IN."""
    if job.weight == NULL:
        sum_for_factor(sums, dy, x, rows, job, NO_WEIGHT)
    elif job.factor != NULL:
        sum_for_factor(sums, dy, x, rows, job, PREPARED)
    else:
        sum_for_factor(sums, dy, x, rows, job, WEIGHT)


cdef inline double dx_peak(const Row* row, Py_ssize_t n, const Job* job) noexcept nogil:
    """Return the largest |dx| of a row's first n floats, as phase two computes it."""
    cdef vec g, most = splat(0)
    cdef vec inv_rms = splat(row.inv32), slope = splat(row.slope32)
    cdef Py_ssize_t i = 0
    while i < n:
        g = take_vec(row.dy + i, n - i) * inv_rms
        if job.weight != NULL:
            g = g * splat(LOWER_DY) * take_vec(job.factor32 + i, n - i)
        most = larger(absolute(g - take_vec(row.x + i, n - i) * slope), most)
        i += VEC
    return largest(most)


cdef inline bint fits_float32(const Row* row, const RowSums* sums,
                              const Job* job) noexcept nogil:
    """Return whether float32 gives dx within 2e-6 (33 u) of the row's largest |dx|.

    Let D = max |dx|, P = max |x * slope|, G = max |g / rms| <= D + P. The error in float32 is at
    most 4 G u (1 / rms, weight_offset + weight, two products), 2 P u (slope, product) and D u
    (difference): (5 D + 6 P) u in all, which is below 30 u D if P <= 4 D. D is at least the
    largest |dx| of 16 elements, and max |x|**2 at most sum(x**2): these bounds decide, unless the
    gradient lies along x. Then the second test takes the maxima over all elements.
    """
    cdef double d, slope = row.slope32
    if job.path == BY_FLOAT64 or not SMALL_ROW_INV <= row.inv_rms <= LARGE_ROW_INV:
        return False
    if not sums.dy_peak * row.inv_rms * row.inv_rms <= LARGE_SQUARE:
        return False
    d = dx_peak(row, 16, job) if job.n >= 16 else dx_peak(row, job.n, job)
    if SMALL_DX <= d <= LARGE_DX and sums.squares * slope * slope <= 16 * d * d:
        return True
    d = dx_peak(row, job.n, job)
    return SMALL_DX <= d <= LARGE_DX and peak(row.x, job.n) * fabs(slope) <= 4 * d
