# The door's array checks: what comes in is a float32 ndarray or is refused with a message that
# names the argument, what was wanted and what came; and where arrays share memory. Nothing here
# writes to one.

cdef int64_t INFINITY_BITS = 0x7ff0000000000000
# No message may advise to pass a copy for these: the result would be lost with it.
cdef frozenset WRITTEN = frozenset(("residual", "out", "dx", "dweight"))

# ---- what comes in ----------------------------------------------------------------------------
# Numbers first, then arrays. To convert them can run the caller's code (__float__, __index__,
# __buffer__, a property __class__), and that may set an array's shape or dtype. So a function
# converts all of its arguments before it looks at one of them, and keeps what they became to its
# end: to let go of a buffer can run the caller's code as well.

cdef inline int take_number(double* number, object value, str name) except -1:
    """*number = value. No double is returned: Cython would compare it with the value for errors,
    and that can raise floating-point flags in the caller's state."""
    if PyFloat_CheckExact(value):
        number[0] = PyFloat_AS_DOUBLE(value)
        return 0
    return take_other_number(number, value, name)


cdef int take_other_number(double* number, object value, str name) except -1:
    """float(value), but not of what NumPy would convert with a warning, or by reading text."""
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


cdef inline int take_eps(double* eps, object value) except -1:
    take_number(eps, value, "eps")
    if not is_eps(eps[0]):
        raise ValueError(f"eps must be zero or more, got {eps[0]}")
    return 0


cdef inline bint is_eps(double value) noexcept nogil:
    """Zero or more, without a comparison that can raise floating-point flags."""
    cdef int64_t bits = double_bits(value)      # INT64_MIN is -0.0
    return 0 <= bits <= INFINITY_BITS or bits == INT64_MIN


cdef inline cnp.ndarray as_array(object value, str name):
    """`value` as a plain ndarray over the same memory, None for None; of its dtype and shape
    nothing is known yet."""
    if value is None or PyArray_CheckExact(value):
        return <cnp.ndarray>value
    return foreign_array(value, name)


cdef cnp.ndarray foreign_array(object value, str name):
    """The plain ndarray behind a subclass or a buffer, without a copy."""
    refuse_masked(value, name)
    if isinstance(value, cnp.ndarray):
        return np.asarray(value)
    try:
        buffer = memoryview(value)
    except TypeError:
        raise TypeError(no_array(value, name)) from None
    except (BufferError, ValueError) as error:      # it has one, but not now, or not of this dtype
        raise TypeError(f"{no_array(value, name)} ({error})") from None
    return np.asarray(buffer)


cdef str no_array(object value, str name):
    return (f"{name} must be a float32 numpy.ndarray or a float32 buffer, "
            f"got {type(value).__name__}{way_out(value, name)}")


cdef int refuse_masked(object value, str name) except -1:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked array, whose mask would be "
                        f"lost; pass {name}.data"
                        + ("" if name in WRITTEN else f" or {name}.filled(...)"))
    return 0


cdef str way_out(object value, str name):
    """What a message says to the owner of an array of another library.

    Some of these could be read in place (CPU tensors, through DLPack), but the result would be an
    ndarray, off the graph, the index or the gradient of what came: that has to be asked for.
    """
    kind = type(value)
    libraries = {base.__module__.partition(".")[0] for base in kind.__mro__}
    if "dask" in libraries:
        return "; use fastrms.dask" + ("" if name in WRITTEN else f", or pass {name}.compute()")
    if "torch" in libraries:
        return f"; use fastrms.torch, or pass {name}.numpy()"
    if "jax" in libraries:      # what jit passes: an array itself is read, as any buffer is
        return f"; use fastrms.jax, or pass np.asarray({name}) outside of jax.jit"
    if hasattr(kind, "__dlpack__"):
        return f"; pass np.from_dlpack({name})"
    if hasattr(kind, "__array_ufunc__") or hasattr(kind, "__array_function__"):
        return f"; pass the ndarray that it holds ({name}.data, {name}.to_numpy())"
    return ""


# ---- what it is -------------------------------------------------------------------------------
# From here to the kernel no code of the caller's runs, but after a refusal.

cdef inline int check_array(cnp.ndarray array, str name, bint output=False) except -1:
    """A native float32 array with a last axis, or TypeError / ValueError."""
    if array is not None and is_float32(array):
        return 0
    return refuse_array(array, name, output)


cdef inline bint is_float32(cnp.ndarray array) noexcept:
    return (cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT and not cnp.PyArray_ISBYTESWAPPED(array)
            and cnp.PyArray_NDIM(array) > 0)


cdef int refuse_array(cnp.ndarray array, str name, bint output) except -1:
    if array is None:
        raise TypeError(no_array(None, name))
    if cnp.PyArray_TYPE(array) != cnp.NPY_FLOAT or cnp.PyArray_ISBYTESWAPPED(array):
        # A converted output would take the result along when it is dropped after the call.
        raise TypeError(f"{name} must be native float32, got {array.dtype.str!r} ({array.dtype}); "
                        + ("it is written, so allocate it as float32, and keep it" if output
                           else f"convert it first: {name}.astype(np.float32)"))
    raise ValueError(f"{name} must have at least one axis, got a 0-d array")


