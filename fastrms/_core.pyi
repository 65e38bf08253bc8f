from typing import Any, Literal, SupportsIndex, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

_Float32Array: TypeAlias = NDArray[np.float32]
_Float64Array: TypeAlias = NDArray[np.float64]
# Any object that exports a native float32 buffer. Buffer carries no dtype, so type checkers also
# accept an ndarray of float64, for which the call raises TypeError.
_Float32Buffer: TypeAlias = _Float32Array | Buffer
_Out = TypeVar("_Out", bound=_Float32Buffer)
_Sums = TypeVar("_Sums", bound=_Float64Array)
_DWeight = TypeVar("_DWeight", bound=_Float32Buffer)
_Bool: TypeAlias = bool | np.bool_
_Real: TypeAlias = float | np.floating[Any] | np.integer[Any]
_Accumulate: TypeAlias = _Bool | Literal["dx", "dweight"]

@overload
def rms_norm(
    x: _Float32Buffer,
    weight: _Float32Buffer | None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    out: None = None,
    accumulate: Literal[False] = False,
) -> _Float32Array: ...
@overload
def rms_norm(
    x: _Float32Buffer,
    weight: _Float32Buffer | None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    out: _Out,
    accumulate: _Bool = False,
) -> _Out: ...
@overload
def rms_norm_backward(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    weight: None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: None = None,
    dweight: None = None,
    accumulate: _Accumulate = False,
) -> tuple[_Float32Array, None]: ...
@overload
def rms_norm_backward(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    weight: None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: _Out,
    dweight: None = None,
    accumulate: _Accumulate = False,
) -> tuple[_Out, None]: ...
@overload
def rms_norm_backward(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    weight: _Float32Buffer,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: None = None,
    dweight: None = None,
    accumulate: _Accumulate = False,
) -> tuple[_Float32Array, _Float32Array]: ...
@overload
def rms_norm_backward(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    weight: _Float32Buffer,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: _Out,
    dweight: None = None,
    accumulate: _Accumulate = False,
) -> tuple[_Out, _Float32Array]: ...
@overload
def rms_norm_backward(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    weight: _Float32Buffer,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: None = None,
    dweight: _DWeight,
    accumulate: _Accumulate = False,
) -> tuple[_Float32Array, _DWeight]: ...
@overload
def rms_norm_backward(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    weight: _Float32Buffer,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: _Out,
    dweight: _DWeight,
    accumulate: _Accumulate = False,
) -> tuple[_Out, _DWeight]: ...
@overload
def add_rms_norm(
    x: _Float32Buffer,
    residual: _Float32Buffer,
    weight: _Float32Buffer | None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    out: None = None,
) -> _Float32Array: ...
@overload
def add_rms_norm(
    x: _Float32Buffer,
    residual: _Float32Buffer,
    weight: _Float32Buffer | None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    out: _Out,
) -> _Out: ...
def residual_add(x: _Float32Buffer, residual: _Out, scale: _Real = 1.0) -> _Out: ...
@overload
def sum_squares(x: _Float32Buffer, *, out: None = None) -> _Float64Array: ...
@overload
def sum_squares(x: _Float32Buffer, *, out: _Sums) -> _Sums: ...
@overload
def sum_products(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    weight: _Float32Buffer | None = None,
    *,
    weight_offset: _Real = 0.0,
    out: None = None,
) -> _Float64Array: ...
@overload
def sum_products(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    weight: _Float32Buffer | None = None,
    *,
    weight_offset: _Real = 0.0,
    out: _Sums,
) -> _Sums: ...
@overload
def rms_scale(
    x: _Float32Buffer,
    sum_squares: _Float64Array,
    size: SupportsIndex,
    weight: _Float32Buffer | None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    out: None = None,
) -> _Float32Array: ...
@overload
def rms_scale(
    x: _Float32Buffer,
    sum_squares: _Float64Array,
    size: SupportsIndex,
    weight: _Float32Buffer | None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    out: _Out,
) -> _Out: ...
@overload
def rms_scale_backward(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    sum_squares: _Float64Array,
    sum_products: _Float64Array,
    size: SupportsIndex,
    weight: None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: None = None,
    dweight: None = None,
    accumulate: _Accumulate = False,
) -> tuple[_Float32Array, None]: ...
@overload
def rms_scale_backward(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    sum_squares: _Float64Array,
    sum_products: _Float64Array,
    size: SupportsIndex,
    weight: None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: _Out,
    dweight: None = None,
    accumulate: _Accumulate = False,
) -> tuple[_Out, None]: ...
@overload
def rms_scale_backward(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    sum_squares: _Float64Array,
    sum_products: _Float64Array,
    size: SupportsIndex,
    weight: _Float32Buffer,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: None = None,
    dweight: None = None,
    accumulate: _Accumulate = False,
) -> tuple[_Float32Array, _Float32Array]: ...
@overload
def rms_scale_backward(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    sum_squares: _Float64Array,
    sum_products: _Float64Array,
    size: SupportsIndex,
    weight: _Float32Buffer,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: _Out,
    dweight: None = None,
    accumulate: _Accumulate = False,
) -> tuple[_Out, _Float32Array]: ...
@overload
def rms_scale_backward(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    sum_squares: _Float64Array,
    sum_products: _Float64Array,
    size: SupportsIndex,
    weight: _Float32Buffer,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: None = None,
    dweight: _DWeight,
    accumulate: _Accumulate = False,
) -> tuple[_Float32Array, _DWeight]: ...
@overload
def rms_scale_backward(
    dy: _Float32Buffer,
    x: _Float32Buffer,
    sum_squares: _Float64Array,
    sum_products: _Float64Array,
    size: SupportsIndex,
    weight: _Float32Buffer,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: _Out,
    dweight: _DWeight,
    accumulate: _Accumulate = False,
) -> tuple[_Out, _DWeight]: ...

MOST_THREADS: int

def set_num_threads(n: SupportsIndex) -> None: ...
def get_num_threads() -> int: ...
def limit_threads(n: SupportsIndex) -> int: ...
def set_parallel_from(elements: int) -> int: ...
def available_isas() -> tuple[str, ...]: ...
def preferred_isa() -> str: ...
def set_caches(l1: int, stream_bytes: int, fetches: bool) -> tuple[int, int, bool]: ...
def current() -> str: ...
def use_isa(isa: str) -> None: ...
def build_info() -> dict[str, Any]: ...
