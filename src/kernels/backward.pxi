# Backward: two phases a row, groups of 8 rows for dweight.
#
# With g = dy * weight and xhat = x * inv_rms, the gradient of y = xhat * weight is
#     dx = inv_rms * (g - xhat * mean(g * xhat)),    dweight = sum over rows of dy * xhat
# (the chain rule through 1 / rms; never 1 / rms**3, which leaves float32 at rms 1e13).
# Phase one takes the sums of a row, phase two writes dx while the row is still in cache.

from libc.math cimport sqrt
from libc.string cimport memset

from kernels.job cimport ACCUMULATE, FETCH, STORE, STREAM, GradientSums, Job, Store
from kernels.simd cimport (
    VEC, WIDE, load, load_wide, narrow, splat, splat_wide, store, store_wide, stream, stream_fence,
    vec, wide, widen,
)
from machine.caches cimport floats_to_line, prefetch, prefetch_write


cdef enum Terms:    # of dweight: dy * x / rms
    DROP            # there is no weight
    ONE_ROW         # dweight is the terms of this row
    GROUP           # add them to those of other rows, times LIFT_DY


cdef void start_batch(Row* rows, const Job* job, Py_ssize_t first, Py_ssize_t count,
                      Py_ssize_t last) noexcept nogil:
    """Phase one of a batch. rows (count,) OUT."""
    cdef RowSums[BATCH] sums
    cdef double[BATCH] squares, inv_rms
    cdef Py_ssize_t r, row, ahead
    sum_batch(sums, job.dy + first * job.dy_stride, job.x + first * job.x_stride, count, job)
    for r in range(BATCH):
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
        rows[r].slope32 = <float>(rows[r].mean * inv_rms[r] * inv_rms[r])
        rows[r].fits_float32 = fits_float32(&rows[r], &sums[r], job)


cdef inline vec gradient(vec* terms, vec dy, vec x, vec factor, vec inv_rms, vec slope,
                         Terms kind) noexcept nogil:
    """Return a vector of dx, and add the terms of dweight."""
    dy = dy * inv_rms
    if kind != DROP:
        terms[0] = terms[0] + dy * x if kind == GROUP else dy * x * splat(LOWER_DY)
        dy = dy * splat(LOWER_DY) * factor
    return dy - x * slope


cdef void gradient_edge(float* terms, const Row* row, Py_ssize_t i, Py_ssize_t end, const Job* job,
                        Terms kind) noexcept nogil:
    """Phase two in float32 for the floats [i, end) before or after whole vectors or lines."""
    cdef vec sum, factor = splat(0), value
    cdef float[VEC] products
    cdef Py_ssize_t count, k
    while i < end:
        count = min(<Py_ssize_t>VEC, end - i)
        sum = splat(0)
        if kind != DROP:
            factor = take_vec(job.factor32 + i, count)
        value = gradient(&sum, take_vec(row.dy + i, count), take_vec(row.x + i, count), factor,
                         splat(row.inv32), splat(row.slope32), kind)
        if job.store == ACCUMULATE:
            value = take_vec(row.dx + i, count) + value
        put_vec(row.dx + i, value, count)
        if kind == ONE_ROW:
            put_vec(terms + i, sum, count)
        elif kind == GROUP:     # one by one: reloading partial stores stalls on store forwarding
            store(products, sum)
            for k in range(count):
                terms[i + k] = terms[i + k] + products[k]
        i += count


cdef inline void gradient_vectors(float* terms, const Row* row, const Row* next, Py_ssize_t i,
                                  Py_ssize_t end, const Job* job, Terms kind, Store mode,
                                  bint pair) noexcept nogil:
    """Phase two in float32 for whole vectors, [i, end) of a row or of a pair of rows.

    A pair shares the loads of terms and weight, and the stores of terms. row.dx (n,) OUT, or IN-OUT
    to ACCUMULATE; terms (n,) OUT, or IN-OUT for a GROUP.
    """
    cdef vec sum = splat(0), factor = splat(0), value
    cdef Row one = row[0], two = next[0]    # copies: no store through a pointer may alias them
    cdef const float* weight = job.factor32
    cdef vec inv_rms = splat(one.inv32), slope = splat(one.slope32)
    cdef vec next_inv_rms = splat(two.inv32), next_slope = splat(two.slope32)
    while i < end:
        if kind != DROP:
            factor = load(weight + i)
        if kind == GROUP:
            sum = load(terms + i)
        value = gradient(&sum, load(one.dy + i), load(one.x + i), factor, inv_rms, slope, kind)
        write(&one, i, value, mode)
        if pair:
            value = gradient(&sum, load(two.dy + i), load(two.x + i), factor, next_inv_rms,
                             next_slope, kind)
            write(&two, i, value, mode)
        if kind != DROP:
            store(terms + i, sum)
        i += VEC


