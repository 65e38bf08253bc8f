"""RMSNorm as one writes it for numba: two plain loops over a row, with fastmath."""

from functools import cache

import numba
import numpy as np


@cache
def norm(parallel):
    """Return the compiled ``out = x / rms(x) * weight``."""

    @numba.njit(parallel=parallel, fastmath=True, boundscheck=False)
    def kernel(x, weight, out, eps):
        for i in numba.prange(x.shape[0]):
            total = np.float32(0)
            for j in range(x.shape[1]):
                total += x[i, j] * x[i, j]
            inv = np.float32(1) / np.sqrt(total / np.float32(x.shape[1]) + eps)
            for j in range(x.shape[1]):
                out[i, j] = x[i, j] * inv * weight[j]

    return kernel


@cache
def add_norm(parallel):
    """Return the compiled ``residual += x``, then ``out = residual / rms(residual) * weight``."""

    @numba.njit(parallel=parallel, fastmath=True, boundscheck=False)
    def kernel(x, residual, weight, out, eps):
        for i in numba.prange(x.shape[0]):
            total = np.float32(0)
            for j in range(x.shape[1]):
                value = residual[i, j] + x[i, j]
                residual[i, j] = value
                total += value * value
            inv = np.float32(1) / np.sqrt(total / np.float32(x.shape[1]) + eps)
            for j in range(x.shape[1]):
                out[i, j] = residual[i, j] * inv * weight[j]

    return kernel
