# Forward, phase two: y = x * inv_rms * weight, on the path that the weight needs.

from libc.math cimport INFINITY, fabs

from kernels.job cimport (
    ACCUMULATE, BFLOAT16_FIRST, BY_FLOAT64, FETCH, FLOAT16_FIRST, LIFTED, OFFSET, PLAIN, STORE,
    STREAM, UNWEIGHTED, Job, Path, Store,
)
from kernels.kinds cimport FLOAT16, FLOAT32
from kernels.simd cimport (
    ALL_WIDE, LANES, VEC, WIDE, absolute, between, larger, largest, load, load_wide, root,
    round_bfloat16, round_float16, splat, splat_wide, store_wide, take_vec, vec, wide,
)
from machine.caches cimport floats_to_line, prefetch, prefetch_write

cdef enum:
    LINE = 16       # floats in a cache line
    DISTANCE = 128  # floats from the line in work to the one that is prefetched

# x / rms may be subnormal, for an element far below its row's rms or under a large eps, and a
# weight above 2 would magnify the bits that it lost. So 1 / rms is multiplied by LIFT first and the
# result by LOWER last; both are powers of two, and exact. A weight above 2**44 could overflow
# between them.
cdef float PLAIN_WEIGHT = 2.0
cdef float LIFTED_WEIGHT = 2.0 ** 44
cdef float LIFT = 2.0 ** 63
cdef float LOWER = 2.0 ** -63
# Rows with 1 / rms outside these bounds are computed in float64. Inside, 1 / rms is a normal
# float32, with and without LIFT.
cdef double SMALL_INV = 2.0 ** -126
cdef double LARGE_INV = 2.0 ** 64
cdef double SMALL_SQUARE = 2.0 ** -126      # well within the same bounds for 1 / rms
cdef double LARGE_SQUARE = 2.0 ** 250


cdef float peak(const float* weight, float offset, Py_ssize_t n) noexcept nogil:
    """Return the largest |weight + offset|, NaNs aside. weight (n,) IN."""
    cdef vec[4] most
    cdef vec add = splat(offset)
    cdef Py_ssize_t i = 0, k
    for k in range(4):
        most[k] = splat(0)
    while i + 4 * VEC <= n:
        for k in range(4):
            most[k] = larger(absolute(load(weight + i + VEC * k) + add), most[k])
        i += 4 * VEC
    while i < n:
        most[0] = larger(absolute(take_vec(weight + i, n - i) + add), most[0])
        i += VEC
    return largest(larger(larger(most[0], most[1]), larger(most[2], most[3])))


cdef Path choose_path(const Job* job) noexcept nogil:
    """Choose the path of a whole job. job.weight (n,) IN, or NULL.

    Inf and NaN in a weight are ignored: every path propagates them.
    """
    cdef Py_ssize_t i
    cdef double highest, value
    if job.weight == NULL:
        return UNWEIGHTED
    if job.staged and job.round_kind != FLOAT32:
        return FLOAT16_FIRST if job.round_kind == FLOAT16 else BFLOAT16_FIRST
    if job.offset32 != job.weight_offset or fabs(job.offset32) == INFINITY:
        return BY_FLOAT64
    highest = peak(job.weight, job.offset32, job.n)
    if highest == INFINITY:
        highest = 0
        for i in range(job.n):
            value = fabs(job.weight_offset + job.weight[i])
            if highest < value < INFINITY:
                highest = value
    if highest > LIFTED_WEIGHT:
        return BY_FLOAT64
    if highest > PLAIN_WEIGHT:
        return LIFTED
    return PLAIN if job.weight_offset == 0 else OFFSET


cdef inline bint invert(double* inv_rms, const double* squares, Py_ssize_t rows,
                        const Job* job) noexcept nogil:
    """Compute 1 / rms of a batch; return whether float32 holds it for every row, LIFTED too.

    inv_rms OUT, squares IN (rows,), and the rest of a wide. The test is on rms**2, which is known
    long before 1 / rms.
    """
    cdef wide mean
    cdef Py_ssize_t r = 0
    cdef unsigned within = ALL_WIDE
    while r < rows:
        mean = load_wide(squares + r) * splat_wide(job.inv_n) + splat_wide(job.eps)
        store_wide(inv_rms + r, splat_wide(1) / root(mean))
        within &= between(mean, SMALL_SQUARE, LARGE_SQUARE)
        r += WIDE
    return within == ALL_WIDE


cdef struct Scale:      # the factors of a row
    float inv_rms       # times LIFT if LIFTED
    float offset
    const float* weight


cdef inline void scale_vector(float* y, const float* x, const float* ahead, const Scale* by,
                              Py_ssize_t i, Py_ssize_t count, Path path, Store mode) noexcept nogil:
    """Scale at most VEC elements from i on.

    Error: 1 u for inv_rms, 1 u for weight_offset + weight, 1 u a product; LIFT and LOWER change no
    bits.
    """
    cdef vec value = take_vec(x + i, count) * splat(by.inv_rms), factor
    if path == FLOAT16_FIRST:
        value = round_float16(value)
    elif path == BFLOAT16_FIRST:
        value = round_bfloat16(value)
    if path != UNWEIGHTED:
        factor = take_vec(by.weight + i, count)
        value = value * (factor if path == PLAIN else factor + splat(by.offset))
    if path == LIFTED:
        value = value * splat(LOWER)
    write_vec(y + i, value, count, mode)
    if mode == STREAM:
        prefetch(ahead + i)
    elif mode == FETCH:
        prefetch_write(y + i + DISTANCE)


