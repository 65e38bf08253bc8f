# Backward: two phases a row, groups of 8 rows for dweight.
#
# With g = dy * weight and xhat = x * inv_rms, the gradient of y = xhat * weight is
#     dx = inv_rms * (g - xhat * mean(g * xhat)),    dweight = sum over rows of dy * xhat
# (the chain rule through 1 / rms; never 1 / rms**3, which leaves float32 at rms 1e13).
# Phase one sums over a row, phase two writes dx while the row is still in cache.

from libc.string cimport memset

from kernels.job cimport (
    ACCUMULATE, BY_FLOAT64, FETCH, GROUP, STORE, STREAM, GradientSums, Job, Store,
)
from kernels.simd cimport (
    VEC, WIDE, load_wide, narrow, put_vec, root, splat, splat_wide, store_wide, stream_fence,
    take_vec, vec, wide, widen,
)
from machine.caches cimport floats_to_line, prefetch, prefetch_write


cdef void start_batch(Batch* batch, const Job* job, Py_ssize_t first,
                      Py_ssize_t count) noexcept nogil:
    """Phase one of a batch. batch OUT; its rows past `count` are unused."""
    cdef wide inv_rms, mean, slope, lift = splat_wide(1 if job.weight == NULL else LIFT_DY)
    cdef Py_ssize_t r = 0
    batch.first, batch.count, batch.fits_float32 = first, count, 0
    if job.weight == NULL:
        sum_for_weight(batch, job, False)
    else:
        sum_for_weight(batch, job, True)
    while r < count:
        inv_rms = splat_wide(1) / root(
            load_wide(batch.squares + r) * splat_wide(job.inv_n) + splat_wide(job.eps))
        mean = load_wide(batch.products + r) * inv_rms * splat_wide(job.inv_n)
        slope = mean * inv_rms * inv_rms
        narrow(batch.inv32 + r, inv_rms * lift)
        narrow(batch.slope32 + r, slope)
        batch.fits_float32 |= fits_float32(inv_rms, mean, slope, widen(batch.dy_peak + r)) << r
        r += WIDE
    if job.path == BY_FLOAT64:
        batch.fits_float32 = 0


cdef struct Row:
    const float* dy
    const float* x
    float* dx
    float inv32
    float slope32
    Py_ssize_t dy_ahead     # floats to the row that is prefetched, to STREAM
    Py_ssize_t x_ahead


cdef inline Row row_of(const Batch* batch, Py_ssize_t r, const Job* job) noexcept nogil:
    cdef Row row
    row.dy = job.dy + (batch.first + r) * job.dy_stride
    row.x = job.x + (batch.first + r) * job.x_stride
    row.dx = job.dx + (batch.first + r) * job.dx_stride
    row.inv32, row.slope32 = batch.inv32[r], batch.slope32[r]
    row.dy_ahead, row.x_ahead = job.ahead * job.dy_stride, job.ahead * job.x_stride
    return row


cdef struct Group:          # of 8 rows, whose terms of dweight are added in float32
    const float* weight     # (n,) IN
    float offset
    float* terms            # (n,) IN-OUT, times LIFT_DY; NULL without a weight
    bint begins             # the next row or pair overwrites terms
    bint ends               # the next row or pair stores terms without LIFT_DY
    bint padded             # terms have room for whole vectors: reloading partial ones would stall


cdef inline vec gradient(vec* term, vec dy, vec x, vec factor, vec inv_rms, vec slope,
                         bint weighted) noexcept nogil:
    """Return a vector of dx, and its term of dweight. factor is times LOWER_DY.

    Error of dx, in a row that fits_float32: 15 u = 9.0e-7 of its terms' magnitudes.
    """
    dy = dy * inv_rms
    term[0] = dy * x
    return (dy * factor if weighted else dy) - x * slope


