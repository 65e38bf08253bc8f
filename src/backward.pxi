# Backward: two phases a row, groups of 8 rows for dweight.
#
# With g = dy * weight and xhat = x * inv_rms, the gradient of y = xhat * weight is
#     dx = inv_rms * (g - xhat * mean(g * xhat)),    dweight = sum over rows of dy * xhat
# (the chain rule through 1 / rms; never 1 / rms**3, which leaves float32 at rms 1e13).
# Phase one takes the two sums of a row, phase two writes dx while the row is still in cache.


cdef inline float gradient(float* group, const float* dy, const float* x, const float* weight,
                           float inv_rms, float mean, Py_ssize_t i, bint weighted) noexcept nogil:
    """One element of dx in float32; dy * xhat joins the group of rows."""
    cdef float g = dy[i]
    cdef float xhat = x[i] * inv_rms
    if weighted:
        group[i] = group[i] + g * xhat
        g = g * weight[i]
    return (g - xhat * mean) * inv_rms


cdef void gradient_few(float* restrict dx, float* restrict group, const float* restrict dy,
                       const float* restrict x, const float* restrict weight, float inv_rms,
                       float mean, Py_ssize_t n, bint weighted, bint accumulate) noexcept nogil:
    """Phase two in float32 for n < 16 floats, as one vector under a mask."""
    cdef Py_ssize_t k
    cdef float value
    for k in range(16):
        if k < n:
            value = gradient(group, dy, x, weight, inv_rms, mean, k, weighted)
            dx[k] = dx[k] + value if accumulate else value


cdef inline void gradient_lines(float* restrict dx, float* restrict group,
                                const float* restrict dy, const float* restrict x,
                                const float* restrict weight, float inv_rms, float mean,
                                Py_ssize_t n, bint weighted, bint accumulate) noexcept nogil:
    """Phase two in float32 for whole vectors, n % 16 == 0.

    dx (n,) OUT, or IN-OUT to accumulate; group (n,) IN-OUT if weighted; dy, x (n,) IN;
    weight (n,) IN if weighted. Asking for each line 512 bytes ahead takes 0.7 of the time in L2.
    """
    cdef Py_ssize_t i, k
    cdef float value
    for i in range(0, n - 15, 16):
        prefetch(dy + i + 128)
        prefetch(x + i + 128)
        prefetch_write(dx + i + 128)
        for k in range(16):
            value = gradient(group, dy, x, weight, inv_rms, mean, i + k, weighted)
            dx[i + k] = dx[i + k] + value if accumulate else value


cdef inline void stream_gradient(float* restrict dx, float* restrict group,
                                 const float* restrict dy, const float* restrict x,
                                 const float* restrict weight, float inv_rms, float mean,
                                 Py_ssize_t n, const float* dy_ahead, const float* x_ahead,
                                 bint weighted) noexcept nogil:
    """gradient_lines past the cache, as stream_lines; the rows `ahead` are fetched meanwhile."""
    cdef float[16] line
    cdef Py_ssize_t i, k
    for i in range(0, n - 15, 16):
        prefetch(dy_ahead + i)
        prefetch(x_ahead + i)
        for k in range(16):
            line[k] = gradient(group, dy, x, weight, inv_rms, mean, i + k, weighted)
        stream(dx + i, line)


cdef double sum_products_wide(const float* dy, const float* x, const Job* job) noexcept nogil:
    """Sum g * x in float64, in which no product overflows. dy, x (n,) IN."""
    cdef const float* weight = job.weight
    cdef double[16] lane
    cdef double g, sum
    cdef Py_ssize_t i
    memset(lane, 0, sizeof(lane))
    for i in range(job.n):
        g = dy[i]
        if weight != NULL:
            g = g * (job.weight_offset + <double>weight[i])
        lane[i % LANES] += g * <double>x[i]
    fold(&sum, lane, 1, False)
    return sum


cdef void gradient_row_wide(float* dx, double* dweight, const float* dy, const float* x,
                            double squares, double products, const Job* job) noexcept nogil:
    """Phase two in float64, for rows that float32 cannot hold or would cancel in, and split ones.

    dx (n,) OUT or IN-OUT; dweight (n,) IN-OUT, NULL without a weight; dy, x (n,) IN.
    """
    cdef const float* weight = job.weight
    cdef double inv_rms = 1.0 / sqrt(squares * job.inv_n + job.eps)
    cdef double mean = products * inv_rms * job.inv_n
    cdef double g, xhat, value
    cdef float rounded
    cdef Py_ssize_t i
    for i in range(job.n):
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
    cdef double[2] folded
    cdef double inv_rms, mean
    out.x = job.x + row * job.x_stride
    out.dy = job.dy + row * job.dy_stride
    out.dx = job.dx + row * job.dx_stride
    out.x_ahead = job.x + min(row + 8, last - 1) * job.x_stride
    out.dy_ahead = job.dy + min(row + 8, last - 1) * job.dy_stride
    sum_row(&sums, out.dy, out.x, job.factor, job.n)
    fold(folded, sums.lanes, 2, False)
    inv_rms = 1.0 / sqrt(folded[0] * job.inv_n + job.eps)
    mean = folded[1] * inv_rms * job.inv_n
    out.inv_rms = <float>inv_rms
    out.mean = <float>mean
    out.tame = is_tame(&sums, inv_rms, mean)
    return out


