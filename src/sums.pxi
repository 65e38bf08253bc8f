# Sums over a row: every product exact, in float64, added to 32 lanes of float64. The order of every
# sum stands here, and in no flag: lane k takes floats k, k + 32, k + 64 ...; of what is left, 16
# floats go to lanes 0 to 15, 8 to lanes 16 to 23, the last 7 at most to lanes 24 to 30. The lanes
# are folded 16 + 16, 8 + 8, 4 + 4, 2 + 2, 1 + 1.
#
# The product of two floats is exact in float64, so a sum of n of them is off by less than
# (n / 32 + 5) * 2**-53: for n = 2**20 that is 2**-14 u. Nothing overflows, nothing is lost.


cdef inline double fold(wide* lanes, int parts) noexcept nogil:
    """Add up so many parts of lanes, a power of two from 2 to 32, each with its partner."""
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
    return total(lanes[0] + lanes[1])


cdef inline void add_squares(wide* lanes, const float* x, int count) noexcept nogil:
    """Add the squares of so many floats to as many lanes, of which count // WIDE make parts."""
    cdef int k
    cdef wide value
    for k in range(count // WIDE):
        value = widen(x + WIDE * k)
        lanes[k] = add_product(lanes[k], value, value)


cdef inline void add_last_squares(wide* lanes, const float* x, Py_ssize_t n) noexcept nogil:
    """add_squares for n < 32 floats: 16, 8 and 7 at most, each in lanes of their own."""
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
    """The sums of x**2. squares (rows,) OUT; x (rows, n) IN.

    The rows' loop is here since GCC keeps the lanes in registers only where their loops are inner
    ones.
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
                          int slots) noexcept nogil:
    """residual += x for 0 < count <= slots floats, and their squares to as many lanes as slots.

    The squares are of what is in registers: to load a few floats just after they were stored waits
    until that is done, which made a row of 17 take 26 ns instead of 14 (Zen 4).
    """
    cdef int k, h
    cdef vec value
    cdef wide part
    for k in range((slots + VEC - 1) // VEC):
        if count > VEC * k:
            value = (take_vec(residual + VEC * k, count - VEC * k)
                     + take_vec(x + VEC * k, count - VEC * k))
            put_vec(residual + VEC * k, value, min(<Py_ssize_t>VEC, count - VEC * k))
            for h in range(min(VEC, slots) // WIDE):
                part = widen_half(value, h)
                lanes[VEC // WIDE * k + h] = add_product(lanes[VEC // WIDE * k + h], part, part)


cdef void add_and_sum_squares(double* squares, float* residual, const float* x,
                              Py_ssize_t residual_stride, Py_ssize_t x_stride, Py_ssize_t rows,
                              Py_ssize_t n) noexcept nogil:
    """residual += x, and sum_squares of it. squares (rows,) OUT; residual IN-OUT, x IN."""
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


cdef void invert(double* inv_rms, const double* squares, const Job* job) noexcept nogil:
    """1 / rms of the rows of a pass. inv_rms (8,) OUT; squares (8,) IN, some of them unused."""
    cdef Py_ssize_t k
    for k in range(0, PASS // WIDE):
        store_wide(inv_rms + WIDE * k, splat_wide(1) / root(
            load_wide(squares + WIDE * k) * splat_wide(job.inv_n) + splat_wide(job.eps)))
