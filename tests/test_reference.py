"""The reference against finite differences and outside results; fastrms against those, too.

The mean of dy is never zero and weight is never constant: otherwise a gradient with LayerNorm's
mean term, or without the weight, would pass.
"""

import inspect

import numpy as np
import pytest

import fastrms
from fastrms import reference
from fastrms.check import (
    DWEIGHT,
    DX,
    FORWARD_ULP,
    dweight_error,
    dx_error,
    forward_ulp,
    ulps,
)

from .dtypes import KINDS, dtype_of
from .signatures import FUNCTIONS

# The central difference's best step in float64 is about the cube root of its rounding unit; the
# error is then of the order of the step squared, times a third derivative of the order of 1..100.
STEP = np.finfo(np.float64).eps ** (1 / 3)
DIFFERENCE = 1000 * STEP**2
# Two float64 evaluations of one formula, in two orders of summation.
FLOAT64 = 1e-13
GRADIENT_CASES = [
    (eps, weight_offset, n)
    for eps in (0.0, 1e-5, 0.1, 3.0)
    for weight_offset in (0.0, 1.0, -0.75)
    for n in (1, 2, 5, 12)
]


@pytest.fixture
def problem(rng):
    """Return a function from n to float64 x, dy, weight, with dy far from mean zero."""

    def make(n, rows=3):
        x = rng.standard_normal((rows, n)) + 0.5
        dy = rng.uniform(0.5, 2.0, (rows, n))
        weight = np.linspace(-1.0, 2.0, n) if n > 1 else np.array([1.7])
        return x, dy, weight

    return make


def _differences(loss, point):
    """Return the central differences of loss, one coordinate of point at a time."""
    gradient = np.empty_like(point)
    for index in np.ndindex(point.shape):
        ahead, behind = point.copy(), point.copy()
        ahead[index] += STEP
        behind[index] -= STEP
        gradient[index] = (loss(ahead) - loss(behind)) / (ahead[index] - behind[index])
    return gradient


@pytest.mark.parametrize(("eps", "weight_offset", "n"), GRADIENT_CASES)
def test_gradients_are_derivatives(problem, eps, weight_offset, n):
    x, dy, weight = problem(n)

    def loss(x, weight):
        return (dy * reference.rms_norm(x, weight, eps, weight_offset=weight_offset)).sum()

    dx, dweight = reference.rms_norm_backward(dy, x, weight, eps, weight_offset=weight_offset)
    np.testing.assert_allclose(dx, _differences(lambda x: loss(x, weight), x), atol=DIFFERENCE)
    np.testing.assert_allclose(dweight, _differences(lambda w: loss(x, w), weight), atol=DIFFERENCE)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_gradient_without_weight_is_a_derivative(problem, eps):
    x, dy, _ = problem(7)
    dx, dweight = reference.rms_norm_backward(dy, x, None, eps)
    differences = _differences(lambda x: (dy * reference.rms_norm(x, None, eps)).sum(), x)
    np.testing.assert_allclose(dx, differences, atol=DIFFERENCE)
    assert dweight is None


# Keras 3, keras/src/layers/normalization/rms_normalization_test.py, test_output: the layer, with
# its eps of 1e-6 and weight of ones, on np.arange(10). Printed from a float32 computation.
KERAS = [
    0.0,
    0.18731716,
    0.37463433,
    0.5619515,
    0.74926865,
    0.9365858,
    1.123903,
    1.3112202,
    1.4985373,
    1.6858544,
]
# float32 arithmetic and eight printed digits: a few of float32's rounding units.
PRINTED = 4 * 2.0**-24


@pytest.mark.parametrize("implementation", [reference, fastrms], ids=["reference", "fastrms"])
def test_published_example(implementation):
    y = implementation.rms_norm(np.arange(10, dtype=np.float32), np.ones(10, np.float32), 1e-6)
    np.testing.assert_allclose(y, KERAS, rtol=PRINTED)


@pytest.mark.parametrize("implementation", [reference, fastrms], ids=["reference", "fastrms"])
def test_integer_root(implementation):
    """The root of (1 + 49) / 2 is 5, so every digit can be checked by eye."""
    y = implementation.rms_norm(np.array([1, 7], np.float32), np.array([2, -1], np.float32), 0.0)
    np.testing.assert_allclose(y, [0.4, -1.4], rtol=FORWARD_ULP * 2.0**-23)


