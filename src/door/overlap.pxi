# Overlap: where arrays share memory. An input may alias an output exactly; one that overlaps it
# otherwise is copied, so that the result is the one without overlap, as in NumPy.

import numpy as np

cimport numpy as cnp
from cpython.version cimport PY_VERSION_HEX

from door.python cimport PyGC_Disable, PyGC_Enable


cdef struct Bounds:     # the bytes [low, high) that hold every element of an array
    char* low
    char* high


cdef inline Bounds bounds_of(cnp.ndarray array, cnp.ndarray output=None) noexcept:
    """Return an array's bounds; no bytes for None, or for the output itself."""
    cdef Bounds bounds
    cdef Py_ssize_t size
    cdef int axis
    if array is None or array is output:
        bounds.low = bounds.high = NULL
        return bounds
    size = cnp.PyArray_ITEMSIZE(array)
    bounds.low = <char*>cnp.PyArray_DATA(array)
    if not cnp.PyArray_IS_C_CONTIGUOUS(array):
        return strided_bounds(array)
    for axis in range(cnp.PyArray_NDIM(array)):
        size *= cnp.PyArray_DIM(array, axis)
    bounds.high = bounds.low + size
    return bounds


cdef Bounds strided_bounds(cnp.ndarray array) noexcept:
    cdef Bounds bounds
    cdef int axis
    cdef Py_ssize_t reach
    bounds.low = <char*>cnp.PyArray_DATA(array)
    bounds.high = bounds.low + cnp.PyArray_ITEMSIZE(array)
    for axis in range(cnp.PyArray_NDIM(array)):
        reach = cnp.PyArray_STRIDE(array, axis) * (cnp.PyArray_DIM(array, axis) - 1)
        if reach > 0:
            bounds.high += reach
        else:
            bounds.low += reach
    return bounds


cdef inline bint meet(Bounds a, Bounds b) noexcept:
    return a.low < b.high and b.low < a.high


cdef inline bint may_overlap(cnp.ndarray output, cnp.ndarray x, cnp.ndarray dy=None,
                             cnp.ndarray a=None, cnp.ndarray b=None, cnp.ndarray c=None) noexcept:
    """Return whether the bounds of an output meet those of another array: the cheap first test.
    Each of the others may be None, and x and dy the output itself.
    """
    cdef Bounds written = bounds_of(output)
    return (meet(written, bounds_of(x, output)) or meet(written, bounds_of(dy, output))
            or meet(written, bounds_of(a)) or meet(written, bounds_of(b))
            or meet(written, bounds_of(c)))


cdef inline bint overlaps(cnp.ndarray a, cnp.ndarray b) except -1:
    """Return whether two arrays share memory: by their bounds, then by NumPy's exact answer."""
    return may_overlap(a, None, None, b) and share_elements(a, b)


# Without NumPy's dispatch, which is Python code, in which a signal's handler could run.
cdef object shares_memory = np.shares_memory._implementation


cdef bint share_elements(cnp.ndarray a, cnp.ndarray b) except -1:
    """Return NumPy's exact answer.

    Up to Python 3.11 the tuple of its arguments could trigger a collection of garbage, and so run a
    finalizer. From 3.12 on garbage is collected only between instructions of Python code.
    """
    cdef bint collects = PY_VERSION_HEX < 0x030c0000
    if cnp.PyArray_SIZE(a) == 0 or cnp.PyArray_SIZE(b) == 0:
        return False
    collects = collects and PyGC_Disable()
    try:
        return shares_memory(a, b)
    finally:
        if collects:
            PyGC_Enable()


cdef inline bint same_view(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Return whether two arrays of one shape are the same view: element i is element i."""
    cdef int axis
    if (cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b)
            or cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(b)):
        return False
    for axis in range(cnp.PyArray_NDIM(a)):
        if (cnp.PyArray_DIM(a, axis) > 1
                and cnp.PyArray_STRIDE(a, axis) != cnp.PyArray_STRIDE(b, axis)):
            return False
    return True


cdef cnp.ndarray aliasable_input(cnp.ndarray array, cnp.ndarray output):
    """Return an input that may alias `output` exactly: itself, or a copy if they overlap partly."""
    if not same_view(array, output) and overlaps(array, output):
        return copy_of(array)
    return array


cdef cnp.ndarray disjoint_input(cnp.ndarray array, cnp.ndarray output):
    """Return an input that is still read after `output` is written: itself, or a copy if they
    overlap. None for None."""
    if array is not None and overlaps(array, output):
        return copy_of(array)
    return array


cdef int check_disjoint(cnp.ndarray a, str a_name, cnp.ndarray b, str b_name) except -1:
    if overlaps(a, b):
        raise ValueError(f"{a_name} must not share memory with {b_name}: both are outputs")
    return 0
