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

cdef inline void block_products(float* restrict tree, const float* restrict a,
                                const float* restrict b) noexcept nogil:
    """Sum 128 products in float32: lane k holds a[k]*b[k] + a[k+16]*b[k+16] + ..., as a tree.

    tree (16,) OUT; a, b (128,) IN. Error: 4 u of the sum of |a*b| (one product, three sums).
    """
    cdef Py_ssize_t k
    for k in range(LANES):
        tree[k] = (
            ((a[k] * b[k] + a[k + 64] * b[k + 64])
             + (a[k + 32] * b[k + 32] + a[k + 96] * b[k + 96]))
            + ((a[k + 16] * b[k + 16] + a[k + 80] * b[k + 80])
               + (a[k + 48] * b[k + 48] + a[k + 112] * b[k + 112])))


cdef void add_products(double* restrict lane, const float* restrict a,
                       const float* restrict b, Py_ssize_t n) noexcept nogil:
    """Add the sum of a * b to 16 lanes: blocks of 128 as float32 trees, the rest in float64.

    lane (16,) IN-OUT; a, b (n,) IN.
    """
    cdef float[16] tree
    cdef Py_ssize_t i, k
    for i in range(0, n - 127, 128):
        block_products(tree, a + i, b + i)
        for k in range(LANES):
            lane[k] += <double>tree[k]
    i = n - n % 128
    add_products_wide(lane, a + i, b + i, n - i)


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
    cdef double highest = lane[0], total
    cdef Py_ssize_t k
    for k in range(1, LANES):
        highest = lane[k] if lane[k] > highest else highest
    total = fold(lane)
    return INFINITY if n >= 128 and 4 * highest > total else total


cdef inline double sum_squares(const float* restrict x, Py_ssize_t n) noexcept nogil:
    """Sum x**2: trees of 8 in float32, then 16 lanes of float64. x (n,) IN.

    Error: the mean of many trees' errors, each at most 4 u; 1 u on constant rows. Without the
    check of the spread, rows with one outlier reached 3.02 ulp in y; with it, 2.4. Float64
    products throughout cost 1.15 times the whole forward pass in L2, 1.3 times in L1.
    """
    cdef double[16] lane
    memset(lane, 0, sizeof(lane))
    add_products(lane, x, x, n)
    return fold_spread(lane, n)


cdef inline double add_sum_squares(float* restrict residual, const float* restrict x,
                                   Py_ssize_t n) noexcept nogil:
    """residual += x, and the sum of squares of the result, in one pass and in sum_squares' order.

    residual (n,) IN-OUT; x (n,) IN.
    """
    cdef double[16] lane
    cdef float[16] tree
    cdef Py_ssize_t i, k
    memset(lane, 0, sizeof(lane))
    for i in range(0, n - 127, 128):
        for k in range(128):
            residual[i + k] = residual[i + k] + x[i + k]
        block_products(tree, residual + i, residual + i)
        for k in range(LANES):
            lane[k] += <double>tree[k]
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


cdef inline double inverse_rms(double squares, const float* x, Py_ssize_t n,
                               double eps) noexcept nogil:
    """1 / sqrt(mean(x**2) + eps) from the float32 sum, summed again where that cannot be trusted.

    x (n,) IN.
    """
    cdef double mean = squares / <double>n + eps
    if not TRUSTED <= mean <= 1e300:
        mean = sum_squares_wide(x, n) / <double>n + eps
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
                          bint accumulate) noexcept nogil:
    """y = x / rms * (weight_offset + weight), by whichever path is right for this row.

    y (n,) OUT, or IN-OUT to accumulate; x (n,) IN; squares is the sum of x**2 as sum_squares has it.
    """
    cdef const float* weight = job.weight
    cdef double inv_rms = inverse_rms(squares, x, job.n, job.eps)
    cdef bint wide = not SMALL_INV <= inv_rms <= LARGE_INV
    if weight != NULL and (job.weight_offset != 0 or squares < FAINT):
        wide = True
    if wide:
        scale_row_wide(y, x, weight, inv_rms, job.weight_offset, job.n, accumulate)
    elif weight == NULL:
        scale_row(y, x, weight, <float>inv_rms, job.n, False, accumulate)
    else:
        scale_row(y, x, weight, <float>inv_rms, job.n, True, accumulate)


