"""The whole float32 range, exponent by exponent, and inputs made to cancel: the same bounds.

A sweep over every exponent crosses each limit at which a kernel changes its path. If a float32
intermediate overflowed or lost bits, some pair of scales would show it.
"""

import numpy as np
import pytest

import fastrms
from fastrms import reference
from fastrms.check import DWEIGHT, DX, dweight_error, dx_error, forward_ulp, ulps

FLOAT32_MAX = float(np.finfo(np.float32).max)
SMALLEST = np.float32(2.0**-149)
EXPONENTS = np.arange(-149, 128)
WIDTHS = (1, 16, 67, 300)


def _clip(values):
    """Round to float32, within its finite range."""
    return np.clip(values, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)


@pytest.fixture
def sweep(rng):
    """Return a function from n to nonzero rows, one for each exponent of float32."""

    def rows(n):
        values = _clip(np.ldexp(rng.standard_normal((len(EXPONENTS), n)), EXPONENTS[:, None]))
        values[:, 0] = np.maximum(np.abs(values[:, 0]), SMALLEST)
        return values

    return rows


@pytest.fixture
def wild(rng):
    """Return a function that draws values of uniform exponents, so that each row spans many."""

    def values(shape, low, high):
        magnitude = np.exp2(rng.uniform(low, high, shape))
        return _clip(np.maximum(magnitude, float(SMALLEST)) * rng.choice([-1, 1], shape))

    return values


def _assert_forward(x, weight, eps, weight_offset=0.0):
    y = fastrms.rms_norm(x, weight, eps, weight_offset=weight_offset)
    exact = reference.rms_norm(x, weight, eps, weight_offset=weight_offset)
    assert ulps(y, exact) <= forward_ulp(weight, weight_offset)


def _assert_backward(dy, x, weight, eps, weight_offset=0.0):
    options = {"eps": eps, "weight_offset": weight_offset}
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight, **options)
    exact_dx, exact_dweight = reference.rms_norm_backward(dy, x, weight, **options)
    assert dx_error(dx, exact_dx, dy, x, weight, **options) <= DX
    if weight is not None:
        assert dweight_error(dweight, exact_dweight, dy, x, eps) <= DWEIGHT


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-5])
def test_every_exponent_of_x(way, rng, sweep, eps, n):
    x, weight = sweep(n), rng.standard_normal(n, dtype=np.float32)
    dy = rng.standard_normal(x.shape, dtype=np.float32)
    _assert_forward(x, weight, eps, weight_offset=1.0)
    _assert_backward(dy, x, None, eps)
    for row in range(len(x)):  # one by one: a sum of rows has the scale of the largest
        _assert_backward(dy[row], x[row], weight, eps)


@pytest.mark.parametrize("n", WIDTHS)
def test_every_exponent_of_dy(way, rng, sweep, n):
    dy, weight = sweep(n), rng.standard_normal(n, dtype=np.float32)
    x = rng.standard_normal(dy.shape, dtype=np.float32)
    for row in range(len(dy)):
        _assert_backward(dy[row], x[row], weight, 1e-5)


@pytest.mark.parametrize("n", WIDTHS)
def test_every_exponent_of_weight(way, rng, sweep, n):
    x, dy = (rng.standard_normal((3, n), dtype=np.float32) for _ in range(2))
    for weight in sweep(n):
        _assert_forward(x, weight, 1e-5)
        _assert_backward(dy, x, weight, 1e-5)


@pytest.mark.parametrize("n", WIDTHS)
def test_every_exponent_of_eps(way, rng, n):
    """Sweep eps from far below the mean square to far above it."""
    x, dy = (rng.standard_normal((3, n), dtype=np.float32) for _ in range(2))
    weight = rng.standard_normal(n, dtype=np.float32)
    for exponent in range(-150, 150, 3):
        _assert_forward(x, weight, 2.0**exponent)
        _assert_backward(dy, x, weight, 2.0**exponent)


SPANS = {"small": (-149, -60), "medium": (-30, 30), "large": (60, 128), "all": (-149, 128)}


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("of_weight", SPANS)
@pytest.mark.parametrize("of_x", SPANS)
def test_wild_rows(way, wild, of_x, of_weight, eps):
    """x / rms may be subnormal, although y under a large weight is not: no bit is lost."""
    _assert_forward(wild((40, 37), *SPANS[of_x]), wild((37,), *SPANS[of_weight]), eps)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("of_weight", SPANS)
