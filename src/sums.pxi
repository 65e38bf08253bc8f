# Sums over a row: float32 trees of at most 8 products into 16 lanes of float64, and float64
# throughout where that cannot be trusted. The order of every sum stands here, and in no flag.

# A float32 sum of squares is trusted if its mean lies within these bounds: each square is off by
# at most 2**-150 for underflow, and no product of the row, its 1 / rms or its dx can overflow.
cdef double SMALL_MEAN = 2.0 ** -80
cdef double LARGE_MEAN = 2.0 ** 80


cdef inline double* on_line(double* space) noexcept nogil:
    """The first cache line in a buffer with 7 doubles to spare: a vector that straddles two lines
    cannot be read back before both are written (the sums of rows of 100 took 1.8 times as long).
    """
    return <double*>((<size_t>space + 63) & ~<size_t>63)


cdef inline float tree2(const float* a, const float* b) noexcept nogil:
    """The sum of 2 products in float32, 16 floats apart. Error: 2 u of the sum of |a * b|."""
    return a[0] * b[0] + a[16] * b[16]


cdef inline float tree4(const float* a, const float* b) noexcept nogil:
    """The sum of 4 products. Error: 3 u."""
    return (a[0] * b[0] + a[32] * b[32]) + (a[16] * b[16] + a[48] * b[48])


cdef inline float tree8(const float* a, const float* b) noexcept nogil:
    """The sum of 8 products: one lane of a block of 128. Error: 4 u (one product, three sums)."""
    return (((a[0] * b[0] + a[64] * b[64]) + (a[32] * b[32] + a[96] * b[96]))
            + ((a[16] * b[16] + a[80] * b[80]) + (a[48] * b[48] + a[112] * b[112])))


