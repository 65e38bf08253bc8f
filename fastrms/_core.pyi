from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

Float32Array: TypeAlias = NDArray[np.float32]
# Whatever exports a native float32 buffer, ndarrays first of all.
Float32Buffer: TypeAlias = Float32Array | Buffer
Out = TypeVar("Out", bound=Float32Buffer)
DWeight = TypeVar("DWeight", bound=Float32Buffer)

@overload
def rms_norm(
    x: Float32Buffer,
    weight: Float32Buffer | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    out: None = None,
    accumulate: Literal[False] = False,
) -> Float32Array: ...
@overload
def rms_norm(
    x: Float32Buffer,
    weight: Float32Buffer | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    out: Out,
    accumulate: bool = False,
) -> Out: ...
@overload
def rms_norm_backward(
    dy: Float32Buffer,
    x: Float32Buffer,
    weight: None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    dx: None = None,
    dweight: None = None,
    accumulate: bool = False,
) -> tuple[Float32Array, None]: ...
@overload
def rms_norm_backward(
    dy: Float32Buffer,
    x: Float32Buffer,
    weight: None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    dx: Out,
    dweight: None = None,
    accumulate: bool = False,
) -> tuple[Out, None]: ...
@overload
def rms_norm_backward(
    dy: Float32Buffer,
    x: Float32Buffer,
    weight: Float32Buffer,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    dx: None = None,
    dweight: None = None,
    accumulate: bool = False,
) -> tuple[Float32Array, Float32Array]: ...
@overload
def rms_norm_backward(
    dy: Float32Buffer,
    x: Float32Buffer,
    weight: Float32Buffer,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    dx: Out,
    dweight: None = None,
    accumulate: bool = False,
) -> tuple[Out, Float32Array]: ...
@overload
def rms_norm_backward(
    dy: Float32Buffer,
    x: Float32Buffer,
    weight: Float32Buffer,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    dx: None = None,
    dweight: DWeight,
    accumulate: bool = False,
) -> tuple[Float32Array, DWeight]: ...
@overload
def rms_norm_backward(
    dy: Float32Buffer,
    x: Float32Buffer,
    weight: Float32Buffer,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    dx: Out,
    dweight: DWeight,
    accumulate: bool = False,
) -> tuple[Out, DWeight]: ...
@overload
def add_rms_norm(
    x: Float32Buffer,
    residual: Float32Buffer,
    weight: Float32Buffer | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    out: None = None,
) -> Float32Array: ...
@overload
def add_rms_norm(
    x: Float32Buffer,
    residual: Float32Buffer,
    weight: Float32Buffer | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
    out: Out,
) -> Out: ...
def residual_add(residual: Out, x: Float32Buffer, scale: float = 1.0) -> Out: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def available_isas() -> tuple[str, ...]: ...
def current_isa() -> str: ...
def use_isa(isa: str) -> None: ...
def build_info() -> dict[str, Any]: ...
