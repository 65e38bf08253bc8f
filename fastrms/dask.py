"""fastrms for dask arrays chunked along the rows: lazy, a task a block, the bits of one machine.

Arguments are checked when the graph is made, by the NumPy functions, on arrays without rows. It
refuses arrays whose last axis is in several chunks.
"""

from operator import itemgetter
from typing import Any

import numpy as np

import fastrms

try:
    import dask.array as da
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "dask":
        raise
    wanted = 'python -m pip install "fastrms[dask]"'
    raise ImportError(f"dask.array is not installed: {wanted}") from None

__all__ = ["add_rms_norm", "rms_norm", "rms_norm_backward"]


def rms_norm(
    x: da.Array, weight: Any = None, eps: float = 1e-5, *, weight_offset: float = 0.0
) -> da.Array:
    """Return `fastrms.rms_norm` of x, block by block; weight is an ndarray or a dask array."""
    fastrms.rms_norm(no_rows(x, "x"), alike(weight), eps, weight_offset=weight_offset)
    return blocks(fastrms.rms_norm, x, weight, eps, weight_offset)


def add_rms_norm(
    x: da.Array,
    residual: da.Array,
    weight: Any = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
) -> tuple[da.Array, da.Array]:
    """Return ``rms_norm(residual + x)`` and ``residual + x``: dask arrays do not change."""
    check_same_shape(x, "x", residual, "residual")
    empty = no_rows(x, "x"), no_rows(residual, "residual"), alike(weight)
    fastrms.add_rms_norm(*empty, eps, weight_offset=weight_offset)
    total = residual + x
    return rms_norm(total, weight, eps, weight_offset=weight_offset), total


def rms_norm_backward(
    dy: da.Array,
    x: da.Array,
    weight: Any = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
) -> tuple[da.Array, da.Array | None]:
    """Return dx and dweight: one task a block for both, then float64 sums over the blocks."""
    check_same_shape(x, "x", dy, "dy")
    empty = no_rows(dy, "dy"), no_rows(x, "x"), alike(weight)
    fastrms.rms_norm_backward(*empty, eps, weight_offset=weight_offset)
    dy = dy.rechunk(x.chunks)
    pairs = blocks(fastrms.rms_norm_backward, dy, x, weight, eps, weight_offset)
    dx = pairs.map_blocks(itemgetter(0), dtype=np.float32, meta=pairs._meta)
    if weight is None:
        return dx, None
    ones = tuple((1,) * len(chunks) for chunks in pairs.chunks[:-1])
    parts = pairs.map_blocks(
        dweight_of, dtype=np.float32, meta=pairs._meta, chunks=(*ones, pairs.chunks[-1])
    )
    rows = tuple(range(x.ndim - 1))
    return dx, parts.sum(axis=rows, dtype=np.float64).astype(np.float32)


def blocks(function, *arguments):
    """Map a function of arrays, weight, eps and weight_offset over blocks of whole rows."""
    *arrays, weight, eps, weight_offset = arguments
    if isinstance(weight, da.Array):
        weight = weight.rechunk(-1)
    meta = np.empty((0,) * arrays[0].ndim, np.float32)
    return da.map_blocks(
        function, *arrays, weight, eps, weight_offset=weight_offset, dtype=np.float32, meta=meta
    )


def dweight_of(pair):
    """The block's dweight, with an axis of length 1 for each axis of rows."""
    dx, dweight = pair
    return dweight.reshape((1,) * (dx.ndim - 1) + dweight.shape)


# ---- checks -----------------------------------------------------------------------------------


def no_rows(array, name):
    """An ndarray of the type and last axis of a dask array, and no rows: what a check can take."""
    if not isinstance(array, da.Array):
        raise TypeError(f"{name} must be a dask array, got {type(array).__name__}")
    if array.ndim == 0:
        raise ValueError(f"{name} must have at least one axis, got a 0-d array")
    if len(array.chunks[-1]) > 1:
        raise ValueError(
            f"{name} must have its last axis in one chunk, got {len(array.chunks[-1])}; "
            f"{name}.rechunk({{-1: -1}})"
        )
    return np.empty((0, array.shape[-1]), array.dtype)


def alike(weight):
    """The weight, or an ndarray of its type and shape if it is lazy."""
    return np.empty(weight.shape, weight.dtype) if isinstance(weight, da.Array) else weight


def check_same_shape(x, x_name, other, name):
    if x.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {x_name}, {x.shape}, got {other.shape}")