@pytest.mark.parametrize("of_dy", SPANS)
@pytest.mark.parametrize("of_x", SPANS)
def test_wild_rows_backward(way, wild, of_x, of_dy, of_weight, eps):
    x, dy = wild((40, 37), *SPANS[of_x]), wild((40, 37), *SPANS[of_dy])
    _assert_backward(dy, x, wild((37,), *SPANS[of_weight]), eps)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("closeness", [0.0, *(10.0**-k for k in range(1, 9))])
@pytest.mark.parametrize("n", [2, 64, 1000])
def test_dx_that_cancels(way, rng, n, closeness, weighted):
    """With dy along x, dx cancels nearly to 0; the bound is a fraction of its terms."""
    x = rng.standard_normal((9, n), dtype=np.float32)
    weight = rng.uniform(0.5, 2, n).astype(np.float32) if weighted else None
    along = x if weight is None else x / weight
    dy = (along + closeness * rng.standard_normal(x.shape)).astype(np.float32)
    for eps in (0.0, 1e-5):
        _assert_backward(dy, x, weight, eps)


@pytest.mark.parametrize("n", [100, 300, 1000])
def test_dx_of_constant_rows(way, rng, n):
    """dx cancels to 0, while the roundings of a sum of equal terms all have one sign."""
    dy, x, weight = (np.full(n, rng.uniform(0.5, 2), np.float32) for _ in range(3))
    _assert_backward(dy[None], x[None], weight, 0.0)


@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-36, 1.0, 1e36])
@pytest.mark.parametrize("rows", [7, 199, 2053])
def test_dweight_of_many_rows(way, rng, rows, scale):
    """Single terms are subnormal or near the end of the range, their sum is not."""
    x = rng.standard_normal((rows, 33), dtype=np.float32)
    dy = _clip(rng.standard_normal(x.shape) * scale)
    _assert_backward(dy, x, np.ones(33, np.float32), 1e-5)


@pytest.mark.parametrize("rows", [8, 200, 2048])
def test_dweight_that_cancels(way, rng, rows):
    """Pair every row with its opposite: dweight is 0, to within the bound on the terms."""
    x = rng.standard_normal((rows, 33), dtype=np.float32)
    dy = rng.standard_normal(x.shape, dtype=np.float32)
    x[1::2], dy[1::2] = x[::2], -dy[::2]
    _assert_backward(rng.permutation(dy), x, np.ones(33, np.float32), 1e-5)
    _assert_backward(dy, x, np.ones(33, np.float32), 1e-5)


def test_a_large_offset_scales_up_no_lost_bits(isa):
    """dy / rms is subnormal in float32, but dx is not, because the offset is large."""
    tiny = np.full((3, 5), 1e-45, np.float32)
    for weight_offset in (1e30, float(np.float32(1e30))):
        _assert_backward(tiny, tiny, tiny[0], 1e-5, weight_offset)


# Below -86 a weight times 2**-40 is subnormal, above 44 a row of such weights is in float64.
LIMITS = (-149, -148, -127, -126, -125, -88, -87, -86, -85, 43, 44, 45, 100, 127)


@pytest.mark.parametrize("weight_offset", [0.0, 1.0])
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("exponent", LIMITS)
def test_weights_at_the_limits_of_float32(way, rng, exponent, share, weight_offset):
    """One weight beyond a limit, of either sign, takes the whole call to float64, as all do."""
    for n in (5, 67, 300):
        x, dy = rng.standard_normal((2, 3, n), dtype=np.float32)
        extreme = _clip(np.ldexp(rng.uniform(1, 2, n), exponent) * rng.choice([-1, 1], n))
        chosen = rng.permutation(n) < max(1, share * n)
        weight = np.where(chosen, extreme, rng.standard_normal(n, dtype=np.float32))
        _assert_forward(x, weight, 1e-5, weight_offset)
        _assert_backward(dy, x, weight, 1e-5, weight_offset)
        exact_power = np.where(chosen, np.copysign(_clip(np.ldexp(1.0, exponent)), weight), weight)
        _assert_backward(dy, x, exact_power, 0.0, weight_offset)


