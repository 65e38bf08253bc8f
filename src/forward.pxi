# Forward, add + forward, and add: a sum of squares, then one pass that scales the row in cache.
# Which path a row takes depends on its own values, weight and eps, never on the rows beside it.

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


cdef inline int larger(int highest, float value) noexcept nogil:
    """The larger of two sizes, as bits; an Inf or a NaN is the largest."""
    cdef int bits = float_bits(value) & 0x7fffffff
    return bits if bits > highest else highest


cdef Path choose_path(const float* restrict weight, double weight_offset,
                      Py_ssize_t n) noexcept nogil:
    """How this weight is to be multiplied, for a whole job. weight (n,) IN, or NULL.

    An Inf or NaN in it has no say: every path passes it on.
    """
    cdef int[64] peak       # four vectors, or a maximum waits for the one before it
    cdef int highest = 0, infinity = 0x7f800000
    cdef Py_ssize_t i, k
    if weight == NULL:
        return UNWEIGHTED
    if weight_offset != 0:
        return WIDE
    memset(peak, 0, sizeof(peak))
    for i in range(0, n - 63, 64):
        for k in range(64):
            peak[k] = larger(peak[k], weight[i + k])
    for i in range(n - n % 64, n):
        highest = larger(highest, weight[i])
    for k in range(64):
        highest = peak[k] if peak[k] > highest else highest
    if highest >= infinity:
        highest = 0
        for i in range(n):
            if larger(0, weight[i]) < infinity:
                highest = larger(highest, weight[i])
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
                             Path path, bint accumulate) noexcept nogil:
    """Scale whole vectors, n % 16 == 0; each line of y is asked for 512 bytes ahead."""
    cdef Py_ssize_t i, k
    for i in range(0, n - 15, 16):
        prefetch_write(y + i + 128)
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
        scale_lines(y + head, x + head, at(weight, head), inv_rms, body, path, True)
    else:
        scale_lines(y + head, x + head, at(weight, head), inv_rms, body, path, False)
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
    under a mask, and the next row's beside it, took twice as long as a row of 100 does now.
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


cdef inline void norm_row(float* y, const float* x, const double* lanes, const float* ahead,
                          const Job* job, Path path, bint accumulate) noexcept nogil:
    """y = x / rms * (weight_offset + weight), by whichever path is right for this row.

    y (n,) OUT, or IN-OUT to accumulate; x (n,), lanes (16,) IN; ahead (n,) is a row that will be
    read soon, NULL if the job does not stream.
    """
    cdef double squares = sum_squares(lanes, x, job.n, job.inv_n)
    cdef double inv_rms = 1.0 / sqrt(squares * job.inv_n + job.eps)
    if path == WIDE or not SMALL_INV <= inv_rms <= LARGE_INV:
        scale_row_wide(y, x, job.weight, inv_rms, job.weight_offset, job.n, accumulate)
    elif path == LIFTED:
        scale_row(y, x, job.weight, <float>inv_rms * LIFT, job.n, ahead, LIFTED, job.stream,
                  accumulate)
    elif path == PLAIN:
        scale_row(y, x, job.weight, <float>inv_rms, job.n, ahead, PLAIN, job.stream, accumulate)
    else:
        scale_row(y, x, job.weight, <float>inv_rms, job.n, ahead, UNWEIGHTED, job.stream,
                  accumulate)


cdef void norm_rows(float* y, const float* x, Py_ssize_t x_stride, const double* lanes,
                    Py_ssize_t rows, const Job* job, Path path, bint accumulate) noexcept nogil:
    """norm_row for a group of short rows: at once, unless one of them is not fit for float32.

    y (rows, n) OUT, or IN-OUT to accumulate; x (rows, n), lanes (8, 16) IN.
    """
    cdef double[8] inv_rms
    cdef Py_ssize_t row
    if path != WIDE and invert_group(inv_rms, lanes, job.n, job.inv_n, job.eps):
        scale_group(y, x, job.weight, inv_rms, job.y_stride, x_stride, rows, job.n, path,
                    accumulate)
        return
    for row in range(rows):
        norm_row(y + row * job.y_stride, x + row * x_stride, lanes + row * LANES, NULL, job, path,
                 accumulate)