cdef inline void gradient_vector(const Group* group, const Row* rows, Py_ssize_t i,
                                 Py_ssize_t count, Py_ssize_t room, bint weighted, Store mode,
                                 bint pair) noexcept nogil:
    """Phase two in float32 for at most VEC floats from i on, of a row or of a pair of rows.

    A pair shares terms and weight; both its rows are loaded before either is stored, because rows a
    multiple of 4 KiB apart look alike to the store buffer. dx, terms (n,) OUT or IN-OUT.
    """
    cdef vec[2] dy, x
    cdef vec factor = splat(0), sum = splat(0), dx, term
    cdef int k
    if weighted:
        factor = (take_vec(group.weight + i, count) + splat(group.offset)) * splat(LOWER_DY)
        sum = splat(0) if group.begins else take_vec(group.terms + i, room)
    for k in range(1 + pair):
        dy[k], x[k] = take_vec(rows[k].dy + i, count), take_vec(rows[k].x + i, count)
    for k in range(1 + pair):
        dx = gradient(&term, dy[k], x[k], factor, splat(rows[k].inv32), splat(rows[k].slope32),
                      weighted)
        sum = sum + term
        write_vec(rows[k].dx + i, dx, count, mode)
        if mode == STREAM:
            prefetch(rows[k].dy + rows[k].dy_ahead + i)
            prefetch(rows[k].x + rows[k].x_ahead + i)
        elif mode == FETCH:
            prefetch_write(rows[k].dx + i + DISTANCE)
            prefetch(rows[k].dy + i + DISTANCE)
            prefetch(rows[k].x + i + DISTANCE)
    if weighted:
        put_vec(group.terms + i, sum * splat(LOWER_DY) if group.ends else sum, room)


cdef void gradient_edge(const Group* group, const Row* rows, Py_ssize_t i, Py_ssize_t end,
                        bint weighted, bint accumulate, bint pair) noexcept nogil:
    """Phase two in float32 for the floats [i, end) before or after whole vectors or lines."""
    cdef Py_ssize_t count, room
    cdef Store mode = ACCUMULATE if accumulate else STORE
    while i < end:
        count = min(<Py_ssize_t>VEC, end - i)
        room = VEC if group.padded else count
        gradient_vector(group, rows, i, count, room, weighted, mode, pair)
        i += count


cdef inline void gradient_vectors(const Group* group, const Row* rows, Py_ssize_t i, Py_ssize_t end,
                                  bint weighted, Store mode, bint pair) noexcept nogil:
    """Phase two in float32 for whole vectors, [i, end) of a row or of a pair of rows."""
    # Copies: no store through a pointer may alias them.
    cdef Row[2] local
    cdef Group shared = group[0]
    local[0], local[1] = rows[0], rows[1]
    while i < end:
        gradient_vector(&shared, local, i, VEC, VEC, weighted, mode, pair)
        i += VEC


cdef inline void gradient_row(Group* group, const Batch* batch, Py_ssize_t r, const Job* job,
                              bint weighted, Store mode, bint pair) noexcept nogil:
    """Phase two in float32 for a row or a pair; stores to the first are line-aligned."""
    cdef Py_ssize_t n = job.n, i = 0, end, step = LINE if mode == STREAM else VEC
    cdef Row[2] rows
    rows[0], rows[1] = row_of(batch, r, job), row_of(batch, r + pair, job)
    if n >= 256 or mode == STREAM:
        i = min(<Py_ssize_t>floats_to_line(rows[0].dx), n)
    end = i + (n - i) // step * step
    if i > 0:
        gradient_edge(group, rows, 0, i, weighted, mode == ACCUMULATE, pair)
    gradient_vectors(group, rows, i, end, weighted, mode, pair)
    if end < n:
        gradient_edge(group, rows, end, n, weighted, mode == ACCUMULATE, pair)
    group.begins = False


cdef inline void gradient_for_store(Group* group, double* dweight, const Batch* batch,
                                    const Job* job, Store mode, bint last) noexcept nogil:
    """Phase two of a batch: rows that fit float32 in pairs, the others in float64."""
    cdef Py_ssize_t r = 0
    cdef bint pair, pairs = mode != STREAM or job.dx_stride % LINE == 0
    while r < batch.count:
        pair = pairs and r + 1 < batch.count and batch.fits_float32 >> r & 3 == 3
        group.ends = last and r + pair == batch.count - 1
        if not batch.fits_float32 >> r & 1:
            gradient_in_float64(job, batch.first + r, batch.first + r + 1, dweight)
        elif group.terms == NULL and pair:
            gradient_row(group, batch, r, job, False, mode, True)
        elif group.terms == NULL:
            gradient_row(group, batch, r, job, False, mode, False)
        elif pair:
            gradient_row(group, batch, r, job, True, mode, True)
        else:
            gradient_row(group, batch, r, job, True, mode, False)
        r += 1 + pair


