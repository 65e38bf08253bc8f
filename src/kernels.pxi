# The kernels: forward, add + forward, backward and add over rows of float32, in typed Cython.
# Each instruction set compiles this one source. It sees pointers and sizes, never an object, and
# refuses to let the compiler choose an order of summation: lanes and trees stand here as code, so
# every build gives the same bits (no -ffast-math, -ffp-contract=off).
#
# u = 2**-24 is float32's rounding unit. `restrict` promises no *partial* overlap: an output may
# be its own input, since every element is loaded before the same element is stored.

from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport INFINITY, NAN, sqrt
from libc.string cimport memcpy, memset

from kernels cimport Job, Table

cdef extern from "machine.h" nogil:
    const char* FLAGS "FASTRMS_FLAGS"
    int float_bits(float value)
    float bits_float(int bits)
    void prefetch(const float* address)
    void stream(float* line, const float* values)
    void stream_fence()
    long floats_to_line(const float* address)

cdef enum:
    LANES = 16     # one AVX-512 vector, two of AVX, four of SSE or NEON

# Below this mean square a float32 sum of squares may have lost bits to underflow: each square is
# off by at most 2**-150, so at 2**-100 the mean is still right to 2**-50.
cdef double TRUSTED = 2.0 ** -100
# Below this sum of squares x / rms may be subnormal under a large eps: a weight would then scale up
# the bits that it lost.
cdef double FAINT = 2.0 ** -180
# 1 / rms outside these bounds, or a gradient's squares outside theirs, are scaled in float64: inside,
# no product of the float32 path can overflow or lose bits that count.
cdef double SMALL_INV = 2.0 ** -40
cdef double LARGE_INV = 2.0 ** 40
cdef double SMALL_SQUARE = 2.0 ** -100
cdef double LARGE_SQUARE = 2.0 ** 100


# ---- sums -------------------------------------------------------------------------------------

cdef inline float tree(const float* a, const float* b) noexcept nogil:
    """The sum of 8 products in float32, 16 floats apart: one lane of a block of 128.

    Error: 4 u of the sum of |a * b| (one product, three sums).
    """
    return (((a[0] * b[0] + a[64] * b[64]) + (a[32] * b[32] + a[96] * b[96]))
            + ((a[16] * b[16] + a[80] * b[80]) + (a[48] * b[48] + a[112] * b[112])))


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
    for k in range(n - i):
        lane[k] += <double>a[i + k] * <double>b[i + k]


cdef inline double fold(double* lane) noexcept nogil:
    """Add up 16 lanes as a fixed tree."""
    cdef Py_ssize_t k
    for k in range(8):
        lane[k] += lane[k + 8]
    for k in range(4):
        lane[k] += lane[k + 4]
    return (lane[0] + lane[2]) + (lane[1] + lane[3])


cdef inline double fold_spread(double* lane, Py_ssize_t n) noexcept nogil:
    """fold, or INFINITY where one lane holds over a quarter of the sum: then an outlier's own
    roundings decide the error, and the row is to be summed in float64. n < 128 is there already.
    """
    cdef double[8] top
    cdef double total
    cdef Py_ssize_t k
    for k in range(8):
        top[k] = lane[k] if lane[k] > lane[k + 8] else lane[k + 8]
    for k in range(4):
        top[k] = top[k] if top[k] > top[k + 4] else top[k + 4]
    for k in range(1, 4):
        top[0] = top[k] if top[k] > top[0] else top[0]
    total = fold(lane)
    return INFINITY if n >= 128 and 4 * top[0] > total else total


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


cdef inline double add_sum_squares(float* restrict residual, const float* restrict x,
                                   Py_ssize_t n) noexcept nogil:
    """residual += x, and the sum of squares of the result, in one pass and in sum_squares' order.

    residual (n,) IN-OUT; x (n,) IN.
    """
    cdef double[16] lane
    cdef Py_ssize_t i, k
    memset(lane, 0, sizeof(lane))
    for i in range(0, n - 127, 128):
        for k in range(128):
            residual[i + k] = residual[i + k] + x[i + k]
        for k in range(LANES):
            lane[k] += <double>tree(residual + i + k, residual + i + k)
    i = n - n % 128
    for k in range(i, n):
        residual[k] = residual[k] + x[k]
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


# ---- forward ----------------------------------------------------------------------------------

