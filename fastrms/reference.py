"""The definition of every function of fastrms, in plain NumPy and float64.

Names, arguments and written arrays are those of the compiled functions; without an output array
the result stays float64, whatever the dtypes of the arguments. It is the tests' oracle and the
documentation's formula. Only the value of `accumulate` is checked; the rest is left to NumPy.
"""

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "add_rms_norm",
    "residual_add",
    "rms_norm",
    "rms_norm_backward",
    "rms_scale",
    "rms_scale_backward",
    "sum_products",
    "sum_squares",
]

_Accumulate: TypeAlias = bool | Literal["dx", "dweight"]


def __dir__() -> list[str]:
    return __all__


def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    out: NDArray[Any] | None = None,
    accumulate: bool = False,
) -> NDArray[Any]:
    """Return ``x / sqrt(mean(x**2) + eps) * (weight_offset + weight)`` over the last axis."""
    y = _normalise(_wide(x), eps) * _factor(weight, weight_offset)
    return _store(y, out, accumulate, _arithmetic(x, out))


def rms_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    dx: NDArray[Any] | None = None,
    dweight: NDArray[Any] | None = None,
    accumulate: _Accumulate = False,
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return dx and dweight of ``sum(dy * rms_norm(x, weight))``; dweight is None without weight.

    With ``g = dy * (weight_offset + weight)`` and ``xhat = x / rms``:
    ``dx = (g - xhat * mean(g * xhat)) / rms`` and ``dweight = sum over rows of dy * xhat``.
    """
    arithmetic = _arithmetic(dy, x, dx)
    dy, x = _wide(dy), _wide(x)
    with np.errstate(all="ignore"):
        xhat = _normalise(x, eps)
        g = dy * _factor(weight, weight_offset)
        dx_value = (g - xhat * _mean(g * xhat)) / _rms(x, eps)
        terms = dy * xhat
    return _gradients(dx_value, dx, terms, weight, dweight, accumulate, arithmetic)


def sum_squares(x: ArrayLike, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return ``sum(x**2)`` over the last axis."""
    x = _wide(x)
    return _store(_sum(x * x), out)


