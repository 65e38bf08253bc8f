"""Weights of any of the four dtypes and of leading axes of 1, and the shapes of dweight."""

import inspect
import itertools

import numpy as np
import pytest

import fastrms
from fastrms import reference

from .dtypes import (
    KINDS,
    call,
    copies,
    differences,
    dtype_of,
    meaning,
    mixed,
    mixes,
    rounded,
    without_buffers,
)
from .signatures import ARGUMENTS_OF, BACKWARD, FUNCTIONS, VECTORS

WITH_WEIGHT = [function for function in FUNCTIONS if "weight" in VECTORS[function]]
N = 12


@pytest.mark.parametrize("function", WITH_WEIGHT)
def test_leading_axes_of_one(rng, bfloat16, function):
    """Weight may have the shape (1, ..., 1, n); a new dweight has its shape."""
    every_mix = enumerate(mixes(function, 40, bfloat16))
    for (number, mix), n in itertools.product(every_mix, (1, N, 100)):
        shape = ((n,), (1, n), (1, 1, n), (1, 1, 1, n))[number % 4]
        given = mixed(rng, function, mix, ((7, n), (2, 3, n), (n,))[number % 3])
        given["weight"] = given["weight"].reshape(shape)
        calls = [without_buffers(function, given), given]
        if "dweight" in given:
            calls.append(given | {"dweight": given["dweight"].reshape(shape)})
        for arguments in calls:
            wanted = meaning(function, arguments)
            assert differences(call(function, copies(arguments)), wanted) == [], (mix, shape)


@pytest.mark.parametrize("function", BACKWARD)
def test_accumulate_into_dweight_of_two_axes(rng, function):
    for shape in ((N,), (1, N)):
        given = mixed(rng, function, dict.fromkeys(ARGUMENTS_OF[function], "float32"), (9, N))
        given["weight"], given["dweight"] = given["weight"][None], given["dweight"].reshape(shape)
        wanted = meaning(function, given, accumulate=True)
        assert differences(call(function, given, accumulate=True), wanted) == []


@pytest.mark.parametrize("function", WITH_WEIGHT)
def test_another_shape_is_refused(arrays, refused, function):
    shapes = ((), (N - 1,), (1,), (1, N + 1), (N, 1), (2, N), (2, 1, N), (1, 2, N), (N, N), (0, N))
    for name, shape in itertools.product(VECTORS[function], shapes):
        for kind in ("float16", "float32", "float64"):
            arguments = arrays(function) | {name: np.ones(shape, kind)}
            message = refused(function, arguments, ValueError)
            assert message.startswith(f"{name} must have "), shape


@pytest.mark.parametrize("function", BACKWARD)
def test_dweight_has_one_axis_or_the_shape_of_weight(arrays, refused, function):
    for weight, dweight in (((N,), (1, N)), ((1, N), (1, 1, N)), ((1, 1, N), (1, N))):
        shapes = {"weight": np.ones(weight, np.float32), "dweight": np.ones(dweight, np.float32)}
        message = refused(function, arrays(function) | shapes, ValueError)
        assert message.startswith("dweight must have ")


@pytest.mark.parametrize("kind", KINDS)
def test_weight_beyond_float32(kind):
    """Beside float32 and halves, a float64 weight is rounded to float32: once, maybe to Inf."""
    x = rounded([[1.0, -1.0, 1.0, -1.0]], dtype_of(kind))
    weight = np.array([1e300, 1e300, 1e-300, 1 + 2.0**-24 + 2.0**-50])
    y = fastrms.rms_norm(x, weight, 0.0).astype(float)
    if kind == "float64":
        np.testing.assert_allclose(y, x * weight, rtol=1e-15)
    else:
        once = rounded(np.float64(1 + 2.0**-23), x.dtype)
        assert y.tolist() == [[np.inf, -np.inf, 0, -once]]


@pytest.mark.parametrize("kind", KINDS)
def test_reference_takes_these_weights(rng, kind):
    x, dy = rng.standard_normal((2, 5, N))
    weight = rounded(rng.standard_normal(N), dtype_of(kind))
    y = reference.rms_norm(x, weight)
    dx, dweight = reference.rms_norm_backward(dy, x, weight)
    for shape in ((1, N), (1, 1, N)):
        again = reference.rms_norm(x, weight.reshape(shape))
        assert (again.shape, again.tobytes()) == (x.shape, y.tobytes())
        found = reference.rms_norm_backward(dy, x, weight.reshape(shape))
        assert [array.shape for array in found] == [x.shape, shape]
        assert [array.tobytes() for array in found] == [dx.tobytes(), dweight.tobytes()]
        for held in (np.empty(shape), np.empty(N)):
            _, passed = reference.rms_norm_backward(dy, x, weight.reshape(shape), dweight=held)
            assert passed is held
            assert held.tobytes() == dweight.tobytes()


def test_reference_has_the_same_signature():
    parameters = inspect.signature(reference.add_rms_norm).parameters
    assert list(parameters) == ["x", "residual", "weight", "eps", "weight_offset", "scale", "out"]
    assert parameters["scale"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["scale"].default == 1.0


def test_numba_takes_a_weight_of_two_axes(draw):
    numba = pytest.importorskip("numba", reason="numba is not installed")
    pytest.importorskip("fastrms.numba")

    @numba.njit
    def both(dy, x, weight):
        return fastrms.rms_norm(x, weight), fastrms.rms_norm_backward(dy, x, weight)

    x, dy, weight = draw(5, N), draw(5, N), draw(1, N)
    y, (dx, dweight) = both(dy, x, weight)
    wanted_dx, wanted = fastrms.rms_norm_backward(dy, x, weight[0])
    assert y.tobytes() == fastrms.rms_norm(x, weight[0]).tobytes()
    assert dx.tobytes() == wanted_dx.tobytes()
    assert (dweight.shape, dweight.tobytes()) == ((1, N), wanted.tobytes())