cdef void rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Forward. job.y (rows, n) OUT or IN-OUT; job.x (rows, n), job.weight (n,) IN."""
    cdef Py_ssize_t row
    cdef const float* x
    for row in range(first, last):
        x = job.x + row * job.x_stride
        norm_row(job.y + row * job.y_stride, x, job, sum_squares(x, job.n), job.accumulate)


cdef void add_rms_norm(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Add, then forward. job.residual IN-OUT, job.y OUT, job.x IN (rows, n); job.weight (n,) IN.

    y may be x: the row of x is spent before the row of y is written.
    """
    cdef Py_ssize_t row
    cdef float* residual
    cdef double squares
    for row in range(first, last):
        residual = job.residual + row * job.residual_stride
        squares = add_sum_squares(residual, job.x + row * job.x_stride, job.n)
        norm_row(job.y + row * job.y_stride, residual, job, squares, False)


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
    double squares      # sum of x * x
    double products     # sum of g * x
    double x_peak       # at least max(x * x), at most 8 times that
    double g_peak       # likewise for g
    double dy_peak      # likewise for dy


cdef void raise_peak(int* restrict peak, const float* restrict a,
                     Py_ssize_t n) noexcept nogil:
    """Raise 16 lanes, each a float's bits, to the trees of a * a. peak (16,) IN-OUT; a (n,) IN.

    A NaN may pass unseen: the sums hold it.
    """
    cdef float[16] tree
    cdef Py_ssize_t i, k
    cdef int bits
    for i in range(0, n - 127, 128):
        block_products(tree, a + i, a + i)
        for k in range(LANES):
            bits = float_bits(tree[k])
            peak[k] = bits if bits > peak[k] else peak[k]
    for i in range(n - n % 128, n):
        bits = float_bits(a[i] * a[i])
        peak[0] = bits if bits > peak[0] else peak[0]


cdef inline double peak_of(const int* peak) noexcept nogil:
    cdef Py_ssize_t k
    cdef int highest = 0
    for k in range(LANES):
        highest = peak[k] if peak[k] > highest else highest
    return bits_float(highest)


cdef void add_cross(double* lane, int* g_peak, int* dy_peak, const float* dy, const float* x,
                    const float* weight, Py_ssize_t n) noexcept nogil:
    """Add the sum of g * x to 16 lanes, and raise the peaks of g and dy. n <= 512."""
    cdef float[512] g
    cdef Py_ssize_t i
    if weight == NULL:
        add_products(lane, dy, x, n)
        raise_peak(dy_peak, dy, n)
        return
    for i in range(n):
        g[i] = dy[i] * weight[i]
    add_products(lane, g, x, n)
    raise_peak(g_peak, g, n)
    raise_peak(dy_peak, dy, n)


cdef void sum_row(RowSums* sums, const float* dy, const float* x, const float* weight,
                  Py_ssize_t n) noexcept nogil:
    """Phase one: the sums of a row, chunk by chunk in L1. dy, x, weight (n,) IN.

    A tree of 8 squares bounds the largest of them from both sides, so the peaks are almost free.
    """
    cdef double[16] squares
    cdef double[16] products
    cdef int[16] x_peak
    cdef int[16] g_peak
    cdef int[16] dy_peak
    cdef Py_ssize_t i, width
    memset(squares, 0, sizeof(squares))
    memset(products, 0, sizeof(products))
    memset(x_peak, 0, sizeof(x_peak))
    memset(g_peak, 0, sizeof(g_peak))
    memset(dy_peak, 0, sizeof(dy_peak))
    for i in range(0, n, 512):
        width = min(<Py_ssize_t>512, n - i)
        add_products(squares, x + i, x + i, width)
        raise_peak(x_peak, x + i, width)
        add_cross(products, g_peak, dy_peak, dy + i, x + i,
                  NULL if weight == NULL else weight + i, width)
    sums.squares = fold(squares)
    sums.products = fold(products)
    sums.x_peak = peak_of(x_peak)
    sums.dy_peak = peak_of(dy_peak)
    sums.g_peak = sums.dy_peak if weight == NULL else peak_of(g_peak)


