"""`fastrms check`: every function x instruction set x thread count x shape, against the reference.

The bounds that fastrms promises stand here, once, with their reasons; the tests use them too.
"""

import numpy as np

import fastrms

from . import _core, reference

# In ulp of the exact result: float32 roundings of 1 / rms, of each product and, averaged over many
# trees, of the sum of squares (src/kernels.pxi derives them).
FORWARD_ULP = 3.0
FORWARD_ULP_UNWEIGHTED = 2.5
# Of the largest |dx| of the row: 33 rounding units (is_tame in src/kernels.pxi).
DX = 2e-6
# Of the sum of |dy * xhat| down the column, beside the rounding of the result: 12 units.
DWEIGHT = 1e-6
# Where float64 itself, the reference included, has cancelled to nothing: its own rounding.
FLOAT64_NOISE = 64 * 2.0**-53

TINY = np.float32(2.0**-126)
SHAPES = ((1, 1), (3, 7), (5, 64), (17, 100), (4, 129), (16, 576), (199, 33), (40, 4096))
SCALES = (1e-45, 1e-30, 1.0, 1e19, 1e37)


def ulps(result, exact):
    """Return the largest error in units in the last place of the exact result."""
    with np.errstate(all="ignore"):
        unit = np.spacing(np.maximum(np.abs(exact).astype(np.float32), TINY)).astype(np.float64)
        error = np.abs(result.astype(np.float64) - exact) / unit
    same = (result == exact.astype(np.float32)) | (np.isnan(result) & np.isnan(exact))
    return float(np.where(same, 0.0, error).max(initial=0.0))


def dx_error(dx, exact, dy, x, weight, eps):
    """Return the largest error of dx as a fraction of its row's largest exact |dx|."""
    with np.errstate(all="ignore"):
        x = x.astype(np.float64)
        g = dy.astype(np.float64) * (1.0 if weight is None else weight.astype(np.float64))
        rms = np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
        noise = FLOAT64_NOISE * np.abs(g / rms).max(axis=-1, keepdims=True)
        largest = np.abs(exact).max(axis=-1, keepdims=True)
        rounding = 2.0**-149
        error = np.abs(dx.astype(np.float64) - exact) - noise - rounding
    same = (dx == exact.astype(np.float32)) | (np.isnan(dx) & np.isnan(exact))
    return float((np.where(same, 0.0, error) / np.maximum(largest, 2.0**-126)).max(initial=0.0))


def dweight_error(dweight, exact, dy, x, eps):
    """Return the largest error of dweight beyond its rounding, of the sum of |dy * xhat|."""
    with np.errstate(all="ignore"):
        terms = np.abs(dy.astype(np.float64) * reference.rms_norm(x, eps=eps))
        size = terms.reshape(-1, x.shape[-1]).sum(axis=0)
        rounding = 2.0**-24 * np.abs(exact) + 2.0**-149
        error = np.abs(dweight.astype(np.float64) - exact) - rounding
    same = (dweight == exact.astype(np.float32)) | (np.isnan(dweight) & np.isnan(exact))
    return float((np.where(same, 0.0, error) / np.maximum(size, 2.0**-126)).max(initial=0.0))
