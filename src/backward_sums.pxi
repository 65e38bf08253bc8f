# Backward, phase one: the two sums of a row, and whether phase two may run in float32.

# Rows with a gradient whose squares are outside these bounds go by float64.
cdef double SMALL_SQUARE = 2.0 ** -100
cdef double LARGE_SQUARE = 2.0 ** 100

cdef struct RowSums:
    double[32] lanes        # 16 of x * x, 16 of g * x
    int[16] x_peak          # the bits of the largest tree of x * x: 1 to 8 times the largest x * x
    int[16] g_peak
    int[16] dy_peak


cdef inline void raise_peak(int* peak, float value) noexcept nogil:
    """Keep the larger of the two, as bits. A NaN may pass unseen: the sums hold it."""
    cdef int bits = float_bits(value)
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
    cdef Py_ssize_t i, k
    for i in range(0, n - 127, 128):
        for k in range(LANES):
            sums.lanes[k] += <double>tree8(x + i + k, x + i + k)
            sums.lanes[LANES + k] += <double>tree8(g + i + k, x + i + k)
            raise_peak(&sums.x_peak[k], tree8(x + i + k, x + i + k))
            raise_peak(&sums.g_peak[k], tree8(g + i + k, g + i + k))
            raise_peak(&sums.dy_peak[k], tree8(dy + i + k, dy + i + k))


cdef void add_rest(RowSums* restrict sums, const float* restrict dy, const float* restrict x,
                   const float* restrict g, Py_ssize_t n) noexcept nogil:
    """add_blocks for n < 128 floats: vectors, the last of them under a mask, in float64."""
    cdef Py_ssize_t i, k
    cdef float x_k, g_k, dy_k
    for i in range(0, n, 16):
        for k in range(LANES):
            x_k = g_k = dy_k = 0
            if k < n - i:
                x_k = x[i + k]
                g_k = g[i + k]
                dy_k = dy[i + k]
            sums.lanes[k] += <double>x_k * <double>x_k
            sums.lanes[LANES + k] += <double>g_k * <double>x_k
            raise_peak(&sums.x_peak[k], x_k * x_k)
            raise_peak(&sums.g_peak[k], g_k * g_k)
            raise_peak(&sums.dy_peak[k], dy_k * dy_k)


cdef inline void sum_row(RowSums* sums, const float* restrict dy, const float* restrict x,
                         const float* restrict weight, Py_ssize_t n) noexcept nogil:
    """Phase one: the sums of a row, chunk by chunk in L1. dy, x, weight (n,) IN.

    A tree of 8 squares bounds the largest of them from both sides, so the peaks are almost free.
    """
    cdef float[512] g
    cdef const float* g_now
    cdef Py_ssize_t i, k, width, whole
    for k in range(LANES):      # not one memset: GCC makes that `rep stos`, 4 % of a row of 128
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


cdef inline bint is_tame(const RowSums* sums, double inv_rms, double mean,
                         Py_ssize_t n) noexcept nogil:
    """Whether float32 gives dx to 2e-6 (33 u) of the row's largest |dx|.

    Let G = max|g|, P = max|xhat| * |mean(g * xhat)|. Then g - xhat * mean is off by at most
    (2 G + 9 P) u, and by 6 G u for the error of the mean (its roundings taken as independent),
    while max|dx| / inv_rms >= G - P. P <= G / 2 keeps (2 G + 9 P + 6 G) u <= 33 u (G - P) with
    room for the last two roundings. The peaks are squares; g's is G**2 for n < 128, and lies
    within 8 G**2 where it is a tree's.
    """
    cdef double xhat_peak = peak_of(sums.x_peak) * inv_rms * inv_rms
    cdef double g_peak = peak_of(sums.g_peak), dy_peak = peak_of(sums.dy_peak)
    return (SMALL_INV <= inv_rms <= LARGE_INV
            and SMALL_SQUARE <= g_peak <= LARGE_SQUARE
            and SMALL_SQUARE <= dy_peak <= LARGE_SQUARE
            and SMALL_SQUARE <= xhat_peak
            and xhat_peak * mean * mean <= g_peak / (4 if n < 128 else 32))
