# The kernels: forward, add + forward, backward and add over rows of float32, in typed Cython.
# Each instruction set compiles this one source. It sees pointers and sizes, never an object, and
# refuses to let the compiler choose an order of summation: lanes and folds stand here as code, so
# every build gives the same bits (no -ffast-math, -ffp-contract=off).
#
# u = 2**-24 is float32's rounding unit. `restrict` promises no *partial* overlap: an output may
# be its own input, since every element is loaded before the same element is stored.

from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport INFINITY, fabs, sqrt
from libc.string cimport memset

from kernels cimport Job, Table

cdef extern from "machine.h" nogil:
    const char* FLAGS "FASTRMS_FLAGS"
    void prefetch(const float* address)
    void prefetch_write(const float* address)
    long floats_to_line(const float* address)

cdef extern from "simd.h" nogil:
    ctypedef float vec
    ctypedef double wide
    enum:
        VEC     # floats in a vec
        WIDE    # doubles in a wide
        LANES   # 32, of a long sum
        WIDES   # LANES // WIDE
        SIXTEEN "(16 / WIDE)"   # what 16 lanes of doubles take
        VECS "(16 / VEC)"       # what 16 lanes of floats take
    vec splat(float value)
    wide splat_wide(double value)
    vec load(const float* source)
    void store(float* target, vec value)
    wide load_wide(const double* source)
    void store_wide(double* target, wide value)
    wide widen(const float* source)
    wide widen_half(vec value, int number)
    void narrow(float* target, wide value)
    vec load_part(const float* source, long count)
    void store_part(float* target, vec value, long count)
    wide widen_part(const float* source, long count)
    wide keep_part(wide value, long count)
    void narrow_part(float* target, wide value, long count)
    void stream(float* target, vec value)
    void stream_fence()
    wide add_product(wide sum, wide a, wide b)
    vec multiply_add(vec a, vec b, vec c)
    wide root(wide value)
    double total(wide value)
    vec absolute(vec value)
    vec larger(vec a, vec b)
    float largest(vec value)

cdef enum:
    LINE = 16       # floats in a cache line
    DISTANCE = 128  # floats from the line in work to the one that is prefetched
    PASS = 8        # rows at most that are summed before the first of them is scaled


cdef inline vec take_vec(const float* source, Py_ssize_t count) noexcept nogil:
    """At most VEC floats."""
    return load(source) if count >= VEC else load_part(source, count)


cdef inline void put_vec(float* target, vec value, Py_ssize_t count) noexcept nogil:
    if count >= VEC:
        store(target, value)
    else:
        store_part(target, value, count)


cdef inline wide take(const float* source, Py_ssize_t count) noexcept nogil:
    """At most WIDE floats as doubles."""
    return widen(source) if count >= WIDE else widen_part(source, count)


cdef inline wide factor_at(const Job* job, Py_ssize_t i, Py_ssize_t count) noexcept nogil:
    """weight_offset + weight for at most WIDE elements, from i on."""
    return splat_wide(job.weight_offset) + take(job.weight + i, count)


cdef inline void put(float* target, wide value, Py_ssize_t count, bint accumulate) noexcept nogil:
    """Round at most WIDE doubles to float32, and store them or add them to what is there."""
    cdef float[WIDE] rounded
    cdef Py_ssize_t k
    if accumulate:
        narrow(rounded, value)
        for k in range(count):
            target[k] = target[k] + rounded[k]
    elif count >= WIDE:
        narrow(target, value)
    else:
        narrow_part(target, value, count)


include "sums.pxi"
include "scale.pxi"
include "add.pxi"
include "forward.pxi"
include "backward_sums.pxi"
include "backward.pxi"


cdef void start(Job* job) noexcept nogil:
    """What a job has to be computed."""
    job.inv_n = 1.0 / job.size
    job.by_float64 = False
    if job.factor32 != NULL:
        start_backward(job)


cdef Table TABLE = Table(start, rms_norm, add_rms_norm, residual_add, row_squares, row_products,
                         rms_scale, backward, backward_few, add_block, store_dweight)

table = PyCapsule_New(&TABLE, "fastrms.kernels", NULL)
flags = FLAGS.decode()
vector_floats = VEC