cdef inline void product_rest(float* restrict part, const float* a, const float* b,
                              Py_ssize_t stride, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    """The products of n < 128 floats of a row as one tree a lane: the fewest first, so that each
    goes through one product and three sums at most, as in a block of 128.

    part (rows, 16) OUT; a, b (rows, n) IN. The last few are read under a mask and written as a
    whole vector, which can be read back at once.
    """
    cdef Py_ssize_t row, i, k
    cdef float value
    if n & 15:
        for row in range(rows):
            i = row * stride + (n & ~15)
            for k in range(LANES):
                value = 0
                if k < n & 15:
                    value = a[i + k] * b[i + k]
                part[row * LANES + k] = value
    else:
        for k in range(rows * LANES):
            part[k] = 0
    if n & 16:
        for row in range(rows):
            i = row * stride + (n & ~31)
            for k in range(LANES):
                part[row * LANES + k] += a[i + k] * b[i + k]
    if n & 32:
        for row in range(rows):
            i = row * stride + (n & ~63)
            for k in range(LANES):
                part[row * LANES + k] += tree2(a + i + k, b + i + k)
    if n & 64:
        for row in range(rows):
            i = row * stride
            for k in range(LANES):
                part[row * LANES + k] += tree4(a + i + k, b + i + k)


cdef void square_rest(float* restrict part, const float* restrict x, Py_ssize_t stride,
                      Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    """product_rest of x and itself."""
    product_rest(part, x, x, stride, rows, n)


cdef void add_squares(double* restrict lanes, const float* restrict x, Py_ssize_t stride,
                      Py_ssize_t rows, Py_ssize_t n, bint fresh) noexcept nogil:
    """Add x**2 to 16 lanes a row, at most 8, or store it there if they are fresh.

    lanes (rows, 16) IN-OUT or OUT; x (rows, n) IN. The lanes stay in memory, behind a pointer: as
    locals GCC takes them apart into scalars.
    """
    cdef Py_ssize_t row, i, k
    cdef const float* a
    cdef double* lane
    cdef float[128] part
    if n & 127:
        square_rest(part, x + (n & ~127), stride, rows, n & 127)
    if fresh and n < 128:
        for k in range(rows * LANES):
            lanes[k] = <double>part[k]
        return
    for row in range(rows):
        a = x + row * stride
        lane = lanes + row * LANES
        if fresh:
            for k in range(LANES):
                lane[k] = 0
        for i in range(0, n - 127, 128):
            for k in range(LANES):
                lane[k] += <double>tree8(a + i + k, a + i + k)
        if n & 127:
            for k in range(LANES):
                lane[k] += <double>part[row * LANES + k]


cdef inline void fold(double* restrict sums, const double* restrict lanes, Py_ssize_t rows,
                      bint spread) noexcept nogil:
    """Add up the 16 lanes of each row (at most 8) as a fixed tree: step by step over all rows, so
    that each step is whole vectors.

    sums (rows,) OUT; lanes (rows, 16) IN. If the sum has to be spread, one of which a lane holds
    over half is INFINITY: an outlier's own roundings would decide its error (3.02 ulp in y; with
    the check 2.6).
    """
    cdef double[64] sum8, top8
    cdef double[32] sum4, top4
    cdef double[16] sum2, top2
    cdef double a, b
    cdef Py_ssize_t row, k
    for row in range(rows):
        for k in range(8):
            a = lanes[16 * row + k]
            b = lanes[16 * row + k + 8]
            sum8[8 * row + k] = a + b
            top8[8 * row + k] = a if a > b else b
    for row in range(rows):
        for k in range(4):
            a = top8[8 * row + k]
            b = top8[8 * row + k + 4]
            sum4[4 * row + k] = sum8[8 * row + k] + sum8[8 * row + k + 4]
            top4[4 * row + k] = a if a > b else b
    for row in range(rows):
        for k in range(2):
            a = top4[4 * row + k]
            b = top4[4 * row + k + 2]
            sum2[2 * row + k] = sum4[4 * row + k] + sum4[4 * row + k + 2]
            top2[2 * row + k] = a if a > b else b
    for row in range(rows):
        a = sum2[2 * row] + sum2[2 * row + 1]
        b = top2[2 * row] if top2[2 * row] > top2[2 * row + 1] else top2[2 * row + 1]
        sums[row] = INFINITY if spread and 2 * b > a else a


cdef inline bint needs_spread(Py_ssize_t n) noexcept nogil:
    """Whether a lane may hold a tree of more than 2 products, whose error needs an average."""
    return n > 32


cdef double sum_squares_wide(const float* restrict x, Py_ssize_t n) noexcept nogil:
    """Sum x**2 with float64 products, which no float32 overflows or loses. x (n,) IN."""
    cdef double[16] lane
    cdef double sum
    cdef Py_ssize_t i, k
    memset(lane, 0, sizeof(lane))
    for i in range(0, n, 16):
        for k in range(LANES):
            if k < n - i:
                lane[k] += <double>x[i + k] * <double>x[i + k]
    fold(&sum, lane, 1, False)
    return sum


cdef double sum_squares(const double* lanes, const float* x, Py_ssize_t n,
                        double inv_n) noexcept nogil:
    """The sum of squares of a row, from its lanes if those can be trusted. lanes (16,), x (n,) IN.

    Error: the mean of many trees' errors, each at most 4 u; 1 u on constant rows. Float64
    products throughout cost 1.15 times the whole forward pass in L2, 1.3 times in L1.
    """
    cdef double sum
    fold(&sum, lanes, 1, needs_spread(n))
    if SMALL_MEAN <= sum * inv_n <= LARGE_MEAN:
        return sum
    return sum_squares_wide(x, n)


cdef bint invert_group(double* restrict inv_rms, const double* restrict lanes, Py_ssize_t n,
                       double inv_n, double eps) noexcept nogil:
    """1 / rms of 8 rows, and whether all of them are fit for float32.

    inv_rms (8,) OUT; lanes (8, 16) IN.
    """
    cdef double[8] mean
    cdef Py_ssize_t row, odd = 0
    fold(mean, lanes, GROUP, needs_spread(n))
    for row in range(GROUP):
        mean[row] = mean[row] * inv_n
        odd += not (SMALL_MEAN <= mean[row] and mean[row] + eps <= LARGE_MEAN)
        inv_rms[row] = 1.0 / sqrt(mean[row] + eps)
    return odd == 0
