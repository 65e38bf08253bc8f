# The kernels: forward, add + forward, backward and add over rows of float32, and of float64 in
# float64.pxi, in typed Cython, compiled once per instruction set. A kernel takes pointers and
# sizes, never a Python object. The order of every sum is written out here, and no compiler flag may
# change it (no -ffast-math, -ffp-contract=off), so every build gives the same bits.
#
# u = 2**-24 is float32's rounding unit. An output may be its own input, because every element is
# loaded before the same element is stored.

from cpython.pycapsule cimport PyCapsule_New

from kernels.job cimport UNWEIGHTED, Job, Table
from kernels.kinds cimport convert_kind
from kernels.simd cimport VEC
from machine.compiler cimport FLAGS

# gives put, write_vec; uses nothing
include "kernels/stores.pxi"
# gives sum_squares, add_and_sum_squares, fold; uses nothing
include "kernels/sums.pxi"
# gives residual_add*; uses stores
include "kernels/add.pxi"
# gives *norm_64, backward_64, *_in_float64; uses stores, sums, add
include "kernels/float64.pxi"
# gives choose_path, invert, scale_batch, DISTANCE, LINE; uses stores, float64
include "kernels/scale.pxi"
# gives rms_norm, add_rms_norm; uses add, sums, scale
include "kernels/forward.pxi"
# gives sum_for_weight, fits_float32, backward_path, Batch, *_DY; uses sums, scale
include "kernels/backward_sums.pxi"
# gives backward, backward_few, add_block, store_dweight*;
# uses stores, float64, scale, backward_sums
include "kernels/backward.pxi"


cdef void start(Job* job) noexcept nogil:
    """Compute the constants that every row needs."""
    job.inv_n = 1.0 / job.size
    job.path = UNWEIGHTED
    if job.weight != NULL:
        job.offset32 = <float>job.weight_offset if job.weight_offset != 0 else <float>-0.0
    if job.y != NULL:
        job.path = choose_path(job)
    elif job.dx != NULL:
        job.path = backward_path(job)


cdef void start_64(Job* job) noexcept nogil:
    """Compute inv_n, and turn no offset into -0.0: w + -0.0 is w for every w."""
    job.inv_n = 1.0 / job.size
    if job.weight != NULL and job.weight_offset == 0:
        job.weight_offset = -0.0


cdef Table[2] TABLES    # of float32 rows, and of float64 rows
TABLES[0] = Table(start, rms_norm, add_rms_norm, residual_add, backward, backward_few, add_block,
                  store_dweight, convert_kind)
TABLES[1] = Table(start_64, rms_norm_64, add_rms_norm_64, residual_add_64, backward_64, NULL,
                  add_block, store_dweight_64, convert_kind)

table = PyCapsule_New(TABLES, "fastrms.kernels", NULL)
flags = FLAGS.decode()
vector_floats = VEC
