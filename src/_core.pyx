# fastrms._core, the door: the public functions with their docstrings, and what a call needs before
# a kernel may run (checks, allocation, overlap, threads, the choice of kernels). It refuses to do
# arithmetic: that is in kernels.pxi.

import os
from importlib import import_module
from importlib.util import find_spec

import numpy as np

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals, PyErr_WarnEx
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport INT64_MIN, int64_t
from libc.stdlib cimport llabs
from libc.string cimport memset

from kernels cimport Axis, Job, Table, rows_kernel

cdef extern from "Python.h":
    double PyFloat_AsDouble(object) except *
    bint PyGC_Enable()

cdef extern from *:
    """
    /* From 3.12 on garbage is collected between instructions of Python code alone. To turn the
     * collector off and on again would then only undo what another thread does to it. */
    #if PY_VERSION_HEX >= 0x030c0000
    #define stop_collector() 0
    #else
    #define stop_collector PyGC_Disable
    #endif
    """
    bint stop_collector()

cdef extern from "numpy/arrayobject.h":
    bint PyArray_CheckExact(object)

cdef extern from *:
    """
    #if defined(__clang__)
    #define FASTRMS_COMPILER __VERSION__
    #elif defined(__GNUC__)
    #define FASTRMS_COMPILER "GCC " __VERSION__
    #else
    #define FASTRMS_COMPILER "unknown"
    #endif
    """
    const char* COMPILER "FASTRMS_COMPILER"

cdef extern from "machine.h" nogil:
    int64_t double_bits(double value)

cnp.import_array()

include "isa.pxi"
include "arrays.pxi"
include "rows.pxi"
include "caches.pxi"
include "threads.pxi"
include "blocks.pxi"
include "shards.pxi"
include "capi.pxi"


def rms_norm(x, weight=None, eps=1e-5, *, weight_offset=0.0, out=None, accumulate=False):
    """Divide each row of `x` by its root mean square, then scale it by `weight`.

    ``y = x / sqrt(mean(x**2) + eps) * (weight_offset + weight)``, over the last axis.

    Parameters
    ----------
    x : float32 array, shape (..., n)
        Any strides. Only read, unless it is also `out`.
    weight : float32 array, shape (n,), optional
        Without it the factor is 1. Only read.
    eps : float
        Added to the mean square, inside the root; zero or more.
    weight_offset : float
        Added to `weight`: 1 for models that store weight - 1 (Gemma).
    out : float32 array, shape of x, optional
        Where the result goes; may be `x` itself.
    accumulate : bool
        Add the result to what `out` holds: the post-norm residual in one pass.

    Returns
    -------
    out, the very object that was passed, or a new C-contiguous ndarray.

    Raises
    ------
    TypeError
        If an array is not native float32 (nothing is converted silently), is masked, or is none;
        or a number is none.
    ValueError
        If a shape does not fit or has no axis, eps is negative or NaN, `out` is read-only, or
        `accumulate` has no `out` to add to or is a name. After a refusal every array is as it was.

    Notes
    -----
    At most 3 ulp from the exact result (2 without weight) over the whole float32 range. A row
    gives the same bits whatever the batch, threads, strides or CPU.

    Ctrl-C raises KeyboardInterrupt between pieces of 2**24 elements, or of a row for each thread
    where that is more. The first rows of `out` are then done, the others as they were (all, where
    its layout took a copy).

    References
    ----------
    Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np, fastrms
    >>> fastrms.rms_norm(np.array([[3, 4]], np.float32))
    array([[0.8485278, 1.1313704]], dtype=float32)
    """
    cdef Job job
    cdef Axis[MOST_AXES] axes
    cdef cnp.ndarray x_in, w, y, x_rows, w_row, y_rows
    cdef object result = out
    cdef Py_ssize_t rows
    cdef bint adds = take_accumulate(accumulate, False) != 0
    take_numbers(&job, eps, weight_offset)
    x_in, w, y = as_array(x, "x"), as_array(weight, "weight"), as_array(out, "out")
    start_job(&job, x_in, adds)
    if w is not None:
        check_vector(w, "weight", job.n)
    if y is None:
        if adds:
            raise ValueError("accumulate=True needs out=, an array to add to")
        y = result = new_like(x_in)
    else:
        check_output(y, "out", x_in, "x")
    if w is not None:
        w_row = weight_beside(w, y)
        job.weight = <const float*>cnp.PyArray_DATA(w_row)
    x_rows, y_rows = input_rows(apart(x_in, y)), output_rows(y)
    place(&job, axes, x_rows, None, y_rows, None, None)
    rows = count_rows(x_rows)
    suit_caches(&job, rows, 2, job.y, job.y_stride, adds or job.y == job.x)
    run(kernels.rms_norm, &job, rows)
    write_back(y, y_rows)
    return result


