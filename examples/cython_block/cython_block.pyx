# cython: language_level=3
"""A residual block in one nogil function: the stream, its norm, and a layer between them."""

import numpy as np

from cython.parallel cimport prange
from libc.math cimport tanh
from libc.stdlib cimport free, malloc

from fastrms cimport FASTRMS_OK, fastrms_api, import_fastrms

import_fastrms()


cdef int block(float* residual, float* x, const float* weight, Py_ssize_t rows, Py_ssize_t n,
               int layers) noexcept nogil:
    """Repeat `layers` times residual += x, x = tanh(norm(residual)); then residual += x."""
    cdef Py_ssize_t i
    cdef int error, _layer
    for _layer in range(layers):
        error = fastrms_api.add_rms_norm(x, n, residual, n, weight, x, n, rows, n, 1e-5, 0.0, 1)
        if error != FASTRMS_OK:
            return error
        for i in range(rows * n):
            x[i] = <float>tanh(x[i])
    return fastrms_api.residual_add(x, n, residual, n, rows, n, 1.0, 1)


def run_block(float[:, ::1] residual, float[:, ::1] x, const float[::1] weight, int layers):
    """Run the block on `residual` and `x`, both changed in place."""
    cdef Py_ssize_t rows = x.shape[0], n = x.shape[1]
    cdef int error
    if residual.shape[0] != rows or residual.shape[1] != n or weight.shape[0] != n:
        raise ValueError("residual must have the shape of x, weight that of its last axis")
    if rows * n == 0:
        return
    with nogil:
        error = block(&residual[0, 0], &x[0, 0], &weight[0], rows, n, layers)
    if error != FASTRMS_OK:
        raise ValueError(f"fastrms' error {error}: see fastrms.h")


def norm_and_gradient(const float[:, ::1] x, const float[:, ::1] dy, const float[::1] weight):
    """Return y, computed row by row in prange, and the gradients of all rows in one call."""
    cdef Py_ssize_t row, rows = x.shape[0], n = x.shape[1]
    if dy.shape[0] != rows or dy.shape[1] != n or weight.shape[0] != n or rows * n == 0:
        raise ValueError("dy must have the shape of x, weight that of its last axis, none be empty")
    cdef float[:, ::1] y = np.empty((rows, n), np.float32), dx = np.empty((rows, n), np.float32)
    cdef float[::1] dweight = np.empty(n, np.float32)
    cdef void* scratch = malloc(fastrms_api.scratch_bytes(rows, n, 0))
    if scratch == NULL:
        raise MemoryError
    cdef int errors = 0
    for row in prange(rows, nogil=True):
        errors += fastrms_api.rms_norm(
            &x[row, 0], n, &weight[0], &y[row, 0], n, 1, n, 1e-5, 0.0, 0, 1)
    with nogil:
        errors += fastrms_api.rms_norm_backward(
            &dy[0, 0], n, &x[0, 0], n, &weight[0], &dx[0, 0], n, &dweight[0], scratch,
            rows, n, 1e-5, 0.0, 0, 0)
    free(scratch)
    if errors:
        raise ValueError("fastrms returned an error: see fastrms.h")
    return np.asarray(y), np.asarray(dx), np.asarray(dweight)