cdef inline void scale_edge(float* y, const float* x, const Scale* by, Py_ssize_t i, Py_ssize_t end,
                            Path path, bint accumulate) noexcept nogil:
    """Scale the floats [i, end) of a row, before or after its whole vectors or lines."""
    while i < end:
        scale_vector(y, x, x, by, i, min(<Py_ssize_t>VEC, end - i), path,
                     ACCUMULATE if accumulate else STORE)
        i += VEC


cdef inline void scale_row(float* y, const float* x, const Scale* by, Py_ssize_t n,
                           const float* ahead, Path path, Store mode) noexcept nogil:
    """Scale a row. y (n,) OUT, or IN-OUT to ACCUMULATE; x (n,) IN; ahead (n,) is the row that is
    prefetched while this one is streamed.

    Peel the first floats so that stores to y are line-aligned: NumPy's large arrays start 16 bytes
    past a line, and straddling stores take 1.2 to 1.5 times as long (Intel Xeon with AVX-512). Rows
    of 64 gain nothing (Zen 4: 1.1 of the time at 1000 x 64, 0.97 at 1000 x 128).
    """
    cdef Py_ssize_t i = 0, k, end
    if n >= 3 * LANES or mode == STREAM:
        i = min(<Py_ssize_t>floats_to_line(y), n)
        scale_edge(y, x, by, 0, i, path, mode == ACCUMULATE)
    end = i + (n - i) // LINE * LINE if mode == STREAM else n
    while i + LANES <= end:
        for k in range(LANES // VEC):
            scale_vector(y, x, ahead, by, i, VEC, path, mode)
            i += VEC
    while i + VEC <= end:
        scale_vector(y, x, ahead, by, i, VEC, path, mode)
        i += VEC
    scale_edge(y, x, by, i, n, path, mode == ACCUMULATE)


cdef inline void scale_for_store(float* y, const float* x, Py_ssize_t x_stride,
                                 const double* inv_rms, const float* ahead, Py_ssize_t rows,
                                 bint within, const Job* job, Path path,
                                 Store mode) noexcept nogil:
    """Scale the rows of a batch: in float32 if it holds 1 / rms, else in float64."""
    # Locals: stores to y may alias the job.
    cdef Py_ssize_t row, n = job.n, y_stride = job.y_stride, ahead_stride = job.x_stride
    cdef Scale by
    cdef bint rounds
    by.weight, by.offset = job.weight, job.offset32
    for row in range(rows):
        # Streamed rows wait for memory, and gain nothing without the test: 1.06 of the time.
        if (within and mode != STREAM) or SMALL_INV <= inv_rms[row] <= LARGE_INV:
            by.inv_rms = <float>inv_rms[row] * LIFT if path == LIFTED else <float>inv_rms[row]
            scale_row(y, x, &by, n, ahead, path, mode)
        else:
            rounds = path == FLOAT16_FIRST or path == BFLOAT16_FIRST
            scale_in_float64(y, x, inv_rms[row], path != UNWEIGHTED and not rounds, job)
            if rounds:
                by.inv_rms = 1
                scale_row(y, y, &by, n, ahead, path, mode)
        y += y_stride
        x += x_stride
        ahead += ahead_stride


cdef inline void scale_for_path(float* y, const float* x, Py_ssize_t x_stride,
                                const double* inv_rms, const float* ahead, Py_ssize_t rows,
                                bint within, const Job* job, Path path) noexcept nogil:
    """Call scale_for_store, compiled for each mode."""
    if job.store == STORE:
        scale_for_store(y, x, x_stride, inv_rms, ahead, rows, within, job, path, STORE)
    elif job.store == FETCH:
        scale_for_store(y, x, x_stride, inv_rms, ahead, rows, within, job, path, FETCH)
    elif job.store == STREAM:
        scale_for_store(y, x, x_stride, inv_rms, ahead, rows, within, job, path, STREAM)
    else:
        scale_for_store(y, x, x_stride, inv_rms, ahead, rows, within, job, path, ACCUMULATE)


cdef void scale_batch(float* y, const float* x, Py_ssize_t x_stride, const double* inv_rms,
                      const float* ahead, Py_ssize_t rows, bint within,
                      const Job* job) noexcept nogil:
    """y = x / rms * (weight_offset + weight) for the rows of a batch.

    y (rows, n) OUT, or IN-OUT to ACCUMULATE; x (rows, n), inv_rms (rows,) IN; ahead (rows, n) is
    prefetched meanwhile to STREAM.
    """
    cdef Py_ssize_t row
    if job.path == PLAIN:
        scale_for_path(y, x, x_stride, inv_rms, ahead, rows, within, job, PLAIN)
    elif job.path == UNWEIGHTED:
        scale_for_path(y, x, x_stride, inv_rms, ahead, rows, within, job, UNWEIGHTED)
    elif job.path == OFFSET:
        scale_for_path(y, x, x_stride, inv_rms, ahead, rows, within, job, OFFSET)
    elif job.path == LIFTED:
        scale_for_path(y, x, x_stride, inv_rms, ahead, rows, within, job, LIFTED)
    elif job.path == FLOAT16_FIRST:     # staged rows are stored
        scale_for_store(y, x, x_stride, inv_rms, ahead, rows, within, job, FLOAT16_FIRST, STORE)
    elif job.path == BFLOAT16_FIRST:
        scale_for_store(y, x, x_stride, inv_rms, ahead, rows, within, job, BFLOAT16_FIRST, STORE)
    else:
        for row in range(rows):
            scale_in_float64(y + row * job.y_stride, x + row * x_stride, inv_rms[row], True, job)
