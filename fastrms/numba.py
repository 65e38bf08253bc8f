"""fastrms in numba: importing this module lets `@njit` functions call those named in `__all__`.

They give the bits of the NumPy calls. Arrays are C-contiguous float32: other types and layouts fail
to compile. A call stays on the calling thread, so that `prange` can run one on each. A wrong shape,
a negative eps, or an output that partly overlaps another array (none is copied) raises ValueError.
"""

import ctypes

import numpy as np

from . import add_rms_norm, residual_add, rms_norm, rms_norm_backward
from .ctypes import declarations, functions

try:
    from llvmlite import binding
    from numba import types
    from numba.core.errors import TypingError
    from numba.extending import overload, register_jitable
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("llvmlite", "numba"):
        raise
    wanted = 'python -m pip install "fastrms[numba]"'
    raise ImportError(f"numba is not installed: {wanted}") from None

__all__ = ["add_rms_norm", "residual_add", "rms_norm", "rms_norm_backward"]


def __dir__() -> list[str]:
    return __all__


TYPES = {
    ctypes.c_int: types.intc,
    ctypes.c_double: types.float64,
    ctypes.c_size_t: types.intp,
    ctypes.c_ssize_t: types.intp,
    ctypes.c_void_p: types.intp,  # an address, 0 for None
}
HERE = 1  # threads: stay on this one
BAD_EPS = 4  # FASTRMS_BAD_EPS


def _external(name):
    """Return a C function by symbol, so that the code that numba caches holds no address."""
    symbol = f"fastrms_{name}"
    binding.add_symbol(symbol, ctypes.cast(getattr(functions, name), ctypes.c_void_p).value)
    result, *arguments = (TYPES[kind] for kind in declarations()[name])
    return types.ExternalFunction(symbol, result(*arguments))


_rms_norm, _add_rms_norm = _external("rms_norm"), _external("add_rms_norm")
_rms_norm_backward, _residual_add = _external("rms_norm_backward"), _external("residual_add")
_scratch_bytes = _external("scratch_bytes")


# ---- checks at compile time: types ------------------------------------------------------------


def _given(kind):
    """Return the type of an argument, or its default value if it was left out."""
    return kind.value if isinstance(kind, types.Omitted) else kind


def _check_array(name, kind, output=False, axes=None):
    if not isinstance(kind, types.Array) or kind.dtype != types.float32 or kind.ndim == 0:
        raise TypingError(f"{name} must be a float32 array, got {kind}")
    if kind.layout != "C":
        raise TypingError(f"{name} must be C-contiguous, got {kind}; pass a copy")
    if output and not kind.mutable:
        raise TypingError(f"{name} must be writeable, got {kind}")
    if axes is not None and kind.ndim != axes:
        wanted = "one axis" if axes == 1 else f"{axes} axes"
        raise TypingError(f"{name} must have {wanted}, got {kind}")


def _check_optional(name, kind, **more):
    if _given(kind) not in (None, types.none):
        _check_array(name, kind, **more)


def _check_numbers(**kinds):
    for name, kind in kinds.items():
        if not isinstance(_given(kind), (types.Float, types.Integer, float, int)):
            raise TypingError(f"{name} must be a real number, got {kind}")


def _check_bool(name, kind):
    if not isinstance(_given(kind), (types.Boolean, bool)):
        raise TypingError(f"{name} must be True or False, got {kind}")


# ---- checks at run time: shapes and memory ----------------------------------------------------


@register_jitable
def _address(array):
    if array is None:
        return np.intp(0)
    return np.intp(array.ctypes.data)


