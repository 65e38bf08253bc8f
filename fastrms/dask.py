"""fastrms for dask arrays: lazy, one task a block, or two where the last axis is in several chunks.

Arguments are checked when the graph is built, by calling the NumPy functions on arrays without
rows; the number of rows may be unknown. Blocks of x are never joined: those of a split row exchange
float64 sums only. x, residual and dy must be dask arrays.
"""

from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

import fastrms

from . import _core
from ._arguments import DTYPES

try:
    import dask.array as da
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "dask":
        raise
    wanted = 'python -m pip install "fastrms[dask]"'
    raise ImportError(f"dask.array is not installed: {wanted}") from None

__all__ = ["add_rms_norm", "rms_norm", "rms_norm_backward"]


def __dir__() -> list[str]:
    return __all__


def rms_norm(
    x: da.Array, weight: Any = None, eps: float = 1e-5, *, weight_offset: float = 0.0
) -> da.Array:
    """Return `fastrms.rms_norm` of x, block by block; weight is an ndarray or a dask array."""
    fastrms.rms_norm(no_rows(x, "x"), alike(weight), eps, weight_offset=weight_offset)
    return norm_of(x, weight, x.dtype, eps=eps, weight_offset=weight_offset)


def add_rms_norm(
    x: da.Array,
    residual: da.Array,
    weight: Any = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    scale: float = 1.0,
) -> tuple[da.Array, da.Array]:
    """Return the norm of ``residual + scale * x`` and that sum, both new; residual is kept.

    The norm has the dtype of x, the sum that of residual.
    """
    empty = no_rows(x, "x"), no_rows(residual, "residual"), alike(weight)
    check_same_shape(x, "x", residual, "residual")
    fastrms.add_rms_norm(*empty, eps, weight_offset=weight_offset, scale=scale)
    total = blocks(add, [x, residual.rechunk(x.chunks)], dtype=residual.dtype, scale=scale)
    return norm_of(total, weight, x.dtype, eps=eps, weight_offset=weight_offset), total


def rms_norm_backward(
    dy: da.Array,
    x: da.Array,
    weight: Any = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
) -> tuple[da.Array, da.Array | None]:
    """Return dx and dweight: one task a block computes both, then float64 sums add up dweight.

    A block's part of dweight is float32, or float64 if dy, x or weight is, whatever its dtype.
    """
    empty = no_rows(dy, "dy"), no_rows(x, "x"), alike(weight)
    check_same_shape(x, "x", dy, "dy")
    fastrms.rms_norm_backward(*empty, eps, weight_offset=weight_offset)
    options = {"eps": eps, "weight_offset": weight_offset}
    arrays, weight, whole = [dy.rechunk(x.chunks), x], cut(weight, x), weight
    wide = [array.dtype for array in (*arrays, weight) if array is not None]
    options["part"] = np.float64 if np.dtype(np.float64) in wide else np.float32
    if x.numblocks[-1] == 1:
        pairs = blocks(backward, arrays, weight, token="rms_norm_backward", **options)
    else:
        sums = row_sums(blocks(products, arrays, weight, kept=2, weight_offset=weight_offset))
        pairs = blocks(scale_backward, arrays, weight, sums, size=x.shape[-1], **options)
    dx = pairs.map_blocks(itemgetter(0), dtype=x.dtype, meta=pairs._meta)
    if weight is None:
        return dx, None
    ones = tuple((1,) * len(chunks) for chunks in pairs.chunks[:-1])
    meta = pairs._meta.astype(options["part"])
    parts = pairs.map_blocks(
        dweight_of, dtype=meta.dtype, meta=meta, chunks=(*ones, pairs.chunks[-1])
    )
    rows = tuple(range(x.ndim - 1))
    dweight = da.reduction(
        parts,
        quiet_sum,
        partial(quiet_sum, result=weight.dtype),
        axis=rows,
        dtype=weight.dtype,
        combine=quiet_sum,
    )
    return dx, dweight if np.ndim(whole) == 1 else dweight.reshape(np.shape(whole))


# ---- graphs -----------------------------------------------------------------------------------


def norm_of(x, weight, dtype, **options):
    """Return the norm of x in this dtype."""
    weight, options = cut(weight, x), {**options, "dtype": dtype, "result": dtype}
    if x.numblocks[-1] == 1:
        return blocks(norm, [x], weight, token="rms_norm", **options)
    sums = row_sums(blocks(squares, [x], kept=1))
    return blocks(scale_rows, [x], weight, sums, token="scale", size=x.shape[-1], **options)


def blocks(function, arrays, weight=None, sums=None, *, kept=None, dtype=None, token=None, **more):
    """Map ``function(*arrays, sums, weight)`` over blocks; sums is left out if it is None.

    The results are of this dtype, or the last array's, in the chunks of the arrays or, with `kept`,
    that many float64 a row.
    """
    axes = tuple(range(arrays[0].ndim))
    dtype = np.float64 if kept else dtype or arrays[-1].dtype
    arguments = [(array, axes) for array in arrays]
    if sums is not None:
        arguments.append((sums, (*axes[:-1], len(axes))))
    arguments.append((weight, None if weight is None else axes[-1:]))
    return da.blockwise(
        partial(on_one_thread, function),
        axes,
        *chain(*arguments),
        token=token or function.__name__,
        adjust_chunks={axes[-1]: kept} if kept else None,
        concatenate=True,  # sums have one chunk: pass it, not a list of one
        align_arrays=False,
        dtype=dtype,
        meta=np.empty((0,) * len(axes), dtype),
        **more,
    )


