# Loads and stores of up to a vector, where a row may end. For whole vectors `count` is a constant,
# and the branch vanishes.

from kernels.job cimport ACCUMULATE, STREAM, Store
from kernels.simd cimport (
    VEC, WIDE, load, load_part, narrow, narrow_part, store, store_part, stream, vec, wide,
    widen, widen_part,
)


cdef inline vec take_vec(const float* source, Py_ssize_t count) noexcept nogil:
    """Load at most VEC floats."""
    return load(source) if count >= VEC else load_part(source, count)


cdef inline void put_vec(float* target, vec value, Py_ssize_t count) noexcept nogil:
    """Store at most VEC floats."""
    if count >= VEC:
        store(target, value)
    else:
        store_part(target, value, count)


cdef inline void write_vec(float* target, vec value, Py_ssize_t count, Store mode) noexcept nogil:
    """Write at most VEC floats of y or dx, to STREAM a whole vector."""
    if mode == STREAM:
        stream(target, value)
    elif mode == ACCUMULATE:
        put_vec(target, take_vec(target, count) + value, count)
    else:
        put_vec(target, value, count)


cdef inline wide take(const float* source, Py_ssize_t count) noexcept nogil:
    """Load at most WIDE floats as doubles."""
    return widen(source) if count >= WIDE else widen_part(source, count)


cdef inline void put(float* target, wide value, Py_ssize_t count, bint accumulate) noexcept nogil:
    """Round at most WIDE doubles to float32, and store them or add them to the target."""
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
