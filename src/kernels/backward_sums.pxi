# Backward, phase one: a row's sums in float32 trees of 8, added in float64; and whether float32 is
# enough for its phase two.
#
# The order of both sums: floats come in blocks of 64, eights e0 to e7; the last block is padded
# with zeros. Lane k of 8 takes ((e0 + e2) + (e4 + e6)) + ((e1 + e3) + (e5 + e7)) of each block in
# float32, and adds these in float64. The lanes are folded 4 + 4, 2 + 2, 1 + 1.

from libc.math cimport INFINITY

from kernels.job cimport BY_FLOAT64, GROUP, Job, Path
from kernels.simd cimport (
    EIGHT, VEC, WIDE, absolute, between, larger, largest, splat, splat_wide, take_vec, vec, wide,
    widen_folded, widen_half,
)

# dx = dy / rms * weight - x * slope, with slope = mean / rms**2. In float32 dy / rms is scaled by
# LIFT_DY, a power of two, so that it is never subnormal, for dweight; LOWER_DY undoes it.
cdef float LIFT_DY = 2.0 ** 40
cdef float LOWER_DY = 2.0 ** -40

# Phase two runs in float64 if the row's 1 / rms, its largest |dy| / rms, its mean(g * xhat) or its
# slope is outside these bounds. Inside, dy / rms * LIFT_DY is normal, nothing overflows, and the
# bits that subnormal products lose are far below the mean.
cdef double SMALL_ROW_INV = 2.0 ** -17
cdef double LARGE_ROW_INV = 2.0 ** 40
cdef double LARGE_DY = 2.0 ** 40
cdef double SMALL_MEAN = 2.0 ** -80
cdef double LARGE_SLOPE = 2.0 ** 90


cdef struct Batch:
    Py_ssize_t first        # row
    Py_ssize_t count
    double[GROUP] squares   # sum of x * x
    double[GROUP] products  # sum of g * x, g = dy * (weight_offset + weight)
    float[GROUP] dy_peak    # the largest |dy|
    float[GROUP] inv32      # 1 / rms, times LIFT_DY if there is a weight
    float[GROUP] slope32    # mean / rms**2
    unsigned fits_float32   # a bit for each row: phase two may run in float32


cdef struct Lanes:      # 8 a sum
    wide[EIGHT] xx
    wide[EIGHT] gx
    vec dy_peak


cdef inline void add_quad(vec* xx, vec* gx, Lanes* lanes, const float* dy, const float* x,
                          const float* weight, vec offset, Py_ssize_t left,
                          bint weighted) noexcept nogil:
    """Add x * x and g * x of VEC columns and those 16, 32 and 48 further on; 0 from `left` on."""
    cdef vec[4] squares, products
    cdef vec g, x_vec
    cdef int k
    for k in range(4):
        squares[k] = products[k] = splat(0)
        if left > 16 * k:
            g, x_vec = take_vec(dy + 16 * k, left - 16 * k), take_vec(x + 16 * k, left - 16 * k)
            lanes.dy_peak = larger(absolute(g), lanes.dy_peak)
            if weighted:
                g = g * (take_vec(weight + 16 * k, left - 16 * k) + offset)
            squares[k], products[k] = x_vec * x_vec, g * x_vec
    xx[0] = (squares[0] + squares[1]) + (squares[2] + squares[3])
    gx[0] = (products[0] + products[1]) + (products[2] + products[3])


cdef inline void add_64(Lanes* lanes, const float* dy, const float* x, const float* weight,
                        vec offset, Py_ssize_t left, bint weighted) noexcept nogil:
    """Add a block of 64 columns, or of `left` at the end of a row."""
    cdef vec xx, gx, xx_odd, gx_odd
    cdef int c, h, k
    for c in range((8 + VEC - 1) // VEC):
        k = VEC * c
        add_quad(&xx, &gx, lanes, dy + k, x + k, weight + k, offset, left - k, weighted)
        if VEC == 16:
            lanes.xx[0] = lanes.xx[0] + widen_folded(xx)
            lanes.gx[0] = lanes.gx[0] + widen_folded(gx)
        else:
            k = 8 + VEC * c
            add_quad(&xx_odd, &gx_odd, lanes, dy + k, x + k, weight + k, offset, left - k, weighted)
            for h in range(VEC // WIDE):
                k = VEC // WIDE * c + h
                lanes.xx[k] = lanes.xx[k] + widen_half(xx + xx_odd, h)
                lanes.gx[k] = lanes.gx[k] + widen_half(gx + gx_odd, h)


cdef inline void sum_for_weight(Batch* batch, const Job* job, bint weighted) noexcept nogil:
    """Sum the rows of a batch: squares, products, dy_peak OUT; job.dy, job.x, job.weight IN."""
    cdef Lanes lanes
    cdef Py_ssize_t row, i, k, n = job.n
    cdef vec offset = splat(job.offset32)
    cdef const float* weight = job.weight if weighted else job.x    # read if weighted only
    cdef const float* dy = job.dy + batch.first * job.dy_stride
    cdef const float* x = job.x + batch.first * job.x_stride
    for row in range(batch.count):  # the loop over rows is here for the reason given in sum_squares
        for k in range(EIGHT):
            lanes.xx[k] = lanes.gx[k] = splat_wide(0)
        lanes.dy_peak = splat(0)
        i = 0
        while i + 64 <= n:
            add_64(&lanes, dy + i, x + i, weight + i, offset, 64, weighted)
            i += 64
        if i < n:
            add_64(&lanes, dy + i, x + i, weight + i, offset, n - i, weighted)
        batch.squares[row] = fold(lanes.xx, EIGHT)
        batch.products[row] = fold(lanes.gx, EIGHT)
        batch.dy_peak[row] = largest(lanes.dy_peak)
        dy += job.dy_stride
        x += job.x_stride


cdef inline unsigned fits_float32(wide inv_rms, wide mean, wide slope, wide dy_peak) noexcept nogil:
    """Return a bit for each row: whether float32 gives dx within 15 u of its terms' magnitudes
    (docs/numerics.md).

    A sum that overflowed is Inf or NaN here, and fails. A dy of zeros has a mean of 0, and fits.
    """
    return (between(inv_rms, SMALL_ROW_INV, LARGE_ROW_INV)
            & between(dy_peak * inv_rms, 0, LARGE_DY)
            & (between(dy_peak, 0, 0)
               | ((between(mean, SMALL_MEAN, INFINITY) | between(mean, -INFINITY, -SMALL_MEAN))
                  & between(slope, -LARGE_SLOPE, LARGE_SLOPE))))


cdef Path backward_path(const Job* job) noexcept nogil:
    """Choose the path of a whole job, as choose_path, but BY_FLOAT64 too if a factor loses bits
    when multiplied by LOWER_DY."""
    cdef Path path = choose_path(job)
    cdef vec factor, lost = splat(0)
    cdef Py_ssize_t i = 0
    while i < job.n and job.weight != NULL:
        factor = take_vec(job.weight + i, job.n - i) + splat(job.offset32)
        lost = larger(absolute(factor * splat(LOWER_DY) * splat(LIFT_DY) - factor), lost)
        i += VEC
    return BY_FLOAT64 if largest(lost) > 0 else path
