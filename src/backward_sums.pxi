# Backward, phase one: the two sums of a row, and whether phase two may run in float32.

# Rows with a gradient whose squares are outside these bounds go by float64.
cdef double SMALL_SQUARE = 2.0 ** -100
cdef double LARGE_SQUARE = 2.0 ** 100

cdef struct RowSums:
    double[32] lanes        # 16 of x * x, 16 of g * x
    int[16] x_peak          # the bits of the largest tree of x * x: 1 to 8 times the largest x * x
    int[16] g_peak          # the bits of the largest |g|
    int[16] dy_peak         # as x_peak, of dy * dy


cdef inline void raise_peak(int* peak, float value) noexcept nogil:
    """Keep the larger of the two sizes, as bits: a NaN is the largest."""
    cdef int bits = float_bits(value) & 0x7fffffff
    peak[0] = bits if bits > peak[0] else peak[0]


cdef inline double peak_of(const int* peak) noexcept nogil:
    cdef Py_ssize_t k
    cdef int highest = 0
    for k in range(LANES):
        highest = peak[k] if peak[k] > highest else highest
    return bits_float(highest)


cdef void add_blocks(RowSums* restrict sums, const float* restrict dy, const float* restrict x,
                     const float* restrict g, Py_ssize_t n) noexcept nogil:
    """Add blocks of 128 to the sums. dy, x, g (n,) IN, n a multiple of 128.

    The sums stay in memory, behind a pointer: as locals GCC takes them apart into scalars.
    """
    cdef Py_ssize_t i, j, k
    for i in range(0, n - 127, 128):
        for k in range(LANES):
            sums.lanes[k] += <double>tree8(x + i + k, x + i + k)
            sums.lanes[LANES + k] += <double>tree8(g + i + k, x + i + k)
            raise_peak(&sums.x_peak[k], tree8(x + i + k, x + i + k))
            raise_peak(&sums.dy_peak[k], tree8(dy + i + k, dy + i + k))
        for j in range(i, i + 128, 16):
            for k in range(LANES):
                raise_peak(&sums.g_peak[k], g[j + k])


cdef void add_rest(RowSums* restrict sums, const float* restrict dy, const float* restrict x,
                   const float* restrict g, Py_ssize_t n) noexcept nogil:
    """add_blocks for n < 128 floats."""
    cdef float[16] xx, gx, dydy
    cdef float value
    cdef Py_ssize_t i, k
    product_rest(xx, x, x, 0, 1, n)
    product_rest(gx, g, x, 0, 1, n)
    product_rest(dydy, dy, dy, 0, 1, n)
    for k in range(LANES):
        sums.lanes[k] += <double>xx[k]
        sums.lanes[LANES + k] += <double>gx[k]
        raise_peak(&sums.x_peak[k], xx[k])
        raise_peak(&sums.dy_peak[k], dydy[k])
    for i in range(0, n - 15, 16):
        for k in range(LANES):
            raise_peak(&sums.g_peak[k], g[i + k])
    if n & 15:
        for k in range(LANES):
            value = 0
            if k < n & 15:
                value = g[(n & ~15) + k]
            raise_peak(&sums.g_peak[k], value)


cdef inline void sum_row(RowSums* sums, const float* restrict dy, const float* restrict x,
                         const float* restrict weight, Py_ssize_t n) noexcept nogil:
    """Phase one: the sums of a row, chunk by chunk in L1. dy, x, weight (n,) IN.

    A tree of 8 squares bounds the largest of them, so x's peak is almost free.
    """
    cdef float[512] g
    cdef const float* g_now
    cdef Py_ssize_t i, k, width, whole
    for k in range(LANES):
        sums.lanes[k] = sums.lanes[LANES + k] = 0
        sums.x_peak[k] = sums.g_peak[k] = sums.dy_peak[k] = 0
    for i in range(0, n, 512):
        width = min(<Py_ssize_t>512, n - i)
        whole = width - width % 128
        g_now = dy + i
        if weight != NULL:
            for k in range(width):
                g[k] = dy[i + k] * weight[i + k]
            g_now = g
        add_blocks(sums, dy + i, x + i, g_now, whole)
        if whole < width:
            add_rest(sums, dy + i + whole, x + i + whole, g_now + whole, width - whole)


cdef inline bint is_tame(const RowSums* sums, double inv_rms,
                         double mean) noexcept nogil:
    """Whether float32 gives dx to 2e-6 (33 u) of the row's largest |dx|.

    Let G = max|g|, P = max|xhat| * |mean(g * xhat)|. Then g - xhat * mean is off by at most
    (2 G + 9 P) u, and by 6 G u for the error of the mean (its roundings taken as independent),
    while max|dx| / inv_rms >= G - P. P <= G / 2 keeps (2 G + 9 P + 6 G) u <= 33 u (G - P) with
    room for the last two roundings. xhat's peak is a tree's, no smaller than max|xhat|**2 and up
    to 8 times that. With g's from trees too, 4.6 % of normal rows of 128 went by float64.
    """
    cdef double xhat_peak = peak_of(sums.x_peak) * inv_rms * inv_rms
    cdef double g_peak = peak_of(sums.g_peak), dy_peak = peak_of(sums.dy_peak)
    return (SMALL_INV <= inv_rms <= LARGE_INV
            and SMALL_SQUARE <= g_peak * g_peak <= LARGE_SQUARE
            and SMALL_SQUARE <= dy_peak <= LARGE_SQUARE
            and SMALL_SQUARE <= xhat_peak
            and xhat_peak * mean * mean * 4 <= g_peak * g_peak)
