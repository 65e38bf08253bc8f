"""fastrms.jax on the four dtypes in any mix, under strict promotion: the bits of NumPy's calls.

The formula for the same arrays, and for narrower ones; what is differentiable.
"""

from functools import partial

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason='jax is not installed: extra "fastrms[jax]"')

import jax.numpy as jnp  # noqa: E402

import fastrms  # noqa: E402
import fastrms.jax as adapter  # noqa: E402
from fastrms import _jax_ops  # noqa: E402

from .dtypes import KINDS, dtype_of, rounded  # noqa: E402
from .signatures import N  # noqa: E402
from .test_jax import numpy_add, same  # noqa: E402

OPTIONS = {"eps": 1e-3, "weight_offset": 1.0}
# The dtypes of x, residual and weight.
MIXES = [
    *((kind,) * 3 for kind in KINDS),
    ("bfloat16", "float32", "bfloat16"),
    ("bfloat16", "bfloat16", "float32"),
    ("float16", "float64", "float32"),
    ("float32", "bfloat16", "float16"),
    ("float32", "float64", "bfloat16"),
    ("float64", "float16", "float64"),
]
MIXED = pytest.mark.parametrize("mix", MIXES, ids="-".join)


@pytest.fixture(autouse=True)
def strictly():
    """Turn on JAX's float64, which is off by default, and take no promotion."""
    jax.config.update("jax_enable_x64", True)
    with jax.numpy_dtype_promotion("strict"):
        yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def given(draw):
    """Return a function that makes x, residual, weight, dy and dtotal of a mix of dtypes."""

    def make(mix, *shape):
        x, residual, weight = map(dtype_of, mix)
        dtypes = (x, residual, weight, x, residual)
        shapes = (shape, shape, shape[-1:], shape, shape)
        return [rounded(draw(*shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]

    return make


def converted(dx, x):
    """Return what XLA makes of a float64 dx for a half x: it rounds to float32 first."""
    return np.asarray(jnp.asarray(dx).astype(x.dtype))


SHAPES = [(mix, (40, 700)) for mix in MIXES]
SHAPES += [(MIXES[4], shape) for shape in ((N,), (4, 3, N), (0, N), (2, 0))]


@pytest.mark.parametrize(("mix", "shape"), SHAPES, ids=str)
def test_same_bits_as_the_numpy_functions(given, mix, shape):
    x, residual, weight, dy, dtotal = given(mix, *shape)
    for w in (weight, None):
        y, vjp = jax.vjp(partial(adapter.rms_norm, **OPTIONS), x, w)
        same([y], [fastrms.rms_norm(x, w, **OPTIONS)])
        same(vjp(jnp.asarray(dy)), fastrms.rms_norm_backward(dy, x, w, **OPTIONS))
        results, vjp = jax.vjp(partial(adapter.add_rms_norm, **OPTIONS), x, residual, w)
        y, total, dx, dweight = numpy_add(x, residual, w, dy, dtotal, **OPTIONS)
        same(results, [y, total])
        given_back = vjp((jnp.asarray(dy), jnp.asarray(dtotal)))
        same(given_back, [converted(dx, x), dx, dweight])


@MIXED
def test_x_and_residual_stay(given, mix):
    x, residual, weight, _, _ = given(mix, 4, N)
    function = jax.jit(lambda *arrays: (*arrays, *adapter.add_rms_norm(*arrays)))
    total = residual.copy()
    y = fastrms.add_rms_norm(x, total, weight)
    same(function(x, residual, weight), [x, residual, weight, y, total])


@MIXED
def test_vmap_with_a_weight_each(given, mix):
    x, residual, _, dy, dtotal = given(mix, 3, 5, N)
    weights = given((mix[2],) * 3, 3, N)[0]

    def gradients(x, residual, weight, dy, dtotal):
        return jax.vjp(adapter.add_rms_norm, x, residual, weight)[1]((dy, dtotal))

    results = jax.vmap(gradients)(x, residual, weights, dy, dtotal)
    for i in range(3):
        _, _, dx, dweight = numpy_add(x[i], residual[i], weights[i], dy[i], dtotal[i])
        same([result[i] for result in results], [converted(dx, x), dx, dweight])


def test_every_mix_calls_the_kernels(given):
    for mix in MIXES:
        x, residual, weight, _, _ = given(mix, 4, N)
        text = jax.jit(adapter.add_rms_norm).lower(x, residual, weight).as_text()
        assert text.count("custom_call @fastrms_add_rms_norm") == 1


# ---- the formula ------------------------------------------------------------------------------


def near(results, wanted):
    """Assert that values differ by a rounding to their dtype, and the arithmetic's error."""
    for result, value in zip(results, wanted, strict=True):
        assert result.dtype == value.dtype
        limit = float(jnp.finfo(value.dtype).eps) + 1e-6
        pair = np.asarray(result, np.float64), value.astype(np.float64)
        np.testing.assert_allclose(*pair, rtol=limit, atol=1e-5 if limit < 1e-4 else limit / 8)


@pytest.mark.parametrize("mix", MIXES[1::3], ids="-".join)
def test_other_platforms_follow_the_same_rule(given, mix):
    x, residual, weight, dy, dtotal = map(jnp.asarray, given(mix, 4, 3, N))
    numbers = OPTIONS.values()
    y, total = _jax_ops.add_formula(x, residual, weight, *numbers)
    arrays = [np.asarray(array) for array in (x, residual, weight, dy, dtotal)]
    wanted = numpy_add(*arrays, **OPTIONS)
    near((y, total), wanted[:2])
    near(_jax_ops.add_formula_gradient(dy, total, dtotal, weight, *numbers), wanted[2:])
    near([_jax_ops.formula(x, weight, *numbers)], [fastrms.rms_norm(*arrays[::2][:2], **OPTIONS)])
    found = _jax_ops.formula_gradient(dy, x, weight, *numbers)
    near(found, fastrms.rms_norm_backward(arrays[3], arrays[0], arrays[2], **OPTIONS))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("other", ["float8_e5m2", "bfloat16", "float64"])
def test_narrower_types_take_the_formula(given, dtype, other):
    x, residual, weight, _, _ = map(jnp.asarray, given(("float32",) * 3, 4, N))
    x, residual, weight = x.astype(dtype), residual.astype(other), weight.astype(other)
    y, total = jax.jit(adapter.add_rms_norm)(x, residual, weight)
    assert (y.dtype, total.dtype) == (x.dtype, residual.dtype)
    wide = np.asarray(total, np.float64), np.asarray(weight, np.float64)
    limit = 2 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(y, float), fastrms.rms_norm(*wide), rtol=limit, atol=0.1)

    def loss(*arrays):
        y, total = adapter.add_rms_norm(*arrays)
        return (y.astype(np.float32) * total.astype(np.float32)).sum()

    gradients = jax.grad(loss, (0, 1, 2))(x, residual, weight)
    assert [g.dtype for g in gradients] == [x.dtype, residual.dtype, weight.dtype]


def test_a_weight_of_minus_zero_keeps_its_sign(given):
    x, weight = given(("float32",) * 3, 4, N)[0], np.full(N, -0.0, np.float32)
    for y in (adapter.rms_norm(x, weight), _jax_ops.formula(jnp.asarray(x), weight, 1e-5, 0.0)):
        assert (np.signbit(y) != np.signbit(x)).all()


# ---- limits -----------------------------------------------------------------------------------


def loss(x, weight):
    return adapter.rms_norm(x, weight, 1e-3).astype(np.float32).sum()


@pytest.mark.parametrize("kind", ["bfloat16", "float32", "float8_e5m2"])
def test_what_is_differentiable(given, kind):
    """The table of docs/jax.md: a derivative or an error, never zeros."""
    x, _, weight, _, _ = (jnp.asarray(a).astype(kind) for a in given(("float32",) * 3, 2, N))
    gradient = jax.grad(loss, (0, 1))
    for transform in (lambda f: f, jax.jit, jax.checkpoint):
        found = jax.grad(transform(loss), (0, 1))(x, weight)
        assert [(g.dtype, g.any()) for g in found] == [(x.dtype, True)] * 2
    assert jax.jacrev(loss)(x, weight).any()
    assert jax.vmap(gradient, (0, None))(x, weight)[1].any()
    for derivative in (
        lambda: jax.jvp(loss, (x, weight), (x, weight))[1],
        lambda: jax.jacfwd(loss)(x, weight),
        lambda: jax.linearize(loss, x, weight)[1](x, weight),
        lambda: jax.hessian(loss)(x, weight),
        lambda: jax.grad(lambda x: gradient(x, weight)[0].astype(np.float32)[0, 0])(x),
    ):
        if kind in KINDS:
            with pytest.raises((TypeError, ValueError), match=r"forward-mode|cannot be diff"):
                derivative()
        else:
            assert derivative().astype(np.float32).any()
