"""NaN, Inf, zero rows, the ends of float32's range, extreme eps: each row follows the formula.

Each expected value is derived from the formula by hand, or is that of the reference.
"""

import numpy as np
import pytest

import fastrms
from fastrms import reference
from fastrms.check import (
    DWEIGHT,
    DX,
    FORWARD_ULP,
    FORWARD_ULP_UNWEIGHTED,
    dweight_error,
    dx_error,
    ulps,
)

from .dtypes import KINDS, dtype_of

ROWS, N = 7, 67
FLOAT32_MAX = np.finfo(np.float32).max
SMALLEST = np.float32(2.0**-149)
SPECIALS = pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
# The first and last lanes of a vector, and the remainder after the last whole one.
COLUMNS = pytest.mark.parametrize("column", [0, 15, 16, 63, 64, N - 1])
ROW = 3
OTHERS = [row for row in range(ROWS) if row != ROW]


@pytest.fixture
def inputs(draw):
    return draw(ROWS, N), draw(ROWS, N), draw(N)


def _same_values(result, exact):
    """Return whether values agree within the bound, NaN and Inf included."""
    with np.errstate(over="ignore"):
        return ulps(result, exact) <= FORWARD_ULP


@SPECIALS
@COLUMNS
def test_forward_poisons_its_own_row_alone(isa, inputs, special, column):
    """A NaN makes all of its row NaN. An Inf makes rms Inf: Inf / Inf is NaN, x / Inf is zero."""
    x, _, weight = inputs
    clean = fastrms.rms_norm(x, weight)
    x[ROW, column] = special
    y = fastrms.rms_norm(x, weight)
    assert y[OTHERS].tobytes() == clean[OTHERS].tobytes()
    assert np.isnan(y[ROW, column])
    rest = np.delete(y[ROW], column)
    assert np.isnan(rest).all() if np.isnan(special) else not rest.any()


@SPECIALS
@COLUMNS
@pytest.mark.parametrize("poisoned", ["x", "dy"])
def test_backward_poisons_its_own_row_alone(isa, inputs, special, column, poisoned):
    """dweight, a sum over rows, is NaN or Inf exactly where the formula is."""
    x, dy, weight = inputs
    clean, _ = fastrms.rms_norm_backward(dy, x, weight)
    (x if poisoned == "x" else dy)[ROW, column] = special
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight)
    exact_dx, exact_dweight = reference.rms_norm_backward(dy, x, weight)
    assert dx[OTHERS].tobytes() == clean[OTHERS].tobytes()
    assert np.isnan(dx[ROW]).any()
    np.testing.assert_array_equal(_class(dx), _class(exact_dx))
    np.testing.assert_array_equal(_class(dweight), _class(exact_dweight))


def _class(values):
    """Replace finite values by 0, and keep NaN and both Infs."""
    return np.where(np.isfinite(values), 0.0, values)


@SPECIALS
@COLUMNS
def test_weight_poisons_its_own_column(isa, inputs, special, column):
    x, _, weight = inputs
    clean = fastrms.rms_norm(x, weight)
    weight[column] = special
    y = fastrms.rms_norm(x, weight)
    keep = np.arange(N) != column
    assert y[:, keep].tobytes() == clean[:, keep].tobytes()
    np.testing.assert_array_equal(y[:, column], np.sign(x[:, column]) * np.float32(special))


@SPECIALS
@pytest.mark.parametrize("of", ["one weight", "every weight", "weight_offset"])
def test_gradient_of_a_special_factor(isa, inputs, special, of):
    """dx is NaN or Inf exactly where the formula is, and dweight does not depend on the factor."""
    x, dy, weight = (array.copy() for array in inputs)  # parallel test threads share inputs
    x[ROW, ::2], dy[ROW + 1] = 0, 0
    weight[3 if of == "one weight" else slice(None)] += 0 if of == "weight_offset" else special
    offset = special if of == "weight_offset" else 0.0
    y = fastrms.rms_norm(x, weight, weight_offset=offset)
    with np.errstate(invalid="ignore"):  # 0 * Inf
        exact = reference.rms_norm(x, weight, weight_offset=offset)
    np.testing.assert_array_equal(_class(y), _class(exact))
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight, weight_offset=offset)
    exact_dx, exact_dweight = reference.rms_norm_backward(dy, x, weight, weight_offset=offset)
    np.testing.assert_array_equal(_class(dx), _class(exact_dx))
    assert dweight_error(dweight, exact_dweight, dy, x, 1e-5) <= DWEIGHT
    for row in range(ROWS):
        alone, _ = fastrms.rms_norm_backward(dy[row], x[row], weight, weight_offset=offset)
        np.testing.assert_array_equal(alone, dx[row])


