# Split rows: the public functions for a last axis that is split over the chunks of an array, or
# over machines. Each holder sums its part of every row, the sums are added up, and each scales its
# part.

cimport numpy as cnp

from kernels.job cimport Axis, Job, Table


def sum_squares(x, *, out=None):
    """Sum the squares of each row, in the order and with the bits of `rms_norm`.

    ``sum(x**2)``, over the last axis.

    Parameters
    ----------
    x : float16, bfloat16, float32 or float64 array, shape (..., n)
        Any strides. Only read.
    out : float64 array, shape x.shape[:-1], optional
        Where the sums go.

    Returns
    -------
    The object passed as `out`, or a new float64 ndarray.

    Raises
    ------
    TypeError
        If `x` is not native float16, bfloat16, float32 or float64, `out` not native float64, or one
        of them is masked.
    ValueError
        If the shapes do not fit or have no axis, or `out` is read-only. After an error every
        array is unchanged.

    Notes
    -----
    A row gives the same bits whatever the batch, threads, strides or CPU. The squares of float64
    elements have to fit float64: beyond 1e154 the sum is Inf, below 1e-162 it is 0.

    Examples
    --------
    >>> import numpy as np, fastrms
    >>> fastrms.sum_squares(np.array([[3, 4]], np.float32))
    array([25.])
    """
    return row_sums(False, None, x, None, 0.0, out)


def sum_products(dy, x, weight=None, *, weight_offset=0.0, out=None):
    """Sum the products of gradient and input over each row, for the backward of a split row.

    ``sum(dy * (weight_offset + weight) * x)``, over the last axis, in float64.

    Parameters
    ----------
    dy : float16, bfloat16, float32 or float64 array, shape (..., n)
        The gradient of the output. Only read.
    x : array of one of these dtypes, shape of dy
        The input of the forward pass. Only read.
    weight, weight_offset
        As in `rms_norm`: the part of the weight that belongs to these columns.
    out : float64 array, shape x.shape[:-1], optional
        Where the sums go.

    Returns
    -------
    The object passed as `out`, or a new float64 ndarray.

    Raises
    ------
    TypeError, ValueError
        As `sum_squares`. A TypeError too if weight_offset is not a number. After an error every
        array is unchanged.

    Examples
    --------
    >>> import numpy as np, fastrms
    >>> fastrms.sum_products(np.array([[1, 2]], np.float32), np.array([[3, 4]], np.float32))
    array([11.])
    """
    return row_sums(True, dy, x, weight, weight_offset, out)


def rms_scale(x, sum_squares, size, weight=None, eps=1e-5, *, weight_offset=0.0, out=None):
    """Normalise a part of each row, given the sum of squares of the whole.

    ``y = x / sqrt(sum_squares / size + eps) * (weight_offset + weight)``

    Parameters
    ----------
    x : float16, bfloat16, float32 or float64 array, shape (..., n)
        Some columns of a longer array. Any strides. Only read, unless it is also `out`.
    sum_squares : float64 array, shape x.shape[:-1]
        The sum of squares of each whole row: those of its parts, added up. Only read.
    size : int
        The length of the whole row, at least n and below 2**40.
    weight : array of one of these dtypes, shape (n,) or (1, ..., 1, n), optional
        The part of the weight that belongs to these columns. Only read.
    eps, weight_offset, out
        As in `rms_norm`.

    Returns
    -------
    The object passed as `out`, or a new C-contiguous ndarray of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`, and if `sum_squares` is not native float64, or `size` no integer or out of
        range. After an error every array is unchanged.

    Notes
    -----
    ``rms_scale(x, sum_squares(x), n, weight)`` has the bits of ``rms_norm(x, weight)``. Ctrl-C
    acts as in `rms_norm`.

    Examples
    --------
    >>> import numpy as np, fastrms
    >>> left, right = np.array([[3]], np.float32), np.array([[4]], np.float32)
    >>> total = fastrms.sum_squares(left) + fastrms.sum_squares(right)
    >>> fastrms.rms_scale(left, total, 2), fastrms.rms_scale(right, total, 2)
    (array([[0.8485278]], dtype=float32), array([[1.1313704]], dtype=float32))
    """
    return normed(x, False, None, None, weight, eps, weight_offset, out, False,
                  (sum_squares, size))


