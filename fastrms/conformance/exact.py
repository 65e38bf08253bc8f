"""Inputs with exact results, the same on every platform, in memory or as a file of NumPy arrays.

The inputs are integers scaled by powers of two, and the results come from fractions, with roots of
300 bits: each is the float64 nearest to the exact one. Rows with NaN or Inf follow the reference.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import _arguments, reference
from . import inputs
from .families import EVERYDAY

SHAPES = (3, 7), (4, 32)
BITS = 300


class Case(NamedTuple):
    """Inputs in one dtype, (rows, n) and (n,), and float64 results.

    y, dx and dweight are those of x. total is x + residual, rounded once to the dtype, and add_y is
    the norm of total.
    """

    name: str
    x: np.ndarray
    dy: np.ndarray
    residual: np.ndarray
    weight: np.ndarray
    eps: float
    weight_offset: float
    y: np.ndarray
    dx: np.ndarray
    dweight: np.ndarray
    total: np.ndarray
    add_y: np.ndarray


def cases(
    dtype: str = "float32", *, eps: float | None = None, weight_offset: float = 0.0
) -> Iterator[Case]:
    """Yield a `Case` of each everyday family and shape.

    Parameters
    ----------
    dtype : str
        Of the inputs: float16, bfloat16, float32 or float64.
    eps : float, optional
        For every case; without it 1e-5, and 0 for tiny and subnormal rows.
    weight_offset : float
        Added to every weight.
    """
    dtype = _arguments.dtype(dtype)
    for family in EVERYDAY:
        for shape in SHAPES:
            given = inputs.given(family, shape, dtype, eps)
            dy, x, weight, used = (given[name] for name in ("dy", "x", "weight", "eps"))
            y, dx, dweight = _exact(dy, x, weight, used, weight_offset)
            with np.errstate(all="ignore"):
                total = _total(x, given["residual"])
            add_y, *_ = _exact(dy, total, weight, used, weight_offset)
            name = f"{family.replace(' ', '-')}-{x.shape[0]}x{x.shape[1]}"
            results = y, dx, dweight, total, add_y
            yield Case(name, x, dy, given["residual"], weight, used, weight_offset, *results)


def export(
    path: str | Path,
    dtype: str = "float32",
    *,
    eps: float | None = None,
    weight_offset: float = 0.0,
) -> int:
    """Write all cases to an .npz: "NAME/x" and so on; bfloat16 as the uint16 of its bits."""
    arrays = {}
    for case in cases(dtype, eps=eps, weight_offset=weight_offset):
        for field, value in case._asdict().items():
            if field != "name":
                array = np.asarray(value)
                array = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
                arrays[f"{case.name}/{field}"] = array
    np.savez_compressed(path, **arrays)
    return len(arrays)


def _exact(dy, x, weight, eps, weight_offset):
    """Return y, dx and dweight, from fractions where they are finite."""
    wide = [array.astype(np.float64) for array in (dy, x, weight)]
    with np.errstate(all="ignore"):
        y = reference.rms_norm(*wide[1:], eps, weight_offset=weight_offset)
        dx, dweight = reference.rms_norm_backward(*wide, eps, weight_offset=weight_offset)
    factor = [Fraction(weight_offset) + Fraction(float(w)) for w in weight]
    sums, finite = [Fraction(0)] * len(factor), True
    for row in range(len(x)):
        if not np.isfinite(wide[1][row]).all() or (eps == 0 and not wide[1][row].any()):
            finite = False
            continue
        xs, dys = ([Fraction(float(v)) for v in part[row]] for part in (x, dy))
        n = len(xs)
        mean_square = sum(v * v for v in xs) / n + Fraction(eps)
        inv_rms = 1 / _root(mean_square)
        xhat = [v * inv_rms for v in xs]
        g = [d * f for d, f in zip(dys, factor, strict=True)]
        mean = sum(a * b for a, b in zip(g, xs, strict=True)) / n / mean_square
        y[row] = [_float(a * f) for a, f in zip(xhat, factor, strict=True)]
        # xhat * mean(g * xhat) is x * mean(g * x) / rms**2: no root, so it cancels exactly.
        dx[row] = [_float((a - v * mean) * inv_rms) for a, v in zip(g, xs, strict=True)]
        sums = [s + d * v for s, d, v in zip(sums, dys, xhat, strict=True)]
    if finite:
        dweight[:] = [_float(s) for s in sums]
    return y, dx, dweight


def _total(x, residual):
    """Return the sum rounded once: float64 holds that of two halves, or all that rounding needs."""
    if x.dtype.itemsize > 2:
        return x + residual
    return reference._rounded(x.astype(np.float64) + residual.astype(np.float64), x.dtype)


def _root(value):
    """Return the square root of a fraction, to BITS bits."""
    size = value.denominator.bit_length() - value.numerator.bit_length()
    shift = BITS + max(size, 0) // 2
    return Fraction(math.isqrt((value.numerator << 2 * shift) // value.denominator), 1 << shift)


def _float(value):
    """Return the nearest float64; Inf beyond its largest."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
