"""The bounds of fastrms.check, on adversarial rows; the oracle has 80 bits."""

import functools
from decimal import Decimal

import numpy as np
import pytest

import fastrms
from fastrms.check import (
    DWEIGHT,
    DX,
    FORWARD_ULP,
    FORWARD_ULP_OFFSET,
    FORWARD_ULP_UNWEIGHTED,
    ROUNDING,
    dweight_error,
    dx_error,
    ulps,
)
from fastrms.conformance.hard import HARD, Rows, exact, with_offset

from .conftest import SEED

# A few rows of each length, more of the short ones.
SHAPES = ((64, 5), (64, 17), (64, 64), (32, 576), (4, 4096), (2, 16384), (1, 65536))

fromhex = np.vectorize(float.fromhex, otypes=[np.float32])

# Each exceeded its bound, 3 ulp, when x**2 was summed in float32.
COUNTEREXAMPLES = {
    "n = 5": (
        ["0x1.0955e6p0", "0x1.279b9ep-2", "0", "0", "0"],
        ["0x1.db60a6p-1", "1", "1", "1", "1"],
    ),
    "n = 17": (
        ["0x1.019516p0", *["0"] * 15, "0x1.1a208ep-3"],
        ["0x1.f558bep-2", *["1"] * 16],
    ),
}


@functools.cache
def _case(family, shape):
    """Return inputs and exact results, without and then with weight_offset."""
    rng = np.random.default_rng((SEED, *shape))
    rows = HARD[family](rng, *shape)
    shifted = with_offset(rng, rows)
    return rows, exact(rows), shifted, exact(shifted, 1.0)


@pytest.fixture(scope="module", params=HARD, ids=lambda name: name.replace(" ", "_"))
def family(request):
    yield request.param
    _case.cache_clear()


@pytest.fixture(scope="module", params=SHAPES, ids="{0[0]}x{0[1]}".format)
def case(family, request):
    return _case(family, request.param)


def test_forward(case, way):
    rows, (xhat, y, *_), shifted, (_, shifted_y, *_) = case
    assert ulps(fastrms.rms_norm(rows.x, None, rows.eps), xhat) <= FORWARD_ULP_UNWEIGHTED
    assert ulps(fastrms.rms_norm(rows.x, rows.weight, rows.eps), y) <= FORWARD_ULP
    # A residual of zeros makes the sum x itself.
    result = fastrms.add_rms_norm(rows.x, np.zeros_like(rows.x), rows.weight, rows.eps)
    assert ulps(result, y) <= FORWARD_ULP
    result = fastrms.rms_norm(shifted.x, shifted.weight, shifted.eps, weight_offset=1.0)
    assert ulps(result, shifted_y) <= FORWARD_ULP_OFFSET


def test_backward(case, way):
    for rows, results, weight_offset in ((*case[:2], 0.0), (*case[2:], 1.0)):
        dx, dweight = fastrms.rms_norm_backward(
            rows.dy, rows.x, rows.weight, rows.eps, weight_offset=weight_offset
        )
        assert dx_error(dx, results[2], *rows, weight_offset) <= DX
        assert dweight_error(dweight, results[3], rows.dy, rows.x, rows.eps) <= DWEIGHT


