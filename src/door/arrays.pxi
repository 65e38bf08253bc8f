# Arrays: conversion of an argument to an ndarray of a kind that kernels take, or an error that
# names the argument, what was wanted and what came. Nothing here writes to an array.

import numpy as np

cimport numpy as cnp

from door.python cimport PyArray_NewLikeArray
from kernels.kinds cimport BFLOAT16, FLOAT16, FLOAT32, FLOAT64

# Dtypes without a meaning, as np.load gives bfloat16's, and what they may hold.
cdef dict MEMORY_OF = {"|V2": "ml_dtypes.bfloat16", "|V4": "np.float32", "|V8": "np.float64"}
# Messages never advise a copy of these: the result would be lost with it.
cdef frozenset WRITTEN = frozenset(("residual", "out", "dx", "dweight"))


cdef inline cnp.ndarray as_array(object value, str name):
    """Return `value` as a plain ndarray over the same memory, unchecked; None for None."""
    if value is None or cnp.PyArray_CheckExact(value):
        return <cnp.ndarray>value
    return foreign_array(value, name)


cdef cnp.ndarray foreign_array(object value, str name):
    """Return the plain ndarray behind a subclass or a buffer, without a copy."""
    refuse_masked(value, name)
    if isinstance(value, cnp.ndarray):
        return np.asarray(value)
    try:
        buffer = memoryview(value)
    except TypeError:
        raise TypeError(no_array(value, name)) from None
    except (BufferError, ValueError) as error:      # a buffer that is locked or released
        raise TypeError(f"{no_array(value, name)} ({error})") from None
    try:
        array = np.asarray(buffer)
    except (BufferError, RuntimeWarning, TypeError, ValueError) as error:
        raise TypeError(f"{no_array(value, name)}, whose elements NumPy cannot describe ({error}); "
                        f"pass an ndarray over its memory: np.frombuffer({name}, dtype)") from None
    if not is_float(array):     # found here, since an ndarray has methods that a buffer lacks
        refuse_dtype(array, name, name in WRITTEN, f"np.asarray({name})")
    return array


cdef str no_array(object value, str name):
    return (f"{name} must be a numpy.ndarray or a buffer of floats, "
            f"got {type(value).__name__}{hint(value, name)}")


cdef int refuse_masked(object value, str name) except -1:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked array, whose mask would be "
                        f"lost; pass {name}.data"
                        + ("" if name in WRITTEN else f" or {name}.filled(...)"))
    return 0


cdef str hint(object value, str name):
    """Return the advice for an array of another library, or nothing.

    Some could be read in place (CPU tensors, through DLPack), but the result would be an ndarray
    without the graph, index or gradient of the argument: the caller has to ask for that.
    """
    kind = type(value)
    libraries = {base.__module__.partition(".")[0] for base in kind.__mro__}
    if "dask" in libraries:
        return "; use fastrms.dask" + ("" if name in WRITTEN else f", or pass {name}.compute()")
    if "torch" in libraries:
        return f"; use fastrms.torch, or pass {name}.numpy()"
    if "jax" in libraries:      # a tracer of jit: an array is a buffer, and is read
        return f"; use fastrms.jax, or pass np.asarray({name}) outside of jax.jit"
    if hasattr(kind, "__dlpack__"):
        return f"; pass np.from_dlpack({name})"
    if hasattr(kind, "__array_ufunc__") or hasattr(kind, "__array_function__"):
        return f"; pass the ndarray that it holds ({name}.data, {name}.to_numpy())"
    return ""


# ---- type and shape ---------------------------------------------------------------------------
# From here to the kernel no code of the caller's runs, except after an error. The checks set
# `other` if an array is no float32: then set_arrays has to look at the call's arrays.

# NumPy's number for ml_dtypes.bfloat16, which it gets when ml_dtypes is imported: by others, and
# perhaps after fastrms.
cdef int bfloat16_number = -1


cdef inline int kind_of(cnp.ndarray array) noexcept:
    """Return the kind of a checked array."""
    cdef int number = cnp.PyArray_TYPE(array)
    if number == cnp.NPY_FLOAT:
        return FLOAT32
    if number == cnp.NPY_DOUBLE:
        return FLOAT64
    return FLOAT16 if number == cnp.NPY_FLOAT16 else BFLOAT16