cdef inline bint in_groups(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Whether the rows are short enough to go 8 at a time, so that one's root and division run
    while others are summed: a row of 64 floats took 1.3 times as long alone, one of 512 as long.
    """
    return 16 <= job.n <= 256 and last - first > 1


cdef void rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Forward. job.y (rows, n) OUT or IN-OUT; job.x (rows, n), job.weight (n,) IN."""
    cdef Py_ssize_t row, count = 1, distance = 1 + 1024 // job.n
    cdef double[135] space
    cdef double* lanes = on_line(space)
    cdef const float* x
    cdef const float* ahead = NULL
    cdef Path path = choose_path(job.weight, job.weight_offset, job.n)
    if in_groups(job, first, last):
        memset(space, 0, sizeof(space))
        for row in range(first, last, 8):
            count = min(<Py_ssize_t>GROUP, last - row)
            x = job.x + row * job.x_stride
            add_squares(lanes, x, job.x_stride, count, job.n, True)
            norm_rows(job.y + row * job.y_stride, x, job.x_stride, lanes, count, job, path,
                      job.accumulate)
        return
    for row in range(first, last):
        x = job.x + row * job.x_stride
        add_squares(lanes, x, 0, 1, job.n, True)
        if job.stream:      # the row to fetch: at least 4 KB further
            ahead = job.x + min(row + distance, last - 1) * job.x_stride
        norm_row(job.y + row * job.y_stride, x, lanes, ahead, job, path, job.accumulate)
    if job.stream:
        stream_fence()


cdef void add_rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Add, then forward. job.residual IN-OUT, job.y OUT, job.x IN (rows, n); job.weight (n,) IN.

    y may be x: the rows of x are spent before those of y are written. A long row is added and
    summed chunk by chunk, in L1.
    """
    cdef Py_ssize_t row, count, i, width, distance = 1 + 1024 // job.n
    cdef double[135] space
    cdef double* lanes = on_line(space)
    cdef const float* x
    cdef float* residual
    cdef const float* ahead = NULL
    cdef Path path = choose_path(job.weight, job.weight_offset, job.n)
    if in_groups(job, first, last):
        memset(space, 0, sizeof(space))
        for row in range(first, last, 8):
            count = min(<Py_ssize_t>GROUP, last - row)
            residual = job.residual + row * job.residual_stride
            add_short(residual, job.x + row * job.x_stride, job.residual_stride, job.x_stride,
                      count, job.n)
            add_squares(lanes, residual, job.residual_stride, count, job.n, True)
            norm_rows(job.y + row * job.y_stride, residual, job.residual_stride, lanes, count,
                      job, path, False)
        return
    for row in range(first, last):
        x = job.x + row * job.x_stride
        residual = job.residual + row * job.residual_stride
        for i in range(0, job.n, 1024):
            width = min(<Py_ssize_t>1024, job.n - i)
            add_row(residual + i, x + i, 1.0, width)
            add_squares(lanes, residual + i, 0, 1, width, i == 0)
        if job.stream:
            ahead = job.x + min(row + distance, last - 1) * job.x_stride
        norm_row(job.y + row * job.y_stride, residual, lanes, ahead, job, path, False)
    if job.stream:
        stream_fence()


cdef void add_short(float* restrict residual, const float* restrict x, Py_ssize_t residual_stride,
                    Py_ssize_t x_stride, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    """residual += x for a few rows of at least 16 floats, the last 16 as in scale_short.

    residual (rows, n) IN-OUT; x (rows, n) IN.
    """
    cdef float[16] last
    cdef float* r_row
    cdef const float* x_row
    cdef Py_ssize_t row, i, k, end = n - 16
    for row in range(rows):
        r_row = residual + row * residual_stride
        x_row = x + row * x_stride
        if n & 15:
            for k in range(LANES):
                last[k] = r_row[end + k] + x_row[end + k]
        for i in range(0, n - 15, 16):
            for k in range(LANES):
                r_row[i + k] = r_row[i + k] + x_row[i + k]
        if n & 15:
            for k in range(LANES):
                r_row[end + k] = last[k]


cdef void add_few(float* restrict residual, const float* restrict x,
                  Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(16):
        if k < n:
            residual[k] = residual[k] + x[k]


cdef inline void add_lines(float* restrict residual, const float* restrict x,
                           Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n // 16 * 16):
        residual[i] = residual[i] + x[i]


cdef inline void add_scaled(float* restrict residual, const float* restrict x, double factor,
                            Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        residual[i] = <float>(<double>residual[i] + factor * <double>x[i])


cdef inline void add_row(float* residual, const float* x, double factor,
                         Py_ssize_t n) noexcept nogil:
    """residual += factor * x: NumPy's own addition for factor 1, else in float64, rounded once.

    residual (n,) IN-OUT; x (n,) IN. On cache lines, as scale_row.
    """
    cdef Py_ssize_t head = min(<Py_ssize_t>floats_to_line(residual), n) if n >= 256 else 0
    if factor != 1.0:
        add_scaled(residual, x, factor, n)
        return
    if head:
        add_few(residual, x, head)
    add_lines(residual + head, x + head, n - head)
    head += (n - head) // 16 * 16
    if head < n:
        add_few(residual + head, x + head, n - head)


cdef void residual_add(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """residual += scale * x. job.residual (rows, n) IN-OUT; job.x (rows, n) IN."""
    cdef Py_ssize_t row
    for row in range(first, last):
        add_row(job.residual + row * job.residual_stride, job.x + row * job.x_stride,
                job.scale, job.n)
