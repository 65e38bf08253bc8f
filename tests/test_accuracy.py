"""Every function against the float64 reference, within the bounds that fastrms.check states.

The oracle is float64, whose own error, 2**-29 ulp of float32 at most, is negligible.
"""

import itertools

import numpy as np
import pytest

import fastrms
from fastrms import reference
from fastrms.check import (
    DWEIGHT,
    DX,
    FORWARD_ULP,
    ROUNDING,
    dweight_error,
    dx_error,
    dx_terms,
    forward_ulp,
    ulps,
)

# Every remainder of every vector and unroll length, and the widths of real models.
SIZES = (*range(1, 68), 127, 128, 129, 513, 576, 1023, 4096, 5125, 65536)
ROWS = (0, 1, 3, 199)
LARGEST = 199 * 5125
GRID = [(rows, n) for n in SIZES for rows in ROWS if rows * n <= LARGEST]

FLOAT32_MAX = float(np.finfo(np.float32).max)
SMALLEST = np.float32(2.0**-149)
DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "constant": lambda rng, shape: np.full(shape, 0.7),
    "uniform": lambda rng, shape: rng.uniform(0, 1, shape),
    "cauchy": lambda rng, shape: rng.standard_cauchy(shape),
    "lognormal": lambda rng, shape: rng.lognormal(0, 3, shape),
    "outlier": lambda rng, shape: _with_outlier(rng.standard_normal(shape)),
}
SCALES = (1e-45, 1e-38, 1e-30, 1e-19, 1.0, 1e19, 1e30, 3e37)
WEIGHTS = ("none", "weight", "offset")


