# Backward: two phases a row, groups of 8 rows for dweight.
#
# With g = dy * weight and xhat = x * inv_rms, the gradient of y = xhat * weight is
#     dx = inv_rms * (g - xhat * mean(g * xhat)),    dweight = sum over rows of dy * xhat
# (the chain rule through 1 / rms; never 1 / rms**3, which leaves float32 at rms 1e13).
# Phase one takes the sums of a row, phase two writes dx while the row is still in cache.

# dx = dy / rms * weight - x * slope, with slope = mean / rms**2. In float32 dy / rms is
# multiplied by LIFT_DY, a power of two, so that dy / rms * x, a term of dweight, keeps all its bits
# however small one of them is; what comes of it is multiplied by LOWER_DY.
cdef float LIFT_DY = 2.0 ** 40
cdef float LOWER_DY = 2.0 ** -40


cdef enum Terms:
    DROP        # there is no weight
    ONLY        # this row is all of dweight
    GROUP       # they join those of other rows, times LIFT_DY


cdef void start_rows(Row* rows, const Job* job, Py_ssize_t first, Py_ssize_t count,
                     Py_ssize_t last) noexcept nogil:
    """Phase one for the rows of a pass. rows (count,) OUT."""
    cdef RowSums[PASS] sums
    cdef double[PASS] squares, inv_rms
    cdef Py_ssize_t r, row, ahead
    sum_rows(sums, job.dy + first * job.dy_stride, job.x + first * job.x_stride, count, job)
    for r in range(PASS):
        squares[r] = sums[r].squares if r < count else 0
    invert(inv_rms, squares, job)
    for r in range(count):
        row = first + r
        ahead = min(row + job.ahead, last - 1)
        rows[r].x = job.x + row * job.x_stride
        rows[r].dy = job.dy + row * job.dy_stride
        rows[r].dx = job.dx + row * job.dx_stride
        rows[r].x_ahead = job.x + ahead * job.x_stride
        rows[r].dy_ahead = job.dy + ahead * job.dy_stride
        rows[r].inv_rms = inv_rms[r]
        rows[r].mean = sums[r].products * inv_rms[r] * job.inv_n
        rows[r].inv32 = <float>inv_rms[r] if job.weight == NULL else <float>inv_rms[r] * LIFT_DY
        rows[r].slope = <float>(rows[r].mean * inv_rms[r] * inv_rms[r])
        rows[r].tame = is_tame(&rows[r], &sums[r], job)


cdef inline vec gradient(vec* terms, vec dy, vec x, vec factor, vec inv_rms, vec slope,
                         Terms kind) noexcept nogil:
    """dx in float32, and the terms of dweight."""
    dy = dy * inv_rms
    if kind != DROP:
        terms[0] = terms[0] + dy * x if kind == GROUP else dy * x * splat(LOWER_DY)
        dy = dy * splat(LOWER_DY) * factor
    return dy - x * slope


cdef void gradient_few(float* terms, const Row* row, Py_ssize_t i, Py_ssize_t last, const Job* job,
                       Terms kind) noexcept nogil:
    """Phase two in float32 for the floats [i, last) before and after whole vectors or lines."""
    cdef vec sum, factor = splat(0), value
    cdef float[VEC] products
    cdef Py_ssize_t count, k
    while i < last:
        count = min(<Py_ssize_t>VEC, last - i)
        sum = splat(0)
        if kind != DROP:
            factor = take_vec(job.factor32 + i, count)
        value = gradient(&sum, take_vec(row.dy + i, count), take_vec(row.x + i, count), factor,
                         splat(row.inv32), splat(row.slope), kind)
        if job.accumulate:
            value = take_vec(row.dx + i, count) + value
        put_vec(row.dx + i, value, count)
        if kind == ONLY:
            put_vec(terms + i, sum, count)
        elif kind == GROUP:     # one by one: a vector load of what was stored in parts waits for it
            store(products, sum)
            for k in range(count):
                terms[i + k] = terms[i + k] + products[k]
        i += count


cdef inline void gradient_lines(float* terms, const Row* row, const Row* next, Py_ssize_t i,
                                Py_ssize_t end, const Job* job, Terms kind, Way way,
                                bint pair) noexcept nogil:
    """Phase two in float32 for whole vectors, [i, end) of one row, or of a pair of rows: those
    share what is read of terms and weight, and written of terms.

    row.dx (n,) OUT, or IN-OUT to ACCUMULATE; terms (n,) OUT, or IN-OUT for a GROUP.
    """
    cdef vec sum = splat(0), factor = splat(0), value
    cdef Row one = row[0], two = next[0]    # copies, which no store through a pointer may change
    cdef const float* weight = job.factor32
    cdef vec inv_rms = splat(one.inv32), slope = splat(one.slope)
    cdef vec next_inv_rms = splat(two.inv32), next_slope = splat(two.slope)
    while i < end:
        if kind != DROP:
            factor = load(weight + i)
        if kind == GROUP:
            sum = load(terms + i)
        value = gradient(&sum, load(one.dy + i), load(one.x + i), factor, inv_rms, slope, kind)
        write(&one, i, value, way)
        if pair:
            value = gradient(&sum, load(two.dy + i), load(two.x + i), factor, next_inv_rms,
                             next_slope, kind)
            write(&two, i, value, way)
        if kind != DROP:
            store(terms + i, sum)
        i += VEC


