# The kernels: forward, add + forward, backward and add over rows of float32, in typed Cython.
# Each instruction set compiles this one source. It sees pointers and sizes, never an object, and
# refuses to let the compiler choose an order of summation: lanes and trees stand here as code, so
# every build gives the same bits (no -ffast-math, -ffp-contract=off).
#
# u = 2**-24 is float32's rounding unit. `restrict` promises no *partial* overlap: an output may
# be its own input, since every element is loaded before the same element is stored.

from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport INFINITY, NAN, sqrt
from libc.string cimport memset

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
    GROUP = 8      # short rows at a time, so that one's root and division hide behind others' sums


cdef inline const float* at(const float* array, Py_ssize_t i) noexcept nogil:
    """array + i, where NULL stays NULL."""
    if array == NULL:
        return NULL
    return array + i


include "sums.pxi"
include "scale.pxi"
include "add.pxi"
include "forward.pxi"
include "backward_sums.pxi"
include "backward.pxi"


cdef void start(Job* job) noexcept nogil:
    """What a job has to be computed: 1 / size, and backward's factor if it is not the weight."""
    job.inv_n = 1.0 / job.size
    if job.factor != NULL and job.factor != job.weight:
        add_offset(job.factor, job.weight, job.weight_offset, job.n)


cdef Table TABLE = Table(start, rms_norm, add_rms_norm, residual_add, row_squares, row_products,
                         rms_scale, backward, backward_few, add_block, store_dweight)

table = PyCapsule_New(&TABLE, "fastrms.kernels", NULL)
flags = FLAGS.decode()
