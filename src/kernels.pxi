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
    void prefetch_write(const float* address)
    void stream(float* line, const float* values)
    void stream_fence()
    long floats_to_line(const float* address)

cdef enum:
    LANES = 16     # one AVX-512 vector, two of AVX, four of SSE or NEON

# Below this mean square a float32 sum of squares may have lost bits to underflow: each square is
# off by at most 2**-150, so at 2**-100 the mean is still right to 2**-50.
cdef double TRUSTED = 2.0 ** -100
# x / rms may be subnormal, for an element far below its row's rms or under a large eps. A weight
# above 4 would then scale up the bits that it lost, so 1 / rms is lifted by 2**63 before the
# products and the result lowered after them. Above 2**44 a weight could overflow on the way.
cdef float PLAIN_WEIGHT = 4.0
cdef float LIFTED_WEIGHT = 2.0 ** 44
cdef float LIFT = 2.0 ** 63
cdef float LOWER = 2.0 ** -63
# Rows with 1 / rms outside these bounds, or a gradient's squares outside theirs, go by float64:
# inside, no product in float32 can overflow or lose bits that count.
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


# ---- forward ----------------------------------------------------------------------------------

cdef enum Path:
    UNWEIGHTED
    PLAIN       # every |weight| is at most 4
    LIFTED      # at most 2**44
    WIDE        # larger; or there is a weight_offset: by float64


cdef inline int finite_size(float value) noexcept nogil:
    """The bits of |value|; 0 for an Inf or NaN, which no path can spoil."""
    cdef int bits = float_bits(value) & 0x7fffffff
    return bits if bits < 0x7f800000 else 0


cdef inline Path choose_path(const float* weight, double weight_offset,
                             Py_ssize_t n) noexcept nogil:
    """How this weight is to be multiplied, for a whole job. weight (n,) IN, or NULL."""
    cdef int[16] peak
    cdef int bits, highest = 0
    cdef Py_ssize_t i, k
    if weight == NULL:
        return UNWEIGHTED
    if weight_offset != 0:
        return WIDE
    memset(peak, 0, sizeof(peak))
    for i in range(0, n - 15, 16):
        for k in range(LANES):
            bits = finite_size(weight[i + k])
            peak[k] = bits if bits > peak[k] else peak[k]
    for i in range(n - n % 16, n):
        bits = finite_size(weight[i])
        highest = bits if bits > highest else highest
    for k in range(LANES):
        highest = peak[k] if peak[k] > highest else highest
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


cdef inline void scale(float* restrict y, const float* restrict x, const float* restrict weight,
                       float inv_rms, Py_ssize_t n, Path path, bint accumulate) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if accumulate:
            y[i] = y[i] + scaled(x, weight, inv_rms, i, path)
        else:
            y[i] = scaled(x, weight, inv_rms, i, path)


cdef inline void scale_lines(float* restrict y, const float* restrict x,
                             const float* restrict weight, float inv_rms, Py_ssize_t n,
                             Path path) noexcept nogil:
    """scale, but each line of y is asked for 512 bytes before it is written. n % 16 == 0."""
    cdef Py_ssize_t i, k
    for i in range(0, n - 15, 16):
        prefetch_write(y + i + 128)
        for k in range(16):
            y[i + k] = scaled(x, weight, inv_rms, i + k, path)