def rms_norm_backward(dy, x, weight=None, eps=1e-5, *, weight_offset=0.0, dx=None, dweight=None,
                      accumulate=False):
    """Carry a gradient back through `rms_norm`.

    With ``g = dy * (weight_offset + weight)`` and ``xhat = x / sqrt(mean(x**2) + eps)``:
    ``dx = (g - xhat * mean(g * xhat)) / sqrt(mean(x**2) + eps)``, over the last axis, and
    ``dweight = sum of dy * xhat`` over all rows.

    Parameters
    ----------
    dy : float32 array, shape (..., n)
        The gradient of the output. Only read, unless it is also `dx`.
    x : float32 array, shape of dy
        The input of the forward pass. Only read, unless it is also `dx`.
    weight : float32 array, shape (n,), optional
        The weight of the forward pass. Only read, unless it is also `dweight`.
    eps, weight_offset : float
        As in the forward pass.
    dx : float32 array, shape of x, optional
        Where the gradient of x goes; may be `dy` or `x`.
    dweight : float32 array, shape (n,), optional
        Where the gradient of weight goes; may be `weight`.
    accumulate : bool, "dx" or "dweight"
        True adds to `dx` and `dweight`, those of them that were passed; the other one is new. With
        the gradient that came down the skip path as `dx`, this is the backward of a residual
        block. A name adds to that one alone: "dweight" sums over micro-batches.

    Returns
    -------
    dx, dweight
        The objects that were passed, or new ndarrays; dweight is None without a weight.

    Raises
    ------
    TypeError
        If an array is not native float32, is masked, or is none; or a number is none.
    ValueError
        If a shape does not fit or has no axis, eps is negative or NaN, an output is read-only or
        shares memory with the other, `dweight` comes without `weight`, or `accumulate` without a
        buffer to add to or with another name. After a refusal every array is as it was.

    Notes
    -----
    Beside its own rounding, dx is within 2e-6 of its row's largest element, plus
    ``(n + 512) / 2**56`` of the row's largest ``|g| / rms``, which float64 itself leaves where dx
    cancels to next to nothing of it (docs/numerics.md); dweight is within 1e-6 of the sum of
    ``|dy * xhat|``, and its order of summation depends on the number of rows alone.

    Ctrl-C raises KeyboardInterrupt between pieces of 2**24 elements, or of 8 rows for each thread
    where that is more. Some rows of `dx` are then done, the others and `dweight` are as they were.

    References
    ----------
    Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np, fastrms
    >>> x = np.array([[3, 4]], np.float32)
    >>> dx, dweight = fastrms.rms_norm_backward(np.array([[1, 0]], np.float32), x, np.ones(2, "f"))
    >>> dweight
    array([0.8485278, 0.       ], dtype=float32)
    """
    return gradients(dy, x, weight, eps, weight_offset, dx, dweight, accumulate, None)


