"""fastrms in numba: importing this module lets `@njit` functions call those named in `__all__`.

They give the bits of the NumPy calls. Arrays are C-contiguous, float32 or float64 in any mix: other
types and layouts fail to compile. A call stays on the calling thread, so that `prange` can run one
on each. A wrong shape, a negative eps, or an output that partly overlaps another array (none is
copied) raises ValueError.
"""

import ctypes

import numpy as np

from . import add_rms_norm, residual_add, rms_norm, rms_norm_backward
from .ctypes import Call, declarations, functions

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
FLOATS = (types.float32, types.float64)
HERE = 1  # threads: stay on this one
BAD_EPS = 4  # FASTRMS_BAD_EPS
CALL = np.dtype(Call)
CALL_SIZE = CALL.itemsize


def _external(name):
    """Return a C function by symbol, so that the code that numba caches holds no address."""
    symbol = f"fastrms_{name}"
    binding.add_symbol(symbol, ctypes.cast(getattr(functions, name), ctypes.c_void_p).value)
    result, *arguments = (TYPES[kind] for kind in declarations()[name])
    return types.ExternalFunction(symbol, result(*arguments))


_rms_norm, _add_rms_norm = _external("rms_norm"), _external("add_rms_norm")
_rms_norm_backward, _residual_add = _external("rms_norm_backward"), _external("residual_add")
_scratch_bytes = _external("scratch_bytes")
_any_scratch_bytes = _external("any_scratch_bytes")


# ---- checks at compile time: types ------------------------------------------------------------


def _given(kind):
    """Return the type of an argument, or its default value if it was left out."""
    return kind.value if isinstance(kind, types.Omitted) else kind


def _is_none(kind):
    return _given(kind) in (None, types.none)


def _check_array(name, kind, output=False, axes=None):
    if not isinstance(kind, types.Array) or kind.dtype not in FLOATS or kind.ndim == 0:
        raise TypingError(f"{name} must be a float32 or float64 array, got {kind}")
    if kind.layout != "C":
        raise TypingError(f"{name} must be C-contiguous, got {kind}; pass a copy")
    if output and not kind.mutable:
        raise TypingError(f"{name} must be writeable, got {kind}")
    if axes is not None and kind.ndim != axes:
        wanted = "one axis" if axes == 1 else f"{axes} axes"
        raise TypingError(f"{name} must have {wanted}, got {kind}")


def _check_optional(name, kind, **more):
    if not _is_none(kind):
        _check_array(name, kind, **more)


def _single(*kinds):
    """Return whether all arrays are float32."""
    return not any(isinstance(kind, types.Array) and kind.dtype != FLOATS[0] for kind in kinds)


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


def _same_place(array, output):
    """Return whether an input may be the output itself."""


@overload(_same_place)
def _overload_same_place(array, output):
    if array.dtype != output.dtype:
        return lambda array, output: False
    return lambda array, output: _address(array) == _address(output)


@register_jitable
def _check_apart(array, output):
    """Check that an input is the output itself or shares no memory with it."""
    if not _same_place(array, output) and _meet(array, output):
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


def _output(output, x):
    """Return an output, or a new array for None. An overload: the two may have different types."""


@overload(_output)
def _overload_output(output, x):
    def checked(output, x):
        _check_shape(output, x)
        return output

    if _is_none(output):
        return lambda output, x: np.empty(x.shape, x.dtype)
    return checked


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


# ---- calls of arrays that are not all float32 -------------------------------------------------


@register_jitable
def _set(field, array, n):
    field.data = _address(array)
    field.stride = n
    field.kind = 0  # FASTRMS_FLOAT32
    if array is not None:
        field.kind = array.itemsize // 8  # 1: FASTRMS_FLOAT64


@register_jitable
def _keep(array):
    """Keep an array alive up to here: numba frees it after its last use by name, not by address."""
    if array is not None:
        array[:0] = 0


def _any(name):
    """Return a function of a fastrms_call's arguments, which makes the call."""
    function = _external(name)

    def run(x, residual, out, dy, dx, weight, dweight, rows, n, eps, weight_offset, scale, flags):
        size = _any_scratch_bytes(rows, n, HERE)
        memory = np.empty(CALL_SIZE + size, np.uint8)  # the call, and its scratch
        call = memory[:CALL_SIZE].view(CALL)[0]
        _set(call.x, x, n)
        _set(call.residual, residual, n)
        _set(call.out, out, n)
        _set(call.dy, dy, n)
        _set(call.dx, dx, n)
        _set(call.weight, weight, n)
        _set(call.dweight, dweight, n)
        call.rows, call.n = rows, n
        call.eps, call.weight_offset, call.scale = eps, weight_offset, scale
        call.flags, call.threads = flags, HERE
        call.scratch, call.scratch_size = _address(memory) + CALL_SIZE, size
        code = function(_address(memory))
        _keep(memory)
        _check_code(code)

    run.__qualname__ = f"_{name}"  # from which numba makes a symbol
    return register_jitable(run)