cdef inline void stream_lines(float* restrict y, const float* restrict x,
                              const float* restrict weight, float inv_rms, Py_ssize_t n,
                              const float* ahead, Path path) noexcept nogil:
    """scale for a y that outgrows the cache: its lines are not read before they are written, and
    the row `ahead` is fetched meanwhile. y is on a cache line, n % 16 == 0.

    Of np.copyto's speed at 4096 x 4096: 0.78 as scale, 0.99 streamed, 1.33 with the fetch. In cache
    it is half as fast as scale, so the door asks for it by size.
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
    cdef Py_ssize_t head = min(<Py_ssize_t>floats_to_line(y), n), body = (n - head) // 16 * 16
    if accumulate or n < 256 and not streamed:
        scale(y, x, weight, inv_rms, n, path, accumulate)
        return
    scale(y, x, weight, inv_rms, head, path, False)
    if streamed:
        stream_lines(y + head, x + head, weight + head, inv_rms, body, ahead + head, path)
    else:
        scale_lines(y + head, x + head, weight + head, inv_rms, body, path)
    head += body
    scale(y + head, x + head, weight + head, inv_rms, n - head, path, False)


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
                          const float* ahead, Path path, bint accumulate) noexcept nogil:
    """y = x / rms * (weight_offset + weight), by whichever path is right for this row.

    y (n,) OUT, or IN-OUT to accumulate; x (n,) IN; squares is their sum as sum_squares has it;
    ahead (n,) is a row that will be read soon, NULL if the job does not stream.
    """
    cdef double inv_rms = inverse_rms(squares, x, job)
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


cdef void rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Forward. job.y (rows, n) OUT or IN-OUT; job.x (rows, n), job.weight (n,) IN."""
    cdef Py_ssize_t row, distance = 1 + 1024 // job.n
    cdef const float* x
    cdef const float* ahead = NULL
    cdef Path path = choose_path(job.weight, job.weight_offset, job.n)
    for row in range(first, last):
        x = job.x + row * job.x_stride
        if job.stream:      # the row to fetch: at least 4 KB further
            ahead = job.x + min(row + distance, last - 1) * job.x_stride
        norm_row(job.y + row * job.y_stride, x, job, sum_squares(x, job.n), ahead, path,
                 job.accumulate)
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
    cdef Path path = choose_path(job.weight, job.weight_offset, job.n)
    for row in range(first, last):
        residual = job.residual + row * job.residual_stride
        if job.stream:
            ahead = job.x + min(row + distance, last - 1) * job.x_stride
        squares = add_sum_squares(residual, job.x + row * job.x_stride, job.n)
        norm_row(job.y + row * job.y_stride, residual, job, squares, ahead, path, False)
    if job.stream:
        stream_fence()