@SPECIALS
def test_residual_add_of_specials(isa, inputs, special):
    residual, x, _ = (array.copy() for array in inputs)  # parallel test threads share inputs
    residual[:2, :2] = special
    x[1:3, 1:3] = -special
    with np.errstate(invalid="ignore"):
        expected = np.add(residual, x)
    stream = residual.copy()
    y = fastrms.add_rms_norm(x, stream)
    np.testing.assert_array_equal(stream, expected)
    assert _same_values(y, reference.rms_norm(expected))
    np.testing.assert_array_equal(fastrms.residual_add(x, residual), expected)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 0.0])
def test_residual_add_of_a_special_scale(isa, scale):
    residual = np.array([1, -1, 0, np.inf, np.nan, 2], np.float32)
    x = np.array([1, 0, -1, 0, 1, -np.inf], np.float32)
    with np.errstate(invalid="ignore"):
        expected = residual + np.float32(scale) * x
    np.testing.assert_array_equal(fastrms.residual_add(x, residual, scale), expected)


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_zero_row(isa, inputs, weighted, zero):
    """With eps, y is zeros of the signs of x; without, 0 / 0. Other rows do not change."""
    x, _, weight = inputs
    weight = np.abs(weight) if weighted else None
    clean = fastrms.rms_norm(x, weight, 0.0)
    x[ROW] = zero
    assert fastrms.rms_norm(x, weight, 1e-5)[ROW].tobytes() == x[ROW].tobytes()
    y = fastrms.rms_norm(x, weight, 0.0)
    assert np.isnan(y[ROW]).all()
    assert y[OTHERS].tobytes() == clean[OTHERS].tobytes()


@pytest.mark.parametrize("weight_offset", [0.0, -0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_signs_of_zeros_are_the_references(isa, rng, kind, weight_offset):
    """Of y, and of 0.0 and -0.0 in x, residual and weight, beside numbers whose sum is zero."""
    zeros = np.array([0.0, -0.0, 1.5, -1.5]).astype(dtype_of(kind))
    x, residual, weight = (rng.choice(zeros, size) for size in ((9, N), (9, N), N))
    for function, arguments in (
        ("rms_norm", (x, weight)),
        ("rms_norm", (x,)),
        ("rms_scale", (x, np.ones(9), N, weight)),
        ("add_rms_norm", (x, residual, weight)),
    ):
        found, wanted = (
            getattr(module, function)(*map(np.copy, arguments), weight_offset=weight_offset)
            for module in (fastrms, reference)
        )
        np.testing.assert_array_equal(np.signbit(found), np.signbit(wanted))


def test_zero_row_through_the_fused_call(isa, inputs):
    x, _, weight = inputs
    residual = x.copy()
    residual[ROW] = -x[ROW]
    assert not fastrms.add_rms_norm(x, residual.copy(), weight)[ROW].any()
    assert np.isnan(fastrms.add_rms_norm(x, residual.copy(), weight, 0.0)[ROW]).all()


@pytest.mark.parametrize("eps", [1e-30, 1e-5, 4.0])
def test_gradient_of_a_zero_row(isa, inputs, eps):
    """xhat is zero: dx is dy * weight / sqrt(eps), and the row adds nothing to dweight."""
    x, dy, weight = inputs
    x[ROW] = 0
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight, eps)
    exact = dy[ROW].astype(np.float64) * weight / np.sqrt(eps)
    assert dx_error(dx[ROW], exact, dy[ROW], x[ROW], weight, eps) <= DX
    louder = dy.copy()  # parallel test threads share inputs
    louder[ROW] *= 1000
    assert fastrms.rms_norm_backward(louder, x, weight, eps)[1].tobytes() == dweight.tobytes()


def test_gradient_of_a_zero_row_without_eps(isa, inputs):
    x, dy, weight = inputs
    clean, _ = fastrms.rms_norm_backward(dy, x, weight, 0.0)
    x[ROW] = 0
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight, 0.0)
    assert np.isnan(dx[ROW]).all()
    assert np.isnan(dweight).all()
    assert dx[OTHERS].tobytes() == clean[OTHERS].tobytes()


@pytest.mark.parametrize("weighted", [False, True])
def test_infinite_eps(isa, inputs, weighted):
    """Every finite value over Inf is zero, forward and backward."""
    x, dy, weight = inputs
    weight = weight if weighted else None
    assert not fastrms.rms_norm(x, weight, np.inf).any()
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight, np.inf)
    assert not dx.any()
    assert dweight is None or not dweight.any()


@pytest.mark.parametrize("eps", [5e-324, 1e-310, 1e-100, 1e-46, 1e100, 1e308])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-20, 1.0, 1e20, 1e38])
def test_extreme_eps(isa, inputs, scale, eps):
    """eps is a double: even below float32's smallest number it keeps a zero row from 0 / 0."""
    x, dy, weight = inputs
    x = np.clip(x, -3, 3) * np.float32(scale)
    assert _same_values(fastrms.rms_norm(x, weight, eps), reference.rms_norm(x, weight, eps))
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight, eps)
    exact_dx, exact_dweight = reference.rms_norm_backward(dy, x, weight, eps)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(_class(dx), _class(exact_dx.astype(np.float32)))
        np.testing.assert_array_equal(_class(dweight), _class(exact_dweight.astype(np.float32)))


