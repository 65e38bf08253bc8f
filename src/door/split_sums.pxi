# Sums of split rows: float64 arrays with one element a row.

import numpy as np

cimport numpy as cnp


cdef cnp.ndarray as_sums(object value, str name, bint output=False):
    """Return sums as a plain ndarray. Those of a single row may come as a float64 scalar, which
    cannot be an output."""
    if cnp.PyArray_CheckExact(value):
        return <cnp.ndarray>value
    refuse_masked(value, name)
    if isinstance(value, cnp.ndarray) or (isinstance(value, np.float64) and not output):
        return np.asarray(value)
    got = "a scalar" if isinstance(value, np.float64) else type(value).__name__
    raise TypeError(f"{name} must be a float64 numpy.ndarray, got {got}")


cdef int check_sums(cnp.ndarray array, str name, cnp.ndarray x, bint output=False) except -1:
    """Require a float64 array of the shape of x without its last axis; an output, writeable."""
    cdef int ndim = cnp.PyArray_NDIM(x) - 1
    if cnp.PyArray_TYPE(array) != cnp.NPY_DOUBLE or cnp.PyArray_ISBYTESWAPPED(array):
        raise TypeError(f"{name} must be native float64, got {array.dtype.str!r} ({array.dtype}); "
                        + ("it is written, so allocate it as float64, and keep it" if output
                           else f"convert it first: {name}.astype(np.float64)"))
    if (cnp.PyArray_NDIM(array) != ndim
            or not cnp.PyArray_CompareLists(cnp.PyArray_DIMS(array), cnp.PyArray_DIMS(x), ndim)):
        raise ValueError(f"{name} must have the shape of x without its last axis, "
                         f"{shape_of(x)[:-1]}, got {shape_of(array)}")
    return check_writeable(array, name) if output else 0


cdef cnp.ndarray sums_beside(cnp.ndarray sums, cnp.ndarray output):
    """Return sums that a kernel can read straight through while it writes `output`."""
    if (not cnp.PyArray_IS_C_CONTIGUOUS(sums) or not cnp.PyArray_ISALIGNED(sums)
            or may_overlap(output, None, None, sums)):
        return copy_of(sums)
    return sums