def rms_scale_backward(dy, x, sum_squares, sum_products, size, weight=None, eps=1e-5, *,
                       weight_offset=0.0, dx=None, dweight=None, accumulate=False):
    """Carry a gradient back through `rms_scale`, given both sums of the whole rows.

    With ``g = dy * (weight_offset + weight)`` and ``rms = sqrt(sum_squares / size + eps)``:
    ``dx = (g - x / rms * sum_products / (size * rms)) / rms``, and
    ``dweight = sum of dy * x / rms`` over all rows.

    Parameters
    ----------
    dy, x : float16, bfloat16, float32 or float64 arrays, shape (..., n)
        Some columns of the gradient of the output, and of the input. Only read, unless also `dx`.
    sum_squares, sum_products : float64 arrays, shape x.shape[:-1]
        The sums over each whole row, of `sum_squares` and `sum_products`. Only read.
    size : int
        The length of the whole row, at least n and below 2**40.
    weight, eps, weight_offset, dx, dweight, accumulate
        As in `rms_norm_backward`, for these columns.

    Returns
    -------
    dx, dweight
        The objects passed, or new ndarrays; dweight is None without a weight.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_backward` and `rms_scale`. After an error every array is unchanged.

    Notes
    -----
    Computed in float64 and rounded to the call's arithmetic: within the bounds of
    `rms_norm_backward`, but not always with its bits. Ctrl-C acts as in that function.

    Examples
    --------
    >>> import numpy as np, fastrms
    >>> x, dy, w = np.array([[3, 4]], "f"), np.array([[1, 0]], "f"), np.ones(2, "f")
    >>> squares, products = fastrms.sum_squares(x), fastrms.sum_products(dy, x, w)
    >>> dx, dweight = fastrms.rms_scale_backward(dy, x, squares, products, 2, w)
    >>> dweight
    array([0.8485278, 0.       ], dtype=float32)
    """
    return gradients(dy, x, weight, eps, weight_offset, dx, dweight, accumulate,
                     (sum_squares, sum_products, size))


cdef object row_sums(bint products, object dy, object x, object weight, object weight_offset,
                     object out):
    """Sum the squares of each row of x, or its products with dy, which is None for squares."""
    cdef Job job
    cdef Axis[MOST_AXES] axes
    cdef const Table* table = kernels
    cdef cnp.ndarray x_in, dy_in, w, target, sums, x_rows, dy_rows
    cdef bint other = False
    take_numbers(&job, 0.0, weight_offset)
    dy_in, x_in, w = as_array(dy, "dy"), as_array(x, "x"), as_array(weight, "weight")
    target = None if out is None else as_sums(out, "out", output=True)
    take_x(&job, x_in, &other)
    if products:
        check_like(dy_in, "dy", x_in, "x", &other)
    if w is not None:
        check_vector(w, "weight", job.n, &other)
    if target is not None:
        check_sums(target, "out", x_in, output=True)
    # Always new: `out` may be anywhere, in any order, and sums are few.
    sums = cnp.PyArray_ZEROS(cnp.PyArray_NDIM(x_in) - 1, cnp.PyArray_DIMS(x_in), cnp.NPY_DOUBLE, 0)
    x_rows, dy_rows = rows_of(x_in), rows_of(dy_in) if products else None
    set_arrays(&job, axes, x_rows, dy_rows, None, None, None, other)
    if other:
        table = kernels_for(&job, axes)
        w = vector_for(&job, w, True)
    if w is not None:
        w = rows_of(w)
        job.weight = <const float*>cnp.PyArray_DATA(w)
    if products:
        job.products = <double*>cnp.PyArray_DATA(sums)
    else:
        job.squares = <double*>cnp.PyArray_DATA(sums)
    run(table, table.backward if products else table.rms_norm, &job, NULL, False)
    if target is None:
        return sums
    write_back(target, sums)
    return out
