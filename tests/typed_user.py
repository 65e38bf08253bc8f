"""A user's file, for `mypy --strict`: every public name, used as documented."""

import array
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fastrms

x: NDArray[np.float32] = np.ones((2, 3), np.float32)
weight: NDArray[np.float32] = np.ones(3, np.float32)
x16, x64 = x.astype(np.float16), x.astype(np.float64)
bfloat16: NDArray[Any] = x.copy()  # what ml_dtypes.bfloat16 is to a type checker
buffer = array.array("f", [1.0, 2.0])

assert_type(fastrms.rms_norm(x, weight, 1e-6, weight_offset=1.0), NDArray[np.float32])
assert_type(fastrms.rms_norm(x16, weight), NDArray[np.float16])
assert_type(fastrms.rms_norm(x64, weight), NDArray[np.float64])
assert_type(fastrms.rms_norm(bfloat16, bfloat16[0]), NDArray[Any])
assert_type(fastrms.rms_norm(x, out=x, accumulate=True), NDArray[np.float32])
assert_type(fastrms.rms_norm(x16, out=x), NDArray[np.float32])
assert_type(fastrms.rms_norm(buffer), NDArray[Any])
assert_type(fastrms.rms_norm(buffer, out=buffer), "array.array[float]")
assert_type(fastrms.add_rms_norm(x, x.copy(), weight, out=x), NDArray[np.float32])
assert_type(fastrms.add_rms_norm(x16, x.copy(), x64[:1], scale=0.5), NDArray[np.float16])
assert_type(fastrms.residual_add(x.reshape(-1)[:2], buffer, 0.5), "array.array[float]")
dx, dweight = fastrms.rms_norm_backward(x, x, weight, dx=x.copy(), accumulate=True)
assert_type(dx, NDArray[np.float32])
assert_type(dweight, NDArray[Any])
sums: NDArray[np.float32] = np.zeros(3, np.float32)
dx16, summed = fastrms.rms_norm_backward(x, x16, x16[0], dweight=sums, accumulate="dweight")
assert_type(dx16, NDArray[np.float16])
assert_type(summed, NDArray[np.float32])
_, nothing = fastrms.rms_norm_backward(x, x)
assert_type(nothing, None)
squares = fastrms.sum_squares(x16)
assert_type(squares, NDArray[np.float64])
assert_type(fastrms.sum_products(x, x16, weight, out=squares), NDArray[np.float64])
assert_type(fastrms.rms_scale(x16, squares, 3, weight), NDArray[np.float16])
fastrms.rms_norm(np.ones(3, np.int64))  # type: ignore[type-var]
fastrms.set_num_threads(fastrms.get_num_threads())
compiler: str = fastrms.show_config("dicts")["build"]["compiler"]
fastrms.show_config()
y: NDArray[np.float64] = fastrms.reference.rms_norm(x, weight)
version: str = fastrms.__version__
include: str = fastrms.get_include()