cdef inline void write(const Row* row, Py_ssize_t i, vec value, Way way) noexcept nogil:
    if way == STREAM:
        stream(row.dx + i, value)
        prefetch(row.dy_ahead + i)
        prefetch(row.x_ahead + i)
    elif way == ACCUMULATE:
        store(row.dx + i, load(row.dx + i) + value)
    else:
        store(row.dx + i, value)
    if way == FETCH:
        prefetch_write(row.dx + i + DISTANCE)
        prefetch(row.dy + i + DISTANCE)
        prefetch(row.x + i + DISTANCE)


cdef inline void gradient_row(float* terms, const Row* row, const Row* next, const Job* job,
                              Terms kind, Way way, bint pair) noexcept nogil:
    """Phase two in float32 for a row or a pair, the first on cache lines as scale_row."""
    cdef Py_ssize_t n = job.n, i = 0, end, step = LINE if way == STREAM else VEC
    if n >= 256 or way == STREAM:
        i = min(<Py_ssize_t>floats_to_line(row.dx), n)
    end = i + (n - i) // step * step
    if i > 0:
        gradient_few(terms, row, 0, i, job, kind)
        if pair:
            gradient_few(terms, next, 0, i, job, kind)
    gradient_lines(terms, row, next, i, end, job, kind, way, pair)
    if end < n:
        gradient_few(terms, row, end, n, job, kind)
        if pair:
            gradient_few(terms, next, end, n, job, kind)


cdef inline void gradient_by(float* terms, double* dweight, const Row* rows, Py_ssize_t count,
                             const Job* job, Terms kind, Way way) noexcept nogil:
    """Phase two for the rows of a pass: those that float32 holds, in pairs, and the others."""
    cdef Py_ssize_t r = 0
    cdef bint pairs = kind == GROUP and (way != STREAM or job.dx_stride % LINE == 0)
    while r < count:
        if not rows[r].tame:
            gradient_wide(dweight, rows[r].dx, rows[r].dy, rows[r].x, rows[r].inv_rms,
                          rows[r].mean, job)
        elif pairs and r + 1 < count and rows[r + 1].tame:
            gradient_row(terms, &rows[r], &rows[r + 1], job, kind, way, True)
            r += 1
        else:
            gradient_row(terms, &rows[r], &rows[r], job, kind, way, False)
        r += 1


cdef inline void gradient_kind(float* terms, double* dweight, const Row* rows, Py_ssize_t count,
                               const Job* job, Terms kind) noexcept nogil:
    """gradient_by, compiled for each way."""
    cdef Way way = choose_way(job)
    if way == STREAM:
        gradient_by(terms, dweight, rows, count, job, kind, STREAM)
    elif way == ACCUMULATE:
        gradient_by(terms, dweight, rows, count, job, kind, ACCUMULATE)
    elif way == FETCH:
        gradient_by(terms, dweight, rows, count, job, kind, FETCH)
    else:
        gradient_by(terms, dweight, rows, count, job, kind, STORE)


cdef void gradient_rows(float* terms, double* dweight, const Row* rows, Py_ssize_t count,
                        const Job* job, Terms kind) noexcept nogil:
    if kind == DROP:
        gradient_kind(terms, dweight, rows, count, job, DROP)
    elif kind == ONLY:
        gradient_kind(terms, dweight, rows, count, job, ONLY)
    else:
        gradient_kind(terms, dweight, rows, count, job, GROUP)


cdef inline void gradient_wide_part(double* dweight, float* dx, const float* dy, const float* x,
                                    Py_ssize_t i, Py_ssize_t count, wide inv_rms, wide mean,
                                    const Job* job) noexcept nogil:
    cdef wide g = take(dy + i, count), xhat = take(x + i, count) * inv_rms
    if job.weight != NULL:
        store_wide(dweight + i, load_wide(dweight + i) + g * xhat)
        g = g * factor_at(job, i, count)
    put(dx + i, inv_rms * (g - xhat * mean), count, job.accumulate)


cdef void gradient_wide(double* dweight, float* dx, const float* dy, const float* x,
                        double inv_rms, double mean, const Job* job) noexcept nogil:
    """Phase two in float64, for rows that float32 cannot hold or would cancel in, and split ones.

    dweight (n,) IN-OUT, to the end of its last line, NULL without a weight; dx (n,) OUT or IN-OUT;
    dy, x (n,) IN.
    """
    cdef wide inv = splat_wide(inv_rms), m = splat_wide(mean)
    cdef Py_ssize_t i = 0
    while i + WIDE <= job.n:
        gradient_wide_part(dweight, dx, dy, x, i, WIDE, inv, m, job)
        i += WIDE
    if i < job.n:
        gradient_wide_part(dweight, dx, dy, x, i, job.n - i, inv, m, job)


