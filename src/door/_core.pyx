"""The door: fastrms' compiled functions.

RMSNorm is of Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.
"""
# The public functions. The files below hold what they share; above each include stands what it
# gives to later files and which of them it uses (tests/test_layers.py).

import os

cimport numpy as cnp

from kernels.job cimport Axis, Job, Table

cnp.import_array()

# gives kernels, current, *_isa, available_isas, ISA_MODULES; uses nothing
include "schedule/isa.pxi"
# gives thread*, is_brief, RELEASE_GIL, parallel_from, _run_serially_after_fork; uses nothing
include "schedule/threads.pxi"
# gives tune, whole_lines; uses threads
include "schedule/tuning.pxi"
# gives run_staged, staged_rows, *_bytes, kernels_for, kind_size, convert_vector, ABSENT; uses isa
include "schedule/staging.pxi"
# gives run_rows; uses staging
include "schedule/segments.pxi"
# gives run, run_c, Plan, make_plan, scratch_bytes; uses tuning, threads, segments, staging
include "schedule/schedule.pxi"
# gives take_number*, is_eps, as_integer, checked_size, MOST_SIZE; uses nothing
include "door/numbers.pxi"
# gives as_array, check_*, shape_of, refuse_masked, new_like, copy_of, kind_of; uses nothing
include "door/arrays.pxi"
# gives may_overlap, aliasable_input, disjoint_input, check_disjoint; uses arrays
include "door/overlap.pxi"
# gives rows_of, write_back, set_arrays, convert_array, MOST_AXES; uses staging, arrays
include "door/strides.pxi"
# gives as_sums, check_sums, sums_beside; uses arrays, overlap
include "door/split_sums.pxi"
# gives take_x, init_job, vector_for, normed, gradients;
# uses isa, tuning, staging, schedule, numbers, arrays, overlap, strides, split_sums
include "door/jobs.pxi"
# gives nothing; uses isa, staging, schedule, numbers, arrays, strides, split_sums, jobs
include "door/split.pxi"
# gives Operation, NORM, ADD*, BACKWARD, init_c_job, bad_*, has_flags, is_done, kernel_of, c_*;
# uses isa, tuning, staging, schedule, numbers, jobs
include "door/c_api.pxi"
# gives nothing; uses tuning, threads, staging, schedule, c_api
include "door/c_any.pxi"
# gives nothing; uses isa, threads, numbers
include "door/settings.pxi"


def rms_norm(x, weight=None, eps=1e-5, *, weight_offset=0.0, out=None, accumulate=False):
    """Divide each row of `x` by its root mean square, then scale it by `weight`.

    ``y = x / sqrt(mean(x**2) + eps) * (weight_offset + weight)``, over the last axis.

    Parameters
    ----------
    x : float16, bfloat16, float32 or float64 array, shape (..., n)
        Any strides. Only read, unless it is also `out`.
    weight : array of one of these dtypes, shape (n,) or (1, ..., 1, n), optional
        Without it the factor is 1. Only read. Beside float32 or half `x` a float64 weight is
        rounded to float32 once.
    eps : float
        Added to the mean square, inside the root; zero or more.
    weight_offset : float
        Added to `weight`: 1 for models that store weight - 1 (Gemma).
    out : array of one of these dtypes, shape of x, optional
        Where the result goes; may be `x` itself. It keeps its dtype.
    accumulate : bool
        Add the result to `out`: the post-norm residual in one pass. A half is added to in float32,
        and rounded once.

    Returns
    -------
    The object passed as `out`, or a new C-contiguous ndarray of x's dtype.

    Raises
    ------
    TypeError
        If an array is not native float16, bfloat16, float32 or float64 (nothing else is converted),
        is masked, or is no array; or a number is not one.
    ValueError
        If a shape does not fit or has no axis, eps is negative or NaN, an output is read-only, or
        `accumulate` is another value or has no output to add to. After an error every array is
        unchanged.

    Notes
    -----
    Computed in float32, or in float64 if `x` or `out` is float64; the result is rounded once. In
    float32 it is at most 4 ulp from the exact result (3 without an offset, 2 without weight, one
    more for a float64 weight) over the whole range, in float64 ``(n / 64 + 10) * 2**-53`` of it; a
    half is the float32 result, rounded. A row gives the same bits whatever the batch, threads,
    strides or CPU.

    Ctrl-C raises KeyboardInterrupt within 2**24 elements, or one row for each thread if that is
    more. The first rows of `out` are then done; none are, if its layout needed a copy.

    Examples
    --------
    >>> import numpy as np, fastrms
    >>> fastrms.rms_norm(np.array([[3, 4]], np.float32))
    array([[0.8485278, 1.1313704]], dtype=float32)
    """
    return normed(x, False, None, None, weight, eps, weight_offset, out, accumulate, None)