def row_sums(parts):
    """Add up the blocks of each row in the order of the columns, one task for a block of rows."""
    *rows, last = range(parts.ndim)
    return da.blockwise(
        quiet_total,
        (*rows, last + 1),
        parts,
        (*rows, last),
        token="row-sums",
        new_axes={last + 1: parts.chunks[-1][0]},
        dtype=parts.dtype,
        meta=parts._meta,
    )


def cut(weight, x):
    """Return the weight as a dask array of one axis, in the chunks of x's last."""
    if weight is None:
        return None
    if isinstance(weight, da.Array):
        weight = weight if weight.ndim == 1 else weight.reshape(weight.shape[-1:])
        return weight.rechunk(x.chunks[-1:])
    weight = np.asarray(weight)
    return da.from_array(weight.reshape(weight.shape[-1:]), chunks=x.chunks[-1:])


# ---- tasks ------------------------------------------------------------------------------------


def on_one_thread(function, *arrays, **options):
    """Call the function on one thread, since dask itself runs tasks in parallel."""
    previous = _core.limit_threads(1)
    try:
        return function(*arrays, **options)
    finally:
        _core.limit_threads(previous)


def norm(x, weight, result, **options):
    return fastrms.rms_norm(x, weight, out=np.empty(x.shape, result), **options)


def backward(dy, x, weight, part, **options):
    return fastrms.rms_norm_backward(dy, x, weight, dweight=new_part(weight, part), **options)


def new_part(weight, part):
    """Return an array for a block's dweight, which is None without a weight."""
    return None if weight is None else np.empty(weight.shape, part)


def add(x, residual, _, scale):
    if x.shape != residual.shape:  # unknown chunks may differ, and NumPy would broadcast one row
        raise ValueError(f"residual must have the shape of x, {x.shape}, got {residual.shape}")
    return fastrms.residual_add(x, residual.copy(), scale)


def squares(x, _):
    return fastrms.sum_squares(x)[..., np.newaxis]


def products(dy, x, weight, **options):
    return np.stack([fastrms.sum_squares(x), fastrms.sum_products(dy, x, weight, **options)], -1)


def scale_rows(x, sums, weight, size, result, **options):
    out = np.empty(x.shape, result)
    return fastrms.rms_scale(x, sums[..., 0], size, weight, out=out, **options)


def scale_backward(dy, x, sums, weight, size, part, **options):
    both, dweight = (sums[..., 0], sums[..., 1]), new_part(weight, part)
    return fastrms.rms_scale_backward(dy, x, *both, size, weight, dweight=dweight, **options)


def dweight_of(pair):
    """Return the block's dweight, with an axis of length 1 for each axis of rows."""
    dx, dweight = pair
    return dweight.reshape((1,) * (dx.ndim - 1) + dweight.shape)


def quiet_total(parts):
    """Add up arrays. Beyond float64 the sum is Inf, without a warning, as in the NumPy function."""
    with np.errstate(all="ignore"):
        return sum(parts)


def quiet_sum(parts, axis, keepdims, result=np.float64):
    with np.errstate(all="ignore"):
        return parts.sum(axis=axis, keepdims=keepdims, dtype=np.float64).astype(result)


# ---- checks -----------------------------------------------------------------------------------


def no_rows(array, name):
    """Return an ndarray of the dask array's type and last axis, without rows, for the checks."""
    if not isinstance(array, da.Array):
        raise TypeError(f"{name} must be a dask array, got {type(array).__name__}")
    if array.ndim == 0:
        raise ValueError(f"{name} must have at least one axis, got a 0-d array")
    dtype, saved = array.dtype, array.dtype.str == "|V2"  # by np.save, of bfloat16
    if (dtype.kind in "fiu" or saved) and not (dtype.name in DTYPES and dtype.isnative):
        # The NumPy functions' message for an input: to them residual is an output, but not here.
        wanted, got = "native float16, bfloat16, float32 or float64", f"{dtype.str!r} ({dtype})"
        way = f"{name}.view(ml_dtypes.bfloat16)" if saved else f"{name}.astype(np.float32)"
        raise TypeError(f"{name} must be {wanted}, got {got}; convert it first: {way}")
    return empty_like(array, (0, array.shape[-1]), name)


def alike(weight):
    """Return the weight, or if it is lazy an ndarray of its type and shape."""
    return empty_like(weight, weight.shape, "weight") if isinstance(weight, da.Array) else weight


def empty_like(array, shape, name):
    """Return an empty ndarray of the array's type, masked if its blocks are."""
    if np.isnan(shape).any():
        raise ValueError(
            f"{name} must have a last axis of known length, got unknown chunks: "
            f"call {name}.compute_chunk_sizes()"
        )
    return np.empty_like(array._meta, array.dtype, shape=shape)


def check_same_shape(x, x_name, other, name):
    """Check the shapes; unknown lengths pass if the numbers of blocks agree: the tasks compare."""
    wanted, got = lengths(x), lengths(other)
    if wanted != got:
        unknown = np.isnan(x.shape + other.shape).any()
        hint = ": call compute_chunk_sizes() on both" if unknown else ""
        raise ValueError(f"{name} must have the shape of {x_name}, {wanted}, got {got}{hint}")


def lengths(array):
    return tuple(
        f"unknown in {count} blocks" if np.isnan(length) else length
        for length, count in zip(array.shape, array.numblocks, strict=True)
    )
