# The second pass of forward: y = x * inv_rms * weight, by the path that suits the weight.

# x / rms may be subnormal, for an element far below its row's rms or under a large eps, and a
# weight above 2 would magnify what it lost. There 1 / rms is lifted: multiplied by a power of two
# before the products (LIFT), and the result divided by it after them (LOWER), which is exact. Above
# 2**44 a weight could overflow on the way.
cdef float PLAIN_WEIGHT = 2.0
cdef float LIFTED_WEIGHT = 2.0 ** 44
cdef float LIFT = 2.0 ** 63
cdef float LOWER = 2.0 ** -63
# Rows with 1 / rms outside these bounds go by float64: inside, it is a normal float32, and so it is
# times LIFT.
cdef double SMALL_INV = 2.0 ** -126
cdef double LARGE_INV = 2.0 ** 64
# 1 + weight is 0 or at least 2**-24, and divided by rms a normal float32 where 1 / rms is no
# smaller than this.
cdef double SMALL_INV_OFFSET = 2.0 ** -64


cdef enum Path:
    UNWEIGHTED
    PLAIN       # every |weight| is at most 2
    LIFTED      # at most 2**44: with LIFT and LOWER
    OFFSET      # likewise, and weight_offset is 1, as in every model that has one
    BY_FLOAT64  # larger, or any other weight_offset


cdef enum Way:
    STORE
    FETCH       # and prefetch the lines that are written next
    STREAM      # non-temporal stores, past the cache; and prefetch what is read next
    ACCUMULATE  # add to what is there


cdef inline Way choose_way(const Job* job) noexcept nogil:
    if job.accumulate:
        return ACCUMULATE
    if job.stream:
        return STREAM
    return FETCH if job.fetch else STORE


cdef Path choose_path(const float* weight, double weight_offset, Py_ssize_t n) noexcept nogil:
    """How this weight is to be multiplied, for a whole job. weight (n,) IN, or NULL.

    An Inf or NaN in it has no say: every path passes it on.
    """
    cdef vec[4] most
    cdef Py_ssize_t i = 0, k
    cdef float highest
    if weight == NULL:
        return UNWEIGHTED
    for k in range(4):
        most[k] = splat(0)
    while i + 4 * VEC <= n:
        for k in range(4):
            most[k] = larger(absolute(load(weight + i + VEC * k)), most[k])
        i += 4 * VEC
    while i + VEC <= n:
        most[0] = larger(absolute(load(weight + i)), most[0])
        i += VEC
    if i < n:
        most[0] = larger(absolute(load_part(weight + i, n - i)), most[0])
    highest = largest(larger(larger(most[0], most[1]), larger(most[2], most[3])))
    if highest == INFINITY:
        highest = 0
        for i in range(n):
            if highest < fabs(weight[i]) < INFINITY:
                highest = <float>fabs(weight[i])
    if highest > LIFTED_WEIGHT or weight_offset not in (0, 1):
        return BY_FLOAT64
    if weight_offset == 1:
        return OFFSET
    return PLAIN if highest <= PLAIN_WEIGHT else LIFTED


cdef struct Scale:      # what the elements of a row are multiplied by
    float inv_rms       # times LIFT if LIFTED
    const float* weight


cdef inline vec scaled(vec x, const Scale* by, Py_ssize_t i, Py_ssize_t count,
                       Path path) noexcept nogil:
    """y of at most VEC elements: 1 u for inv_rms, 1 u a product. LIFT and LOWER change no bits.

    With an offset weight / rms + 1 / rms is rounded once, however the sum cancels: 1 u too.
    """
    cdef vec weight, inv_rms = splat(by.inv_rms)
    if path == UNWEIGHTED:
        return x * inv_rms
    weight = take_vec(by.weight + i, count)
    if path == OFFSET:
        return x * multiply_add(weight, inv_rms, inv_rms)
    if path == LIFTED:
        return x * inv_rms * weight * splat(LOWER)
    return x * inv_rms * weight


cdef inline void scale_vec(float* y, const float* x, const float* ahead, const Scale* by,
                           Py_ssize_t i, Py_ssize_t count, Path path, Way way) noexcept nogil:
    """At most VEC elements of scale_row, from i on."""
    cdef vec value = scaled(take_vec(x + i, count), by, i, count, path)
    if way == STREAM:
        stream(y + i, value)
        prefetch(ahead + i)
    elif way == ACCUMULATE:
        put_vec(y + i, take_vec(y + i, count) + value, count)
    else:
        put_vec(y + i, value, count)
    if way == FETCH:
        prefetch_write(y + i + DISTANCE)


cdef inline void scale_few(float* y, const float* x, const Scale* by, Py_ssize_t i, Py_ssize_t end,
                           Path path, bint accumulate) noexcept nogil:
    """scale_row for the floats before and after whole vectors or lines."""
    while i < end:
        scale_vec(y, x, x, by, i, min(<Py_ssize_t>VEC, end - i), path,
                  ACCUMULATE if accumulate else STORE)
        i += VEC