cdef void join(double* dweight, const float* group, Py_ssize_t n) noexcept nogil:
    """dweight += group * LOWER_DY, both (n,), and the rest of their last line."""
    cdef Py_ssize_t i = 0
    while i < n:
        store_wide(dweight + i,
                   load_wide(dweight + i) + widen(group + i) * splat_wide(LOWER_DY))
        i += WIDE


cdef void backward(const Job* job, Py_ssize_t first, Py_ssize_t last, double* dweight,
                   float* group, bint begins, bint ends) noexcept nogil:
    """Backward. job.dx (rows, n) OUT or IN-OUT; job.dy, job.x (rows, n), job.weight (n,) IN.

    dweight (n,) IN-OUT, group (n,) IN-OUT, both to the end of their last line and NULL without a
    weight: groups of 8 rows are summed in float32, groups in float64. Error: 3 u a term and 7 u for
    a group's sums, 10 u = 6e-7 of sum |dy * xhat|. A call of 8 rows at most may go on with a group
    that an earlier one began, or leave its own to the next.
    """
    cdef Row[PASS] rows
    cdef Py_ssize_t start, count
    if job.squares != NULL:
        scale_backward(job, first, last, dweight)
        return
    for start in range(first, last, 8):
        if group != NULL and begins:
            memset(group, 0, (job.n + LINE - 1) // LINE * LINE * sizeof(float))
        while first < min(start + 8, last):
            count = min(job.pass_rows, min(start + 8, last) - first)
            start_rows(rows, job, first, count, last)
            gradient_rows(group, dweight, rows, count, job, DROP if group == NULL else GROUP)
            first += count
        if group != NULL and ends:
            join(dweight, group, job.n)
    if job.stream:
        stream_fence()


cdef bint backward_few(const Job* job, Py_ssize_t count, float* out) noexcept nogil:
    """backward for 8 rows at most, dweight straight into out (n,) OUT, if float32 will do for
    all of them (tame).

    Else nothing is written, and False comes back. In float64, dweight would be n doubles that are
    zeroed, added to and rounded: beside a single row, the larger part of the work.
    """
    cdef Row[8] rows
    cdef Py_ssize_t row, i
    start_rows(rows, job, 0, count, count)
    for row in range(count):
        if not rows[row].tame:
            return False
    if out == NULL or count == 1:
        gradient_rows(out, NULL, rows, count, job, DROP if out == NULL else ONLY)
        return True
    memset(out, 0, job.n * sizeof(float))
    gradient_rows(out, NULL, rows, count, job, GROUP)
    for i in range(job.n):
        out[i] = out[i] * LOWER_DY
    return True


cdef void row_products(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """job.products (rows,) OUT; job.dy, job.x (rows, n), job.weight (n,) IN."""
    cdef RowSums sums
    cdef Py_ssize_t row
    for row in range(first, last):
        sum_rows(&sums, job.dy + row * job.dy_stride, job.x + row * job.x_stride, 1, job)
        job.products[row] = sums.products


cdef void scale_backward(const Job* job, Py_ssize_t first, Py_ssize_t last,
                         double* dweight) noexcept nogil:
    """backward from both sums over job.size floats, job.squares and job.products (rows,) IN."""
    cdef Py_ssize_t row
    cdef double inv_rms
    for row in range(first, last):
        inv_rms = 1.0 / sqrt(job.squares[row] * job.inv_n + job.eps)
        gradient_wide(dweight, job.dx + row * job.dx_stride, job.dy + row * job.dy_stride,
                      job.x + row * job.x_stride, inv_rms,
                      job.products[row] * inv_rms * job.inv_n, job)


cdef void start_backward(Job* job) noexcept nogil:
    """What dy is multiplied by, weight_offset + weight, in float64 for phase one and rounded for
    phase two: where they are not the weight itself.

    job.factor, job.factor32 (n,) OUT; job.weight (n,) IN.
    """
    cdef wide value
    cdef Py_ssize_t i = 0
    while i < job.n and (job.factor != NULL or job.factor32 != job.weight):
        value = factor_at(job, i, job.n - i)
        if job.factor != NULL:
            store_wide(job.factor + i, value)
        if job.factor32 != job.weight:
            narrow(job.factor32 + i, value)
        i += WIDE
    job.by_float64 = choose_path(job.factor32, 0, job.n) == BY_FLOAT64


cdef void add_block(double* dweight, const double* block, Py_ssize_t n) noexcept nogil:
    """dweight += block, both (n,), and the rest of their last line."""
    cdef Py_ssize_t i = 0
    while i < n:
        store_wide(dweight + i, load_wide(dweight + i) + load_wide(block + i))
        i += WIDE


cdef void store_dweight(float* out, const double* dweight, Py_ssize_t n,
                        bint accumulate) noexcept nogil:
    """out = dweight, or out += dweight, rounded to float32. out (n,) OUT or IN-OUT."""
    cdef Py_ssize_t i = 0
    while i < n:
        put(out + i, load_wide(dweight + i), min(<Py_ssize_t>WIDE, n - i), accumulate)
        i += WIDE
