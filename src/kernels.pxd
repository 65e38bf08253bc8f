# The seam between the door and the kernels: one job, one table of functions.
# Strides count floats from row to row; the last axis is contiguous. Rows are [first, last).

ctypedef struct Axis:       # one of the leading axes of a job's arrays
    Py_ssize_t length
    Py_ssize_t y            # floats from index to index; 0 of an array that the job does not have
    Py_ssize_t residual
    Py_ssize_t dx
    Py_ssize_t x
    Py_ssize_t dy

ctypedef struct Job:
    float* y                # (rows, n) OUT, or IN-OUT with accumulate
    float* residual         # (rows, n) IN-OUT
    float* dx               # (rows, n) OUT, or IN-OUT with accumulate
    const float* x          # (rows, n) IN
    const float* dy         # (rows, n) IN
    const float* weight     # (n,) IN, or NULL: the factor is 1
    double* factor          # (n,) OUT, backward's weight_offset + weight; NULL for a single row
    float* factor32         # (n,) OUT, the same rounded; or weight itself, NULL without one
    double* squares         # (rows,) sums of x**2, OUT or IN; NULL if the job takes its own
    double* products        # (rows,) sums of dy * (weight_offset + weight) * x, likewise
    Py_ssize_t y_stride
    Py_ssize_t residual_stride
    Py_ssize_t dx_stride
    Py_ssize_t x_stride
    Py_ssize_t dy_stride
    # For the door: all leading axes, the last one first, where these strides are that one's alone;
    # else NULL. A kernel is given rows of the last one.
    const Axis* axes
    Py_ssize_t n
    Py_ssize_t size         # the length of a row of which n floats are here: n, if it is not split
    double inv_n            # 1 / size
    double eps
    double weight_offset
    double scale
    bint accumulate
    bint by_float64         # OUT: backward's factor is too large for float32
    # How the job suits this machine's caches. No bit depends on it.
    bint stream             # y or dx outgrows the cache: non-temporal stores, past it
    bint fetch              # else prefetch its lines before they are written
    Py_ssize_t ahead        # to stream: how many rows further on the row to prefetch meanwhile is
    Py_ssize_t pass_rows    # 1 to 8: rows that are summed before the first of them is scaled

ctypedef void (*rows_kernel)(const Job* job, Py_ssize_t first, Py_ssize_t last) noexcept nogil

ctypedef struct Table:
    # inv_n OUT; for backward factor, factor32, by_float64 too: what a job has to be computed
    void (*start)(Job* job) noexcept nogil
    rows_kernel rms_norm
    rows_kernel add_rms_norm
    rows_kernel residual_add
    rows_kernel row_squares
    rows_kernel row_products
    rows_kernel rms_scale
    # dweight (n,) IN-OUT, group (n,) IN-OUT; out (n,) OUT: all NULL without a weight. The first row
    # begins a group of 8, or goes on with one; the last ends it, or leaves it to a further call.
    void (*backward)(const Job* job, Py_ssize_t first, Py_ssize_t last, double* dweight,
                     float* group, bint begins, bint ends) noexcept nogil
    # dweight (n,) OUT, or NULL, of 8 rows at most; False, and nothing written, if one needs float64
    bint (*backward_few)(const Job* job, Py_ssize_t count, float* out) noexcept nogil
    void (*add_block)(double* dweight, const double* block, Py_ssize_t n) noexcept nogil
    void (*store_dweight)(float* out, const double* dweight, Py_ssize_t n,
                          bint accumulate) noexcept nogil