@register_jitable
def _sizes(x):
    n = x.shape[-1]
    return (x.size // n if n > 0 else 0), n


@register_jitable
def _meet(a, b):
    """Return whether two arrays share memory; None shares none."""
    if a is None:
        return False
    if b is None:
        return False
    first, second = _address(a), _address(b)
    return first < second + b.nbytes and second < first + a.nbytes


@register_jitable
def _check_apart(array, output):
    """Check that an input is the output itself or shares no memory with it."""
    if _address(array) != _address(output) and _meet(array, output):
        raise ValueError("an output must be the input itself, or share no memory with it")


@register_jitable
def _check_clear(array, output):
    if _meet(array, output):
        raise ValueError("an output must not share memory with the weight or another output")


@register_jitable
def _check_vector(vector, n):
    if vector is not None:  # noqa: SIM102, numba prunes the branch of a None
        if vector.size != n or vector.shape[-1] != n:
            raise ValueError("weight and dweight must have shape (n,) or (1, ..., 1, n)")


@register_jitable
def _check_before_add(eps, weight, y):
    """Find the errors of the norm before the sum is written: it is another call."""
    if not eps >= 0:
        raise ValueError("eps must be zero or more")
    if _address(weight) % 4 != 0 or _address(y) % 4 != 0:
        raise ValueError("arrays must be aligned")


@register_jitable
def _output(output, x):
    if output is None:
        return np.empty(x.shape, np.float32)
    _check_shape(output, x)
    return output


@register_jitable
def _check_shape(array, x):
    if array.shape != x.shape:
        raise ValueError("each array must have the shape of x")


@register_jitable
def _check_code(code):
    """Raise for the errors that only the C function finds."""
    if code == BAD_EPS:
        raise ValueError("eps must be zero or more")
    if code != 0:  # numba lets misaligned arrays pass as aligned
        raise ValueError("arrays must be aligned")


@overload(rms_norm)
def _overload_rms_norm(x, weight=None, eps=1e-5, weight_offset=0.0, out=None, accumulate=False):
    _check_array("x", x)
    _check_optional("weight", weight)
    _check_optional("out", out, output=True, axes=x.ndim)
    _check_numbers(eps=eps, weight_offset=weight_offset)
    _check_bool("accumulate", accumulate)

    def run(x, weight=None, eps=1e-5, weight_offset=0.0, out=None, accumulate=False):
        if out is None and accumulate:
            raise ValueError("accumulate=True needs out=, an array to add to")
        (rows, n), y = _sizes(x), _output(out, x)
        _check_vector(weight, n)
        _check_apart(x, y)
        _check_clear(weight, y)
        code = _rms_norm(
            _address(x), n, _address(weight), _address(y), n, rows, n, eps, weight_offset,
            int(accumulate), HERE,
        )  # fmt: skip
        _check_code(code)
        return y

    return run


@overload(add_rms_norm)
def _overload_add_rms_norm(
    x, residual, weight=None, eps=1e-5, weight_offset=0.0, scale=1.0, out=None
):
    _check_array("x", x)
    _check_array("residual", residual, output=True, axes=x.ndim)
    _check_optional("weight", weight)
    _check_optional("out", out, output=True, axes=x.ndim)
    _check_numbers(eps=eps, weight_offset=weight_offset, scale=scale)

    def run(x, residual, weight=None, eps=1e-5, weight_offset=0.0, scale=1.0, out=None):
        (rows, n), y = _sizes(x), _output(out, x)
        _check_shape(residual, x)
        _check_vector(weight, n)
        _check_apart(x, residual)
        _check_apart(x, y)
        _check_clear(residual, y)
        _check_clear(weight, y)
        _check_clear(weight, residual)
        if scale == 1:
            code = _add_rms_norm(
                _address(x), n, _address(residual), n, _address(weight), _address(y), n, rows, n,
                eps, weight_offset, HERE,
            )  # fmt: skip
            _check_code(code)
            return y
        _check_before_add(eps, weight, y)
        code = _residual_add(_address(x), n, _address(residual), n, rows, n, scale, HERE)
        _check_code(code)
        code = _rms_norm(
            _address(residual), n, _address(weight), _address(y), n, rows, n, eps, weight_offset,
            0, HERE,
        )  # fmt: skip
        _check_code(code)
        return y

    return run


@overload(rms_norm_backward)
def _overload_rms_norm_backward(
    dy, x, weight=None, eps=1e-5, weight_offset=0.0, dx=None, dweight=None, accumulate=False
):
    _check_array("x", x)
    _check_array("dy", dy, axes=x.ndim)
    _check_optional("weight", weight)
    _check_optional("dx", dx, output=True, axes=x.ndim)
    _check_optional("dweight", dweight, output=True)
    _check_numbers(eps=eps, weight_offset=weight_offset)
    _check_bool("accumulate", accumulate)
    weighted, kept = (_given(kind) not in (None, types.none) for kind in (weight, dweight))
    if kept and not weighted:
        raise TypingError("dweight needs weight: without one it has no gradient")
    # Chosen here: numba would have to unify the types of all three.
    room = _no_room if not weighted else _scratch_beside if kept else _dweight_and_scratch

    def run(
        dy, x, weight=None, eps=1e-5, weight_offset=0.0, dx=None, dweight=None, accumulate=False
    ):
        if dx is None and dweight is None and accumulate:
            raise ValueError("accumulate=True needs dx= or dweight=, an array to add to")
        (rows, n), gradient = _sizes(x), _output(dx, x)
        _check_shape(dy, x)
        _check_vector(weight, n)
        _check_vector(dweight, n)
        _check_apart(x, gradient)
        _check_apart(dy, gradient)
        _check_clear(weight, gradient)
        total, scratch = room(weight, dweight, rows, n)
        _check_clear(gradient, total)
        _check_clear(x, total)
        _check_clear(dy, total)
        flags = int(accumulate) * ((dx is not None) + 2 * (dweight is not None))
        code = _rms_norm_backward(
            _address(dy), n, _address(x), n, _address(weight), _address(gradient), n,
            _address(total), _address(scratch), rows, n, eps, weight_offset, flags, HERE,
        )  # fmt: skip
        _keep(scratch)
        _check_code(code)
        return gradient, total

    return run


@register_jitable
def _no_room(weight, dweight, rows, n):
    return None, None


@register_jitable
def _scratch_beside(weight, dweight, rows, n):
    return dweight, _scratch(rows, n)


@register_jitable
def _dweight_and_scratch(weight, dweight, rows, n):
    return np.empty(weight.shape, np.float32), _scratch(rows, n)


@register_jitable
def _scratch(rows, n):
    return np.empty(_scratch_bytes(rows, n, HERE) // 8, np.float64)


@register_jitable
def _keep(array):
    """Keep an array alive up to here: numba frees it after its last use by name, not by address."""
    if array is not None:
        array[:0] = 0


@overload(residual_add)
def _overload_residual_add(x, residual, scale=1.0):
    _check_array("x", x)
    _check_array("residual", residual, output=True, axes=x.ndim)
    _check_numbers(scale=scale)

    def run(x, residual, scale=1.0):
        rows, n = _sizes(x)
        _check_shape(residual, x)
        _check_apart(x, residual)
        code = _residual_add(_address(x), n, _address(residual), n, rows, n, scale, HERE)
        _check_code(code)
        return residual

    return run
