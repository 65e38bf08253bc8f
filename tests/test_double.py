"""Float64 kernels: bounds on the error over the whole range, and the same bits everywhere.

The oracle is the formula in longdouble, with 63 bits or more after the point and a range of
10**4932: no row of float64 needs to be scaled.
"""

import itertools

import numpy as np
import pytest

import fastrms
from fastrms import _core

from .dtypes import call, copies, differences, mixed, without_buffers
from .signatures import ARGUMENTS_OF, CALLS, FUNCTIONS

UNIT = 2.0**-53  # the relative error of one operation
TINY = 2.0**-1074  # the smallest number: results may be subnormal
LARGEST = np.finfo(np.float64).max
LENGTHS = (1, 7, 16, 100, 1024, 9000)
ROWS = 5

needs_oracle = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="longdouble is not wider than float64 here"
)


def forward_bound(n):
    """Sum of squares, root, division and three products: of the exact |y|."""
    return (n / 64 + 10) * UNIT


def backward_bound(n):
    """Two sums of n, and the steps after them: of the magnitudes of an element's terms."""
    return (n / 16 + 32) * UNIT


def _scaled(factor):
    return lambda rng, shape: rng.uniform(0.1, 1.7, shape) * rng.choice([-1, 1], shape) * factor


def _spread(rng, shape):
    return rng.standard_normal(shape) * 10.0 ** rng.integers(-140, 140, shape)


def _outlier(rng, shape):
    x = rng.standard_normal(shape)
    x[..., -1] = 1e200
    return x


# Rows of one scale, whose squares overflow or underflow, and rows of many.
FAMILIES = {
    "plain": _scaled(1.0),
    "squares just fit": _scaled(1e150),
    "squares overflow": _scaled(1e154),
    "largest": _scaled(1e308),
    "squares are subnormal": _scaled(1e-162),
    "squares are zero": _scaled(1e-200),
    "smallest normal": _scaled(3e-308),
    "subnormal": lambda rng, shape: rng.integers(1, 1 << 20, shape) * TINY,
    "smallest": lambda rng, shape: rng.choice([-TINY, TINY], shape),
    "spread": _spread,
    "outlier": _outlier,
}
EPS = (0.0, 1e-5, 1e-320, 1e300)


def _exact(x, weight, eps, weight_offset=0.0):
    """Return rms, x / rms and the factor in longdouble."""
    x = x.astype(np.longdouble)
    rms = np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.longdouble(eps))
    return rms, x / rms, np.longdouble(weight_offset) + weight.astype(np.longdouble)


def _within(found, exact, bound):
    """Assert the bound; Inf is right where the exact result or the bound reaches beyond float64."""
    with np.errstate(over="ignore"):
        error = np.abs(found.astype(np.longdouble) - exact)
    fine = error <= bound + 8 * np.longdouble(TINY)
    beyond = np.isinf(found) & (np.abs(exact) + bound > LARGEST)
    signed = (np.sign(found) == np.sign(exact)) | (np.abs(exact) <= bound)
    assert np.all(fine | (beyond & signed))


@needs_oracle
@pytest.mark.parametrize("family", FAMILIES)
def test_forward(way, rng, family):
    for n in LENGTHS:
        x, weight = FAMILIES[family](rng, (ROWS, n)), rng.standard_normal(n)
        for eps in EPS:
            _, xhat, factor = _exact(x, weight, eps)
            exact = xhat * factor
            _within(fastrms.rms_norm(x, weight, eps), exact, np.abs(exact) * forward_bound(n))
            _within(fastrms.rms_norm(x, None, eps), xhat, np.abs(xhat) * forward_bound(n))
            _, xhat, factor = _exact(x, weight, eps, 1.0)
            y, exact = fastrms.rms_norm(x, weight, eps, weight_offset=1.0), xhat * factor
            _within(y, exact, np.abs(exact) * forward_bound(n))


@needs_oracle
@pytest.mark.parametrize("family", FAMILIES)
def test_add_and_norm(way, rng, family):
    """The residual is np.add's, and y is within the bound of the norm of that sum."""
    for n in LENGTHS:
        x, residual = FAMILIES[family](rng, (ROWS, n)) / 4, FAMILIES[family](rng, (ROWS, n)) / 2
        residual[:, 0] += 64 * TINY  # no row of zeros: without eps it has no norm
        weight, added = rng.standard_normal(n), np.add(residual, x)
        for eps in (0.0, 1e-5):
            stream = residual.copy()
            y = fastrms.add_rms_norm(x, stream, weight, eps)
            assert stream.tobytes() == added.tobytes()
            _, xhat, factor = _exact(added, weight, eps)
            exact = xhat * factor
            _within(y, exact, np.abs(exact) * forward_bound(n))