# y, dx and dweight from torch 2.13.0 on the CPU: torch.nn.functional.rms_norm(X, (5,), WEIGHT, eps)
# and y.backward(DY), all tensors torch.float64. Every input is exact in float32.
X = [[1.5, -2.25, 0.5, 3.0, -0.75], [0.125, 4.0, -1.0, 2.5, 0.25]]
WEIGHT = [0.5, -1.25, 2.0, 0.75, 1.5]
DY = [[1.0, 0.5, -0.25, 2.0, 0.75], [-1.5, 0.625, 1.0, 0.25, 3.0]]
TORCH = {
    1e-5: (
        [
            [
                0.4052568286033481,
                1.5197131072625552,
                0.5403424381377975,
                1.2157704858100442,
                -0.6078852429050221,
            ],
            [
                0.028935076654044115,
                -2.314806132323529,
                -0.9259224529294117,
                0.8680522996213234,
                0.1736104599242647,
            ],
        ],
        [
            [
                0.0069029530952374185,
                0.05718837512436853,
                -0.3579273077267858,
                0.2839771252593736,
                0.7395193758918528,
            ],
            [
                -0.3382283901825002,
                -0.07392750886261817,
                0.8539822156011784,
                0.26665582328271564,
                2.1013105784232344,
            ],
        ],
        [
            0.7237084272445639,
            0.5495178232567424,
            -0.5305040312319305,
            3.531405395367226,
            0.04327829839601832,
        ],
    ),
    0.5: (
        [
            [
                0.3785658488438015,
                1.4196219331642557,
                0.5047544651250687,
                1.1356975465314045,
                -0.5678487732657023,
            ],
            [
                0.02749910629356795,
                -2.199928503485436,
                -0.8799714013941744,
                0.8249731888070384,
                0.16499463776140771,
            ],
        ],
        [
            [
                0.03777620996955133,
                0.0064299931863065485,
                -0.32391090676019535,
                0.32792965250163697,
                0.6751492845621938,
            ],
            [
                -0.32227022814216477,
                -0.0967293124887785,
                0.8182190223489691,
                0.2368782664937169,
                1.9953737478981937,
            ],
        ],
        [
            0.6746343788068991,
            0.5321154784770157,
            -0.5030800088377207,
            3.3035178536860914,
            0.046064888889964295,
        ],
    ),
}


def _assert_fastrms(x, weight, dy, eps, y, dx, dweight):
    """Compare the compiled functions with outside results, within the bounds of fastrms.check."""
    assert ulps(fastrms.rms_norm(x, weight, eps), y) <= forward_ulp(weight)
    computed_dx, computed_dweight = fastrms.rms_norm_backward(dy, x, weight, eps)
    assert dx_error(computed_dx, dx, dy, x, weight, eps) <= DX
    if weight is None:
        assert computed_dweight is None
    else:
        assert dweight_error(computed_dweight, dweight, dy, x, eps) <= DWEIGHT


@pytest.mark.parametrize("eps", TORCH)
def test_numbers_from_torch(isa, eps):
    y, dx, dweight = (np.array(numbers) for numbers in TORCH[eps])
    np.testing.assert_allclose(reference.rms_norm(X, WEIGHT, eps), y, rtol=FLOAT64)
    reference_dx, reference_dweight = reference.rms_norm_backward(DY, np.array(X), WEIGHT, eps)
    np.testing.assert_allclose(reference_dx, dx, rtol=FLOAT64)
    np.testing.assert_allclose(reference_dweight, dweight, rtol=FLOAT64)
    x, weight, dy = (np.array(values, np.float32) for values in (X, WEIGHT, DY))
    _assert_fastrms(x, weight, dy, eps, y, dx, dweight)


def _torch_answers(torch, x, weight, dy, eps):
    """Return y, dx and dweight from torch's autograd in float64."""
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    if weight is not None:
        weight = torch.tensor(weight, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
    y.backward(torch.tensor(dy, dtype=torch.float64))
    dweight = None if weight is None else weight.grad.numpy()
    return y.detach().numpy(), x.grad.numpy(), dweight


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.25])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 64), (33, 129), (9, 1023)])
def test_torch(rng, shape, eps, weighted):
    torch = pytest.importorskip("torch", reason="torch, the outside oracle, is not installed")
    x = rng.standard_normal(shape, dtype=np.float32) + np.float32(0.25)
    dy = rng.uniform(0.5, 2, shape).astype(np.float32)
    weight = rng.standard_normal(shape[-1], dtype=np.float32) if weighted else None
    y, dx, dweight = _torch_answers(torch, x, weight, dy, eps)
    np.testing.assert_allclose(reference.rms_norm(x, weight, eps), y, rtol=FLOAT64)
    reference_dx, reference_dweight = reference.rms_norm_backward(dy, x, weight, eps)
    np.testing.assert_allclose(reference_dx, dx, atol=FLOAT64 * np.abs(dx).max())
    if weighted:
        np.testing.assert_allclose(reference_dweight, dweight, atol=FLOAT64 * np.abs(dweight).max())
    _assert_fastrms(x, weight, dy, eps, y, dx, dweight)


