from typing import Any, Literal, SupportsIndex, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, TypeVar

# Arrays of the dtypes that fastrms takes; those of ml_dtypes.bfloat16 are NDArray[Any]. Buffer
# carries no dtype, so type checkers also accept buffers of others, for which the call raises
# TypeError.
_Floating: TypeAlias = np.float16 | np.float32 | np.float64
_Array: TypeAlias = NDArray[_Floating] | Buffer
_Float64Array: TypeAlias = NDArray[np.float64]
# The dtype of x, which is that of a new y or dx.
_DType = TypeVar("_DType", bound=_Floating, default=Any)
_ArrayOf: TypeAlias = NDArray[_DType] | Buffer
_Out = TypeVar("_Out", bound=_Array)
_DWeight = TypeVar("_DWeight", bound=_Array, default=NDArray[Any])
_Sums = TypeVar("_Sums", bound=_Float64Array, default=_Float64Array)
_Bool: TypeAlias = bool | np.bool_
_Real: TypeAlias = float | np.floating[Any] | np.integer[Any]
_Accumulate: TypeAlias = _Bool | Literal["dx", "dweight"]

@overload
def rms_norm(
    x: _ArrayOf[_DType],
    weight: _Array | None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    out: None = None,
    accumulate: Literal[False] = False,
) -> NDArray[_DType]: ...
@overload
def rms_norm(
    x: _ArrayOf[_DType],
    weight: _Array | None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    out: _Out,
    accumulate: _Bool = False,
) -> _Out: ...
@overload
def rms_norm_backward(
    dy: _Array,
    x: _ArrayOf[_DType],
    weight: None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: None = None,
    dweight: None = None,
    accumulate: _Accumulate = False,
) -> tuple[NDArray[_DType], None]: ...
@overload
def rms_norm_backward(
    dy: _Array,
    x: _ArrayOf[_DType],
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
    dy: _Array,
    x: _ArrayOf[_DType],
    weight: _Array,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: None = None,
    dweight: _DWeight | None = None,
    accumulate: _Accumulate = False,
) -> tuple[NDArray[_DType], _DWeight]: ...
@overload
def rms_norm_backward(
    dy: _Array,
    x: _ArrayOf[_DType],
    weight: _Array,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: _Out,
    dweight: _DWeight | None = None,
    accumulate: _Accumulate = False,
) -> tuple[_Out, _DWeight]: ...
@overload
def add_rms_norm(
    x: _ArrayOf[_DType],
    residual: _Array,
    weight: _Array | None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    scale: _Real = 1.0,
    out: None = None,
) -> NDArray[_DType]: ...
@overload
def add_rms_norm(
    x: _ArrayOf[_DType],
    residual: _Array,
    weight: _Array | None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    scale: _Real = 1.0,
    out: _Out,
) -> _Out: ...
def residual_add(x: _Array, residual: _Out, scale: _Real = 1.0) -> _Out: ...
def sum_squares(x: _Array, *, out: _Sums | None = None) -> _Sums: ...
def sum_products(
    dy: _Array,
    x: _Array,
    weight: _Array | None = None,
    *,
    weight_offset: _Real = 0.0,
    out: _Sums | None = None,
) -> _Sums: ...
@overload
def rms_scale(
    x: _ArrayOf[_DType],
    sum_squares: _Float64Array,
    size: SupportsIndex,
    weight: _Array | None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    out: None = None,
) -> NDArray[_DType]: ...
@overload
def rms_scale(
    x: _ArrayOf[_DType],
    sum_squares: _Float64Array,
    size: SupportsIndex,
    weight: _Array | None = None,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    out: _Out,
) -> _Out: ...
@overload
def rms_scale_backward(
    dy: _Array,
    x: _ArrayOf[_DType],
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
) -> tuple[NDArray[_DType], None]: ...
@overload
def rms_scale_backward(
    dy: _Array,
    x: _ArrayOf[_DType],
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
    dy: _Array,
    x: _ArrayOf[_DType],
    sum_squares: _Float64Array,
    sum_products: _Float64Array,
    size: SupportsIndex,
    weight: _Array,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: None = None,
    dweight: _DWeight | None = None,
    accumulate: _Accumulate = False,
) -> tuple[NDArray[_DType], _DWeight]: ...
@overload
def rms_scale_backward(
    dy: _Array,
    x: _ArrayOf[_DType],
    sum_squares: _Float64Array,
    sum_products: _Float64Array,
    size: SupportsIndex,
    weight: _Array,
    eps: _Real = 1e-5,
    *,
    weight_offset: _Real = 0.0,
    dx: _Out,
    dweight: _DWeight | None = None,
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
