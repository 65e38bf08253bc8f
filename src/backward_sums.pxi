# Backward, phase one: the sums of a row, and whether it is tame: whether phase two may run in
# float32.

# A row is not tame, and goes by float64, if its 1 / rms, the largest square of dy / rms or its
# largest |dx| is beyond these: inside, dy / rms * 2**40 (LIFT_DY) is normal, and nothing overflows.
cdef double SMALL_ROW_INV = 2.0 ** -17
cdef double LARGE_ROW_INV = 2.0 ** 40
cdef double SMALL_DX = 2.0 ** -50
cdef double LARGE_DX = 2.0 ** 100
cdef double LARGE_SQUARE = 2.0 ** 80


cdef enum Factor:
    NO_WEIGHT
    WEIGHT
    PREPARED    # weight_offset + weight in float64, for many rows


cdef struct Row:
    const float* dy
    const float* x
    const float* dy_ahead       # of the row to prefetch meanwhile
    const float* x_ahead
    float* dx
    double inv_rms
    double mean
    float inv32             # 1 / rms, times LIFT_DY if there is a weight
    float slope             # mean / rms**2
    bint tame               # float32 will do


cdef struct RowSums:
    double squares      # of x
    double products     # of g * x, g = dy * (weight_offset + weight)
    double dy_peak      # the largest of 16 sums of dy * dy


cdef struct Lanes:      # 16 a sum: as many as the registers of AVX2 hold
    wide[SIXTEEN] xx
    wide[SIXTEEN] gx
    vec[VECS] yy


cdef inline void add_16(Lanes* lanes, const float* dy, const float* x, Py_ssize_t i,
                        Py_ssize_t count, const Job* job, Factor factor) noexcept nogil:
    """Add 16 floats from column i on, or what is left of them.

    x * x and dy * weight are exact, and their sums and the other products rounded to float64;
    dy * dy, for its size, in float32.
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
            if count < WIDE * (k + 1):      # an infinite weight_offset times zeros is NaN
                g = keep_part(g, count - WIDE * k)
            lanes.xx[k] = add_product(lanes.xx[k], x_wide, x_wide)
            lanes.gx[k] = lanes.gx[k] + g * x_wide
    for k in range(VECS):
        if count > VEC * k:
            y = take_vec(dy + i + VEC * k, count - VEC * k)
            lanes.yy[k] = lanes.yy[k] + y * y


cdef inline void sum_by(RowSums* sums, const float* dy, const float* x, Py_ssize_t rows,
                        const Job* job, Factor factor) noexcept nogil:
    """sum_rows, compiled for each factor."""
    cdef Lanes lanes
    cdef Py_ssize_t row, i
    cdef vec y
    cdef int k
    for row in range(rows):     # the rows' loop is here as in sum_squares
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


cdef void sum_rows(RowSums* sums, const float* dy, const float* x, Py_ssize_t rows,
                   const Job* job) noexcept nogil:
    """Phase one. sums (rows,) OUT; dy, x (rows, n), job.weight, job.factor (n,) IN."""
    if job.weight == NULL:
        sum_by(sums, dy, x, rows, job, NO_WEIGHT)
    elif job.factor != NULL:
        sum_by(sums, dy, x, rows, job, PREPARED)
    else:
        sum_by(sums, dy, x, rows, job, WEIGHT)


cdef inline double dx_peak(const Row* row, Py_ssize_t n, const Job* job) noexcept nogil:
    """The largest |dx| of a row's first n floats, as phase two computes it."""
    cdef vec g, most = splat(0)
    cdef vec inv_rms = splat(row.inv32), slope = splat(row.slope)
    cdef Py_ssize_t i = 0
    while i < n:
        g = take_vec(row.dy + i, n - i) * inv_rms
        if job.weight != NULL:
            g = g * splat(LOWER_DY) * take_vec(job.factor32 + i, n - i)
        most = larger(absolute(g - take_vec(row.x + i, n - i) * slope), most)
        i += VEC
    return largest(most)


cdef double x_peak(const Row* row, Py_ssize_t n) noexcept nogil:
    """The largest |x| of a row."""
    cdef vec most = splat(0)
    cdef Py_ssize_t i = 0
    while i < n:
        most = larger(absolute(take_vec(row.x + i, n - i)), most)
        i += VEC
    return largest(most)


cdef inline bint is_tame(const Row* row, const RowSums* sums, const Job* job) noexcept nogil:
    """Whether float32 gives dx to 2e-6 (33 u) of the row's largest |dx|.

    Let D = max |dx|, P = max |x * slope|, G = max |g / rms| <= D + P. Float32 is off by at most
    4 G u (1 / rms, weight_offset + weight, two products), 2 P u (slope, product) and D u
    (difference): (5 D + 6 P) u in all, which P <= 4 D keeps below 30 u D. D is no smaller than the
    largest |dx| of 16 elements, and max |x|**2 no larger than sum(x**2): that is enough unless the
    gradient lies along x. Where it is not, all elements are looked at.
    """
    cdef double d, slope = row.slope
    if job.by_float64 or not SMALL_ROW_INV <= row.inv_rms <= LARGE_ROW_INV:
        return False
    if not sums.dy_peak * row.inv_rms * row.inv_rms <= LARGE_SQUARE:
        return False
    d = dx_peak(row, 16, job) if job.n >= 16 else dx_peak(row, job.n, job)
    if SMALL_DX <= d <= LARGE_DX and sums.squares * slope * slope <= 16 * d * d:
        return True
    d = dx_peak(row, job.n, job)
    return SMALL_DX <= d <= LARGE_DX and x_peak(row, job.n) * fabs(slope) <= 4 * d