def add_rms_norm(x, residual, weight=None, eps=1e-5, *, weight_offset=0.0, out=None):
    """Add `x` to the residual stream, and normalise the sum: one pass over memory.

    ``residual += x``, then ``y = rms_norm(residual, weight, eps)``, over the last axis.

    Parameters
    ----------
    x : float32 array, shape (..., n)
        A layer's output. Only read, unless it is also `out`.
    residual : float32 array, shape of x
        The stream: `x` is added to it in place, bit for bit as `numpy.add` does.
    weight, eps, weight_offset
        As in `rms_norm`.
    out : float32 array, shape of x, optional
        Where the normalised sum goes; may be `x`.

    Returns
    -------
    out, the very object that was passed, or a new C-contiguous ndarray.

    Raises
    ------
    TypeError
        If an array is not native float32, is masked, or is none; or a number is none.
    ValueError
        If a shape does not fit or has no axis, eps is negative or NaN, an output is read-only, or
        `out` shares memory with `residual`. After a refusal every array is as it was.

    Notes
    -----
    Ctrl-C ends a call as it ends `rms_norm`: the first rows of both outputs are done.

    References
    ----------
    Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np, fastrms
    >>> stream = np.array([[2, 4]], np.float32)
    >>> fastrms.add_rms_norm(np.array([[1, 0]], np.float32), stream)
    array([[0.8485278, 1.1313704]], dtype=float32)
    >>> stream
    array([[3., 4.]], dtype=float32)
    """
    cdef Job job
    cdef Axis[MOST_AXES] axes
    cdef cnp.ndarray x_in, stream, w, y, x_rows, stream_rows, w_row, y_rows
    cdef object result = out
    cdef Py_ssize_t rows
    take_numbers(&job, eps, weight_offset)
    x_in, stream = as_array(x, "x"), as_array(residual, "residual")
    w, y = as_array(weight, "weight"), as_array(out, "out")
    start_job(&job, x_in, False)
    check_output(stream, "residual", x_in, "x")
    if w is not None:
        check_vector(w, "weight", job.n)
    if y is None:
        y = result = new_like(x_in)
    else:
        check_output(y, "out", x_in, "x")
        check_apart(y, "out", stream, "residual")
    if w is not None:
        w_row = weight_beside(weight_beside(w, y), stream)
        job.weight = <const float*>cnp.PyArray_DATA(w_row)
    x_rows = input_rows(apart(apart(x_in, y), stream))
    stream_rows, y_rows = output_rows(stream), output_rows(y)
    place(&job, axes, x_rows, None, y_rows, stream_rows, None)
    rows = count_rows(x_rows)
    suit_caches(&job, rows, 3, job.y, job.y_stride, job.y == job.x)
    run(kernels.add_rms_norm, &job, rows)
    write_back(stream, stream_rows)
    write_back(y, y_rows)
    return result


def residual_add(x, residual, scale=1.0):
    """Add a layer's output to the residual stream, in place.

    ``residual += scale * x``

    Parameters
    ----------
    x : float32 array, any shape but 0-d
        A layer's output. Only read.
    residual : float32 array, shape of x
        The stream, added to in place. With scale 1 the result is bit for bit `numpy.add`'s; with
        another scale the product and the sum are taken in float64, and that is rounded.
    scale : float
        A factor for `x`.

    Returns
    -------
    residual, the very object that was passed.

    Raises
    ------
    TypeError
        If an array is not native float32, is masked, or is none; or a number is none.
    ValueError
        If the shapes differ, one has no axis, or `residual` is read-only. After a refusal every
        array is as it was.

    Notes
    -----
    Ctrl-C ends a call as it ends `rms_norm`: the first rows of `residual` are done.

    Examples
    --------
    >>> import numpy as np, fastrms
    >>> fastrms.residual_add(np.array([1, 2], np.float32), np.ones(2, np.float32), 0.5)
    array([1.5, 2. ], dtype=float32)
    """
    cdef Job job
    cdef Axis[MOST_AXES] axes
    cdef cnp.ndarray x_in, stream, x_rows, stream_rows
    take_number(&job.scale, scale, "scale")
    x_in, stream = as_array(x, "x"), as_array(residual, "residual")
    check_array(x_in, "x")
    check_output(stream, "residual", x_in, "x")
    clear_job(&job, last_axis(x_in))
    x_rows, stream_rows = input_rows(apart(x_in, stream)), output_rows(stream)
    place(&job, axes, x_rows, None, None, stream_rows, None)
    run(kernels.residual_add, &job, count_rows(x_rows))
    write_back(stream, stream_rows)
    return residual


