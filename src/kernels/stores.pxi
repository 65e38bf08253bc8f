# Stores of up to a vector, where a row may end.

from kernels.job cimport ACCUMULATE, STREAM, Store
from kernels.simd cimport WIDE, narrow, narrow_part, put_vec, stream, take_vec, vec, wide


cdef inline void write_vec(float* target, vec value, Py_ssize_t count, Store mode) noexcept nogil:
    """Write at most VEC floats of y or dx, to STREAM a whole vector."""
    if mode == STREAM:
        stream(target, value)
    elif mode == ACCUMULATE:
        put_vec(target, take_vec(target, count) + value, count)
    else:
        put_vec(target, value, count)


cdef inline void put(float* target, wide value, Py_ssize_t count, bint accumulate) noexcept nogil:
    """Round at most WIDE doubles to float32, and store them or add them to the target."""
    cdef float[WIDE] rounded
    cdef Py_ssize_t k
    if accumulate:
        narrow(rounded, value)
        for k in range(count):
            target[k] = target[k] + rounded[k]
    else:
        narrow_part(target, value, count)