@pytest.mark.parametrize("n", [1, 2, 3, 16, 67, 4096, 100_003])
@pytest.mark.parametrize("magnitude", [SMALLEST, np.float32(1e-40), FLOAT32_MAX])
def test_ends_of_the_range_without_eps(isa, n, magnitude):
    """A row of equal magnitudes gives its signs: no square underflows or overflows."""
    signs = np.where(np.arange(n) % 3, 1, -1).astype(np.float32)
    y = fastrms.rms_norm((signs * magnitude)[None], None, 0.0)
    assert ulps(y, signs[None].astype(np.float64)) <= FORWARD_ULP_UNWEIGHTED


@pytest.mark.parametrize("n", [2, 17, 4096])
def test_one_smallest_element_in_a_zero_row(isa, n):
    """y of this element is sqrt(n), although its mean square is far below float32's range."""
    x = np.zeros((1, n), np.float32)
    x[0, -1] = SMALLEST
    exact = np.zeros((1, n))
    exact[0, -1] = np.sqrt(n)
    assert ulps(fastrms.rms_norm(x, None, 0.0), exact) <= FORWARD_ULP_UNWEIGHTED


def test_the_whole_range_in_one_row(isa):
    """Elements far below FLOAT32_MAX underflow correctly, and do not change its result."""
    x = np.array([[FLOAT32_MAX, 1, SMALLEST, -FLOAT32_MAX]], np.float32)
    y = fastrms.rms_norm(x, None, 0.0)
    assert _same_values(y, reference.rms_norm(x, None, 0.0))


@pytest.mark.parametrize("accumulate", [False, True])
def test_true_overflow_is_inf(isa, draw, accumulate):
    """An exact result beyond float32 becomes Inf of its sign; the rest of the row stays finite."""
    x, weight = np.ones((2, N), np.float32), np.ones(N, np.float32)
    x[:, 0], x[:, 1] = 3, -3
    weight[:2] = FLOAT32_MAX
    y = fastrms.rms_norm(x, weight, out=np.ones_like(x), accumulate=accumulate)
    assert np.all(y[:, 0] == np.inf)
    assert np.all(y[:, 1] == -np.inf)
    assert np.isfinite(y[:, 2:]).all()


def test_weight_at_the_end_of_the_range(isa):
    """weight * x overflows, weight * x / rms does not."""
    x = np.full((2, N), FLOAT32_MAX)
    weight = np.full(N, FLOAT32_MAX / 2, np.float32)
    exact = np.full((2, N), float(weight[0]))
    assert ulps(fastrms.rms_norm(x, weight, 0.0), exact) <= FORWARD_ULP


def test_gradient_that_overflows(isa):
    """1 / rms of a subnormal row overflows float32, and so does dx; dweight is of ordinary size."""
    x = np.array([[SMALLEST, 2 * SMALLEST]], np.float32)
    dy = np.array([[1, 1]], np.float32)
    dx, dweight = fastrms.rms_norm_backward(dy, x, np.ones(2, np.float32), 0.0)
    np.testing.assert_array_equal(dx, [[np.inf, -np.inf]])
    exact = np.sqrt([[0.4, 1.6]])
    assert ulps(dweight[None], exact) <= FORWARD_ULP


def test_gradient_whose_parts_overflow(isa):
    """dy * weight is beyond float32, dx is not."""
    x = np.array([[2e30, -1e30, 5e29]], np.float32)
    dy = np.array([[1e30, 3e30, -2e30]], np.float32)
    weight = np.array([1e30, 2e30, 3e30], np.float32)
    dx, _ = fastrms.rms_norm_backward(dy, x, weight, 0.0)
    exact, _ = reference.rms_norm_backward(dy, x, weight, 0.0)
    assert dx_error(dx, exact, dy, x, weight, 0.0) <= DX


def test_dweight_whose_parts_overflow(isa):
    """Terms near the end of the range cancel, whatever their order."""
    x = np.ones((4, N), np.float32)
    dy = np.full((4, N), FLOAT32_MAX)
    dy[2:] *= -1
    _, dweight = fastrms.rms_norm_backward(dy, x, np.ones(N, np.float32), 0.0)
    assert not dweight.any()


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_gradient_of_an_infinite_row(isa, inputs, eps):
    """1 / rms is zero, and Inf * 0 is NaN."""
    x, dy, weight = inputs
    x[ROW] = np.inf
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight, eps)
    assert np.isnan(dx[ROW]).all()
    assert np.isnan(dweight).all()
    assert np.isfinite(dx[OTHERS]).all()


def test_sign_of_zero(isa):
    """-0.0 stays -0.0, and a negative weight flips the sign."""
    x = np.array([[-0.0, 0.0, 1.0]], np.float32)
    weight = np.array([1, -1, 1], np.float32)
    assert np.signbit(fastrms.rms_norm(x, weight)).tolist() == [[True, True, False]]
