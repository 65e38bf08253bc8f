# The second pass of forward: y = x * inv_rms * weight, by the path that suits the weight.

# x / rms may be subnormal, for an element far below its row's rms or under a large eps. A weight
# above 4 would then scale up the bits that it lost, so 1 / rms is lifted by 2**63 before the
# products and the result lowered after them. Above 2**44 a weight could overflow on the way.
cdef float PLAIN_WEIGHT = 4.0
cdef float LIFTED_WEIGHT = 2.0 ** 44
cdef float LIFT = 2.0 ** 63
cdef float LOWER = 2.0 ** -63
# Rows with 1 / rms outside these bounds go by float64: inside, no product in float32 can overflow
# or lose bits that count.
cdef double SMALL_INV = LARGE_MEAN ** -0.5
cdef double LARGE_INV = SMALL_MEAN ** -0.5


cdef enum Path:
    UNWEIGHTED
    PLAIN       # every |weight| is at most 4
    LIFTED      # at most 2**44
    WIDE        # larger; or there is a weight_offset: by float64


cdef Path choose_path(const float* restrict weight, double weight_offset,
                      Py_ssize_t n) noexcept nogil:
    """How this weight is to be multiplied, for a whole job. weight (n,) IN, or NULL.

    An Inf or NaN in it has no say: every path passes it on. All bits together are no smaller than
    those of any weight: one instruction a vector, which is enough where all are below 2. Read on
    cache lines, as rows are written: 0.93 of the time of a call at 1 x 4096.
    """
    cdef int bits, together = 0, highest = 0, infinity = 0x7f800000
    cdef Py_ssize_t i, head
    if weight == NULL:
        return UNWEIGHTED
    if weight_offset != 0:
        return WIDE
    head = floats_to_line(weight) if n >= 256 else 0
    for i in range(head):
        together |= float_bits(weight[i])
    for i in range(head, n):
        together |= float_bits(weight[i])
    if together & 0x7fffffff <= float_bits(PLAIN_WEIGHT):
        return PLAIN
    for i in range(n):
        bits = float_bits(weight[i]) & 0x7fffffff
        bits = bits if bits < infinity else 0
        highest = bits if bits > highest else highest
    if highest <= float_bits(PLAIN_WEIGHT):
        return PLAIN
    return LIFTED if highest <= float_bits(LIFTED_WEIGHT) else WIDE


cdef inline float scaled(const float* x, const float* weight, float inv_rms, Py_ssize_t i,
                         Path path) noexcept nogil:
    """One element of y in float32: 1 u for inv_rms, 1 u a product. A lift changes no bits."""
    cdef float value = x[i] * inv_rms
    if path != UNWEIGHTED:
        value = value * weight[i]
    if path == LIFTED:
        value = value * LOWER
    return value


cdef void scale_few(float* restrict y, const float* restrict x, const float* restrict weight,
                    float inv_rms, Py_ssize_t n, Path path, bint accumulate) noexcept nogil:
    """Scale n < 16 floats, as one vector under a mask."""
    cdef Py_ssize_t k
    for k in range(16):
        if k < n:
            if accumulate:
                y[k] = y[k] + scaled(x, weight, inv_rms, k, path)
            else:
                y[k] = scaled(x, weight, inv_rms, k, path)


cdef inline void scale_lines(float* restrict y, const float* restrict x,
                             const float* restrict weight, float inv_rms, Py_ssize_t n,
                             const float* ahead, Path path, bint accumulate,
                             bint fetch) noexcept nogil:
    """Scale whole vectors, n % 16 == 0; each line of y is asked for 512 bytes ahead, and the row
    `ahead` if it is to be fetched.
    """
    cdef Py_ssize_t i, k
    for i in range(0, n - 15, 16):
        prefetch_write(y + i + 128)
        if fetch:
            prefetch(ahead + i)
        for k in range(16):
            if accumulate:
                y[i + k] = y[i + k] + scaled(x, weight, inv_rms, i + k, path)
            else:
                y[i + k] = scaled(x, weight, inv_rms, i + k, path)


cdef inline void stream_lines(float* restrict y, const float* restrict x,
                              const float* restrict weight, float inv_rms, Py_ssize_t n,
                              const float* ahead, Path path) noexcept nogil:
    """Scale for a y that outgrows the cache: its lines are not read before they are written, and
    the row `ahead` is fetched meanwhile. y is on a cache line, n % 16 == 0.

    Of np.copyto's speed at 4096 x 4096: 0.78 as scale_lines, 0.99 streamed, 1.33 with the fetch. In
    cache it is half as fast as those, so the door asks for it by size.
    """
    cdef float[16] line
    cdef Py_ssize_t i, k
    for i in range(0, n - 15, 16):
        prefetch(ahead + i)
        for k in range(16):
            line[k] = scaled(x, weight, inv_rms, i + k, path)
        stream(y + i, line)