@pytest.mark.parametrize("of_x", [-41, -40, -39, 0, 16, 17, 18])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_at_the_limits_of_float32(way, rng, of_x, weighted):
    """Around each limit of fits_float32, in all combinations, some rows stay in float32."""
    for n in (1, 9, 65):
        spread = np.exp2(rng.uniform(-1, 1, (7, 1)))
        x = _clip(np.ldexp(rng.standard_normal((7, n)) * spread, of_x))
        for of_dy in (-149, -126, -80 - of_x, -80, 0, 40 + of_x, 127):
            dy = _clip(np.ldexp(rng.standard_normal((7, n)) / spread, of_dy))
            for of_weight in (-86, -85, 0, 43, 44) if weighted else (0,):
                weight = _clip(np.ldexp(rng.standard_normal(n), of_weight)) if weighted else None
                _assert_backward(dy, x, weight, 0.0)


# 0.1 and 1e-3 are no float32, of the second there is the nearest.
OFFSETS = (1.0, 0.5, 0.1, 1e-3, float(np.float32(1e-3)), -1.0, 2.0**44, -(2.0**45), 1e-40, 3e38)


@pytest.mark.parametrize("weight_offset", OFFSETS)
@pytest.mark.parametrize("n", [1, 8, 67, 300])
def test_offsets(way, rng, n, weight_offset):
    """The sum with weight is rounded to float32, unless the offset is no float32."""
    x, dy = rng.standard_normal((2, 9, n), dtype=np.float32)
    weight = rng.standard_normal(n, dtype=np.float32)
    near = _clip(-weight_offset * (1 + rng.integers(-4, 5, n) * 2.0**-24))
    for w in (weight, weight * np.float32(1e-6), near, np.where(rng.random(n) < 0.3, near, weight)):
        for eps in (0.0, 1e-5):
            _assert_forward(x, w, eps, weight_offset)
            _assert_backward(dy, x, w, eps, weight_offset)


@pytest.mark.parametrize("weight_offset", [3e38, float(np.float32(3e38)), FLOAT32_MAX])
@pytest.mark.parametrize("every", [1, 7])
def test_offset_and_weight_beyond_float32(way, rng, every, weight_offset):
    """weight + weight_offset is up to 6.8e38; the results of small elements are finite."""
    x, dy = rng.standard_normal((2, 4, 67), dtype=np.float32)
    x[:, 3] = 1e4
    weight = rng.standard_normal(67, dtype=np.float32)
    weight[::every] = np.float32(3e38)
    _assert_forward(x, weight, 1e-5, weight_offset)
    assert np.isfinite(fastrms.rms_norm(x, weight, weight_offset=weight_offset)).any()
    for scale in (1e-40, 1e-30, 1.0):
        _assert_backward(_clip(dy * scale), x, weight, 1e-5, weight_offset)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("n", [2, 16, 67, 1000])
def test_dx_whose_mean_is_zero(way, rng, n, scale):
    """mean(g * xhat) is exactly 0: dx is g / rms, and 0 where dy is, even if x is not."""
    x, dy = rng.standard_normal((2, 5, n), dtype=np.float32)
    dy = _clip(dy * scale)
    dy[:, ::2], x[:, 1::2] = 0, 0
    for weight in (None, rng.standard_normal(n, dtype=np.float32)):
        for eps in (0.0, 1e-5):
            _assert_backward(dy, x, weight, eps)
            assert not fastrms.rms_norm_backward(dy, x, weight, eps)[0][:, ::2].any()
    pairs = np.tile(np.array([1, -1], np.float32), (5, n // 2))
    _assert_backward(_clip(np.abs(pairs) * scale), pairs, None, 1e-5)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0, 1e30])
@pytest.mark.parametrize("outlier", [1e3, 1e6, 1e12])
def test_gradient_beside_an_outlier_at_every_scale(way, rng, outlier, scale):
    """Small elements keep their bound if the large one is in x, in dy or in both."""
    for of in ("x", "dy", "x dy"):
        x, dy = rng.standard_normal((2, 5, 100))
        x[:, 40] *= outlier if "x" in of else 1
        dy[:, 70] *= outlier if "dy" in of else 1
        weight = rng.standard_normal(100, dtype=np.float32)
        _assert_backward(_clip(dy * scale), x.astype(np.float32), weight, 1e-5)
        _assert_backward(dy.astype(np.float32), _clip(x * scale), weight, 0.0)
