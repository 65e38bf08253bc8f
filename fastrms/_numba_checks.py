"""The checks of fastrms.numba: of types as numba compiles, of shapes and memory at a call."""

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload, register_jitable

FLOATS = (types.float32, types.float64)
BAD_EPS = 4  # FASTRMS_BAD_EPS


# ---- checks at compile time: types ------------------------------------------------------------


def given(kind):
    """Return the type of an argument, or its default value if it was left out."""
    return kind.value if isinstance(kind, types.Omitted) else kind


def is_none(kind):
    return given(kind) in (None, types.none)


def check_array(name, kind, output=False, axes=None):
    if not isinstance(kind, types.Array) or kind.dtype not in FLOATS or kind.ndim == 0:
        raise TypingError(f"{name} must be a float32 or float64 array, got {kind}")
    if kind.layout != "C":
        raise TypingError(f"{name} must be C-contiguous, got {kind}; pass a copy")
    if output and not kind.mutable:
        raise TypingError(f"{name} must be writeable, got {kind}")
    if axes is not None and kind.ndim != axes:
        wanted = "one axis" if axes == 1 else f"{axes} axes"
        raise TypingError(f"{name} must have {wanted}, got {kind}")


def check_optional(name, kind, **more):
    if not is_none(kind):
        check_array(name, kind, **more)


def all_float32(*kinds):
    """Return whether all arrays are float32."""
    return not any(isinstance(kind, types.Array) and kind.dtype != types.float32 for kind in kinds)


def check_numbers(**kinds):
    for name, kind in kinds.items():
        if not isinstance(given(kind), (types.Float, types.Integer, float, int)):
            raise TypingError(f"{name} must be a real number, got {kind}")


def check_bool(name, kind):
    if not isinstance(given(kind), (types.Boolean, bool)):
        raise TypingError(f"{name} must be True or False, got {kind}")


# ---- checks at run time: shapes and memory ----------------------------------------------------


@register_jitable
def address_of(array):
    if array is None:
        return np.intp(0)
    return np.intp(array.ctypes.data)


@register_jitable
def sizes_of(x):
    n = x.shape[-1]
    return (x.size // n if n > 0 else 0), n


@register_jitable
def meet(a, b):
    """Return whether two arrays share memory; None shares none, nor does an empty array."""
    if a is None:
        return False
    if b is None:
        return False
    first, second = address_of(a), address_of(b)
    return max(first, second) < min(first + a.nbytes, second + b.nbytes)


def same_place(array, output):
    """Return whether an input may be the output itself."""


@overload(same_place)
def overload_same_place(array, output):
    if array.dtype != output.dtype:
        return lambda array, output: False
    return lambda array, output: address_of(array) == address_of(output)


@register_jitable
def check_apart(array, output):
    """Check that an input is the output itself or shares no memory with it."""
    if not same_place(array, output) and meet(array, output):
        raise ValueError("an output must be the input itself, or share no memory with it")


@register_jitable
def check_clear(array, output):
    if meet(array, output):
        raise ValueError("an output must not share memory with the weight or another output")


@register_jitable
def check_vector(vector, n):
    if vector is not None:  # noqa: SIM102, numba prunes the branch of a None
        if vector.size != n or vector.shape[-1] != n:
            raise ValueError("weight and dweight must have shape (n,) or (1, ..., 1, n)")


@register_jitable
def check_before_add(eps, weight, y):
    """Find the errors of the norm before the sum is written: it is another call."""
    if not eps >= 0:
        raise ValueError("eps must be zero or more")
    if address_of(weight) % 4 != 0 or address_of(y) % 4 != 0:
        raise ValueError("arrays must be aligned")


def output_or_new(output, x):
    """Return an output, or a new array for None. An overload: the two may have different types."""


@overload(output_or_new)
def overload_output(output, x):
    def checked(output, x):
        check_shape(output, x)
        return output

    if is_none(output):
        return lambda output, x: np.empty(x.shape, x.dtype)
    return checked


@register_jitable
def check_shape(array, x):
    if array.shape != x.shape:
        raise ValueError("each array must have the shape of x")


@register_jitable
def check_code(code):
    """Raise for the errors that only the C function finds."""
    if code == BAD_EPS:
        raise ValueError("eps must be zero or more")
    if code != 0:  # numba lets misaligned arrays pass as aligned
        raise ValueError("arrays must be aligned")