cdef inline void scale_row(float* y, const float* x, const float* weight, float inv_rms,
                           Py_ssize_t n, const float* ahead, Path path, bint streamed,
                           bint accumulate) noexcept nogil:
    """y = x * inv_rms * weight in float32.

    y (n,) OUT, or IN-OUT to accumulate; x (n,) IN; weight (n,) IN, unless the path is UNWEIGHTED.
    The first floats go alone if that puts y on cache lines: NumPy's large arrays start 16 bytes
    past one, and stores (mostly loads too) that straddle two lines cost 1.2 to 1.5 times in cache.
    """
    cdef Py_ssize_t head = 0, body
    if n >= 256 or streamed:
        head = min(<Py_ssize_t>floats_to_line(y), n)
    body = (n - head) // 16 * 16
    if head:
        scale_few(y, x, weight, inv_rms, head, path, accumulate)
    if streamed:
        stream_lines(y + head, x + head, at(weight, head), inv_rms, body, ahead + head, path)
    elif accumulate:
        scale_lines(y + head, x + head, at(weight, head), inv_rms, body, NULL, path, True, False)
    elif ahead != NULL:
        scale_lines(y + head, x + head, at(weight, head), inv_rms, body, ahead, path, False, True)
    else:
        scale_lines(y + head, x + head, at(weight, head), inv_rms, body, NULL, path, False, False)
    head += body
    if head < n:
        scale_few(y + head, x + head, at(weight, head), inv_rms, n - head, path, accumulate)


cdef void scale_row_wide(float* y, const float* x, const float* weight, double inv_rms,
                         double weight_offset, Py_ssize_t n, bint accumulate) noexcept nogil:
    """scale_row in float64, rounded once: for 1 / rms at float32's edges, and 1 + weight exactly.

    NaN comes out as one bit pattern, whichever operand order the compiler chose.
    """
    cdef Py_ssize_t i
    cdef double value
    cdef float rounded
    for i in range(n):
        value = <double>x[i] * inv_rms
        if weight != NULL:
            value = value * (weight_offset + <double>weight[i])
        rounded = <float>(value if value == value else NAN)
        y[i] = y[i] + rounded if accumulate else rounded


cdef inline void scale_short(float* restrict y, const float* restrict x,
                             const float* restrict weight, const double* restrict inv_rms,
                             Py_ssize_t y_stride, Py_ssize_t x_stride, Py_ssize_t rows,
                             Py_ssize_t n, float lift, Path path, bint accumulate) noexcept nogil:
    """scale_row for a few rows of at least 16 floats, not streamed.

    y (rows, n) OUT, or IN-OUT to accumulate; x (rows, n), weight (n,), inv_rms (rows,) IN. A row's
    last 16 floats are computed first and stored last, over some that are there already: a store
    under a mask, and the next row's beside it, took twice as long as a row of 100 does now. The
    group of rows that follows is fetched meanwhile (0.96 of the time at 400 x 100, in L2).
    """
    cdef float[16] last
    cdef const float* x_row
    cdef float* y_row
    cdef float inv
    cdef Py_ssize_t row, i, k, end = n - 16
    for row in range(rows):
        inv = <float>inv_rms[row] * lift
        y_row = y + row * y_stride
        x_row = x + row * x_stride
        if n & 15:
            for k in range(LANES):
                last[k] = scaled(x_row, weight, inv, end + k, path)
                if accumulate:
                    last[k] = y_row[end + k] + last[k]
        for i in range(0, n - 15, 16):
            prefetch_write(y_row + i + 128)
            prefetch(x_row + 8 * x_stride + i)
            for k in range(LANES):
                if accumulate:
                    y_row[i + k] = y_row[i + k] + scaled(x_row, weight, inv, i + k, path)
                else:
                    y_row[i + k] = scaled(x_row, weight, inv, i + k, path)
        if n & 15:
            for k in range(LANES):
                y_row[end + k] = last[k]


cdef void scale_group(float* restrict y, const float* restrict x, const float* restrict weight,
                      const double* restrict inv_rms, Py_ssize_t y_stride, Py_ssize_t x_stride,
                      Py_ssize_t rows, Py_ssize_t n, Path path, bint accumulate) noexcept nogil:
    """scale_short by one of the paths in float32."""
    if path == LIFTED:
        scale_short(y, x, weight, inv_rms, y_stride, x_stride, rows, n, LIFT, LIFTED, accumulate)
    elif path == UNWEIGHTED:
        scale_short(y, x, weight, inv_rms, y_stride, x_stride, rows, n, 1, UNWEIGHTED, accumulate)
    elif accumulate:
        scale_short(y, x, weight, inv_rms, y_stride, x_stride, rows, n, 1, PLAIN, True)
    else:
        scale_short(y, x, weight, inv_rms, y_stride, x_stride, rows, n, 1, PLAIN, False)