def sum_products(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    weight_offset: float = 0.0,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return ``sum(dy * (weight_offset + weight) * x)`` over the last axis."""
    dy, x = _wide(dy), _wide(x)
    with np.errstate(all="ignore"):
        return _store(_sum(dy * _factor(weight, weight_offset) * x), out)


def rms_scale(
    x: ArrayLike,
    sum_squares: ArrayLike,
    size: int,
    weight: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return ``x / sqrt(sum_squares / size + eps) * (weight_offset + weight)``."""
    with np.errstate(all="ignore"):
        xhat = _wide(x) / _whole_rms(sum_squares, size, eps)
        return _store(xhat * _factor(weight, weight_offset), out)


def rms_scale_backward(
    dy: ArrayLike,
    x: ArrayLike,
    sum_squares: ArrayLike,
    sum_products: ArrayLike,
    size: int,
    weight: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    dx: NDArray[Any] | None = None,
    dweight: NDArray[Any] | None = None,
    accumulate: _Accumulate = False,
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return dx and dweight of some columns of longer rows, from the sums over all `size` columns.

    With ``g = dy * (weight_offset + weight)``, ``rms = sqrt(sum_squares / size + eps)`` and
    ``xhat = x / rms``: ``dx = (g - xhat * sum_products / (size * rms)) / rms``.
    """
    arithmetic = _arithmetic(dy, x, dx)
    dy, x = _wide(dy), _wide(x)
    with np.errstate(all="ignore"):
        rms = _whole_rms(sum_squares, size, eps)
        xhat = x / rms
        mean = _wide(sum_products)[..., None] / rms / max(size, 1)
        dx_value = (dy * _factor(weight, weight_offset) - xhat * mean) / rms
        terms = dy * xhat
    return _gradients(dx_value, dx, terms, weight, dweight, accumulate, arithmetic)


def add_rms_norm(
    x: ArrayLike,
    residual: NDArray[Any],
    weight: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    scale: float = 1.0,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Add ``scale * x`` to residual as `residual_add` does, and return ``rms_norm(residual)``."""
    residual_add(x, residual, scale)
    return rms_norm(residual, weight, eps, weight_offset=weight_offset, out=out)


def residual_add(x: ArrayLike, residual: NDArray[Any], scale: float = 1.0) -> NDArray[Any]:
    """Add ``scale * x`` to residual in float64, then round once to residual's dtype."""
    with np.errstate(all="ignore"):
        value = _wide(residual) + scale * _wide(x)
    return _store(value, residual)


def _gradients(
    dx_value: NDArray[Any],
    dx: NDArray[Any] | None,
    terms: NDArray[Any],
    weight: ArrayLike | None,
    dweight: NDArray[Any] | None,
    accumulate: _Accumulate,
    arithmetic: type[np.floating[Any]],
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    if accumulate not in (True, False, "dx", "dweight"):
        raise ValueError(f'accumulate must be True, False, "dx" or "dweight", got {accumulate!r}')
    adds = bool(accumulate)
    dx_result = _store(dx_value, dx, adds and accumulate != "dweight", arithmetic)
    if weight is None:
        return dx_result, None
    value = terms.reshape(-1, terms.shape[-1]).sum(axis=0)
    if dweight is None:  # in the shape of weight
        return dx_result, value.reshape((*np.shape(weight)[:-1], value.size))
    return dx_result, _store(value, dweight, adds and accumulate != "dx", arithmetic)


def _wide(array: ArrayLike) -> NDArray[Any]:
    """Return a float64 array, or one of long double as it is: `fastrms check` checks float64."""
    array = np.asarray(array)
    return array if array.dtype == np.longdouble else array.astype(np.float64)


def _sum(values: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        return np.asarray(values.sum(axis=-1))


def _whole_rms(sum_squares: ArrayLike, size: int, eps: float) -> NDArray[Any]:
    rms: NDArray[Any] = np.sqrt(_wide(sum_squares)[..., None] / max(size, 1) + eps)
    return rms


def _mean(values: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        mean: NDArray[Any] = values.sum(axis=-1, keepdims=True) / values.shape[-1]
    return mean


def _rms(x: NDArray[Any], eps: float) -> NDArray[Any]:
    rms: NDArray[Any] = np.sqrt(_mean(x * x) + eps)
    return rms


def _normalise(x: NDArray[Any], eps: float) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        xhat: NDArray[Any] = x / _rms(x, eps)
    return xhat


def _factor(weight: ArrayLike | None, weight_offset: float) -> Any:
    """Return ``weight_offset + weight``, of shape (n,) for a weight of shape (1, ..., 1, n)."""
    if weight is None:
        return 1.0
    weight = _wide(weight)
    # Without an offset nothing is added: 0.0 would turn a weight of -0.0 into 0.0.
    return (weight_offset or -0.0) + weight.reshape(weight.shape[-1:])


def _arithmetic(*arrays: ArrayLike | None) -> type[np.floating[Any]]:
    """Return float64 if one of the arrays is float64, float32 for any others."""
    given = (np.asarray(array).dtype for array in arrays if array is not None)
    return np.float64 if any(dtype == np.float64 for dtype in given) else np.float32


def _store(
    value: NDArray[Any],
    out: NDArray[Any] | None,
    accumulate: bool = False,
    arithmetic: type[np.floating[Any]] = np.float64,
) -> NDArray[Any]:
    """Write a result to `out`, if there is one; to accumulate, round to `arithmetic` and add."""
    if accumulate not in (True, False):
        raise ValueError(f"accumulate must be True or False, got {accumulate!r}")
    if out is None:
        return value
    with np.errstate(all="ignore"):
        out[...] = _rounded(out + value.astype(arithmetic) if accumulate else value, out.dtype)
    return out


def _rounded(value: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round once to `dtype`: a cast of float64 to bfloat16 rounds to float32 on its way.

    Rounding to odd, towards zero and with the last bit set if that is inexact, leaves float32
    enough bits for the second rounding to be right.
    """
    if dtype.itemsize > 2:
        return value.astype(dtype)
    near = np.asarray(value).astype(np.float32)
    bits = near.view(np.uint32)
    bits -= np.abs(near) > np.abs(value)
    bits |= near != value
    return near.astype(dtype)