cdef inline void scale_row(float* restrict y, const float* restrict x,
                           const float* restrict weight, float inv_rms, Py_ssize_t n,
                           bint weighted, bint accumulate) noexcept nogil:
    """y = x * inv_rms * weight in float32: 1 u for inv_rms, 1 u a product.

    y (n,) OUT, or IN-OUT to accumulate; x (n,) IN; weight (n,) IN if weighted.
    """
    cdef Py_ssize_t i
    cdef float value
    for i in range(n):
        value = x[i] * inv_rms
        if weighted:
            value = value * weight[i]
        if accumulate:
            value = y[i] + value
        y[i] = value


cdef inline void stream_row(float* restrict y, const float* restrict x,
                            const float* restrict weight, float inv_rms, Py_ssize_t n,
                            const float* ahead, bint weighted) noexcept nogil:
    """scale_row for a y that outgrows the cache: its lines are not read before they are written,
    and the row `ahead` is fetched meanwhile. y (n,) OUT; x, weight, ahead (n,) IN.

    Of np.copyto's speed at 4096 x 4096: 0.78 as scale_row, 0.99 streamed, 1.33 with the fetch. In
    cache it is half as fast as scale_row, so the door asks for it by size.
    """
    cdef float[16] line
    cdef Py_ssize_t i, k, head = min(<Py_ssize_t>floats_to_line(y), n)
    scale_row(y, x, weight, inv_rms, head, weighted, False)
    for i in range(head, n - 15, 16):
        prefetch(ahead + i)
        for k in range(16):
            line[k] = x[i + k] * inv_rms
            if weighted:
                line[k] = line[k] * weight[i + k]
        stream(y + i, line)
    i = n - (n - head) % 16
    scale_row(y + i, x + i, weight + i if weighted else weight, inv_rms, n - i, weighted, False)


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


cdef inline void norm_row(float* y, const float* x, const Job* job, double squares,
                          const float* ahead, bint accumulate) noexcept nogil:
    """y = x / rms * (weight_offset + weight), by whichever path is right for this row.

    y (n,) OUT, or IN-OUT to accumulate; x (n,) IN; squares is the sum of x**2 as sum_squares has it;
    ahead (n,) is a row that will be read soon, NULL if the job does not stream.
    """
    cdef const float* weight = job.weight
    cdef double inv_rms = inverse_rms(squares, x, job)
    cdef bint wide = not SMALL_INV <= inv_rms <= LARGE_INV
    if weight != NULL and (job.weight_offset != 0 or squares < FAINT):
        wide = True
    if wide:
        scale_row_wide(y, x, weight, inv_rms, job.weight_offset, job.n, accumulate)
    elif job.stream:
        if weight == NULL:
            stream_row(y, x, weight, <float>inv_rms, job.n, ahead, False)
        else:
            stream_row(y, x, weight, <float>inv_rms, job.n, ahead, True)
    elif weight == NULL:
        scale_row(y, x, weight, <float>inv_rms, job.n, False, accumulate)
    else:
        scale_row(y, x, weight, <float>inv_rms, job.n, True, accumulate)


cdef void rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Forward. job.y (rows, n) OUT or IN-OUT; job.x (rows, n), job.weight (n,) IN."""
    cdef Py_ssize_t row, distance = 1 + 1024 // job.n
    cdef const float* x
    cdef const float* ahead = NULL
    for row in range(first, last):
        x = job.x + row * job.x_stride
        if job.stream:      # the row to fetch: at least 4 KB further
            ahead = job.x + min(row + distance, last - 1) * job.x_stride
        norm_row(job.y + row * job.y_stride, x, job, sum_squares(x, job.n), ahead, job.accumulate)
    if job.stream:
        stream_fence()


cdef void add_rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Add, then forward. job.residual IN-OUT, job.y OUT, job.x IN (rows, n); job.weight (n,) IN.

    y may be x: the row of x is spent before the row of y is written.
    """
    cdef Py_ssize_t row, distance = 1 + 1024 // job.n
    cdef float* residual
    cdef const float* ahead = NULL
    cdef double squares
    for row in range(first, last):
        residual = job.residual + row * job.residual_stride
        if job.stream:
            ahead = job.x + min(row + distance, last - 1) * job.x_stride
        squares = add_sum_squares(residual, job.x + row * job.x_stride, job.n)
        norm_row(job.y + row * job.y_stride, residual, job, squares, ahead, False)
    if job.stream:
        stream_fence()


