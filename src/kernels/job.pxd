# The interface between the scheduler and the kernels: a job, and a table of functions.
# Strides count elements from row to row; the last axis is contiguous. Rows are [first, last).

cdef enum:
    BATCH = 32      # rows at most whose sums are taken before the first of them is scaled
    GROUP = 8       # rows whose dweight is summed in float32, and at most in a batch of backward

cdef enum Path:     # how y is computed from x, 1 / rms and the weight
    UNWEIGHTED
    PLAIN           # no weight_offset, and every |weight| is at most 2
    OFFSET          # every |weight_offset + weight| is at most 2
    LIFTED          # at most 2**44: 1 / rms is scaled by a power of two
    BY_FLOAT64      # larger ones, and a weight_offset that float32 does not hold
    FLOAT16_FIRST   # x / rms is rounded to float16, and then multiplied by the factor in float32
    BFLOAT16_FIRST

cdef enum Store:    # how y or dx is written
    STORE
    FETCH           # and the lines that are written next are prefetched
    STREAM          # by non-temporal stores; and the rows that are read next are prefetched
    ACCUMULATE      # added to the array

ctypedef struct Axis:       # one leading axis of a job's arrays
    Py_ssize_t length
    Py_ssize_t y            # bytes from index to index; 0 for an array that the job lacks
    Py_ssize_t residual
    Py_ssize_t dx
    Py_ssize_t x
    Py_ssize_t dy

ctypedef struct Kinds:      # how the arrays lie in memory: kinds.h's numbers
    int y
    int residual
    int dx
    int x
    int dy
    int arithmetic          # FLOAT32 or FLOAT64: what the kernels read and write

ctypedef struct Job:        # float64 kernels cast the pointers: there each float is a double
    float* y                # (rows, n) OUT, or IN-OUT to ACCUMULATE
    float* residual         # (rows, n) IN-OUT
    float* dx               # (rows, n) OUT, or IN-OUT to ACCUMULATE
    const float* x          # (rows, n) IN
    const float* dy         # (rows, n) IN
    const float* weight     # (n,) IN, or NULL: the factor is 1
    double* squares         # (rows,) sums of x**2, OUT or IN; NULL if the kernel computes them
    double* products        # (rows,) sums of dy * (weight_offset + weight) * x, likewise
    Py_ssize_t y_stride
    Py_ssize_t residual_stride
    Py_ssize_t dx_stride
    Py_ssize_t x_stride
    Py_ssize_t dy_stride
    # The leading axes, innermost first, if one row stride is not enough or if rows are staged: then
    # the strides above are those of axes[0], and a kernel gets rows of axes[0] alone. Else NULL.
    const Axis* axes
    # Rows of another kind than the arithmetic's are converted on their way to a kernel and back.
    bint staged
    Kinds kinds             # if staged
    int round_kind          # of x / rms before the weight; if that is the arithmetic: not rounded
    Py_ssize_t rows
    Py_ssize_t n
    Py_ssize_t size         # full row length; n unless the row is split
    double inv_n            # 1 / size
    double eps
    double weight_offset
    float offset32          # the same; -0.0 for none, since w + -0.0 is w for every w
    double scale
    Path path               # backward tests it for BY_FLOAT64 only
    # How the job uses this machine's caches. No bit depends on it, except ACCUMULATE.
    Store store
    Py_ssize_t ahead        # to STREAM: distance in rows to the row that is prefetched
    Py_ssize_t batch        # rows, at most BATCH, in backward GROUP

ctypedef struct GradientSums:   # of the weight, each with room for a vector past n
    double* dweight         # (n,) IN-OUT
    float* group            # (n,) IN-OUT: a group of up to 8 rows, times LIFT_DY
    bint begins             # whether the first row begins a group, or continues one
    bint ends               # whether the last row ends its group, or leaves it open

# sums is NULL for all kernels but backward, and for backward without a weight.
ctypedef void (*rows_kernel)(const Job* job, Py_ssize_t first, Py_ssize_t last,
                             const GradientSums* sums) noexcept nogil

ctypedef struct Table:
    # Compute what every row needs: inv_n, offset32 and path.
    void (*start)(Job* job) noexcept nogil
    rows_kernel rms_norm    # without y, sums of squares
    rows_kernel add_rms_norm
    rows_kernel residual_add
    rows_kernel backward    # without dx, sums of products
    # dweight (n,) OUT, or NULL, of at most 8 rows. False, and nothing written, if one needs
    # float64. NULL for float64 rows.
    bint (*backward_few)(const Job* job, void* dweight) noexcept nogil
    void (*add_block)(double* dweight, const double* block, Py_ssize_t n) noexcept nogil
    void (*store_dweight)(void* out, const double* dweight, Py_ssize_t n,
                          bint accumulate) noexcept nogil
    void (*convert)(void* to, int to_kind, const void* source, int kind,
                    Py_ssize_t n) noexcept nogil