@needs_oracle
@pytest.mark.parametrize("family", FAMILIES)
def test_backward(way, rng, family):
    """Each element of dx within its own terms; dweight within the sum of its terms' magnitudes."""
    for n in LENGTHS:
        x, weight = FAMILIES[family](rng, (ROWS, n)), rng.standard_normal(n)
        plain, as_x = rng.standard_normal((ROWS, n)) + 0.3, min(np.abs(x).max(), 1e300)
        for eps, scale in itertools.product((0.0, 1e-5), (1.0, as_x, 1e200)):
            dy = plain * scale
            rms, xhat, factor = _exact(x, weight, eps)
            g = dy.astype(np.longdouble) * factor
            mean = (g * xhat).mean(axis=-1, keepdims=True)
            magnitudes = np.abs(g * xhat).mean(axis=-1, keepdims=True)
            exact = (g - xhat * mean) / rms
            terms = (np.abs(g) + np.abs(xhat) * magnitudes) / rms
            dx, dweight = fastrms.rms_norm_backward(dy, x, weight, eps)
            _within(dx, exact, terms * backward_bound(n))
            of_rows = dy.astype(np.longdouble) * xhat
            bound = np.abs(of_rows).sum(axis=0) * (backward_bound(n) + ROWS * UNIT)
            bound += TINY * np.abs(dy.astype(np.longdouble)).sum(axis=0)  # x / rms may be subnormal
            _within(dweight, of_rows.sum(axis=0), bound)


