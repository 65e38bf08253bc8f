# Sums over a row: exact products, in float64, added to 32 lanes of float64. Their order: lane k
# takes floats k, k + 32, k + 64 ...; at the end of the row 16 floats go to lanes 0 to 15, 8 to
# lanes 16 to 23, the last 7 at most to lanes 24 to 30. The lanes are folded 16 + 16, 8 + 8, 4 + 4,
# 2 + 2, 1 + 1.
#
# The product of two floats is exact in float64, so the error of a sum of n of them is less than
# (n / 32 + 5) * 2**-53: for n = 2**20 that is 2**-14 u. No product overflows or underflows.

from kernels.simd cimport (
    LANES, VEC, WIDE, WIDES, add_product, load, splat_wide, store, total, vec, wide, widen,
    widen_half,
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


cdef inline void add_squares(wide* lanes, const float* x, int count) noexcept nogil:
    """Add the squares of `count` floats, a multiple of WIDE, to as many lanes."""
    cdef int k
    cdef wide value
    for k in range(count // WIDE):
        value = widen(x + WIDE * k)
        lanes[k] = add_product(lanes[k], value, value)


cdef inline void add_last_squares(wide* lanes, const float* x, Py_ssize_t n) noexcept nogil:
    """Add the squares of n < 32 floats: 16, 8 and at most 7, each to lanes of their own."""
    cdef int k
    cdef wide value
    if n & 16:
        add_squares(lanes, x, 16)
    if n & 8:
        add_squares(lanes + 16 // WIDE, x + (n & 16), 8)
    for k in range(8 // WIDE):
        if (n & 7) > WIDE * k:
            value = take(x + (n & 24) + WIDE * k, (n & 7) - WIDE * k)
            lanes[24 // WIDE + k] = add_product(lanes[24 // WIDE + k], value, value)


cdef void sum_squares(double* squares, const float* x, Py_ssize_t stride, Py_ssize_t rows,
                      Py_ssize_t n) noexcept nogil:
    """Sum x**2 over each row. squares (rows,) OUT; x (rows, n) IN.

    The loop over rows is here because GCC keeps lanes in registers only in inner loops.
    """
    cdef wide[WIDES] lanes
    cdef Py_ssize_t row, i
    cdef int k
    for row in range(rows):
        for k in range(WIDES):
            lanes[k] = splat_wide(0)
        i = 0
        while i + LANES <= n:
            add_squares(lanes, x + i, LANES)
            i += LANES
        add_last_squares(lanes, x + i, n - i)
        squares[row] = fold(lanes, WIDES)
        x += stride


cdef inline void add_part(wide* lanes, float* residual, const float* x, Py_ssize_t count,
                          int size) noexcept nogil:
    """Add x to residual, 0 < count <= size floats, and the squares of the sums to `size` lanes.

    Square the registers: reloading partial stores stalls on store forwarding (26 ns instead of 14
    for n = 17, Zen 4).
    """
    cdef int k, h
    cdef vec value
    cdef wide part
    for k in range((size + VEC - 1) // VEC):
        if count > VEC * k:
            value = (take_vec(residual + VEC * k, count - VEC * k)
                     + take_vec(x + VEC * k, count - VEC * k))
            put_vec(residual + VEC * k, value, min(<Py_ssize_t>VEC, count - VEC * k))
            for h in range(min(VEC, size) // WIDE):
                part = widen_half(value, h)
                lanes[VEC // WIDE * k + h] = add_product(lanes[VEC // WIDE * k + h], part, part)


cdef void add_and_sum_squares(double* squares, float* residual, const float* x,
                              Py_ssize_t residual_stride, Py_ssize_t x_stride, Py_ssize_t rows,
                              Py_ssize_t n) noexcept nogil:
    """Add x to residual, and sum its squares. squares (rows,) OUT; residual IN-OUT, x IN."""
    cdef wide[WIDES] lanes
    cdef wide part
    cdef vec value
    cdef Py_ssize_t row, i
    cdef int k, h
    for row in range(rows):
        for k in range(WIDES):
            lanes[k] = splat_wide(0)
        i = 0
        while i + LANES <= n:
            for k in range(LANES // VEC):
                value = load(residual + i + VEC * k) + load(x + i + VEC * k)
                store(residual + i + VEC * k, value)
                for h in range(VEC // WIDE):
                    part = widen_half(value, h)
                    lanes[VEC // WIDE * k + h] = add_product(lanes[VEC // WIDE * k + h], part, part)
            i += LANES
        if n & 16:
            add_part(lanes, residual + i, x + i, 16, 16)
        if n & 8:
            add_part(lanes + 16 // WIDE, residual + i + (n & 16), x + i + (n & 16), 8, 8)
        if n & 7:
            add_part(lanes + 24 // WIDE, residual + i + (n & 24), x + i + (n & 24), n & 7, 8)
        squares[row] = fold(lanes, WIDES)
        residual += residual_stride
        x += x_stride