cdef void residual_add(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """residual += scale * x. job.residual (rows, n) IN-OUT; job.x (rows, n) IN.

    scale 1 is NumPy's own addition; any other is multiplied and added in float64, rounded once.
    """
    cdef Py_ssize_t row
    for row in range(first, last):
        add_row(job.residual + row * job.residual_stride, job.x + row * job.x_stride,
                job.scale, job.n)


cdef inline void add_row(float* restrict residual, const float* restrict x, double scale,
                         Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    if scale == 1.0:
        for i in range(n):
            residual[i] = residual[i] + x[i]
    else:
        for i in range(n):
            residual[i] = <float>(<double>residual[i] + scale * <double>x[i])


# ---- backward ---------------------------------------------------------------------------------
#
# With g = dy * weight and xhat = x * inv_rms, the gradient of y = xhat * weight is
#     dx = inv_rms * (g - xhat * mean(g * xhat)),    dweight = sum over rows of dy * xhat
# (the chain rule through 1 / rms; never 1 / rms**3, which leaves float32 at rms 1e13).
# Phase one takes the two sums of a row, phase two writes dx while the row is still in cache.

cdef struct RowSums:
    double[16] squares      # of x * x
    double[16] products     # of g * x
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
            sums.squares[k] += <double>tree(x + i + k, x + i + k)
            sums.products[k] += <double>tree(g + i + k, x + i + k)
            raise_peak(&sums.x_peak[k], tree(x + i + k, x + i + k))
            raise_peak(&sums.g_peak[k], tree(g + i + k, g + i + k))
            raise_peak(&sums.dy_peak[k], tree(dy + i + k, dy + i + k))


cdef inline void sum_row(RowSums* sums, const float* restrict dy, const float* restrict x,
                         const float* restrict weight, Py_ssize_t n) noexcept nogil:
    """Phase one: the sums of a row, chunk by chunk in L1. dy, x, weight (n,) IN.

    A tree of 8 squares bounds the largest of them from both sides, so the peaks are almost free.
    """
    cdef float[512] g
    cdef const float* g_now
    cdef Py_ssize_t i, k, width, whole
    memset(sums, 0, sizeof(RowSums))
    for i in range(0, n, 512):
        width = min(<Py_ssize_t>512, n - i)
        whole = width - width % 128
        g_now = dy + i
        if weight != NULL:
            for k in range(width):
                g[k] = dy[i + k] * weight[i + k]
            g_now = g
        add_blocks(sums, dy + i, x + i, g_now, whole)
        add_products_wide(sums.squares, x + i + whole, x + i + whole, width - whole)
        add_products_wide(sums.products, g_now + whole, x + i + whole, width - whole)
        for k in range(whole, width):
            raise_peak(sums.x_peak, x[i + k] * x[i + k])
            raise_peak(sums.g_peak, g_now[k] * g_now[k])
            raise_peak(sums.dy_peak, dy[i + k] * dy[i + k])


cdef inline bint is_tame(const RowSums* sums, double inv_rms, double mean) noexcept nogil:
    """Whether float32 gives dx to 2e-6 (33 u) of the row's largest |dx|.

    Let G = max|g|, P = max|xhat| * |mean(g * xhat)|. Then g - xhat * mean is off by at most
    (G + 8 P) u, and by 5 G u for the error of the mean (its roundings taken as independent),
    while max|dx| / inv_rms >= G - P. P <= G / 2 keeps (G + 8 P + 5 G) u <= 33 u (G - P) with
    room for the last two roundings. The peaks are squares, and g's lies within 8 G**2.
    """
    cdef double xhat_peak = peak_of(sums.x_peak) * inv_rms * inv_rms
    cdef double g_peak = peak_of(sums.g_peak), dy_peak = peak_of(sums.dy_peak)
    return (SMALL_INV <= inv_rms <= LARGE_INV
            and SMALL_SQUARE <= g_peak <= LARGE_SQUARE
            and SMALL_SQUARE <= dy_peak <= LARGE_SQUARE
            and SMALL_SQUARE <= xhat_peak
            and xhat_peak * mean * mean <= g_peak / 32)


cdef inline void gradient_row(float* restrict dx, float* restrict group,
                              const float* restrict dy, const float* restrict x,
                              const float* restrict weight, float inv_rms, float mean,
                              Py_ssize_t n, bint weighted, bint accumulate) noexcept nogil:
    """Phase two in float32: dx, and dy * xhat into the group of rows.

    dx (n,) OUT, or IN-OUT to accumulate; group (n,) IN-OUT if weighted; dy, x (n,) IN;
    weight (n,) IN if weighted.
    """
    cdef Py_ssize_t i
    cdef float g, xhat, value
    for i in range(n):
        g = dy[i]
        xhat = x[i] * inv_rms
        if weighted:
            group[i] = group[i] + g * xhat
            g = g * weight[i]
        value = (g - xhat * mean) * inv_rms
        if accumulate:
            value = dx[i] + value
        dx[i] = value


cdef inline void gradient_lines(float* restrict dx, float* restrict group,
                                const float* restrict dy, const float* restrict x,
                                const float* restrict weight, float inv_rms, float mean,
                                Py_ssize_t n, const float* dy_ahead, const float* x_ahead,
                                bint weighted) noexcept nogil:
    """gradient_row that writes dx past the cache, and meanwhile fetches the rows `ahead`.

    dx (n,) OUT, on a cache line; n a multiple of 16; the rest as in gradient_row.
    """
    cdef float[16] line
    cdef Py_ssize_t i, k
    cdef float g, xhat
    for i in range(0, n - 15, 16):
        prefetch(dy_ahead + i)
        prefetch(x_ahead + i)
        for k in range(16):
            g = dy[i + k]
            xhat = x[i + k] * inv_rms
            if weighted:
                group[i + k] = group[i + k] + g * xhat
                g = g * weight[i + k]
            line[k] = (g - xhat * mean) * inv_rms
        stream(dx + i, line)


cdef void gradient_row_wide(float* dx, double* dweight, const float* dy, const float* x,
                            const Job* job) noexcept nogil:
    """Both phases in float64, for rows that float32 cannot hold or would cancel in.

    dx (n,) OUT or IN-OUT; dweight (n,) IN-OUT, NULL without a weight; dy, x (n,) IN.
    """
    cdef const float* weight = job.weight
    cdef Py_ssize_t i, n = job.n
    cdef double inv_rms = 1.0 / sqrt(sum_squares_wide(x, n) * job.inv_n + job.eps)
    cdef double mean = 0, g, xhat, value
    cdef float rounded
    for i in range(n):
        g = dy[i]
        if weight != NULL:
            g = g * (job.weight_offset + <double>weight[i])
        mean += g * (x[i] * inv_rms)
    mean *= job.inv_n
    for i in range(n):
        g = dy[i]
        xhat = x[i] * inv_rms
        if weight != NULL:
            dweight[i] += g * xhat
            g = g * (job.weight_offset + <double>weight[i])
        value = inv_rms * (g - xhat * mean)
        rounded = <float>(value if value == value else NAN)
        dx[i] = dx[i] + rounded if job.accumulate else rounded


cdef struct Row:
    const float* dy
    const float* x
    const float* dy_ahead       # the row to fetch from memory meanwhile: 8 further
    const float* x_ahead
    float* dx
    float inv_rms
    float mean
    bint tame


cdef inline Row start_row(const Job* job, Py_ssize_t row, Py_ssize_t last) noexcept nogil:
    """Phase one for a row, and whether phase two may run in float32."""
    cdef Row out
    cdef RowSums sums
    cdef double inv_rms, mean
    out.x = job.x + row * job.x_stride
    out.dy = job.dy + row * job.dy_stride
    out.dx = job.dx + row * job.dx_stride
    out.x_ahead = job.x + min(row + 8, last - 1) * job.x_stride
    out.dy_ahead = job.dy + min(row + 8, last - 1) * job.dy_stride
    out.tame = False
    if job.weight != NULL and job.weight_offset != 0:
        return out
    sum_row(&sums, out.dy, out.x, job.weight, job.n)
    inv_rms = 1.0 / sqrt(fold(sums.squares) * job.inv_n + job.eps)
    mean = fold(sums.products) * inv_rms * job.inv_n
    out.inv_rms = <float>inv_rms
    out.mean = <float>mean
    out.tame = is_tame(&sums, inv_rms, mean)
    return out


cdef inline void gradient_chunk(const Row* row, float* group, Py_ssize_t i, Py_ssize_t width,
                                const Job* job) noexcept nogil:
    """Phase two for columns [i, i + width) of one row."""
    cdef const float* weight = NULL if job.weight == NULL else job.weight + i
    cdef float* dx = row.dx + i
    cdef const float* dy = row.dy + i
    cdef const float* x = row.x + i
    cdef Py_ssize_t head, body
    if job.accumulate:
        gradient_row(dx, group, dy, x, weight, row.inv_rms, row.mean, width, weight != NULL, True)
    elif not job.stream:
        gradient_row(dx, group, dy, x, weight, row.inv_rms, row.mean, width, weight != NULL, False)
    else:
        head = min(<Py_ssize_t>floats_to_line(dx), width)
        body = (width - head) // 16 * 16
        gradient_row(dx, group, dy, x, weight, row.inv_rms, row.mean, head, weight != NULL, False)
        gradient_lines(dx + head, group + head, dy + head, x + head, weight + head, row.inv_rms,
                       row.mean, body, row.dy_ahead + i + head, row.x_ahead + i + head,
                       weight != NULL)
        head += body
        gradient_row(dx + head, group + head, dy + head, x + head, weight + head, row.inv_rms,
                     row.mean, width - head, weight != NULL, False)


cdef inline void gradient_group(const Row* rows, Py_ssize_t count, const Job* job,
                                double* dweight, float* out) noexcept nogil:
    """Phase two for the tame ones of up to 8 rows, column chunk by column chunk.

    A chunk of the group's dweight (2 KB) stays in L1, where a whole row of it (n = 4096) would push
    x and dy out. It joins dweight (n,) IN-OUT, or is out (n,) OUT; both are NULL without a weight.
    """
    cdef float[512] group
    cdef Py_ssize_t i, k, row, width
    for i in range(0, job.n, 512):
        width = min(<Py_ssize_t>512, job.n - i)
        memset(group, 0, width * sizeof(float))
        for row in range(count):
            if rows[row].tame:
                gradient_chunk(&rows[row], group, i, width, job)
        if dweight != NULL:
            for k in range(width):
                dweight[i + k] += <double>group[k]
        if out != NULL:
            memcpy(out + i, group, width * sizeof(float))


cdef void backward(const Job* job, Py_ssize_t first, Py_ssize_t last,
                   double* dweight) noexcept nogil:
    """Backward. job.dx (rows, n) OUT or IN-OUT; job.dy, job.x (rows, n), job.weight (n,) IN.

    dweight (n,) IN-OUT, NULL without a weight: groups of 8 rows are summed in float32, groups in
    float64. Its error: 5 u a term and 8 u for a group's sums, 13 u = 7.8e-7 of sum |dy * xhat|.
    """
    cdef Row[8] rows
    cdef Py_ssize_t start, row, count
    for start in range(first, last, 8):
        count = min(<Py_ssize_t>8, last - start)
        for row in range(count):
            rows[row] = start_row(job, start + row, last)
            if not rows[row].tame:
                gradient_row_wide(rows[row].dx, dweight, rows[row].dy, rows[row].x, job)
        gradient_group(rows, count, job, dweight, NULL)
    if job.stream:
        stream_fence()


cdef bint backward_few(const Job* job, Py_ssize_t count, float* out) noexcept nogil:
    """backward for 8 rows at most, dweight straight into out (n,) OUT, if all of them are tame.

    Else nothing is written, and False comes back. One row's dweight in float64 and back costs
    twice the rest of its backward pass.
    """
    cdef Row[8] rows
    cdef Py_ssize_t row
    for row in range(count):
        rows[row] = start_row(job, row, count)
        if not rows[row].tame:
            return False
    gradient_group(rows, count, job, NULL, out)
    return True


cdef void add_block(double* restrict dweight, const double* restrict block,
                    Py_ssize_t n) noexcept nogil:
    """dweight += block, both (n,)."""
    cdef Py_ssize_t i
    for i in range(n):
        dweight[i] += block[i]


cdef void store_dweight(float* restrict out, const double* restrict dweight, Py_ssize_t n,
                        bint accumulate) noexcept nogil:
    """out = dweight, or out += dweight, rounded to float32. out (n,) OUT or IN-OUT."""
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = out[i] + <float>dweight[i] if accumulate else <float>dweight[i]


cdef Table TABLE = Table(rms_norm, add_rms_norm, residual_add, backward, backward_few, add_block,
                         store_dweight)

table = PyCapsule_New(&TABLE, "fastrms.kernels", NULL)
flags = FLAGS.decode()