cdef inline int check_output(cnp.ndarray array, str name, cnp.ndarray like,
                             str like_name) except -1:
    """A writeable array of the shape of `like`."""
    check_array(array, name, output=True)
    check_same_shape(array, name, like, like_name)
    return check_writeable(array, name)


cdef inline int check_writeable(cnp.ndarray array, str name) except -1:
    if not cnp.PyArray_ISWRITEABLE(array):
        raise ValueError(f"{name} must be writeable, got a read-only array; "
                         "pass one of your own, and keep it")
    return 0


cdef inline int check_same_shape(cnp.ndarray array, str name, cnp.ndarray like,
                                 str like_name) except -1:
    if not cnp.PyArray_SAMESHAPE(array, like):
        raise ValueError(f"{name} must have the shape of {like_name}, {shape_of(like)}, "
                         f"got {shape_of(array)}")
    return 0


cdef inline int check_vector(cnp.ndarray array, str name, Py_ssize_t n,
                             bint output=False) except -1:
    """A float32 array of shape (n,)."""
    check_array(array, name, output)
    if cnp.PyArray_NDIM(array) != 1 or cnp.PyArray_DIM(array, 0) != n:
        raise ValueError(f"{name} must have shape ({n},), the last axis of x, "
                         f"got {shape_of(array)}")
    return 0


cdef tuple shape_of(cnp.ndarray array):
    return (<object>array).shape


# ---- overlap ----------------------------------------------------------------------------------

cdef inline void extent(cnp.ndarray array, char** low, char** high) noexcept:
    """The bytes [low, high) that hold every element."""
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(array)
    cdef int axis
    low[0] = <char*>cnp.PyArray_DATA(array)
    if cnp.PyArray_IS_C_CONTIGUOUS(array):
        for axis in range(cnp.PyArray_NDIM(array)):
            size *= cnp.PyArray_DIM(array, axis)
        high[0] = low[0] + size
    else:
        strided_extent(array, low, high)


cdef void strided_extent(cnp.ndarray array, char** low, char** high) noexcept:
    cdef int axis
    cdef Py_ssize_t reach
    high[0] = low[0] + cnp.PyArray_ITEMSIZE(array)
    for axis in range(cnp.PyArray_NDIM(array)):
        reach = cnp.PyArray_STRIDE(array, axis) * (cnp.PyArray_DIM(array, axis) - 1)
        if reach > 0:
            high[0] += reach
        else:
            low[0] += reach


cdef inline bint bounds_meet(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef char *a_low, *a_high, *b_low, *b_high
    extent(a, &a_low, &a_high)
    extent(b, &b_low, &b_high)
    return a_low < b_high and b_low < a_high


cdef inline bint overlaps(cnp.ndarray a, cnp.ndarray b) except -1:
    """Whether the two share memory: bounds first, then NumPy's exact answer."""
    return bounds_meet(a, b) and share_elements(a, b)


# Without NumPy's dispatch, which is Python code: a signal's handler could run there.
cdef object shares_memory = np.shares_memory._implementation


cdef bint share_elements(cnp.ndarray a, cnp.ndarray b) except -1:
    """NumPy's exact answer. Up to Python 3.11 the tuple of its arguments might be what sets off a
    collection of garbage, and with that a finalizer."""
    cdef bint collects
    if cnp.PyArray_SIZE(a) == 0 or cnp.PyArray_SIZE(b) == 0:
        return False
    collects = stop_collector()
    try:
        return shares_memory(a, b)
    finally:
        if collects:
            PyGC_Enable()


cdef inline bint same_view(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether element i of one is element i of the other (their shapes are equal already)."""
    cdef int axis
    if cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b) or cnp.PyArray_NDIM(a) != cnp.PyArray_NDIM(b):
        return False
    for axis in range(cnp.PyArray_NDIM(a)):
        if (cnp.PyArray_DIM(a, axis) > 1
                and cnp.PyArray_STRIDE(a, axis) != cnp.PyArray_STRIDE(b, axis)):
            return False
    return True


cdef inline cnp.ndarray apart(cnp.ndarray array, cnp.ndarray output):
    """An input that no write to `output` can spoil: itself, or a copy if they partly overlap."""
    if not same_view(array, output) and overlaps(array, output):
        return copy_of(array)
    return array


cdef inline cnp.ndarray clear_of(cnp.ndarray array, cnp.ndarray output):
    """An input that shares nothing with `output`, which is written before the last of it is read:
    itself, or a copy."""
    if overlaps(array, output):
        return copy_of(array)
    return array


cdef inline cnp.ndarray weight_beside(cnp.ndarray weight, cnp.ndarray output):
    """A weight that a kernel can read straight through while it writes `output`."""
    return clear_of(input_rows(weight), output)


cdef inline int check_apart(cnp.ndarray a, str a_name, cnp.ndarray b, str b_name) except -1:
    if overlaps(a, b):
        raise ValueError(f"{a_name} must not share memory with {b_name}: both are outputs")
    return 0