cdef inline void write(const Row* row, Py_ssize_t i, vec value, Store mode) noexcept nogil:
    """Write a vector of dx."""
    if mode == STREAM:
        stream(row.dx + i, value)
        prefetch(row.dy_ahead + i)
        prefetch(row.x_ahead + i)
    elif mode == ACCUMULATE:
        store(row.dx + i, load(row.dx + i) + value)
    else:
        store(row.dx + i, value)
    if mode == FETCH:
        prefetch_write(row.dx + i + DISTANCE)
        prefetch(row.dy + i + DISTANCE)
        prefetch(row.x + i + DISTANCE)


cdef inline void gradient_row(float* terms, const Row* row, const Row* next, const Job* job,
                              Terms kind, Store mode, bint pair) noexcept nogil:
    """Phase two in float32 for a row or a pair; stores to the first are line-aligned."""
    cdef Py_ssize_t n = job.n, i = 0, end, step = LINE if mode == STREAM else VEC
    if n >= 256 or mode == STREAM:
        i = min(<Py_ssize_t>floats_to_line(row.dx), n)
    end = i + (n - i) // step * step
    if i > 0:
        gradient_edge(terms, row, 0, i, job, kind)
        if pair:
            gradient_edge(terms, next, 0, i, job, kind)
    gradient_vectors(terms, row, next, i, end, job, kind, mode, pair)
    if end < n:
        gradient_edge(terms, row, end, n, job, kind)
        if pair:
            gradient_edge(terms, next, end, n, job, kind)


cdef inline void gradient_for_store(float* terms, double* dweight, const Row* rows,
                                    Py_ssize_t count, const Job* job, Terms kind,
                                    Store mode) noexcept nogil:
    """Phase two of a batch: rows that fit float32 in pairs, the others in float64."""
    cdef Py_ssize_t r = 0
    cdef bint pairs = kind == GROUP and (mode != STREAM or job.dx_stride % LINE == 0)
    while r < count:
        if not rows[r].fits_float32:
            gradient_row_wide(dweight, &rows[r], job)
        elif pairs and r + 1 < count and rows[r + 1].fits_float32:
            gradient_row(terms, &rows[r], &rows[r + 1], job, kind, mode, True)
            r += 1
        else:
            gradient_row(terms, &rows[r], &rows[r], job, kind, mode, False)
        r += 1


cdef inline void gradient_for_terms(float* terms, double* dweight, const Row* rows,
                                    Py_ssize_t count, const Job* job, Terms kind) noexcept nogil:
    """Call gradient_for_store, compiled for each mode."""
    if job.store == STREAM:
        gradient_for_store(terms, dweight, rows, count, job, kind, STREAM)
    elif job.store == ACCUMULATE:
        gradient_for_store(terms, dweight, rows, count, job, kind, ACCUMULATE)
    elif job.store == FETCH:
        gradient_for_store(terms, dweight, rows, count, job, kind, FETCH)
    else:
        gradient_for_store(terms, dweight, rows, count, job, kind, STORE)


cdef void gradient_batch(float* terms, double* dweight, const Row* rows, Py_ssize_t count,
                         const Job* job, Terms kind) noexcept nogil:
    """Phase two of a batch, compiled for each use of the terms."""
    if kind == DROP:
        gradient_for_terms(terms, dweight, rows, count, job, DROP)
    elif kind == ONE_ROW:
        gradient_for_terms(terms, dweight, rows, count, job, ONE_ROW)
    else:
        gradient_for_terms(terms, dweight, rows, count, job, GROUP)


cdef inline void gradient_wide(double* dweight, const Row* row, Py_ssize_t i, Py_ssize_t count,
                               wide inv_rms, wide mean, const Job* job) noexcept nogil:
    """Phase two in float64 for at most WIDE elements from i on."""
    cdef wide g = take(row.dy + i, count), xhat = take(row.x + i, count) * inv_rms
    if job.weight != NULL:
        store_wide(dweight + i, load_wide(dweight + i) + g * xhat)
        g = g * factor_at(job, i, count)
    put(row.dx + i, inv_rms * (g - xhat * mean), count, job.store == ACCUMULATE)


