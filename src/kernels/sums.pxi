# Sums over a row: exact products, in float64, added to 32 lanes of float64. Their order: lane k
# takes floats k, k + 32, k + 64 ...; at the end of the row 16 floats go to lanes 0 to 15, 8 to
# lanes 16 to 23, the last 7 at most to lanes 24 to 30. The lanes are folded 16 + 16, 8 + 8, 4 + 4,
# 2 + 2, 1 + 1.
#
# The product of two floats is exact in float64, so the error of a sum of n of them is less than
# (n / 32 + 5) * 2**-53: for n = 2**20 that is 2**-14 u. No product overflows or underflows.

from kernels.simd cimport (
    LANES, VEC, WIDE, WIDES, add_product, put_vec, splat_wide, take, take_vec, total, vec, wide,
    widen, widen_half,
)


cdef inline double fold(wide* lanes, int parts) noexcept nogil:
    """Return the sum of `parts` vectors of lanes, a power of two from 1 to 32."""
    cdef int k
    if parts > 16:
        for k in range(16):
            lanes[k] = lanes[k] + lanes[k + 16]
    if parts > 8:
        for k in range(8):
            lanes[k] = lanes[k] + lanes[k + 8]
    if parts > 4:
        for k in range(4):
            lanes[k] = lanes[k] + lanes[k + 4]
    if parts > 2:
        for k in range(2):
            lanes[k] = lanes[k] + lanes[k + 2]
    return total(lanes[0] + lanes[1] if parts > 1 else lanes[0])


cdef inline void add_squares(wide* lanes, float* residual, const float* x, Py_ssize_t i,
                             Py_ssize_t count, int size, bint add) noexcept nogil:
    """Add the squares of 0 < count <= size floats, from i on, to `size` lanes: those of x, or with
    `add` those of residual + x, which is stored in residual.

    With AVX whole vectors are loaded again, since to convert a register takes twice as long (0.91
    of the time at 1000 x 64, Zen 4); partial ones are not, because that load waits for the store.
    """
    cdef int k, h, lane
    cdef vec value
    cdef wide part
    if add:
        for k in range((size + VEC - 1) // VEC):
            if count > VEC * k:
                value = (take_vec(residual + i + VEC * k, count - VEC * k)
                         + take_vec(x + i + VEC * k, count - VEC * k))
                put_vec(residual + i + VEC * k, value, count - VEC * k)
                for h in range(min(VEC, size) // WIDE):
                    lane = VEC // WIDE * k + h
                    part = (widen(residual + i + WIDE * lane) if VEC > 4 and count == size
                            else widen_half(value, h))
                    lanes[lane] = add_product(lanes[lane], part, part)
    else:
        for k in range(size // WIDE):
            if count > WIDE * k:
                part = take(x + i + WIDE * k, count - WIDE * k)
                lanes[k] = add_product(lanes[k], part, part)


cdef inline void sum_rows(double* squares, float* residual, const float* x,
                          Py_ssize_t residual_stride, Py_ssize_t x_stride, Py_ssize_t rows,
                          Py_ssize_t n, bint add) noexcept nogil:
    """Sum the squares of each row.

    The loop over rows is here because GCC keeps lanes in registers only in inner loops.
    """
    cdef wide[WIDES] lanes
    cdef Py_ssize_t row, i, left
    cdef int k
    for row in range(rows):
        for k in range(WIDES):
            lanes[k] = splat_wide(0)
        i = 0
        while i + LANES <= n:
            add_squares(lanes, residual, x, i, LANES, LANES, add)
            i += LANES
        left = n - i
        if left & 16:
            add_squares(lanes, residual, x, i, 16, 16, add)
        if left & 8:
            add_squares(lanes + 16 // WIDE, residual, x, i + (left & 16), 8, 8, add)
        if left & 7:
            add_squares(lanes + 24 // WIDE, residual, x, i + (left & 24), left & 7, 8, add)
        squares[row] = fold(lanes, WIDES)
        residual += residual_stride
        x += x_stride


cdef void sum_squares(double* squares, const float* x, Py_ssize_t stride, Py_ssize_t rows,
                      Py_ssize_t n) noexcept nogil:
    """Sum x**2 over each row. squares (rows,) OUT; x (rows, n) IN."""
    sum_rows(squares, NULL, x, 0, stride, rows, n, False)


cdef void add_and_sum_squares(double* squares, float* residual, const float* x,
                              Py_ssize_t residual_stride, Py_ssize_t x_stride, Py_ssize_t rows,
                              Py_ssize_t n) noexcept nogil:
    """Add x to residual, and sum its squares. squares (rows,) OUT; residual IN-OUT, x IN."""
    sum_rows(squares, residual, x, residual_stride, x_stride, rows, n, True)
