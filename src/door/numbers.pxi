# Numbers: conversion and checks of eps, weight_offset, scale and size.
#
# Converting an argument, or releasing a buffer, can run the caller's code (__float__, __index__,
# __buffer__, a property __class__), which may change an array's shape or dtype. So a function
# converts all its arguments first, numbers before arrays, then checks them, and keeps the converted
# arrays alive to its end.

import numpy as np

cimport numpy as cnp
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from libc.stdint cimport INT64_MIN, int64_t
from libc.string cimport memcpy

from door.python cimport PyFloat_AsDouble
from kernels.job cimport Job

cdef int64_t INFINITY_BITS = 0x7ff0000000000000
# The longest row: up to it x / rms * LIFT * LIFTED_WEIGHT (scale.pxi) cannot overflow float32.
cdef Py_ssize_t MOST_SIZE = <Py_ssize_t>1 << 40


cdef inline int take_numbers(Job* job, object eps, object weight_offset) except -1:
    """Put eps and weight_offset into a job."""
    take_number(&job.eps, eps, "eps")
    if not is_eps(job.eps):
        raise ValueError(f"eps must be zero or more, got {job.eps}")
    return take_number(&job.weight_offset, weight_offset, "weight_offset")


cdef inline int take_number(double* number, object value, str name) except -1:
    """*number = value. Returning a double would have Cython compare it with its error value, which
    can raise a floating-point flag in the caller's state."""
    if PyFloat_CheckExact(value):
        number[0] = PyFloat_AS_DOUBLE(value)
        return 0
    return take_other_number(number, value, name)


cdef int take_other_number(double* number, object value, str name) except -1:
    """*number = float(value), except where NumPy would warn or parse text."""
    if isinstance(value, (cnp.ndarray, np.generic)):
        refuse_masked_number(value, name)
        if value.dtype.kind not in "biuf":
            raise TypeError(f"{name} must be a real number, got {value.dtype}")
    try:
        number[0] = PyFloat_AsDouble(value)
    except TypeError:
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}") from None
    except OverflowError:
        raise ValueError(f"{name} must fit a float64, got a larger integer") from None
    return 0


cdef int refuse_masked_number(object value, str name) except -1:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain number, got a masked array")
    return 0


cdef inline bint is_eps(double value) noexcept nogil:
    """Return whether value is zero or more, without a comparison, which may raise a flag."""
    cdef int64_t bits
    memcpy(&bits, &value, sizeof(bits))
    return 0 <= bits <= INFINITY_BITS or bits == INT64_MIN   # or -0.0


cdef Py_ssize_t as_integer(object value, str name, str wanted) except? -1:
    """Convert an integer. wanted: its range, for the message of one that is larger than any."""
    refuse_masked_number(value, name)
    try:
        return value
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    except OverflowError:
        raise ValueError(f"{name} must be {wanted}, got a larger integer") from None


cdef Py_ssize_t checked_size(Py_ssize_t size, Py_ssize_t n) except -1:
    if not n <= size < MOST_SIZE:
        raise ValueError(f"size, the length of the whole row, must be at least that of x, {n}, "
                         f"and below 2**40, got {size}")
    return size