cdef inline void scale_row(float* y, const float* x, const Scale* by, Py_ssize_t n,
                           const float* ahead, Path path, Way way) noexcept nogil:
    """y = x times its factor. y (n,) OUT, or IN-OUT to ACCUMULATE; x, ahead (n,) IN: ahead is the
    row to prefetch while this one is streamed.

    The first floats go alone if that puts y on cache lines: NumPy's large arrays start 16 bytes
    past one, and stores (mostly loads too) that straddle two lines cost 1.2 to 1.5 times in cache,
    on an Intel Xeon with AVX-512.
    """
    cdef Py_ssize_t i = 0, k, end
    if n >= 256 or way == STREAM:
        i = min(<Py_ssize_t>floats_to_line(y), n)
        scale_few(y, x, by, 0, i, path, way == ACCUMULATE)
    end = i + (n - i) // LINE * LINE if way == STREAM else n
    while i + LANES <= end:
        for k in range(LANES // VEC):
            scale_vec(y, x, ahead, by, i, VEC, path, way)
            i += VEC
    while i + VEC <= end:
        scale_vec(y, x, ahead, by, i, VEC, path, way)
        i += VEC
    scale_few(y, x, by, i, n, path, way == ACCUMULATE)


cdef inline void scale_by(float* y, const float* x, Py_ssize_t x_stride, const double* inv_rms,
                          const float* ahead, Py_ssize_t rows, const Job* job, Path path,
                          Way way) noexcept nogil:
    """scale_row for the rows of a pass, those that float32 holds; the others in float64."""
    cdef Py_ssize_t row
    cdef Scale by
    cdef double least = SMALL_INV_OFFSET if path == OFFSET else SMALL_INV
    by.weight = job.weight
    for row in range(rows):
        if least <= inv_rms[row] <= LARGE_INV:
            by.inv_rms = <float>inv_rms[row] * LIFT if path == LIFTED else <float>inv_rms[row]
            scale_row(y, x, &by, job.n, ahead, path, way)
        else:
            scale_wide(y, x, inv_rms[row], job, way == ACCUMULATE)
        y += job.y_stride
        x += x_stride
        ahead += job.x_stride


cdef inline void scale_path(float* y, const float* x, Py_ssize_t x_stride, const double* inv_rms,
                            const float* ahead, Py_ssize_t rows, const Job* job, Path path,
                            Way way) noexcept nogil:
    """scale_by, compiled for each way."""
    if way == STORE:
        scale_by(y, x, x_stride, inv_rms, ahead, rows, job, path, STORE)
    elif way == FETCH:
        scale_by(y, x, x_stride, inv_rms, ahead, rows, job, path, FETCH)
    elif way == STREAM:
        scale_by(y, x, x_stride, inv_rms, ahead, rows, job, path, STREAM)
    else:
        scale_by(y, x, x_stride, inv_rms, ahead, rows, job, path, ACCUMULATE)


cdef void scale_rows(float* y, const float* x, Py_ssize_t x_stride, const double* inv_rms,
                     const float* ahead, Py_ssize_t rows, const Job* job, Path path,
                     Way way) noexcept nogil:
    """y = x / rms * (weight_offset + weight) for the rows of a pass.

    y (rows, n) OUT, or IN-OUT to ACCUMULATE; x (rows, n), inv_rms (rows,) IN; ahead (rows, n) is
    prefetched meanwhile to STREAM.
    """
    cdef Py_ssize_t row
    if path == PLAIN:
        scale_path(y, x, x_stride, inv_rms, ahead, rows, job, PLAIN, way)
    elif path == UNWEIGHTED:
        scale_path(y, x, x_stride, inv_rms, ahead, rows, job, UNWEIGHTED, way)
    elif path == LIFTED:
        scale_path(y, x, x_stride, inv_rms, ahead, rows, job, LIFTED, way)
    elif path == OFFSET:
        scale_path(y, x, x_stride, inv_rms, ahead, rows, job, OFFSET, way)
    else:
        for row in range(rows):
            scale_wide(y + row * job.y_stride, x + row * x_stride, inv_rms[row], job,
                       way == ACCUMULATE)


cdef inline void scale_wide_part(float* y, const float* x, Py_ssize_t i, Py_ssize_t count,
                                 wide inv_rms, const Job* job, bint accumulate) noexcept nogil:
    cdef wide value = take(x + i, count) * inv_rms
    if job.weight != NULL:
        value = value * factor_at(job, i, count)
    put(y + i, value, count, accumulate)


cdef void scale_wide(float* y, const float* x, double inv_rms, const Job* job,
                     bint accumulate) noexcept nogil:
    """scale_row in float64, rounded once. y (n,) OUT, or IN-OUT to accumulate; x (n,) IN."""
    cdef wide inv = splat_wide(inv_rms)
    cdef Py_ssize_t i = 0
    while i + WIDE <= job.n:
        scale_wide_part(y, x, i, WIDE, inv, job, accumulate)
        i += WIDE
    if i < job.n:
        scale_wide_part(y, x, i, job.n - i, inv, job, accumulate)
