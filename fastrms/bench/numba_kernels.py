"""The four operations as usually written for numba: plain loops over a row, with fastmath."""

from functools import cache

import numba
import numpy as np


@cache
def norm(parallel):
    """Return the compiled ``out = x / rms(x) * weight``."""

    @numba.njit(parallel=parallel, fastmath=True, boundscheck=False)
    def kernel(x, weight, out, eps):
        for i in numba.prange(x.shape[0]):
            total = x.dtype.type(0)
            for j in range(x.shape[1]):
                total += x[i, j] * x[i, j]
            inv = x.dtype.type(1) / np.sqrt(total / x.dtype.type(x.shape[1]) + eps)
            for j in range(x.shape[1]):
                out[i, j] = x[i, j] * inv * weight[j]

    return kernel


@cache
def add_norm(parallel):
    """Return the compiled ``residual += x``, then ``out = residual / rms(residual) * weight``."""

    @numba.njit(parallel=parallel, fastmath=True, boundscheck=False)
    def kernel(x, residual, weight, out, eps):
        for i in numba.prange(x.shape[0]):
            total = x.dtype.type(0)
            for j in range(x.shape[1]):
                value = residual[i, j] + x[i, j]
                residual[i, j] = value
                total += value * value
            inv = x.dtype.type(1) / np.sqrt(total / x.dtype.type(x.shape[1]) + eps)
            for j in range(x.shape[1]):
                out[i, j] = residual[i, j] * inv * weight[j]

    return kernel


@cache
def backward(parallel):
    """Return the compiled dx and dweight: each line of `parts` sums dweight over its share of rows.

    `share` is a function of its own because numba would parallelise its loops over columns, too.
    """

    @numba.njit(fastmath=True, boundscheck=False)
    def share(dy, x, weight, dx, part, eps, first, last):
        n = x.dtype.type(x.shape[1])
        part[:] = 0
        for i in range(first, last):
            squares = x.dtype.type(0)
            products = x.dtype.type(0)
            for j in range(x.shape[1]):
                squares += x[i, j] * x[i, j]
                products += dy[i, j] * weight[j] * x[i, j]
            inv = x.dtype.type(1) / np.sqrt(squares / n + eps)
            mean = products * inv * inv * inv / n
            for j in range(x.shape[1]):
                part[j] += dy[i, j] * x[i, j] * inv
                dx[i, j] = inv * dy[i, j] * weight[j] - mean * x[i, j]

    @numba.njit(parallel=parallel, fastmath=True, boundscheck=False)
    def kernel(dy, x, weight, dx, dweight, parts, eps):
        rows, shares = x.shape[0], parts.shape[0]
        for k in numba.prange(shares):
            share(dy, x, weight, dx, parts[k], eps, k * rows // shares, (k + 1) * rows // shares)
        for j in range(dweight.shape[0]):
            total = parts[0, j]
            for k in range(1, shares):
                total += parts[k, j]
            dweight[j] = total

    return kernel


@cache
def add(parallel):
    """Return the compiled ``residual += x``."""

    @numba.njit(parallel=parallel, fastmath=True, boundscheck=False)
    def kernel(residual, x):
        for i in numba.prange(x.shape[0]):
            for j in range(x.shape[1]):
                residual[i, j] += x[i, j]

    return kernel