def rms_norm_backward(dy, x, weight=None, eps=1e-5, *, weight_offset=0.0, dx=None, dweight=None,
                      accumulate=False):
    """Carry a gradient back through `rms_norm`.

    With ``g = dy * (weight_offset + weight)``, ``rms = sqrt(mean(x**2) + eps)`` and
    ``xhat = x / rms``: ``dx = (g - xhat * mean(g * xhat)) / rms``, over the last axis, and
    ``dweight = sum of dy * xhat`` over all rows.

    Parameters
    ----------
    dy : float16, bfloat16, float32 or float64 array, shape (..., n)
        The gradient of the output. Only read, unless it is also `dx`.
    x : array of one of these dtypes, shape of dy
        The input of the forward pass. Only read, unless it is also `dx`.
    weight : array of one of these dtypes, shape (n,) or (1, ..., 1, n), optional
        The weight of the forward pass. Only read, unless it is also `dweight`.
    eps, weight_offset : float
        As in the forward pass.
    dx : array of one of these dtypes, shape of x, optional
        Where the gradient of x goes; may be `dy` or `x`. It keeps its dtype.
    dweight : array of one of these dtypes, shape (n,) or that of weight, optional
        Where the gradient of weight goes; may be `weight`. It keeps its dtype.
    accumulate : bool, "dx" or "dweight"
        True adds to `dx` and `dweight`, to each that is passed. With the gradient of the skip path
        as `dx`, this is the whole backward of a residual block. A name adds to that one alone:
        "dweight" sums over micro-batches. A half is rounded after each call: sum in float32.

    Returns
    -------
    dx, dweight
        The objects passed, or new ndarrays, with the dtype of x, and the dtype and shape of weight;
        dweight is None without a weight.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`. A ValueError too if `dx` and `dweight` share memory, or `dweight` comes
        without `weight`. After an error every array is unchanged.

    Notes
    -----
    Computed in float32, or in float64 if `dy`, `x` or `dx` is float64; each result is rounded once.
    In float32 an element of dx is within 1e-6 of ``(|g| + |xhat| * mean(|g * xhat|)) / rms``, the
    magnitudes of its own terms, plus 2**-149 (docs/numerics.md, also for float64). dweight, beside
    its own rounding, is within 1e-6 of the sum of ``|dy * xhat|``; its order of summation depends
    on the number of rows alone.

    Ctrl-C raises KeyboardInterrupt within 2**24 elements, or a 64th of the rows (32 at least) for
    each thread if that is more. Some rows of `dx` are then done, the others and
    `dweight` are unchanged.

    Examples
    --------
    >>> import numpy as np, fastrms
    >>> x = np.array([[3, 4]], np.float32)
    >>> dx, dweight = fastrms.rms_norm_backward(np.array([[1, 0]], np.float32), x, np.ones(2, "f"))
    >>> dweight
    array([0.8485278, 0.       ], dtype=float32)
    """
    return gradients(dy, x, weight, eps, weight_offset, dx, dweight, accumulate, None)


def add_rms_norm(x, residual, weight=None, eps=1e-5, *, weight_offset=0.0, scale=1.0, out=None):
    """Add `x` to the residual stream, and normalise the sum: one pass over memory.

    ``residual += scale * x``, then ``y = rms_norm(residual, weight, eps)``, over the last axis.

    Parameters
    ----------
    x : float16, bfloat16, float32 or float64 array, shape (..., n)
        A layer's output. Only read, unless it is also `out`.
    residual : array of one of these dtypes, shape of x
        The stream: ``scale * x`` is added to it in place, with the bits of `residual_add`. It keeps
        its dtype, and the norm reads what it holds then. float32 beside bfloat16 `x` keeps small
        sums.
    weight, eps, weight_offset
        As in `rms_norm`.
    scale : float
        A factor for `x`.
    out : array of one of these dtypes, shape of x, optional
        Where the normalised sum goes; may be `x`. It keeps its dtype.

    Returns
    -------
    The object passed as `out`, or a new C-contiguous ndarray of x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`. A ValueError too if `out` shares memory with `residual`. After an error every
        array is unchanged.

    Notes
    -----
    Computed in float32, or in float64 if `x`, `residual` or `out` is float64. Ctrl-C acts as in
    `rms_norm`: the first rows of both outputs are done.

    Examples
    --------
    >>> import numpy as np, fastrms
    >>> stream = np.array([[2, 4]], np.float32)
    >>> fastrms.add_rms_norm(np.array([[1, 0]], np.float32), stream)
    array([[0.8485278, 1.1313704]], dtype=float32)
    >>> stream
    array([[3., 4.]], dtype=float32)
    """
    return normed(x, True, residual, scale, weight, eps, weight_offset, out, False, None)


def residual_add(x, residual, scale=1.0):
    """Add a layer's output to the residual stream, in place.

    ``residual += scale * x``

    Parameters
    ----------
    x : float16, bfloat16, float32 or float64 array, any shape but 0-d
        A layer's output. Only read.
    residual : array of one of these dtypes, shape of x
        The stream, added to in place; it keeps its dtype. With scale 1, and one dtype for both, the
        result is bit for bit `numpy.add`'s. A scaled sum is computed in float64 and rounded to
        float32, before it is rounded to a half.
    scale : float
        A factor for `x`.

    Returns
    -------
    The object passed as `residual`.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`. After an error both arrays are unchanged.

    Notes
    -----
    Ctrl-C acts as in `rms_norm`: the first rows of `residual` are done.

    Examples
    --------
    >>> import numpy as np, fastrms
    >>> fastrms.residual_add(np.array([1, 2], np.float32), np.ones(2, np.float32), 0.5)
    array([1.5, 2. ], dtype=float32)
    """
    cdef Job job
    cdef Axis[MOST_AXES] axes
    cdef cnp.ndarray x_in, total, x_rows, total_rows
    cdef const Table* table = kernels
    cdef bint other = False
    take_number(&job.scale, scale, "scale")
    x_in, total = as_array(x, "x"), as_array(residual, "residual")
    take_x(&job, x_in, &other)
    check_like(total, "residual", x_in, "x", &other, output=True)
    if may_overlap(total, x_in):
        x_in = aliasable_input(x_in, total)
    x_rows, total_rows = rows_of(x_in), rows_of(total, output=True)
    set_arrays(&job, axes, x_rows, None, None, total_rows, None, other)
    if other:
        table = kernels_for(&job, axes)
    run(table, table.residual_add, &job, NULL, False)
    write_back(total, total_rows)
    return residual


use_isa(os.environ.get("FASTRMS_ISA") or preferred_isa())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_run_serially_after_fork)