cdef void gradient_row_wide(double* dweight, const Row* row, const Job* job) noexcept nogil:
    """Phase two in float64, for rows that do not fit float32 and for split rows.

    dweight (n,) IN-OUT, to the end of its last line, NULL without a weight; row.dx (n,) OUT or
    IN-OUT; row.dy, row.x (n,) IN.
    """
    cdef wide inv_rms = splat_wide(row.inv_rms), mean = splat_wide(row.mean)
    cdef Py_ssize_t i = 0
    while i + WIDE <= job.n:
        gradient_wide(dweight, row, i, WIDE, inv_rms, mean, job)
        i += WIDE
    if i < job.n:
        gradient_wide(dweight, row, i, job.n - i, inv_rms, mean, job)


cdef void join(double* dweight, const float* group, Py_ssize_t n) noexcept nogil:
    """dweight += group * LOWER_DY, both (n,), and the rest of their last line."""
    cdef Py_ssize_t i = 0
    while i < n:
        store_wide(dweight + i,
                   load_wide(dweight + i) + widen(group + i) * splat_wide(LOWER_DY))
        i += WIDE


cdef void backward(const Job* job, Py_ssize_t first, Py_ssize_t last,
                   const GradientSums* sums) noexcept nogil:
    """Backward. job.dx (rows, n) OUT or IN-OUT; job.dy, job.x (rows, n), job.weight (n,) IN.

    Groups of 8 rows are summed in float32, groups in float64. Error of dweight: 3 u a term and 7 u
    for a group's sums, 10 u = 6e-7 of sum |dy * xhat|. A call of at most 8 rows may continue a
    group that an earlier one began, or leave its own open.
    """
    cdef Row[BATCH] rows
    cdef Py_ssize_t group_first, group_last, count
    cdef double* dweight = NULL if sums == NULL else sums.dweight
    cdef float* group = NULL if sums == NULL else sums.group
    if job.squares != NULL:
        split_backward(job, first, last, dweight)
        return
    for group_first in range(first, last, 8):
        group_last = min(group_first + 8, last)
        if group != NULL and sums.begins:
            memset(group, 0, (job.n + LINE - 1) // LINE * LINE * sizeof(float))
        while first < group_last:
            count = min(job.batch, group_last - first)
            start_batch(rows, job, first, count, last)
            gradient_batch(group, dweight, rows, count, job, DROP if group == NULL else GROUP)
            first += count
        if group != NULL and sums.ends:
            join(dweight, group, job.n)
    if job.store == STREAM:
        stream_fence()


cdef bint backward_few(const Job* job, float* dweight) noexcept nogil:
    """Backward of at most 8 rows, with dweight (n,) OUT, or NULL, summed in place in float32.

    Return False, and write nothing, if a row does not fit float32. Float64 sums of dweight, zeroed,
    added to and rounded, would be most of the work beside a single row.
    """
    cdef Row[8] rows
    cdef Py_ssize_t row, i
    start_batch(rows, job, 0, job.rows, job.rows)
    for row in range(job.rows):
        if not rows[row].fits_float32:
            return False
    if dweight == NULL or job.rows == 1:
        gradient_batch(dweight, NULL, rows, job.rows, job, DROP if dweight == NULL else ONE_ROW)
        return True
    memset(dweight, 0, job.n * sizeof(float))
    gradient_batch(dweight, NULL, rows, job.rows, job, GROUP)
    for i in range(job.n):
        dweight[i] = dweight[i] * LOWER_DY
    return True


cdef void row_products(const Job* job, Py_ssize_t first, Py_ssize_t last,
                       const GradientSums* _) noexcept nogil:
    """Sum g * x over rows. job.products (rows,) OUT; job.dy, job.x (rows, n), weight (n,) IN."""
    cdef RowSums sums
    cdef Py_ssize_t row
    for row in range(first, last):
        sum_batch(&sums, job.dy + row * job.dy_stride, job.x + row * job.x_stride, 1, job)
        job.products[row] = sums.products


cdef void split_backward(const Job* job, Py_ssize_t first, Py_ssize_t last,
                         double* dweight) noexcept nogil:
    """Backward of split rows. job.squares, job.products (rows,) IN: sums over job.size floats."""
    cdef Py_ssize_t r
    cdef Row row
    for r in range(first, last):
        row.x, row.dy = job.x + r * job.x_stride, job.dy + r * job.dy_stride
        row.dx = job.dx + r * job.dx_stride
        row.inv_rms = 1.0 / sqrt(job.squares[r] * job.inv_n + job.eps)
        row.mean = job.products[r] * row.inv_rms * job.inv_n
        gradient_row_wide(dweight, &row, job)


cdef void start_backward(Job* job) noexcept nogil:
    """Compute the factor of dy, weight_offset + weight, unless it is the weight itself: in float64
    for phase one, and rounded for phase two.

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
    job.path = choose_path(job.factor32, 0, job.n)


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