def _with_outlier(rows):
    rows[..., rows.shape[-1] // 2] *= 1e6
    return rows


def _sample(rng, distribution, shape, scale):
    """Return float32 rows of a distribution, clipped to the finite range, none of them zero."""
    values = DISTRIBUTIONS[distribution](rng, shape) * scale
    x = np.clip(values, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
    # A row of zeros has no accuracy to test.
    x[..., 0] = np.maximum(np.abs(x[..., 0]), SMALLEST)
    return x


def _weight(rng, kind, n):
    """Return weight and weight_offset: as in Llama, as in Gemma (weight - 1), or none."""
    if kind == "none":
        return None, 0.0
    return rng.standard_normal(n, dtype=np.float32), float(kind == "offset")


def _assert_backward(dx, dweight, dy, x, weight, eps, weight_offset=0.0):
    exact_dx, exact_dweight = reference.rms_norm_backward(
        dy, x, weight, eps, weight_offset=weight_offset
    )
    assert dx_error(dx, exact_dx, dy, x, weight, eps, weight_offset) <= DX
    if weight is None:
        assert dweight is None
    else:
        assert dweight_error(dweight, exact_dweight, dy, x, eps) <= DWEIGHT


@pytest.mark.parametrize("shape", GRID, ids="{0[0]}x{0[1]}".format)
def test_grid(way, draw, shape):
    x, dy, residual, weight = draw(*shape), draw(*shape), draw(*shape), draw(shape[1])
    stream, added = np.add(residual, x), residual.copy()
    y = fastrms.rms_norm(x, weight)
    assert ulps(y, reference.rms_norm(x, weight)) <= FORWARD_ULP
    _assert_backward(*fastrms.rms_norm_backward(dy, x, weight), dy, x, weight, 1e-5)
    assert fastrms.residual_add(x, added).tobytes() == stream.tobytes()
    y = fastrms.add_rms_norm(x, residual, weight)
    assert residual.tobytes() == stream.tobytes()
    assert ulps(y, reference.rms_norm(stream, weight)) <= FORWARD_ULP


def test_large_forward(rng, way):
    """Use arrays larger than every cache, where streaming stores take over."""
    x = rng.standard_normal((199, 65536), dtype=np.float32)
    weight = rng.standard_normal(65536, dtype=np.float32)
    y = fastrms.rms_norm(x, weight)
    for rows in np.split(np.arange(len(x)), [50, 100, 150]):  # a float64 copy of all is too large
        assert ulps(y[rows], reference.rms_norm(x[rows], weight)) <= FORWARD_ULP


@pytest.mark.parametrize("n", [33, 4099])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distributions(way, rng, distribution, scale, n):
    for kind, eps in itertools.product(WEIGHTS, (0.0, 1e-5)):
        x = _sample(rng, distribution, (3, n), scale)
        dy = rng.standard_normal(x.shape, dtype=np.float32)
        weight, weight_offset = _weight(rng, kind, n)
        y = fastrms.rms_norm(x, weight, eps, weight_offset=weight_offset)
        exact = reference.rms_norm(x, weight, eps, weight_offset=weight_offset)
        assert ulps(y, exact) <= forward_ulp(weight, weight_offset)
        dx, dweight = fastrms.rms_norm_backward(dy, x, weight, eps, weight_offset=weight_offset)
        _assert_backward(dx, dweight, dy, x, weight, eps, weight_offset)


@pytest.mark.parametrize("dy_scale", [1e-40, 1e-38, 1.0, 1e30, 1e37])
@pytest.mark.parametrize("weight_scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("scale", SCALES)
def test_scales_of_every_input(way, rng, scale, weight_scale, dy_scale):
    """Products such as dy * weight leave float32's range although the result does not."""
    x = _sample(rng, "normal", (5, 100), scale)
    dy = _sample(rng, "normal", x.shape, dy_scale)
    weight = _sample(rng, "normal", x.shape[-1:], weight_scale)
    with np.errstate(over="ignore"):
        y = fastrms.rms_norm(x, weight, 0.0)
        assert ulps(y, reference.rms_norm(x, weight, 0.0)) <= FORWARD_ULP
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight, 0.0)
    _assert_backward(dx, dweight, dy, x, weight, 0.0)


@pytest.mark.parametrize("outlier", [1e10, 1e30, 3e38])
@pytest.mark.parametrize("n", [2, 17, 300])
def test_small_elements_beside_an_outlier(way, rng, n, outlier):
    """x / rms is subnormal, but y under a large weight is not: no bit may be lost."""
    x = rng.standard_normal((4, n), dtype=np.float32) * np.float32(1e-10)
    x[:, 0] = outlier
    weight = np.full(n, 1e30, np.float32)
    weight[0] = 1
    assert ulps(fastrms.rms_norm(x, weight), reference.rms_norm(x, weight)) <= FORWARD_ULP


@pytest.mark.parametrize("n", [2, 40])
@pytest.mark.parametrize("weight", [1.0, 3.9, 4.1, 7.9, 1e13, 2e13])
def test_weight_above_subnormal_elements(way, weight, n):
    """Cross two limits on weight: above 2, 1 / rms is scaled; above 2**44, float64 takes over."""
    x = np.ones((300, n), np.float32)
    x[:, 0] = SMALLEST * np.arange(300, dtype=np.float32)
    weight = np.full(n, weight, np.float32)
    assert ulps(fastrms.rms_norm(x, weight), reference.rms_norm(x, weight)) <= FORWARD_ULP


def test_one_large_weight(isa):
    """One large weight, in any column, changes the path of every row."""
    for column in range(200):
        x, weight = np.ones(200, np.float32), np.ones(200, np.float32)
        x[column], weight[column] = 1e-44, 1e12
        assert ulps(fastrms.rms_norm(x, weight), reference.rms_norm(x, weight)) <= FORWARD_ULP


@pytest.mark.parametrize("weight_offset", [1.0, -1.0, 0.1, -3.7, 1e-8])
def test_weight_that_cancels_its_offset(way, rng, weight_offset):
    """An offset that float32 does not hold stays a double: rounded, it would lose the sum."""
    x = rng.standard_normal((3, 64), dtype=np.float32)
    weight = np.full(64, -weight_offset, np.float32)
    weight[::2] *= np.float32(1 + 2.0**-20)
    weight[::3] *= np.float32(1 - 2.0**-24)  # the next float32
    y = fastrms.rms_norm(x, weight, weight_offset=weight_offset)
    exact = reference.rms_norm(x, weight, weight_offset=weight_offset)
    assert ulps(y, exact) <= forward_ulp(weight, weight_offset)
    dy = rng.standard_normal(x.shape, dtype=np.float32)
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight, weight_offset=weight_offset)
    _assert_backward(dx, dweight, dy, x, weight, 1e-5, weight_offset)


@pytest.mark.parametrize("largest", [-1, 1, 23, 44, 127])
def test_one_plus_weights_of_every_size(way, rng, largest):
    """Up to 2**44, weight + 1 is rounded to float32; beyond, float64 takes over."""
    powers = np.ldexp(np.float32(1), np.arange(-149, largest + 1))
    sizes = np.concatenate([powers, np.nextafter(powers, np.float32(0)), powers * np.float32(0.75)])
    between = np.ldexp(rng.uniform(0.5, 1, 1000), rng.integers(-30, largest, 1000))
    sizes = np.concatenate([sizes, between.astype(np.float32), 1 + np.ldexp(1.0, -np.arange(24))])
    weight = np.concatenate([sizes, -sizes]).astype(np.float32)
    x = rng.standard_normal((3, weight.size), dtype=np.float32)
    x[:, ::7] = 1
    y = fastrms.rms_norm(x, weight, weight_offset=1.0)
    exact = reference.rms_norm(x, weight, weight_offset=1.0)
    assert ulps(y, exact) <= forward_ulp(weight, 1.0)


@pytest.mark.parametrize("eps", [1e-30, 1e-12, 1e-5, 0.5, 1e6, 1e30])
@pytest.mark.parametrize("scale", SCALES)
def test_eps(way, rng, scale, eps):
    x = _sample(rng, "normal", (3, 129), scale)
    dy = rng.standard_normal(x.shape, dtype=np.float32)
    weight = rng.standard_normal(129, dtype=np.float32)
    y = fastrms.rms_norm(x, weight, eps)
    assert ulps(y, reference.rms_norm(x, weight, eps)) <= FORWARD_ULP
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight, eps)
    _assert_backward(dx, dweight, dy, x, weight, eps)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_accumulate(way, rng, kind):
    """The sum is np.add's, so its error is within the result's bound plus one rounding."""
    x, dy, skip = (rng.standard_normal((17, 100), dtype=np.float32) for _ in range(3))
    weight, weight_offset = _weight(rng, kind, 100)
    options = {"weight": weight, "weight_offset": weight_offset}
    out = fastrms.rms_norm(x, **options, out=skip.copy(), accumulate=True)
    y = out.astype(np.float64) - skip
    exact = reference.rms_norm(x, **options)
    units = np.spacing(np.abs(exact).astype(np.float32)) * forward_ulp(weight, weight_offset)
    assert np.all(np.abs(y - exact) <= units + np.spacing(np.abs(out)) / 2)
    dx, _ = fastrms.rms_norm_backward(dy, x, **options, dx=skip.copy(), accumulate=True)
    exact_dx, _ = reference.rms_norm_backward(dy, x, **options)
    bound = DX * dx_terms(dy, x, weight, 1e-5, weight_offset) + ROUNDING
    error = np.abs(dx.astype(np.float64) - skip - exact_dx)
    assert np.all(error <= bound + np.spacing(np.abs(dx)) / 2)


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.5, 2.0, 0.0, 0.1, -1 / 3, 1e30, 1e-30, 1e300])
@pytest.mark.parametrize("shape", [(1,), (7, 33), (199, 513)])
def test_residual_add_scale(way, rng, shape, scale):
    """The scale is a double, and the float64 sum is rounded once to float32."""
    residual, x = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    expected = residual.copy()
    with np.errstate(over="ignore"):
        reference.residual_add(x, expected, scale)
    fastrms.residual_add(x, residual, scale)
    assert residual.tobytes() == expected.tobytes()


def test_residual_add_at_the_ends_of_the_range(isa, rng):
    residual = np.array([3e38, -3e38, 1e-45, -0.0, 0.0, 3e38, 1e-45], np.float32)
    x = np.array([3e38, -3e38, -1e-45, -0.0, -0.0, -3e38, 1e-45], np.float32)
    with np.errstate(over="ignore"):
        expected = np.add(residual, x)
    assert fastrms.residual_add(x, residual).tobytes() == expected.tobytes()