cdef void gradient_batch(Group* group, double* dweight, const Batch* batch, const Job* job,
                         bint last) noexcept nogil:
    """Phase two of a batch. last: it ends the group, and all its rows fit float32."""
    group.weight, group.offset = job.weight, job.offset32
    if job.store == STREAM:
        gradient_for_store(group, dweight, batch, job, STREAM, last)
    elif job.store == ACCUMULATE:
        gradient_for_store(group, dweight, batch, job, ACCUMULATE, last)
    elif job.store == FETCH:
        gradient_for_store(group, dweight, batch, job, FETCH, last)
    else:
        gradient_for_store(group, dweight, batch, job, STORE, last)


cdef void join(double* dweight, const float* group, Py_ssize_t n) noexcept nogil:
    """dweight += group * LOWER_DY, both (n,), and the rest of their last line."""
    cdef Py_ssize_t i = 0
    cdef int k
    while i < n:
        for k in range(LINE // WIDE):   # a line at a time: 0.96 of backward's time (Zen 3)
            store_wide(dweight + i,
                       load_wide(dweight + i) + widen(group + i) * splat_wide(LOWER_DY))
            i += WIDE


cdef void backward(const Job* job, Py_ssize_t first, Py_ssize_t last,
                   const GradientSums* sums) noexcept nogil:
    """Backward. job.dx (rows, n) OUT or IN-OUT; job.dy, job.x (rows, n), job.weight (n,) IN.

    Groups of 8 rows are summed in float32, groups in float64. Error of dweight: 5 u a term and 7 u
    for a group's sums, 12 u = 7.2e-7 of sum |dy * xhat|. A call of at most 8 rows may continue a
    group that an earlier one began, or leave its own open. Without dx: job.products (rows,) OUT.
    """
    cdef Batch batch
    cdef Group group
    cdef Py_ssize_t group_last
    cdef double* dweight = NULL if sums == NULL else sums.dweight
    group.terms = NULL if sums == NULL else sums.group
    group.begins = sums == NULL or sums.begins
    group.padded = job.n < 256 and job.store != STREAM      # whose vectors begin anywhere in a row
    if job.squares != NULL or job.dx == NULL:
        gradient_in_float64(job, first, last, dweight)
        return
    memset(&batch, 0, sizeof(batch))
    while first < last:
        group_last = min(first + GROUP, last)
        while first < group_last:
            start_batch(&batch, job, first, min(job.batch, group_last - first))
            gradient_batch(&group, dweight, &batch, job, False)
            first += batch.count
        if group.terms != NULL and sums.ends and not group.begins:
            join(dweight, group.terms, job.n)
            group.begins = True
    if group.terms != NULL and group.begins and not sums.ends:  # every row went by float64
        memset(group.terms, 0, (job.n + LINE - 1) // LINE * LINE * sizeof(float))
    if job.store == STREAM:
        stream_fence()


cdef bint backward_few(const Job* job, void* dweight) noexcept nogil:
    """Backward of at most 8 rows, dweight (n,) OUT, or NULL, summed in place in float32: float64
    would be most of the work. Return False, and write nothing, if a row does not fit."""
    cdef Batch batch
    cdef Group group
    cdef unsigned every = (1 << job.rows) - 1
    memset(&batch, 0, sizeof(batch))
    start_batch(&batch, job, 0, job.rows)
    if batch.fits_float32 & every != every:
        return False
    group.terms, group.begins, group.padded = <float*>dweight, True, False
    gradient_batch(&group, NULL, &batch, job, True)
    if job.store == STREAM:
        stream_fence()
    return True


cdef void add_block(double* dweight, const double* block, Py_ssize_t n) noexcept nogil:
    """dweight += block, both (n,), and the rest of their last line."""
    cdef Py_ssize_t i = 0
    while i < n:
        store_wide(dweight + i, load_wide(dweight + i) + load_wide(block + i))
        i += WIDE


cdef void store_dweight(void* out, const double* dweight, Py_ssize_t n,
                        bint accumulate) noexcept nogil:
    """out = dweight, or out += dweight, rounded to float32. out (n,) OUT or IN-OUT."""
    cdef Py_ssize_t i = 0
    while i < n:
        put(<float*>out + i, load_wide(dweight + i), min(<Py_ssize_t>WIDE, n - i), accumulate)
        i += WIDE


cdef void store_dweight_64(void* out, const double* dweight, Py_ssize_t n,
                           bint accumulate) noexcept nogil:
    """out = dweight, or out += dweight. out (n,) OUT or IN-OUT."""
    cdef Py_ssize_t i
    for i in range(n):
        (<double*>out)[i] = (<double*>out)[i] + dweight[i] if accumulate else dweight[i]