cdef tuple gradients(object dy, object x, object weight, object eps, object weight_offset,
                     object dx, object dweight, object accumulate, tuple sums):
    """rms_norm_backward, and with sums = (sum_squares, sum_products, size) that of a split row."""
    cdef Job job
    cdef Axis[MOST_AXES] axes
    cdef cnp.ndarray x_in, dy_in, w, dx_out, dweight_out, squares = None, products = None
    cdef cnp.ndarray x_rows, dy_rows, dx_rows, w_row, dweight_row, sum_rows, product_rows, _factor
    cdef object dx_result = dx, dweight_result = dweight
    cdef float* dweight_data = NULL
    cdef Py_ssize_t rows, size = 0
    cdef int adds = take_accumulate(accumulate, True)
    cdef bint to_dx = adds & FASTRMS_DX and dx is not None
    cdef bint to_dweight = adds & FASTRMS_DWEIGHT and dweight is not None
    take_numbers(&job, eps, weight_offset)
    if sums is not None:
        size = as_size(sums[2])
        squares, products = as_sums(sums[0], "sum_squares"), as_sums(sums[1], "sum_products")
    dy_in, x_in, w = as_array(dy, "dy"), as_array(x, "x"), as_array(weight, "weight")
    dx_out, dweight_out = as_array(dx, "dx"), as_array(dweight, "dweight")
    start_job(&job, x_in, to_dx)
    check_array(dy_in, "dy")
    check_same_shape(dy_in, "dy", x_in, "x")
    if sums is not None:
        check_sums(squares, "sum_squares", x_in)
        check_sums(products, "sum_products", x_in)
        job.size = checked_size(size, job.n)
    if w is not None:
        check_vector(w, "weight", job.n)
    elif dweight is not None:
        raise ValueError("dweight needs weight: without one it has no gradient")
    if adds and not to_dx and not to_dweight:
        refuse_accumulate(adds)
    if dweight is not None:
        check_vector(dweight_out, "dweight", job.n, output=True)
        check_writeable(dweight_out, "dweight")
    elif w is not None:
        dweight_out = dweight_result = new_like(w)
    if dx is None:
        dx_out = dx_result = new_like(x_in)
    else:
        check_output(dx_out, "dx", x_in, "x")
        if dweight is not None:
            check_apart(dx_out, "dx", dweight_out, "dweight")
    x_rows, dy_rows = apart(x_in, dx_out), apart(dy_in, dx_out)
    if w is not None:
        w_row = weight_beside(w, dx_out)
        if dweight is not None:     # up to 8 rows are summed in it while these are read
            w_row = clear_of(w_row, dweight_out)
            x_rows, dy_rows = clear_of(x_rows, dweight_out), clear_of(dy_rows, dweight_out)
        job.weight = <const float*>cnp.PyArray_DATA(w_row)
    if sums is not None:
        sum_rows, product_rows = sums_beside(squares, dx_out), sums_beside(products, dx_out)
        job.squares = <double*>cnp.PyArray_DATA(sum_rows)
        job.products = <double*>cnp.PyArray_DATA(product_rows)
    x_rows, dy_rows, dx_rows = input_rows(x_rows), input_rows(dy_rows), output_rows(dx_out)
    place(&job, axes, x_rows, dy_rows, None, None, dx_rows)
    if dweight_out is not None:
        dweight_row = output_rows(dweight_out)
        dweight_data = <float*>cnp.PyArray_DATA(dweight_row)
    rows = count_rows(x_rows)
    if w is not None:
        _factor = room_for_factor(&job, rows)   # it lives as long as the call
    suit_caches(&job, rows, 3, job.dx, job.dx_stride,
                job.accumulate or job.dx == job.x or job.dx == job.dy)
    run_backward(&job, rows, dweight_data, to_dweight)
    write_back(dx_out, dx_rows)
    if dweight_out is not None:
        write_back(dweight_out, dweight_row)
    return dx_result, dweight_result