_rms_norm_any, _add_rms_norm_any = _any("rms_norm_any"), _any("add_rms_norm_any")
_rms_norm_backward_any, _residual_add_any = _any("rms_norm_backward_any"), _any("residual_add_any")


# ---- the functions ----------------------------------------------------------------------------


@overload(rms_norm)
def _overload_rms_norm(x, weight=None, eps=1e-5, weight_offset=0.0, out=None, accumulate=False):
    _check_array("x", x)
    _check_optional("weight", weight)
    _check_optional("out", out, output=True, axes=x.ndim)
    _check_numbers(eps=eps, weight_offset=weight_offset)
    _check_bool("accumulate", accumulate)
    single = _single(x, weight, out)

    def run(x, weight=None, eps=1e-5, weight_offset=0.0, out=None, accumulate=False):
        if out is None and accumulate:
            raise ValueError("accumulate=True needs out=, an array to add to")
        (rows, n), y = _sizes(x), _output(out, x)
        _check_vector(weight, n)
        _check_apart(x, y)
        _check_clear(weight, y)
        if not single:
            _rms_norm_any(
                x, None, y, None, None, weight, None, rows, n, eps, weight_offset, 1.0,
                int(accumulate),
            )  # fmt: skip
            return y
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
    single = _single(x, residual, weight, out)

    def run(x, residual, weight=None, eps=1e-5, weight_offset=0.0, scale=1.0, out=None):
        (rows, n), y = _sizes(x), _output(out, x)
        _check_shape(residual, x)
        _check_vector(weight, n)
        _check_apart(x, residual)
        _check_apart(x, y)
        _check_clear(residual, y)
        _check_clear(weight, y)
        _check_clear(weight, residual)
        if not single:
            _add_rms_norm_any(
                x, residual, y, None, None, weight, None, rows, n, eps, weight_offset, scale, 0
            )
            return y
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
    weighted, kept = not _is_none(weight), not _is_none(dweight)
    if kept and not weighted:
        raise TypingError("dweight needs weight: without one it has no gradient")
    single = _single(dy, x, weight, dx, dweight)
    # Chosen here: numba would have to unify the types of all.
    total_for = _given_total if kept or not weighted else _new_total
    scratch_for = _scratch if single and weighted else _no_scratch

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
        total, scratch = total_for(weight, dweight), scratch_for(rows, n)
        _check_clear(gradient, total)
        _check_clear(x, total)
        _check_clear(dy, total)
        flags = int(accumulate) * ((dx is not None) + 2 * (dweight is not None))
        if not single:
            _rms_norm_backward_any(
                x, None, None, dy, gradient, weight, total, rows, n, eps, weight_offset, 1.0, flags
            )
            return gradient, total
        code = _rms_norm_backward(
            _address(dy), n, _address(x), n, _address(weight), _address(gradient), n,
            _address(total), _address(scratch), rows, n, eps, weight_offset, flags, HERE,
        )  # fmt: skip
        _keep(scratch)
        _check_code(code)
        return gradient, total

    return run


@register_jitable
def _given_total(weight, dweight):
    return dweight


@register_jitable
def _new_total(weight, dweight):
    return np.empty(weight.shape, weight.dtype)


@register_jitable
def _no_scratch(rows, n):
    return None


@register_jitable
def _scratch(rows, n):
    return np.empty(_scratch_bytes(rows, n, HERE) // 8, np.float64)


@overload(residual_add)
def _overload_residual_add(x, residual, scale=1.0):
    _check_array("x", x)
    _check_array("residual", residual, output=True, axes=x.ndim)
    _check_numbers(scale=scale)
    single = _single(x, residual)

    def run(x, residual, scale=1.0):
        rows, n = _sizes(x)
        _check_shape(residual, x)
        _check_apart(x, residual)
        if not single:
            _residual_add_any(
                x, residual, None, None, None, None, None, rows, n, 0.0, 0.0, scale, 0
            )
            return residual
        code = _residual_add(_address(x), n, _address(residual), n, rows, n, scale, HERE)
        _check_code(code)
        return residual

    return run
