# Arrays: conversion of an argument to a float32 ndarray, or an error that names the argument, what
# was wanted and what came. Nothing here writes to an array.

import numpy as np

cimport numpy as cnp

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
    except (BufferError, ValueError) as error:      # a buffer that is locked, or of another dtype
        raise TypeError(f"{no_array(value, name)} ({error})") from None
    return np.asarray(buffer)


cdef str no_array(object value, str name):
    return (f"{name} must be a float32 numpy.ndarray or a float32 buffer, "
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
# From here to the kernel no code of the caller's runs, except after an error.

cdef inline int check_array(cnp.ndarray array, str name, bint output=False) except -1:
    """Require a native float32 array with a last axis; for an output, writeable too."""
    if (array is not None and cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT
            and not cnp.PyArray_ISBYTESWAPPED(array) and cnp.PyArray_NDIM(array) > 0
            and (not output or cnp.PyArray_ISWRITEABLE(array))):
        return 0
    return refuse_array(array, name, output)


cdef int refuse_array(cnp.ndarray array, str name, bint output) except -1:
    if array is None:
        raise TypeError(no_array(None, name))
    if cnp.PyArray_TYPE(array) != cnp.NPY_FLOAT or cnp.PyArray_ISBYTESWAPPED(array):
        # out.astype(...) would be a temporary, and the result lost with it.
        raise TypeError(f"{name} must be native float32, got {array.dtype.str!r} ({array.dtype}); "
                        + ("it is written, so allocate it as float32, and keep it" if output
                           else f"convert it first: {name}.astype(np.float32)"))
    if cnp.PyArray_NDIM(array) == 0:
        raise ValueError(f"{name} must have at least one axis, got a 0-d array")
    return check_writeable(array, name)


cdef int check_writeable(cnp.ndarray array, str name) except -1:
    if not cnp.PyArray_ISWRITEABLE(array):
        raise ValueError(f"{name} must be writeable, got a read-only array; "
                         "pass one of your own, and keep it")
    return 0


cdef inline int check_like(cnp.ndarray array, str name, cnp.ndarray like, str like_name,
                           bint output=False) except -1:
    """Require a float32 array of the shape of `like`."""
    check_array(array, name, output)
    if not cnp.PyArray_SAMESHAPE(array, like):
        raise ValueError(f"{name} must have the shape of {like_name}, {shape_of(like)}, "
                         f"got {shape_of(array)}")
    return 0


cdef inline int check_vector(cnp.ndarray array, str name, Py_ssize_t n,
                             bint output=False) except -1:
    """Require a float32 array of shape (n,)."""
    check_array(array, name, output)
    if cnp.PyArray_NDIM(array) != 1 or cnp.PyArray_DIM(array, 0) != n:
        raise ValueError(f"{name} must have shape ({n},), the last axis of x, "
                         f"got {shape_of(array)}")
    return 0


cdef tuple shape_of(cnp.ndarray array):
    return (<object>array).shape


cdef inline cnp.ndarray new_like(cnp.ndarray array):
    return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), cnp.NPY_FLOAT, 0)


cdef inline cnp.ndarray copy_of(cnp.ndarray array):
    return cnp.PyArray_NewCopy(array, cnp.NPY_CORDER)
