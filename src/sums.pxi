# Sums over a row: float32 trees of 8 into 16 lanes of float64, and float64 throughout where that
# cannot be trusted. The order of every sum stands here, and nowhere in a flag.

# Below this mean square a float32 sum of squares may have lost bits to underflow: each square is
# off by at most 2**-150, so at 2**-100 the mean is still right to 2**-50.
cdef double TRUSTED = 2.0 ** -100


cdef inline float tree(const float* a, const float* b) noexcept nogil:
    """The sum of 8 products in float32, 16 floats apart: one lane of a block of 128.

    Error: 4 u of the sum of |a * b| (one product, three sums).
    """
    return (((a[0] * b[0] + a[64] * b[64]) + (a[32] * b[32] + a[96] * b[96]))
            + ((a[16] * b[16] + a[80] * b[80]) + (a[48] * b[48] + a[112] * b[112])))


cdef void add_few_products(double* restrict lane, const float* restrict a,
                           const float* restrict b, Py_ssize_t n) noexcept nogil:
    """add_products_wide for n < 16, as one vector under a mask: one by one these floats took a
    third of a row of 100. Not inline, here and below: GCC would make 16 branches of it.
    """
    cdef Py_ssize_t k
    cdef float a_k, b_k
    for k in range(LANES):
        a_k = b_k = 0
        if k < n:
            a_k = a[k]
            b_k = b[k]
        lane[k] += <double>a_k * <double>b_k


cdef inline void add_products_wide(double* restrict lane, const float* restrict a,
                                   const float* restrict b, Py_ssize_t n) noexcept nogil:
    """Add the sum of a * b to 16 lanes of float64, in which each product is exact.

    lane (16,) IN-OUT; a, b (n,) IN.
    """
    cdef Py_ssize_t i = 0, k
    while i + LANES <= n:
        for k in range(LANES):
            lane[k] += <double>a[i + k] * <double>b[i + k]
        i += LANES
    if i < n:
        add_few_products(lane, a + i, b + i, n - i)


cdef double fold(double* lane) noexcept nogil:
    """Add up 16 lanes as a fixed tree."""
    cdef Py_ssize_t k
    for k in range(8):
        lane[k] += lane[k + 8]
    for k in range(4):
        lane[k] += lane[k + 4]
    return (lane[0] + lane[2]) + (lane[1] + lane[3])


cdef double fold_spread(double* lane, Py_ssize_t n) noexcept nogil:
    """fold, or INFINITY where one lane holds over a quarter of the sum: then an outlier's own
    roundings decide the error, and the row is to be summed in float64, as n < 128 is already.
    """
    cdef double[8] top
    cdef double total
    cdef Py_ssize_t k
    if n < 128:
        return fold(lane)
    for k in range(8):
        top[k] = lane[k] if lane[k] > lane[k + 8] else lane[k + 8]
    for k in range(4):
        top[k] = top[k] if top[k] > top[k + 4] else top[k + 4]
    for k in range(1, 4):
        top[0] = top[k] if top[k] > top[0] else top[0]
    total = fold(lane)
    return INFINITY if 4 * top[0] > total else total


cdef inline double sum_squares(const float* restrict x, Py_ssize_t n) noexcept nogil:
    """Sum x**2: trees of 8 in float32, then 16 lanes of float64. x (n,) IN.

    Error: the mean of many trees' errors, each at most 4 u; 1 u on constant rows. Without the
    check of the spread, rows with one outlier reached 3.02 ulp in y; with it, 2.4. Float64
    products throughout cost 1.15 times the whole forward pass in L2, 1.3 times in L1.
    """
    cdef double[16] lane
    cdef Py_ssize_t i, k
    memset(lane, 0, sizeof(lane))
    for i in range(0, n - 127, 128):
        for k in range(LANES):
            lane[k] += <double>tree(x + i + k, x + i + k)
    i = n - n % 128
    add_products_wide(lane, x + i, x + i, n - i)
    return fold_spread(lane, n)


cdef inline double add_sum_squares(float* residual, const float* x,
                                   Py_ssize_t n) noexcept nogil:
    """residual += x, and the sum of squares of the result in sum_squares' order, chunk by chunk.

    residual (n,) IN-OUT; x (n,) IN.
    """
    cdef double[16] lane
    cdef Py_ssize_t i, j, k, width
    memset(lane, 0, sizeof(lane))
    for i in range(0, n, 1024):
        width = min(<Py_ssize_t>1024, n - i)
        add_row(residual + i, x + i, 1.0, width)
        for j in range(i, i + width - 127, 128):
            for k in range(LANES):
                lane[k] += <double>tree(residual + j + k, residual + j + k)
    i = n - n % 128
    add_products_wide(lane, residual + i, residual + i, n - i)
    return fold_spread(lane, n)


cdef double sum_squares_wide(const float* restrict x, Py_ssize_t n) noexcept nogil:
    """Sum x**2 with float64 products, which no float32 overflows or loses. x (n,) IN."""
    cdef double[16] lane
    memset(lane, 0, sizeof(lane))
    add_products_wide(lane, x, x, n)
    return fold(lane)


cdef inline double inverse_rms(double squares, const float* x, const Job* job) noexcept nogil:
    """1 / sqrt(mean(x**2) + eps) from the float32 sum, summed again where that cannot be trusted.

    x (n,) IN.
    """
    cdef double mean = squares * job.inv_n + job.eps
    if not TRUSTED <= mean <= 1e300:
        mean = sum_squares_wide(x, job.n) * job.inv_n + job.eps
    return 1.0 / sqrt(mean)