@needs_oracle
@pytest.mark.parametrize("scale", [1.0, 1e150, 1e-145])
def test_split_rows(way, rng, scale):
    """Squares that fit float64: sums of two parts of a row, and each part scaled by the whole."""
    for n in (2, 32, 100, 9000):
        x, dy = _scaled(scale)(rng, (ROWS, n)), rng.standard_normal((ROWS, n))
        weight, parts = rng.standard_normal(n), (slice(0, n // 2), slice(n // 2, n))
        rms, xhat, factor = _exact(x, weight, 0.0)
        squares = sum(fastrms.sum_squares(x[:, part]) for part in parts)
        products = sum(fastrms.sum_products(dy[:, p], x[:, p], weight[p]) for p in parts)
        wide, g = x.astype(np.longdouble), dy.astype(np.longdouble) * factor
        _within(squares, (wide**2).sum(-1), (wide**2).sum(-1) * backward_bound(n))
        _within(products, (g * wide).sum(-1), np.abs(g * wide).sum(-1) * backward_bound(n))
        mean, size = (g * xhat).mean(-1, keepdims=True), np.abs(g * xhat).mean(-1, keepdims=True)
        exact, dx_exact = xhat * factor, (g - xhat * mean) / rms
        terms = (np.abs(g) + np.abs(xhat) * size) / rms
        for part in parts:
            y = fastrms.rms_scale(x[:, part], squares, n, weight[part], 0.0)
            _within(y, exact[:, part], np.abs(exact[:, part]) * backward_bound(n))
            dx, dweight = fastrms.rms_scale_backward(
                dy[:, part], x[:, part], squares, products, n, weight[part], 0.0
            )
            _within(dx, dx_exact[:, part], terms[:, part] * backward_bound(n))
            of_rows = (dy * xhat)[:, part]
            bound = np.abs(of_rows).sum(0) * (backward_bound(n) + ROWS * UNIT)
            _within(dweight, of_rows.sum(0), bound)


@pytest.mark.parametrize(
    ("of_x", "of_others", "size"), [(1e-300, 1e300, np.inf), (1e300, 1e-300, 0)]
)
def test_gradients_far_beyond_the_range(isa, of_x, of_others, size):
    """Their powers of two add up to more than two factors hold, and the result is Inf or 0."""
    x, others = of_x * np.array([1.0, 2.0]), of_others * np.ones(2)
    dx, _ = fastrms.rms_norm_backward(others, x, others, 0.0)
    assert np.abs(dx).tolist() == [size, size]
    assert np.signbit(dx).tolist() == [False, True]


def test_rows_of_zeros_and_special_values(isa):
    """0 / 0 is NaN if eps is 0; a NaN or Inf spoils its own row alone."""
    x = np.ones((4, 40))
    x[0], x[1, 3], x[2, 39] = 0, np.nan, np.inf
    y = fastrms.rms_norm(x, None, 0.0)
    assert np.isnan(y[:2]).all()
    assert np.isnan(y[2, 39])
    assert not y[2, :39].any()
    assert y[3].tolist() == [1.0] * 40
    dx, _ = fastrms.rms_norm_backward(x, x, None, 1e-5)
    assert not dx[0].any()
    assert np.isnan(dx[1:3]).all()
    assert np.isfinite(dx[3]).all()


@pytest.mark.parametrize(("function", "accumulate"), CALLS)
def test_same_bits_everywhere(restore, rng, function, accumulate):
    """Instruction sets, threads and strides change no bit, in rows of any range."""
    options = {"accumulate": True} if accumulate else {}
    for shape, scale in (((40, 1), 1), ((70, 33), 1e154), ((9, 1024), 1e-162), ((5, 9000), 1e300)):
        given = mixed(rng, function, dict.fromkeys(ARGUMENTS_OF[function], "float64"), shape)
        given["x"][::2] *= scale
        seen = {}
        for isa in _core.available_isas():
            _core.use_isa(isa)
            for threads in (1, 2, 3):
                fastrms.set_num_threads(threads)
                seen[isa, threads] = call(function, copies(given), **options)
        strided = dict(given)
        for name in ARGUMENTS_OF[function]:
            wide = np.empty((*given[name].shape[:-1], 2 * shape[-1]))
            strided[name] = wide[..., ::-2]
            strided[name][...] = given[name]
        seen["strided"] = call(function, strided, **options)
        first = seen[_core.available_isas()[0], 1]
        assert [key for key, found in seen.items() if differences(found, first)] == []


@pytest.mark.parametrize("n", [256, 300, 304])
def test_blocks_sum_dweight_apart(restore, isa, rng, n):
    """No block writes to the sum of another, even past its end where dx is off a cache line."""
    x, dy = rng.standard_normal((2, 96, n))
    memory = np.empty(x.size + 16)
    start = -memory.ctypes.data % 64 // 8 + 2
    dx = memory[start : start + x.size].reshape(x.shape)
    found = []
    for threads in (1,) + (3,) * 30:
        fastrms.set_num_threads(threads)
        dweight = fastrms.rms_norm_backward(dy, x, np.ones(n), dx=dx)[1]
        found.append(dweight.tobytes())
    assert set(found) == {found[0]}


def test_dweight_of_an_infinite_inverse(isa):
    """Squares that vanish give Inf in each column, wherever dx lies."""
    x, ones, memory = np.full((1, 256), 1e-170), np.ones((1, 256)), np.empty(272)
    squares, products = fastrms.sum_squares(x), fastrms.sum_products(ones, x, ones[0])
    for start in range(16):
        dx = memory[start : start + 256].reshape(1, 256)
        sums = (squares, products, 256, ones[0])
        with np.errstate(all="ignore"):
            _, dweight = fastrms.rms_scale_backward(ones, x, *sums, eps=0.0, dx=dx)
        assert (dweight == np.inf).all(), start


def test_row_is_the_same_in_any_batch(isa, threads, rng):
    for function, n in itertools.product(FUNCTIONS, (1, 33, 1024)):
        mix = dict.fromkeys(ARGUMENTS_OF[function], "float64")
        given = without_buffers(function, mixed(rng, function, mix, (43, n)))
        given["x"][1::3] *= 1e200
        whole = call(function, copies(given))
        for start, stop in ((0, 1), (5, 6), (1, 20), (42, 43)):
            some = copies(given)
            for name in given.keys() - {"weight", "size"}:
                some[name] = given[name][start:stop].copy()
            for name, found in call(function, some).items():
                if name != "dweight":
                    wanted = whole[name][start:stop]
                    assert found.tobytes() == wanted.tobytes(), (function, n, start, name)


def test_gradients_beyond_all_exponents():
    """The scales of x, dy and weight cancel no further than the exponents of float64."""
    for x, dy, dx in ((LARGEST, TINY, 0.0), (TINY, LARGEST, np.inf)):
        rows = np.array([[x, x, 0.0, 0.0]])
        gradient = np.array([[dy, 0.0, 0.0, dy]])
        found, _ = fastrms.rms_norm_backward(gradient, rows, gradient[0], 0.0)
        assert found[0, 3] == dx
