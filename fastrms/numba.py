"""fastrms in numba: importing this module lets `@njit` functions call those named in `__all__`.

They give the bits of the NumPy calls. Arrays are C-contiguous, float32 or float64 in any mix: other
types and layouts fail to compile. A call stays on the calling thread, so that `prange` can run one
on each. A wrong shape, a negative eps, or an overlap for which NumPy's call copies is a ValueError.
"""

import ctypes

import numpy as np

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

from . import add_rms_norm, residual_add, rms_norm, rms_norm_backward
from ._numba_checks import (
    address_of,
    all_float32,
    check_apart,
    check_array,
    check_before_add,
    check_bool,
    check_clear,
    check_code,
    check_numbers,
    check_optional,
    check_shape,
    check_vector,
    is_none,
    output_or_new,
    sizes_of,
)
from .ctypes import Call, declarations, functions

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


# ---- calls of arrays that are not all float32 -------------------------------------------------


@register_jitable
def _set(field, array, n):
    field.data = address_of(array)
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
        call.scratch, call.scratch_size = address_of(memory) + CALL_SIZE, size
        code = function(address_of(memory))
        _keep(memory)
        check_code(code)

    run.__qualname__ = f"_{name}"  # from which numba makes a symbol
    return register_jitable(run)


_rms_norm_any, _add_rms_norm_any = _any("rms_norm_any"), _any("add_rms_norm_any")
_rms_norm_backward_any, _residual_add_any = _any("rms_norm_backward_any"), _any("residual_add_any")


# ---- the functions ----------------------------------------------------------------------------


@overload(rms_norm)
def _overload_rms_norm(x, weight=None, eps=1e-5, weight_offset=0.0, out=None, accumulate=False):
    check_array("x", x)
    check_optional("weight", weight)
    check_optional("out", out, output=True, axes=x.ndim)
    check_numbers(eps=eps, weight_offset=weight_offset)
    check_bool("accumulate", accumulate)
    single = all_float32(x, weight, out)

    def run(x, weight=None, eps=1e-5, weight_offset=0.0, out=None, accumulate=False):
        if out is None and accumulate:
            raise ValueError("accumulate=True needs out=, an array to add to")
        (rows, n), y = sizes_of(x), output_or_new(out, x)
        check_vector(weight, n)
        check_apart(x, y)
        check_clear(weight, y)
        if not single:
            _rms_norm_any(
                x, None, y, None, None, weight, None, rows, n, eps, weight_offset, 1.0,
                int(accumulate),
            )  # fmt: skip
            return y
        code = _rms_norm(
            address_of(x), n, address_of(weight), address_of(y), n, rows, n, eps, weight_offset,
            int(accumulate), HERE,
        )  # fmt: skip
        check_code(code)
        return y

    return run


@overload(add_rms_norm)
def _overload_add_rms_norm(
    x, residual, weight=None, eps=1e-5, weight_offset=0.0, scale=1.0, out=None
):
    check_array("x", x)
    check_array("residual", residual, output=True, axes=x.ndim)
    check_optional("weight", weight)
    check_optional("out", out, output=True, axes=x.ndim)
    check_numbers(eps=eps, weight_offset=weight_offset, scale=scale)
    single = all_float32(x, residual, weight, out)

    def run(x, residual, weight=None, eps=1e-5, weight_offset=0.0, scale=1.0, out=None):
        (rows, n), y = sizes_of(x), output_or_new(out, x)
        check_shape(residual, x)
        check_vector(weight, n)
        check_apart(x, residual)
        check_apart(x, y)
        check_clear(residual, y)
        check_clear(weight, y)
        check_clear(weight, residual)
        if not single:
            _add_rms_norm_any(
                x, residual, y, None, None, weight, None, rows, n, eps, weight_offset, scale, 0
            )
            return y
        if scale == 1:
            code = _add_rms_norm(
                address_of(x), n, address_of(residual), n, address_of(weight), address_of(y), n,
                rows, n, eps, weight_offset, HERE,
            )  # fmt: skip
            check_code(code)
            return y
        check_before_add(eps, weight, y)
        code = _residual_add(address_of(x), n, address_of(residual), n, rows, n, scale, HERE)
        check_code(code)
        code = _rms_norm(
            address_of(residual), n, address_of(weight), address_of(y), n, rows, n, eps,
            weight_offset, 0, HERE,
        )  # fmt: skip
        check_code(code)
        return y

    return run


@overload(rms_norm_backward)
def _overload_rms_norm_backward(
    dy, x, weight=None, eps=1e-5, weight_offset=0.0, dx=None, dweight=None, accumulate=False
):
    check_array("x", x)
    check_array("dy", dy, axes=x.ndim)
    check_optional("weight", weight)
    check_optional("dx", dx, output=True, axes=x.ndim)
    check_optional("dweight", dweight, output=True)
    check_numbers(eps=eps, weight_offset=weight_offset)
    check_bool("accumulate", accumulate)
    weighted, kept = not is_none(weight), not is_none(dweight)
    if kept and not weighted:
        raise TypingError("dweight needs weight: without one it has no gradient")
    single = all_float32(dy, x, weight, dx, dweight)
    # Chosen here: numba would have to unify the types of all.
    total_for = _given_total if kept or not weighted else _new_total
    scratch_for = _scratch if single and weighted else _no_scratch

    def run(
        dy, x, weight=None, eps=1e-5, weight_offset=0.0, dx=None, dweight=None, accumulate=False
    ):
        if dx is None and dweight is None and accumulate:
            raise ValueError("accumulate=True needs dx= or dweight=, an array to add to")
        (rows, n), gradient = sizes_of(x), output_or_new(dx, x)
        check_shape(dy, x)
        check_vector(weight, n)
        check_vector(dweight, n)
        check_apart(x, gradient)
        check_apart(dy, gradient)
        check_clear(weight, gradient)
        total, scratch = total_for(weight, dweight), scratch_for(rows, n)
        check_clear(gradient, total)
        check_clear(x, total)
        check_clear(dy, total)
        check_clear(weight, total)
        flags = int(accumulate) * ((dx is not None) + 2 * (dweight is not None))
        if not single:
            _rms_norm_backward_any(
                x, None, None, dy, gradient, weight, total, rows, n, eps, weight_offset, 1.0, flags
            )
            return gradient, total
        code = _rms_norm_backward(
            address_of(dy), n, address_of(x), n, address_of(weight), address_of(gradient), n,
            address_of(total), address_of(scratch), rows, n, eps, weight_offset, flags, HERE,
        )  # fmt: skip
        _keep(scratch)
        check_code(code)
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
    check_array("x", x)
    check_array("residual", residual, output=True, axes=x.ndim)
    check_numbers(scale=scale)
    single = all_float32(x, residual)

    def run(x, residual, scale=1.0):
        rows, n = sizes_of(x)
        check_shape(residual, x)
        check_apart(x, residual)
        if not single:
            _residual_add_any(
                x, residual, None, None, None, None, None, rows, n, 0.0, 0.0, scale, 0
            )
            return residual
        code = _residual_add(address_of(x), n, address_of(residual), n, rows, n, scale, HERE)
        check_code(code)
        return residual

    return run