def test_split_axis(case, way):
    """Split the axis in two, for the four functions for a split axis."""
    rows, (_, y, exact_dx, exact_dweight), _, _ = case
    n, eps = rows.x.shape[-1], rows.eps
    cuts = slice(0, n // 3), slice(n // 3, None)
    parts = [(rows.dy[:, cut], rows.x[:, cut], rows.weight[cut]) for cut in cuts]
    squares = sum(fastrms.sum_squares(x) for _, x, _ in parts)
    products = sum(fastrms.sum_products(*part) for part in parts)
    halves = [fastrms.rms_scale(x, squares, n, weight, eps) for _, x, weight in parts]
    assert ulps(np.hstack(halves), y) <= FORWARD_ULP
    gradients = [
        fastrms.rms_scale_backward(dy, x, squares, products, n, weight, eps)
        for dy, x, weight in parts
    ]
    dx, dweight = (np.concatenate(part, axis=-1) for part in zip(*gradients, strict=True))
    assert dx_error(dx, exact_dx, *rows) <= DX
    assert dweight_error(dweight, exact_dweight, rows.dy, rows.x, eps) <= DWEIGHT


@pytest.mark.parametrize("name", COUNTEREXAMPLES)
def test_counterexample_at_a_power_of_two(way, name):
    """Where y crosses the power, the last rounding is one ulp of the exact result, not half."""
    x, weight = (fromhex(values) for values in COUNTEREXAMPLES[name])
    _, y, *_ = exact(Rows(x[None], x[None], weight, 0.0))
    assert ulps(fastrms.rms_norm(x, weight, 0.0)[None], y) <= FORWARD_ULP


@pytest.mark.parametrize("size", [256.0, 128.0])
def test_outlier_pair_of_many_rows(way, size):
    """Two channels dominate their row: one such row in 2000 used to exceed the bounds."""
    rng, rows = np.random.default_rng(SEED), 4000
    x = rng.standard_normal((rows, 576), dtype=np.float32)
    x[:, 7] = size * rng.uniform(1, 1.1, rows)
    x[:, 133] = -x[:, 7]
    weight = (1 + 0.3 * rng.standard_normal(576)).astype(np.float32)
    wide = x.astype(np.float64)  # its error, 2**-29 ulp, is negligible
    xhat = wide / np.sqrt((wide * wide).mean(axis=1, keepdims=True) + 1e-5)
    assert ulps(fastrms.rms_norm(x, weight), xhat * weight) <= FORWARD_ULP
    assert ulps(fastrms.rms_norm(x), xhat) <= FORWARD_ULP_UNWEIGHTED


@pytest.mark.parametrize("rows", [1, 2, 8, 31, 32, 33, 1000])
def test_dweight_of_subnormal_terms(way, rows):
    case = HARD["subnormal terms"](np.random.default_rng((SEED, rows)), rows, 64)
    _, dweight = fastrms.rms_norm_backward(*case)
    assert dweight_error(dweight, exact(case)[3], case.dy, case.x, case.eps) <= DWEIGHT


@pytest.mark.parametrize("eps", [1e-12, 1e-9, 1e-7, 1e-6, 9e-6])
def test_dy_is_x(way, rng, eps):
    """dx cancels to eps / rms**2 of its terms, 1e-18 at the least."""
    x = (1000 * rng.standard_normal((200, 64))).astype(np.float32)
    case = Rows(x, x, np.ones(64, np.float32), eps)
    dx, _ = fastrms.rms_norm_backward(*case)
    assert dx_error(dx, exact(case)[2], *case) <= DX


@pytest.mark.parametrize("n", [64, 4096, 65536, 2**22])
@pytest.mark.parametrize("left", [1e-9, 2e-8, 1e-6, 1e-5])
def test_dx_of_a_constant_row_is_within_the_readmes_words(way, n, left):
    """Of such a row dx is eps / rms**3, the fraction `left` of its two terms."""
    x, eps = np.full((1, n), 1.3, np.float32), left * 1.69
    dx, _ = fastrms.rms_norm_backward(np.ones_like(x), x, eps=eps)
    square = Decimal(float(x[0, 0])) ** 2
    rms = (square + Decimal(eps)).sqrt()
    exact_dx = Decimal(eps) / rms**3
    bound = Decimal(DX) * (1 + square / rms**2) / rms + Decimal(ROUNDING)
    assert max(abs(Decimal(float(end)) - exact_dx) for end in (dx.min(), dx.max())) <= bound


@pytest.mark.parametrize("n", [8192, 16384, 262144])
@pytest.mark.parametrize("family", ["constant two values", "0 or 1 two values"])
def test_dx_of_a_gradient_of_two_values(way, family, n):
    """Equal roundings in sum(dy * x) do not average out: try several seeds."""
    for seed in range(2**18 // n):
        case = HARD[family](np.random.default_rng((SEED, seed)), 4, n)
        dx, _ = fastrms.rms_norm_backward(*case)
        assert dx_error(dx, exact(case)[2], *case) <= DX


@pytest.mark.parametrize("shift", [60, 120, 140, 150, 190])
@pytest.mark.parametrize("n", [2, 64, 4096])
def test_dx_whose_terms_are_beyond_float32(way, rng, n, shift):
    """dx is 0, because dy is along x. From a shift of 150 on it may be Inf, but never NaN."""
    x = (1e-31 * rng.standard_normal((3, n))).astype(np.float32)
    case = Rows(np.ldexp(x, shift), x, None, 0.0)
    dx, _ = fastrms.rms_norm_backward(*case)
    assert not np.isnan(dx).any()
    assert shift >= 150 or np.isfinite(dx).all()
    assert dx_error(dx, exact(case)[2], *case) <= DX


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("size", [1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("of", ["x", "dy", "both", "both, in one column"])
def test_dx_of_small_elements_beside_an_outlier(way, rng, of, size, eps):
    """Each element is within DX of its own terms, not of the outlier's."""
    for n in (3, 16, 64, 65, 576, 4096):
        x, dy = rng.standard_normal((2, 20, n))
        columns = rng.integers(n, size=(2, 20))
        if of != "dy":
            x[np.arange(20), columns[0]] *= size
        if of != "x":
            dy[np.arange(20), columns[0 if "one" in of else 1]] *= size
        case = Rows(*(part.astype(np.float32) for part in (dy, x, rng.normal(1, 0.3, n))), eps)
        dx, dweight = fastrms.rms_norm_backward(*case)
        _, _, exact_dx, exact_dweight = exact(case)
        assert dx_error(dx, exact_dx, *case) <= DX
        assert dweight_error(dweight, exact_dweight, case.dy, case.x, eps) <= DWEIGHT