cdef inline int check_array(cnp.ndarray array, str name, bint* other,
                            bint output=False) except -1:
    """Require a native array of floats with a last axis; for an output, writeable too."""
    if (array is not None and cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT
            and not cnp.PyArray_ISBYTESWAPPED(array) and cnp.PyArray_NDIM(array) > 0
            and (not output or cnp.PyArray_ISWRITEABLE(array))):
        return 0
    return check_other_array(array, name, other, output)


cdef int check_other_array(cnp.ndarray array, str name, bint* other, bint output) except -1:
    """Check an array that is no float32, or not as it must be."""
    if array is None:
        raise TypeError(no_array(None, name))
    if not is_float(array):
        refuse_dtype(array, name, output, name)
    if cnp.PyArray_NDIM(array) == 0:
        raise ValueError(f"{name} must have at least one axis, got a 0-d array")
    if output:
        check_writeable(array, name)
    other[0] = True
    return 0


cdef bint is_float(cnp.ndarray array) except -1:
    """Return whether the array is native and of a kind that kernels take."""
    global bfloat16_number
    cdef int number = cnp.PyArray_TYPE(array)
    if cnp.PyArray_ISBYTESWAPPED(array):
        return False
    if number in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE, cnp.NPY_FLOAT16, bfloat16_number):
        return True
    scalar = array.dtype.type
    if scalar.__name__ != "bfloat16" or scalar.__module__ != "ml_dtypes":
        return False
    bfloat16_number = number
    return True


cdef int refuse_dtype(cnp.ndarray array, str name, bint output, str ndarray) except -1:
    """Raise, with advice for an array that `ndarray` spells."""
    kind = array.dtype.str
    advice = f"convert it first: {ndarray}.astype(np.float32)"
    if array.dtype.names:
        advice = f"pass a field: {ndarray}[{array.dtype.names[0]!r}]"
    elif kind in MEMORY_OF:
        advice = f"convert it first: {ndarray}.view({MEMORY_OF[kind]})"
    elif output:    # out.astype(...) would be a temporary, and the result lost with it
        advice = "it is written, so allocate it as one of these, and keep it"
    elif kind in ("|u1", "|S1") and ndarray != name:
        advice = f"if these are the bytes of floats, pass np.frombuffer({name}, np.float32)"
    raise TypeError(f"{name} must be native float16, bfloat16, float32 or float64, got {kind!r} "
                    f"({array.dtype}); {advice}")


cdef int check_writeable(cnp.ndarray array, str name) except -1:
    if not cnp.PyArray_ISWRITEABLE(array):
        raise ValueError(f"{name} must be writeable, got a read-only array; "
                         "pass one of your own, and keep it")
    return 0


cdef inline int check_like(cnp.ndarray array, str name, cnp.ndarray like, str like_name,
                           bint* other, bint output=False) except -1:
    """Require an array of the shape of `like`."""
    check_array(array, name, other, output)
    if not cnp.PyArray_SAMESHAPE(array, like):
        raise ValueError(f"{name} must have the shape of {like_name}, {shape_of(like)}, "
                         f"got {shape_of(array)}")
    return 0


cdef inline int check_vector(cnp.ndarray array, str name, Py_ssize_t n, bint* other,
                             bint output=False) except -1:
    """Require an array of shape (n,) or (1, ..., 1, n)."""
    check_array(array, name, other, output)
    if ((cnp.PyArray_NDIM(array) != 1 or cnp.PyArray_DIM(array, 0) != n)
            and shape_of(array) != (1,) * (cnp.PyArray_NDIM(array) - 1) + (n,)):
        raise ValueError(f"{name} must have shape ({n},), the last axis of x, "
                         f"got {shape_of(array)}")
    return 0


cdef tuple shape_of(cnp.ndarray array):
    return (<object>array).shape


cdef inline cnp.ndarray new_like(cnp.ndarray array):
    """Return a new C-contiguous array of the same shape and dtype."""
    if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT:
        return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), cnp.NPY_FLOAT, 0)
    return PyArray_NewLikeArray(array, cnp.NPY_CORDER, NULL, 0)


cdef inline cnp.ndarray copy_of(cnp.ndarray array):
    return cnp.PyArray_NewCopy(array, cnp.NPY_CORDER)