cdef inline int take_accumulate(object value, bint by_name) except -1:
    """What is added to. `by_name`: there are two outputs, and a name stands for one of them."""
    if value is False:
        return 0
    if value is True:
        return FASTRMS_DX | FASTRMS_DWEIGHT
    return take_other_accumulate(value, by_name)


cdef int take_other_accumulate(object value, bint by_name) except -1:
    if by_name and isinstance(value, str):
        if value == "dx":
            return FASTRMS_DX
        if value == "dweight":
            return FASTRMS_DWEIGHT
    if isinstance(value, (int, np.bool_)) and 0 <= value <= 1:
        return FASTRMS_DX | FASTRMS_DWEIGHT if value else 0
    wanted = 'True, False, "dx" or "dweight"' if by_name else "True or False"
    if isinstance(value, (int, str)):
        raise ValueError(f"accumulate must be {wanted}, got {value!r}")
    raise TypeError(f"accumulate must be {wanted}, got {type(value).__name__}")


cdef int refuse_accumulate(int adds) except -1:
    wanted = {FASTRMS_DX: '"dx" needs dx=', FASTRMS_DWEIGHT: '"dweight" needs dweight='}
    raise ValueError(f"accumulate={wanted.get(adds, 'True needs dx= or dweight=')}, "
                     "an array to add to")


cdef inline int take_numbers(Job* job, object eps, object weight_offset) except -1:
    take_eps(&job.eps, eps)
    return take_number(&job.weight_offset, weight_offset, "weight_offset")


cdef inline int start_job(Job* job, cnp.ndarray x, bint accumulate) except -1:
    """Check x, and fill in what each normalising job has beside its numbers, with no weight yet."""
    check_array(x, "x")
    clear_job(job, last_axis(x))
    job.accumulate = accumulate
    return 0


cdef inline void clear_job(Job* job, Py_ssize_t n) noexcept nogil:
    job.n = job.size = n
    job.stream = job.fetch = False
    job.ahead = job.pass_rows = 1
    job.squares = job.products = NULL
    job.weight = job.factor32 = job.dx = NULL
    job.factor = NULL
    job.axes = NULL


cdef enum:
    MOST_FACTOR = 3     # floats that place_factor may take for each element of a row


cdef cnp.ndarray room_for_factor(Job* job, Py_ssize_t rows):
    """Memory for what a job multiplies dy by, where it is not the weight itself."""
    cdef cnp.npy_intp size = place_factor(job, rows, NULL)
    cdef cnp.ndarray room = None
    if size > 0:
        room = cnp.PyArray_EMPTY(1, &size, cnp.NPY_DOUBLE, 0)
        place_factor(job, rows, <double*>cnp.PyArray_DATA(room))
    return room


cdef inline Py_ssize_t place_factor(Job* job, Py_ssize_t rows, double* room) noexcept nogil:
    """Put factor and factor32 into `room`, to the end of a cache line each: n doubles for more than
    a row, n floats with an offset. Return how many doubles that is; with NULL nothing else."""
    cdef bint offset = double_bits(job.weight_offset) != 0
    cdef Py_ssize_t width = whole_lines(job.n), doubles = width if rows > 1 else 0
    job.factor32 = <float*>job.weight
    if room != NULL and doubles > 0:
        job.factor = room
    if room != NULL and offset:
        job.factor32 = <float*>(room + doubles)
    return doubles + (width // 2 if offset else 0)


def build_info():
    """Return what this build is, as a dict: compiler, flags, vectors, instruction sets, pool."""
    module = import_module(f"fastrms.{ISA_MODULES[current()]}")
    return {
        "compiler": COMPILER.decode(),
        "flags": module.flags,
        "vector_floats": module.vector_floats,
        "pool": POOL_SYSTEM.decode(),
        "isa": current(),
        "isas": available_isas(),
    }


use_isa(os.environ.get("FASTRMS_ISA") or preferred_isa())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_run_serially_after_fork)
