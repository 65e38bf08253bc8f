"""The three rivals of every table, as calls without arguments: the floor, NumPy, fastrms.

Each function takes a case and returns a call with its arrays bound, so that no set-up is timed.
"""

import numpy as np

import fastrms

from .cases import EPS


def floor(case):
    """Return the cheapest NumPy pass that moves the bytes of the op's byte model."""
    names = {
        "fresh": ("x",),
        "forward": ("x", "out"),
        "offset": ("x", "out"),
        "add_norm": ("x", "residual", "out"),
        "backward": ("x", "dy", "dx"),
        "add": ("residual", "x", "residual"),
    }[case.op]
    dtype = np.int16 if case.dtype.itemsize == 2 else case.dtype
    x, *others = (getattr(case, name).view(dtype) for name in names)
    if not others:
        return lambda: x.copy()
    if len(others) == 1:
        (out,) = others
        return (lambda: np.negative(x, out=x)) if case.inplace else (lambda: np.copyto(out, x))
    other, out = others
    return lambda: np.add(x, other, out=out)


def numpy(case):
    """Return the formula as usually written in NumPy: halves are cast to float32 and back."""
    # Once so much has been freed glibc keeps what it gets back, as in a program that has run for a
    # while. Else pages may be new in each call: twice the time of the formula at 512 x 4096.
    np.empty(31 << 20, np.uint8)
    if case.dtype.itemsize == 2 and case.op != "add":
        return numpy_half(case)
    if case.inplace and case.op in ("forward", "offset", "add_norm"):
        return numpy_in_place(case)
    x, weight = case.x, case.weight
    if case.op == "offset":
        return lambda: x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * (1 + weight)
    if case.op in ("forward", "fresh"):
        return lambda: x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight
    if case.op == "backward":
        return numpy_backward(case)
    residual = case.residual
    if case.op == "add":
        return lambda: np.add(residual, x, out=residual)

    def add_norm():
        np.add(residual, x, out=residual)
        rms = np.sqrt((residual * residual).mean(-1, keepdims=True) + EPS)
        return residual / rms * weight

    return add_norm


def numpy_in_place(case):
    x, weight, offset = case.x, case.weight, np.float32(case.weight_offset)
    residual = case.residual if case.op == "add_norm" else None

    def in_place():
        if residual is not None:
            np.add(residual, x, out=residual)
            np.copyto(x, residual)
        np.divide(x, np.sqrt((x * x).mean(-1, keepdims=True) + EPS), out=x)
        np.multiply(x, offset + weight if offset else weight, out=x)

    return in_place


def numpy_backward(case):
    x, dy, weight, dx = case.x, case.dy, case.weight, case.dx

    def backward():
        rms = np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
        xhat = x / rms
        g = dy * weight
        dweight = (dy * xhat).sum(0)
        return (g - xhat * (g * xhat).mean(-1, keepdims=True)) / rms, dweight

    def in_place():
        result, dweight = backward()
        np.copyto(dx, result)
        return dx, dweight

    return in_place if case.inplace else backward


def numpy_half(case):
    x, weight, dtype = case.x, case.weight, case.dtype

    def norm(x):
        x = x.astype(np.float32)
        rms = np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
        return (x / rms * (case.weight_offset + weight.astype(np.float32))).astype(dtype)

    def backward():
        xhat, g = x.astype(np.float32), case.dy.astype(np.float32)
        rms = np.sqrt((xhat * xhat).mean(-1, keepdims=True) + EPS)
        xhat /= rms
        dweight = (g * xhat).sum(0).astype(dtype)
        g *= weight.astype(np.float32)
        return ((g - xhat * (g * xhat).mean(-1, keepdims=True)) / rms).astype(dtype), dweight

    def add_norm():
        np.add(case.residual, x, out=case.residual)
        return norm(case.residual)

    call = {"backward": backward, "add_norm": add_norm}.get(case.op, lambda: norm(x))
    if not case.inplace:
        return call
    if case.op == "backward":
        dx = case.dx

        def in_place():
            result, dweight = backward()
            np.copyto(dx, result)
            return dx, dweight

        return in_place
    return lambda: np.copyto(x, call())


def ours(case):
    """Return the call of fastrms, into the case's own buffers unless the op makes a new array."""
    if case.op == "add":
        residual_add, residual, x = fastrms.residual_add, case.residual, case.x
        return lambda: residual_add(x, residual)
    x, weight = case.x, case.weight
    if case.op == "backward":
        backward, dy, dx, dweight = fastrms.rms_norm_backward, case.dy, case.dx, case.dweight
        return lambda: backward(dy, x, weight, EPS, dx=dx, dweight=dweight)
    rms_norm, out = fastrms.rms_norm, case.out
    if case.op == "fresh":
        return lambda: rms_norm(x, weight, EPS)
    if case.op == "forward":
        return lambda: rms_norm(x, weight, EPS, out=out)
    if case.op == "offset":
        return lambda: rms_norm(x, weight, EPS, weight_offset=1.0, out=out)
    add_rms_norm, residual = fastrms.add_rms_norm, case.residual
    return lambda: add_rms_norm(x, residual, weight, EPS, out=out)