def test_reference_signatures():
    """The reference and the compiled functions have the same signatures."""
    for name in FUNCTIONS:
        compiled, defined = getattr(fastrms, name), getattr(reference, name)
        assert _parameters(compiled) == _parameters(defined)


def _parameters(function):
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


@pytest.mark.parametrize("bad", ["dx", "yes", 2])
def test_an_accumulate_that_is_no_truth(bad):
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match="accumulate must be True or False"):
        reference.rms_norm(x, out=x.copy(), accumulate=bad)


@pytest.mark.parametrize("bad", ["dX", "yes", 2])
def test_an_accumulate_that_no_gradient_has(bad):
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match='accumulate must be True, False, "dx" or "dweight"'):
        reference.rms_norm_backward(x, x, dx=x.copy(), accumulate=bad)


@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_add_rms_norm_is_the_add_and_then_the_norm(draw, scale):
    x, residual, weight = draw(3, 7), draw(3, 7), draw(7)
    stream, other = residual.copy(), residual.copy()
    y = reference.add_rms_norm(x, stream, weight, scale=scale)
    reference.residual_add(x, other, scale)
    assert np.array_equal(stream, other)
    assert np.array_equal(y, reference.rms_norm(other, weight))


@pytest.mark.parametrize("dtype", KINDS)
def test_a_sum_of_one_dtype_is_np_add(rng, dtype):
    dtype = dtype_of(dtype)
    x = (10 * rng.standard_normal(10_000)).astype(dtype)
    residual = (rng.standard_normal(10_000) * np.exp(rng.uniform(-9, 9, 10_000))).astype(dtype)
    wanted = np.add(residual, x)
    assert reference.residual_add(x, residual).tobytes() == wanted.tobytes()


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 8), ("float16", 11), ("float32", 24)])
def test_a_result_is_rounded_once(dtype, bits):
    """Just above the middle of two numbers, by less than float32 shows, it is rounded up."""
    out, ulp = np.ones(2, dtype_of(dtype)), 2.0 ** (1 - bits)
    reference.residual_add(np.array([ulp / 2 + 2.0**-40, ulp / 2]), out)
    assert out.astype(np.float64).tolist() == [1 + ulp, 1]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_accumulate_rounds_to_the_arithmetic_of_the_call(dtype):
    """It is that of x, dy, out and dx: weight and dweight, of float64 here, never decide."""
    x, weight, (dweight, out) = np.ones(1, dtype), np.float64([1 + 2.0**-30]), np.zeros((2, 1))
    reference.rms_norm_backward(x, x, weight, 2.0**-29, dweight=dweight, accumulate=True)
    assert (dweight[0] != 1) == (dtype == "float64")
    reference.rms_norm(x, weight, 0.0, out=out, accumulate=True)
    assert out[0] == 1 + 2.0**-30


def test_accumulate_into_a_half_adds_in_float32():
    """The sum, 1 + 2**-11 + 2**-22, is rounded up; 2**-11 + 2**-22 alone would lose its end."""
    out = np.ones(1, np.float16)
    weight = np.float32([2.0**-11 + 2.0**-22])
    reference.rms_norm(np.ones(1, np.float16), weight, 0.0, out=out, accumulate=True)
    assert out[0] == np.float16(1 + 2.0**-10)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (1, 1, 7)])
def test_a_weight_with_axes_of_length_one(draw, shape):
    dy, x, weight = draw(3, 7), draw(3, 7), draw(7)
    assert np.array_equal(
        reference.rms_norm(x, weight.reshape(shape)), reference.rms_norm(x, weight)
    )
    assert reference.rms_norm(x[0], weight.reshape(shape)).shape == (7,)
    dx, dweight = reference.rms_norm_backward(dy, x, weight.reshape(shape))
    wanted_dx, wanted = reference.rms_norm_backward(dy, x, weight)
    assert np.array_equal(dx, wanted_dx)
    assert np.array_equal(dweight, wanted.reshape(shape))
    for given in (np.zeros(7), np.zeros(shape)):
        result = reference.rms_norm_backward(dy, x, weight.reshape(shape), dweight=given)[1]
        assert result is given
        assert np.array_equal(given.reshape(7), wanted)


def test_a_weight_with_a_longer_axis_is_rejected(draw):
    with pytest.raises(ValueError, match="reshape"):
        reference.rms_norm(draw(3, 6), draw(2, 3))
