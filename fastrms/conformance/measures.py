"""How far a result is from the exact one: in ulp of the result's dtype, or of its terms' size.

An ulp is that of the exact result's binade, not of the rounded result. Where a result is a
difference of large terms (dx, dweight), the ulp is that of the sum of their magnitudes.
"""

from typing import NamedTuple

import numpy as np

from .. import reference


class Format(NamedTuple):
    """A dtype: the bits of its mantissa, the exponent of its smallest number, scales to check."""

    bits: int
    smallest: int
    scales: tuple

    @property
    def largest(self):
        return (2 - 2.0 ** (1 - self.bits)) * 2.0 ** (2 - self.bits - self.smallest)


SCALES = (1e-45, 1e-30, 1.0, 1e19, 1e37)
FORMATS = {
    "float16": Format(11, -24, (6e-8, 1e-4, 1.0, 6.0, 1e4)),
    "bfloat16": Format(8, -133, (1e-40, *SCALES[1:])),
    "float32": Format(24, -149, SCALES),
    "float64": Format(53, -1074, (5e-324, 1e-200, 1.0, 1e100, 1e300)),
}


def format_of(array):
    return FORMATS[array.dtype.name]


def wide(dtype):
    """Return the dtype of exact results: long double for float64; raise ValueError without one."""
    if dtype != np.float64:
        return np.dtype(np.float64)
    if np.finfo(np.longdouble).maxexp == np.finfo(np.float64).maxexp:
        raise ValueError("--dtype float64 needs a wider long double, which this platform lacks")
    return np.dtype(np.longdouble)


def units(form, size):
    """Return the unit in the last place that a number of this size has in this format."""
    # Not np.spacing of a rounded number: below a power of two that is the unit above it.
    exponent = np.where(size == 0, form.smallest, np.frexp(size)[1] - form.bits)
    return np.ldexp(1.0, np.maximum(exponent, form.smallest))


def ulps(result, exact, size=None):
    """Return the largest error in units in the last place of the exact result, or of `size`."""
    errors = np.abs(ulp_errors(result, exact, size))
    return float(unless_same(errors, result, exact).max(initial=0.0))


def ulp_errors(result, exact, size=None):
    """Return each error in such units, positive away from zero; NaN at NaN and Inf."""
    with np.errstate(all="ignore"):
        unit = units(format_of(result), exact if size is None else size)
        away = np.where(np.signbit(exact), -1.0, 1.0)
        return (result.astype(exact.dtype) - exact) / unit * away


def dx_terms(dy, x, weight, eps, weight_offset=0.0):
    """Return ``(|g| + |xhat| * mean|g * xhat|) / rms``, the magnitudes that dx is made of.

    As in the reference, ``g = dy * (weight_offset + weight)`` and ``xhat = x / rms``.
    """
    dy, x = reference._wide(dy), reference._wide(x)
    with np.errstate(all="ignore"):
        rms = reference._rms(x, eps)
        xhat = np.abs(x / rms)
        g = np.abs(dy * reference._factor(weight, weight_offset))
        return (g + xhat * reference._mean(g * xhat)) / rms


def dweight_terms(dy, x, eps):
    """Return ``sum |dy * xhat|`` over the rows, the magnitudes that dweight is made of."""
    with np.errstate(all="ignore"):
        terms = np.abs(reference._wide(dy) * reference.rms_norm(x, eps=eps))
        return terms.reshape(-1, x.shape[-1]).sum(axis=0)


def unless_same(error, result, exact):
    """Return 0 where both are NaN, or round to the same Inf, and infinity where the error is NaN.

    The error is NaN where only one of the two is NaN or Inf, and max() would pass over it.
    """
    with np.errstate(all="ignore"):
        same = np.isinf(result) & (result == reference._rounded(exact, result.dtype))
    same |= np.isnan(result) & np.isnan(exact)
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))