cdef inline void add(float* restrict residual, const float* restrict x,
                     Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
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
    cdef Py_ssize_t head = floats_to_line(residual) if n >= 256 else 0
    if factor != 1.0:
        add_scaled(residual, x, factor, n)
        return
    if head:
        add(residual, x, head)
    add(residual + head, x + head, n - head)


cdef void residual_add(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """residual += scale * x. job.residual (rows, n) IN-OUT; job.x (rows, n) IN."""
    cdef Py_ssize_t row
    for row in range(first, last):
        add_row(job.residual + row * job.residual_stride, job.x + row * job.x_stride,
                job.scale, job.n)


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
    (2 G + 9 P) u, and by 6 G u for the error of the mean (its roundings taken as independent),
    while max|dx| / inv_rms >= G - P. P <= G / 2 keeps (2 G + 9 P + 6 G) u <= 33 u (G - P) with
    room for the last two roundings. The peaks are squares, and g's lies within 8 G**2.
    """
    cdef double xhat_peak = peak_of(sums.x_peak) * inv_rms * inv_rms
    cdef double g_peak = peak_of(sums.g_peak), dy_peak = peak_of(sums.dy_peak)
    return (SMALL_INV <= inv_rms <= LARGE_INV
            and SMALL_SQUARE <= g_peak <= LARGE_SQUARE
            and SMALL_SQUARE <= dy_peak <= LARGE_SQUARE
            and SMALL_SQUARE <= xhat_peak
            and xhat_peak * mean * mean <= g_peak / 32)


cdef inline float gradient(float* group, const float* dy, const float* x, const float* weight,
                           float inv_rms, float mean, Py_ssize_t i, bint weighted) noexcept nogil:
    """One element of dx in float32; dy * xhat joins the group of rows."""
    cdef float g = dy[i]
    cdef float xhat = x[i] * inv_rms
    if weighted:
        group[i] = group[i] + g * xhat
        g = g * weight[i]
    return (g - xhat * mean) * inv_rms


cdef inline void gradient_part(float* restrict dx, float* restrict group, const float* restrict dy,
                               const float* restrict x, const float* restrict weight,
                               float inv_rms, float mean, Py_ssize_t n, bint weighted,
                               bint accumulate) noexcept nogil:
    """Phase two in float32.

    dx (n,) OUT, or IN-OUT to accumulate; group (n,) IN-OUT if weighted; dy, x (n,) IN;
    weight (n,) IN if weighted.
    """
    cdef Py_ssize_t i
    cdef float value
    for i in range(n):
        value = gradient(group, dy, x, weight, inv_rms, mean, i, weighted)
        dx[i] = dx[i] + value if accumulate else value


cdef inline void gradient_lines(float* restrict dx, float* restrict group,
                                const float* restrict dy, const float* restrict x,
                                const float* restrict weight, float inv_rms, float mean,
                                Py_ssize_t n, bint weighted) noexcept nogil:
    """gradient_part, but each line is asked for 512 bytes ahead: 0.7 times as long in L2."""
    cdef Py_ssize_t i, k
    for i in range(0, n - 15, 16):
        prefetch(dy + i + 128)
        prefetch(x + i + 128)
        prefetch_write(dx + i + 128)
        for k in range(16):
            dx[i + k] = gradient(group, dy, x, weight, inv_rms, mean, i + k, weighted)


cdef inline void stream_gradient(float* restrict dx, float* restrict group,
                                 const float* restrict dy, const float* restrict x,
                                 const float* restrict weight, float inv_rms, float mean,
                                 Py_ssize_t n, const float* dy_ahead, const float* x_ahead,
                                 bint weighted) noexcept nogil:
    """gradient_part past the cache, as stream_lines; the rows `ahead` are fetched meanwhile."""
    cdef float[16] line
    cdef Py_ssize_t i, k
    for i in range(0, n - 15, 16):
        prefetch(dy_ahead + i)
        prefetch(x_ahead + i)
        for k in range(16):
            line[k] = gradient(group, dy, x, weight, inv_rms, mean, i + k, weighted)
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
    sum_row(&sums, out.dy, out.x, job.factor, job.n)
    inv_rms = 1.0 / sqrt(fold(sums.squares) * job.inv_n + job.eps)
    mean = fold(sums.products) * inv_rms * job.inv_n
    out.inv_rms = <float>inv_rms
    out.mean = <float>mean
    out.tame = is_tame(&sums, inv_rms, mean)
    return out


cdef inline void gradient_chunk(const Row* row, float* group, Py_ssize_t i, Py_ssize_t width,
                                const Job* job) noexcept nogil:
    """Phase two for columns [i, i + width) of one row."""
    cdef const float* weight = NULL if job.factor == NULL else job.factor + i
    cdef float* dx = row.dx + i
    cdef const float* dy = row.dy + i
    cdef const float* x = row.x + i
    cdef Py_ssize_t head = min(<Py_ssize_t>floats_to_line(dx), width)
    cdef Py_ssize_t body = (width - head) // 16 * 16
    cdef bint weighted = weight != NULL
    if job.accumulate:
        gradient_part(dx, group, dy, x, weight, row.inv_rms, row.mean, width, weighted, True)
        return
    gradient_part(dx, group, dy, x, weight, row.inv_rms, row.mean, head, weighted, False)
    if job.stream:
        stream_gradient(dx + head, group + head, dy + head, x + head, weight + head, row.inv_rms,
                        row.mean, body, row.dy_ahead + i + head, row.x_ahead + i + head, weighted)
    else:
        gradient_lines(dx + head, group + head, dy + head, x + head, weight + head, row.inv_rms,
                       row.mean, body, weighted)
    head += body
    gradient_part(dx + head, group + head, dy + head, x + head, weight + head, row.inv_rms,
                  row.mean, width - head, weighted, False)


cdef inline void gradient_group(const Row* rows, Py_ssize_t count, const Job* job,
                                double* dweight, float* out) noexcept nogil:
    """Phase two for the tame ones of up to 8 rows, column chunk by column chunk.

    A chunk of the group's dweight (2 KB) stays in L1, where a whole row of it (n = 4096) would push
    x and dy out. It joins dweight (n,) IN-OUT, or is out (n,) OUT; both are NULL without a weight.
    """
    cdef float[512] group
    cdef Py_ssize_t i = 0, k, row, width = floats_to_line(rows[0].dx)   # then on cache lines
    while i < job.n:
        width = min(width if width > 0 else 512, job.n - i)
        memset(group, 0, width * sizeof(float))
        for row in range(count):
            if rows[row].tame:
                gradient_chunk(&rows[row], group, i, width, job)
        if dweight != NULL:
            for k in range(width):
                dweight[i + k] += <double>group[k]
        if out != NULL:
            memcpy(out + i, group, width * sizeof(float))
        i += width
        width = 512


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


cdef void add_offset(float* restrict factor, const float* restrict weight, double weight_offset,
                     Py_ssize_t n) noexcept nogil:
    """factor = weight_offset + weight, rounded: what backward's float32 rows multiply dy by.

    factor (n,) OUT; weight (n,) IN. Forward has no room for this rounding in its 3 ulp.
    """
    cdef Py_ssize_t i
    for i in range(n):
        factor[i] = <float>(weight_offset + <double>weight[i])


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


cdef Table TABLE = Table(rms_norm, add_rms_norm, residual_add, backward, backward_few,
                         add_offset, add_block, store_dweight)

table = PyCapsule_New(&TABLE, "fastrms.kernels", NULL)
flags = FLAGS.decode()