cdef inline void gradient_chunk(const Row* row, float* group, Py_ssize_t i, Py_ssize_t width,
                                const Job* job) noexcept nogil:
    """Phase two for columns [i, i + width) of one row."""
    cdef const float* weight = at(job.factor, i)
    cdef float* dx = row.dx + i
    cdef const float* dy = row.dy + i
    cdef const float* x = row.x + i
    cdef Py_ssize_t head = min(<Py_ssize_t>floats_to_line(dx), width) if job.n > 256 else 0
    cdef Py_ssize_t body = (width - head) // 16 * 16
    cdef bint weighted = weight != NULL
    if head:
        gradient_few(dx, group, dy, x, weight, row.inv_rms, row.mean, head, weighted,
                     job.accumulate)
    if job.stream:
        stream_gradient(dx + head, group + head, dy + head, x + head, at(weight, head),
                        row.inv_rms, row.mean, body, row.dy_ahead + i + head,
                        row.x_ahead + i + head, weighted)
    elif job.accumulate:
        gradient_lines(dx + head, group + head, dy + head, x + head, at(weight, head),
                       row.inv_rms, row.mean, body, weighted, True)
    else:
        gradient_lines(dx + head, group + head, dy + head, x + head, at(weight, head),
                       row.inv_rms, row.mean, body, weighted, False)
    head += body
    if head < width:
        gradient_few(dx + head, group + head, dy + head, x + head, at(weight, head), row.inv_rms,
                     row.mean, width - head, weighted, job.accumulate)


cdef inline void gradient_group(const Row* rows, Py_ssize_t count, const Job* job,
                                double* dweight, float* out) noexcept nogil:
    """Phase two for the tame ones of up to 8 rows, column chunk by column chunk.

    A chunk of the group's dweight (2 KB) stays in L1, where a whole row of it (n = 4096) would push
    x and dy out. It joins dweight (n,) IN-OUT, or is added up in out (n,) OUT, which nothing else
    shares; both are NULL without a weight.
    """
    cdef float[512] space
    cdef float* group = space
    cdef Py_ssize_t i = 0, k, row, width = floats_to_line(rows[0].dx) if job.n > 256 else 0
    while i < job.n:
        width = min(width if width > 0 else 512, job.n - i)
        if out != NULL:
            group = out + i
        memset(group, 0, width * sizeof(float))
        for row in range(count):
            if rows[row].tame:
                gradient_chunk(&rows[row], group, i, width, job)
        if dweight != NULL:
            for k in range(width):
                dweight[i + k] += <double>group[k]
        i += width
        width = 512


cdef void row_products(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """job.products (rows,) OUT; job.dy, job.x (rows, n), job.weight (n,) IN."""
    cdef Py_ssize_t row
    for row in range(first, last):
        job.products[row] = sum_products_wide(job.dy + row * job.dy_stride,
                                              job.x + row * job.x_stride, job)


cdef void scale_backward(const Job* job, Py_ssize_t first, Py_ssize_t last,
                         double* dweight) noexcept nogil:
    """backward from both sums over job.size floats, job.squares and job.products (rows,) IN."""
    cdef Py_ssize_t row
    for row in range(first, last):
        gradient_row_wide(job.dx + row * job.dx_stride, dweight, job.dy + row * job.dy_stride,
                          job.x + row * job.x_stride, job.squares[row], job.products[row], job)


cdef void backward(const Job* job, Py_ssize_t first, Py_ssize_t last,
                   double* dweight) noexcept nogil:
    """Backward. job.dx (rows, n) OUT or IN-OUT; job.dy, job.x (rows, n), job.weight (n,) IN.

    dweight (n,) IN-OUT, NULL without a weight: groups of 8 rows are summed in float32, groups in
    float64. Its error: 5 u a term and 8 u for a group's sums, 13 u = 7.8e-7 of sum |dy * xhat|.
    """
    cdef Row[8] rows
    cdef Py_ssize_t start, row, count
    if job.squares != NULL:
        scale_backward(job, first, last, dweight)
        return
    for start in range(first, last, 8):
        count = min(<Py_ssize_t>8, last - start)
        for row in range(count):
            rows[row] = start_row(job, start + row, last)
            if not rows[row].tame:
                gradient_row_wide(rows[row].dx, dweight, rows[row].dy, rows[row].x,
                                  sum_squares_wide(rows[row].x, job.n),
                                  sum_products_wide(rows[row].dy, rows[row].x, job), job)
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