cdef inline bint is_tame(const RowSums* sums, double inv_rms, double mean) noexcept nogil:
    """Whether float32 gives dx to 2e-6 (33 u) of the row's largest |dx|.

    Let G = max|g|, P = max|xhat| * |mean(g * xhat)|. Then g - xhat * mean is off by at most
    (G + 8 P) u, and by 5 G u for the error of the mean (its roundings taken as independent),
    while max|dx| / inv_rms >= G - P. P <= G / 2 keeps (G + 8 P + 5 G) u <= 33 u (G - P) with
    room for the last two roundings. The peaks are squares, and g's lies within 8 G**2.
    """
    return (SMALL_INV <= inv_rms <= LARGE_INV
            and SMALL_SQUARE <= sums.g_peak <= LARGE_SQUARE
            and SMALL_SQUARE <= sums.dy_peak <= LARGE_SQUARE
            and SMALL_SQUARE <= sums.x_peak * inv_rms * inv_rms
            and sums.x_peak * (inv_rms * mean) * (inv_rms * mean) <= sums.g_peak / 32)


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


cdef void gradient_row_wide(float* dx, double* dweight, const float* dy, const float* x,
                            const Job* job) noexcept nogil:
    """Both phases in float64, for rows that float32 cannot hold or would cancel in.

    dx (n,) OUT or IN-OUT; dweight (n,) IN-OUT, NULL without a weight; dy, x (n,) IN.
    """
    cdef const float* weight = job.weight
    cdef Py_ssize_t i, n = job.n
    cdef double inv_rms = 1.0 / sqrt(sum_squares_wide(x, n) / <double>n + job.eps)
    cdef double mean = 0, g, xhat, value
    cdef float rounded
    for i in range(n):
        g = dy[i]
        if weight != NULL:
            g = g * (job.weight_offset + <double>weight[i])
        mean += g * (x[i] * inv_rms)
    mean /= <double>n
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
    float* dx
    float inv_rms
    float mean
    bint tame


cdef inline Row start_row(const Job* job, Py_ssize_t row) noexcept nogil:
    """Phase one for a row, and whether phase two may run in float32."""
    cdef Row out
    cdef RowSums sums
    cdef double inv_rms, mean
    out.x = job.x + row * job.x_stride
    out.dy = job.dy + row * job.dy_stride
    out.dx = job.dx + row * job.dx_stride
    out.tame = False
    if job.weight != NULL and job.weight_offset != 0:
        return out
    sum_row(&sums, out.dy, out.x, job.weight, job.n)
    inv_rms = 1.0 / sqrt(sums.squares / <double>job.n + job.eps)
    mean = sums.products * inv_rms / <double>job.n
    out.inv_rms = <float>inv_rms
    out.mean = <float>mean
    out.tame = is_tame(&sums, inv_rms, mean)
    return out


cdef inline void gradient_group(const Row* rows, Py_ssize_t count, const Job* job,
                                double* dweight, float* out) noexcept nogil:
    """Phase two for the tame ones of up to 8 rows, column chunk by column chunk.

    A chunk of the group's dweight (2 KB) stays in L1, where a whole row of it (n = 4096) would push
    x and dy out. It joins dweight (n,) IN-OUT, or is out (n,) OUT; both are NULL without a weight.
    """
    cdef float[512] group
    cdef Py_ssize_t i, k, row, width
    cdef const Row* now
    for i in range(0, job.n, 512):
        width = min(<Py_ssize_t>512, job.n - i)
        memset(group, 0, width * sizeof(float))
        for row in range(count):
            now = &rows[row]
            if not now.tame:
                continue
            if job.weight == NULL:
                gradient_row(now.dx + i, group, now.dy + i, now.x + i, NULL, now.inv_rms,
                             now.mean, width, False, job.accumulate)
            else:
                gradient_row(now.dx + i, group, now.dy + i, now.x + i, job.weight + i,
                             now.inv_rms, now.mean, width, True, job.accumulate)
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
            rows[row] = start_row(job, start + row)
            if not rows[row].tame:
                gradient_row_wide(rows[row].dx, dweight, rows[row].dy, rows[row].x, job)
        gradient_group(rows, count, job, dweight, NULL)


cdef bint backward_few(const Job* job, Py_ssize_t count, float* out) noexcept nogil:
    """backward for 8 rows at most, dweight straight into out (n,) OUT, if all of them are tame.

    Else nothing is written, and False comes back. One row's dweight in float64 and back costs
    twice the rest of its backward pass.
    """
    cdef Row[8] rows
    cdef Py_ssize_t row
    for row in range(count):
        rows[row] = start_row(job, row)
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
