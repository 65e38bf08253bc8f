"""A user's file, for `mypy --strict`: every public name, used as documented."""

import array
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import fastrms

x: NDArray[np.float32] = np.ones((2, 3), np.float32)
weight: NDArray[np.float32] = np.ones(3, np.float32)
buffer = array.array("f", [1.0, 2.0])

assert_type(fastrms.rms_norm(x, weight, 1e-6, weight_offset=1.0), NDArray[np.float32])
assert_type(fastrms.rms_norm(x, out=x, accumulate=True), NDArray[np.float32])
assert_type(fastrms.rms_norm(buffer, out=buffer), "array.array[float]")
assert_type(fastrms.add_rms_norm(x, x.copy(), weight, out=x), NDArray[np.float32])
assert_type(fastrms.residual_add(x.reshape(-1)[:2], buffer, 0.5), "array.array[float]")
dx, dweight = fastrms.rms_norm_backward(x, x, weight, dx=x.copy(), accumulate=True)
assert_type(dx, NDArray[np.float32])
assert_type(dweight, NDArray[np.float32])
fastrms.rms_norm_backward(x, x, weight, dweight=weight.copy(), accumulate="dweight")
_, nothing = fastrms.rms_norm_backward(x, x)
assert_type(nothing, None)
fastrms.set_num_threads(fastrms.get_num_threads())
compiler: str = fastrms.show_config("dicts")["build"]["compiler"]
fastrms.show_config()
y: NDArray[np.float64] = fastrms.reference.rms_norm(x, weight)
version: str = fastrms.__version__
include: str = fastrms.get_include()
