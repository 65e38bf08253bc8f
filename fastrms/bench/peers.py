"""The libraries that can be timed as well: numba here, the others in the checkout's bench/peers.py.

A table of peers goes from `fastrms.__main__.main` to where they are measured.
"""

from typing import NamedTuple

import numpy as np

from .cases import EPS


class Peer(NamedTuple):
    """A library, and a function that takes a case and returns a call, as those of calls.py do."""

    spec: str  # the function, as MODULE:FUNCTION or FILE.py:FUNCTION
    modules: tuple  # that must be installed
    distribution: str  # whose version the record has
    ops: tuple = ("forward", "fresh", "add_norm", "backward", "add")
    dtypes: tuple = ("float32",)
    in_place: bool = False

    def has(self, case):
        """Return whether it has the case's op: in place too, if the op is not always so."""
        fits = self.in_place or not case.inplace or case.op == "add"
        return fits and case.op in self.ops


PEERS = {
    "numba": Peer(
        f"{__name__}:numba", ("numba",), "numba", dtypes=("float32", "float64"), in_place=True
    )
}


def numba(case):
    """Return the call of plain loops, compiled with fastmath."""
    import numba

    from . import numba_kernels

    numba.set_num_threads(case.threads)
    eps, parallel = case.dtype.type(EPS), case.threads > 1
    x, weight = case.x, case.weight
    if case.op == "fresh":
        return numba_fresh(numba_kernels.norm(parallel), x, weight, eps)
    if case.op == "forward":
        norm, out = numba_kernels.norm(parallel), case.out
        return lambda: norm(x, weight, out, eps)
    if case.op == "backward":
        backward, dy, dx, dweight = numba_kernels.backward(parallel), case.dy, case.dx, case.dweight
        parts = np.empty((min(case.threads, case.rows), case.n), case.dtype)
        return lambda: backward(dy, x, weight, dx, dweight, parts, eps)
    residual = case.residual
    if case.op == "add":
        add = numba_kernels.add(parallel)
        return lambda: add(residual, x)
    add_norm, out = numba_kernels.add_norm(parallel), case.out
    return lambda: add_norm(x, residual, weight, out, eps)


def numba_fresh(kernel, x, weight, eps):
    def fresh():
        out = np.empty_like(x)
        kernel(x, weight, out, eps)
        return out

    return fresh
