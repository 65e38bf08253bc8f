"""fastrms.jax: the bits of the NumPy functions under JAX's transformations; errors; docs/jax.md."""

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason='jax is not installed: extra "fastrms[jax]"')

import jax.numpy as jnp  # noqa: E402
from jax import export  # noqa: E402

import fastrms  # noqa: E402
import fastrms.jax as adapter  # noqa: E402
from fastrms import _core  # noqa: E402

from .signatures import N  # noqa: E402

EPS = 1e-3
# Both sides are float32: fastrms within 4 ulp of the exact y and 1e-6 of the terms of dx, the
# formula within about as much on ordinary data.
FLOAT32 = 1e-5
OPTIONS = pytest.mark.parametrize("weight_offset", [0.0, 1.0])
WEIGHTED = pytest.mark.parametrize("weighted", [True, False])
DOCS = (Path(__file__).parent.parent / "docs" / "jax.md").read_text("utf-8")


@pytest.fixture
def given(draw):
    """Return x, residual, weight and two gradients; weight is None if not weighted."""

    def make(weighted, *shape):
        shape = shape or (4, 3, N)
        weight = draw(N) if weighted else None
        return draw(*shape), draw(*shape), weight, draw(*shape), draw(*shape)

    return make


def same(results, wanted):
    """Assert that bits, shapes and dtypes are the same; None equals None."""
    for result, value in zip(results, wanted, strict=True):
        if value is None:
            assert result is None
        else:
            assert (result.shape, result.dtype) == (value.shape, value.dtype)
            assert np.asarray(result).tobytes() == np.asarray(value).tobytes()


def close(results, wanted):
    for result, value in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result, value, rtol=FLOAT32, atol=FLOAT32)


def numpy_add(x, residual, weight, dy, dtotal, **options):
    """Return y, total, dx and dweight of add_rms_norm."""
    total, dx = residual.copy(), dtotal.copy()
    y = fastrms.add_rms_norm(x, total, weight, **options)
    _, dweight = fastrms.rms_norm_backward(dy, total, weight, dx=dx, accumulate=True, **options)
    return y, total, dx, dweight


# ---- bits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@OPTIONS
@WEIGHTED
def test_same_bits_as_the_numpy_functions(given, weighted, weight_offset, transform):
    x, residual, weight, dy, dtotal = given(weighted)
    options = {"eps": EPS, "weight_offset": weight_offset}
    y, vjp = jax.vjp(transform(partial(adapter.rms_norm, **options)), x, weight)
    same([y], [fastrms.rms_norm(x, weight, **options)])
    same(vjp(dy), fastrms.rms_norm_backward(dy, x, weight, **options))
    before = residual.copy()
    function = transform(partial(adapter.add_rms_norm, **options))
    results, vjp = jax.vjp(function, x, jnp.asarray(residual), weight)
    y, total, dx, dweight = numpy_add(x, residual, weight, dy, dtotal, **options)
    same(results, [y, total])
    same(vjp((jnp.asarray(dy), jnp.asarray(dtotal))), [dx, dx, dweight])
    same([residual], [before])


@WEIGHTED
@pytest.mark.parametrize("shape", [(N,), (1, N), (0, N), (3, 0), (0, 0), (70, 5, N)])
def test_shapes(draw, shape, weighted):
    x, dy, weight = draw(*shape), draw(*shape), draw(*shape[-1:]) if weighted else None
    y, vjp = jax.vjp(adapter.rms_norm, x, weight)
    same([y], [fastrms.rms_norm(x, weight)])
    same(vjp(dy), fastrms.rms_norm_backward(dy, x, weight))
    results, vjp = jax.vjp(adapter.add_rms_norm, x, dy, weight)
    y, total, dx, dweight = numpy_add(x, dy, weight, x, dy)
    same(results, [y, total])
    same(vjp((jnp.asarray(x), jnp.asarray(dy))), [dx, dx, dweight])


def test_extreme_rows(draw):
    """XLA flushes subnormals to zero; the kernels do not."""
    x = draw(3, 64) * np.array([[1e-42], [1e38], [1.0]], np.float32)
    same([jax.jit(partial(adapter.rms_norm, eps=0.0))(x)], [fastrms.rms_norm(x, eps=0.0)])
    results = jax.jit(partial(adapter.add_rms_norm, eps=0.0))(x, np.zeros_like(x))
    same(results, [fastrms.rms_norm(x, eps=0.0), x])


def test_x_and_residual_stay(given):
    """XLA may reuse the memory of x for total only if nothing else needs it."""
    x, residual, weight, _, _ = given(True)

    @jax.jit
    def all_of_them(x, residual):
        x, residual = x * 2, residual * 2
        return x, residual, *adapter.add_rms_norm(x, residual, weight)

    total = 2 * residual + 2 * x
    same(all_of_them(x, residual), [2 * x, 2 * residual, fastrms.rms_norm(total, weight), total])


def test_a_layers_output_is_not_copied(given, draw):
    x, residual, weight, _, _ = given(True, 32, N)
    matrix = draw(N, N)
    layer = jax.jit(lambda x, residual: adapter.add_rms_norm(x @ matrix, residual, weight))
    assert " copy(" not in layer.lower(x, residual).compile().as_text()


# ---- vmap -------------------------------------------------------------------------------------


@WEIGHTED
def test_vmap_with_one_weight(given, weighted):
    x, residual, weight, _, _ = given(weighted)
    y, total, _, _ = numpy_add(x, residual, weight, x, residual)
    for axis in (0, 1):
        axes = dict(in_axes=(axis, None), out_axes=axis)
        norm = jax.jit(jax.vmap(adapter.rms_norm, **axes))
        same([norm(x, weight)], [fastrms.rms_norm(x, weight)])
        axes["in_axes"] = (axis, axis, None)
        add = jax.jit(jax.vmap(adapter.add_rms_norm, **axes))
        same(add(x, residual, weight), [y, total])
    one = jax.vmap(adapter.add_rms_norm, in_axes=(0, None, None))(x, residual[0], weight)
    same(one, numpy_add(x, np.broadcast_to(residual[0], x.shape), weight, x, x)[:2])


def test_vmap_with_one_weight_calls_once(given):
    """The weight is not copied for each row."""
    x, _, weight, _, _ = given(True)
    text = jax.jit(jax.vmap(adapter.rms_norm, in_axes=(0, None))).lower(x, weight).as_text()
    (call,) = re.findall(r"custom_call @fastrms_rms_norm\(.*: \((.*)\) ->", text)
    assert call == f"tensor<4x3x{N}xf32>, tensor<1x{N}xf32>"


@OPTIONS
def test_vmap_with_a_weight_each(given, draw, weight_offset):
    x, _, _, dy, _ = given(False)
    weights = draw(4, 3, N)
    norm = partial(adapter.rms_norm, weight_offset=weight_offset)
    numpy_norm = partial(fastrms.rms_norm, weight_offset=weight_offset)
    rows = [[numpy_norm(x[i, j], weights[i, j]) for j in range(3)] for i in range(4)]
    same([jax.vmap(jax.vmap(norm))(x, weights)], [np.array(rows)])
    # An axis that only the weights have, inside and outside an axis that both have.
    inner = jax.vmap(jax.vmap(norm, (None, 0)), (0, 0))(x, weights)
    outer = jax.vmap(jax.vmap(norm, (0, None)), (None, 0))(x, weights[:, 0])
    for i in range(4):
        for j in range(3):
            same([inner[i, j]], [numpy_norm(x[i], weights[i, j])])
        same([outer[i]], [numpy_norm(x, weights[i, 0])])

    def gradients(x, weight, dy):
        return jax.vjp(norm, x, weight)[1](dy)

    dx, dweight = jax.vmap(gradients)(x, weights[:, 0], dy)
    for i in range(4):
        wanted = fastrms.rms_norm_backward(dy[i], x[i], weights[i, 0], weight_offset=weight_offset)
        same([dx[i], dweight[i]], wanted)


@WEIGHTED
def test_gradients_of_each_example_and_of_all(given, weighted):
    x, residual, weight, dy, dtotal = given(weighted)

    def gradients(x, residual, weight, dy, dtotal):
        return jax.vjp(adapter.add_rms_norm, x, residual, weight)[1]((dy, dtotal))

    results = jax.vmap(gradients, (0, 0, None, 0, 0))(x, residual, weight, dy, dtotal)
    for i in range(4):
        _, _, dx, dweight = numpy_add(x[i], residual[i], weight, dy[i], dtotal[i])
        same([r if r is None else r[i] for r in results], [dx, dx, dweight])
    batched = jax.vmap(adapter.add_rms_norm, (0, 0, None))
    given_back = jax.vjp(batched, x, residual, weight)[1]((jnp.asarray(dy), jnp.asarray(dtotal)))
    _, _, dx, dweight = numpy_add(x, residual, weight, dy, dtotal)
    same(given_back[:2], [dx, dx])
    if weighted:  # JAX adds it up over the examples, in float32
        close(given_back[2:], [dweight])


# ---- the formula ------------------------------------------------------------------------------


@OPTIONS
@WEIGHTED
def test_gradients_are_those_of_the_formula(given, weighted, weight_offset):
    x, residual, weight, dy, dtotal = given(weighted)

    def formula(x, residual, weight):
        total = residual + x
        factor = 1.0 if weight is None else weight_offset + weight
        mean = jnp.mean(total * total, axis=-1, keepdims=True)
        return total / jnp.sqrt(mean + EPS) * factor, total

    ours = partial(adapter.add_rms_norm, eps=EPS, weight_offset=weight_offset)
    gradients = [
        [g for g in jax.vjp(f, x, residual, weight)[1]((dy, dtotal)) if g is not None]
        for f in (lambda *a: ours(*a), formula)
    ]
    close(*gradients)


def test_other_platforms_take_the_formula(given):
    x, residual, weight, _, _ = given(True)

    def loss(*arrays):
        y, total = adapter.add_rms_norm(*arrays)
        return (y * total).sum() + adapter.rms_norm(arrays[0], arrays[2]).sum()

    step = jax.jit(jax.grad(loss, (0, 1, 2)))
    for platform, calls in (("cuda", 0), ("tpu", 0), ("cpu", 3)):
        text = export.export(step, platforms=[platform], disabled_checks=checks())
        text = text(x, residual, weight).mlir_module()
        assert len(re.findall(r"custom_call @fastrms", text)) == calls, platform


def checks():
    return [export.DisabledSafetyCheck.custom_call(target) for target in adapter.TARGETS]


# ---- export, devices, threads -----------------------------------------------------------------


def test_export_and_its_gradient(given):
    pytest.importorskip("flatbuffers", reason="jax needs flatbuffers to write what it exports")
    x, _, weight, dy, _ = given(True)
    rows = jax.ShapeDtypeStruct((*export.symbolic_shape("a, b"), N), np.float32)
    function = jax.jit(partial(adapter.rms_norm, eps=EPS))
    exported = export.export(function, disabled_checks=checks())(rows, weight)
    loaded = export.deserialize(exported.serialize(vjp_order=1)).call
    y, vjp = jax.vjp(loaded, x, weight)
    same([y], [fastrms.rms_norm(x, weight, EPS)])
    same(vjp(jnp.asarray(dy)), fastrms.rms_norm_backward(dy, x, weight, EPS))


def test_export_asks_for_the_check(given):
    x, _, weight, _, _ = given(True)
    with pytest.raises(ValueError, match="fastrms_rms_norm"):
        export.export(jax.jit(adapter.rms_norm))(x, weight)


SHARDED = """
import jax, numpy as np, fastrms, fastrms.jax
from functools import partial
from jax.sharding import Mesh, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()), ("rows",))
assert mesh.size == 4
rng = np.random.default_rng(7)
x, residual, dy, dtotal = (rng.standard_normal((8, 5, 96), dtype=np.float32) for _ in range(4))
weight = rng.standard_normal(96, dtype=np.float32)
specs = dict(mesh=mesh, in_specs=(P("rows"), P("rows"), P()), out_specs=P("rows"))
function = jax.shard_map(partial(fastrms.jax.add_rms_norm, weight_offset=1.0), **specs)
total, dx = residual.copy(), dtotal.copy()
y = fastrms.add_rms_norm(x, total, weight, weight_offset=1.0)
_, dweight = fastrms.rms_norm_backward(
    dy, total, weight, dx=dx, accumulate=True, weight_offset=1.0)
for transform in (jax.jit, lambda f: f):
    results, vjp = jax.vjp(transform(function), x, residual, weight)
    gradients = vjp((jax.numpy.asarray(dy), jax.numpy.asarray(dtotal)))
    for result, wanted in zip((*results, *gradients), (y, total, dx, dx), strict=False):
        assert np.asarray(result).tobytes() == wanted.tobytes()
    np.testing.assert_allclose(gradients[2], dweight, rtol=1e-5, atol=1e-5)
"""


def test_rows_over_devices(python):
    """JAX adds dweight up over the devices, in float32; the other bits are those of one device."""
    done = python(SHARDED, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("repeat", range(3))
def test_two_calls_at_once(restore, draw, repeat):
    """One call uses the pool, the others stay on XLA's threads."""
    fastrms.set_num_threads(3)
    x, dy, weight = draw(4, 64, 300), draw(4, 64, 300), draw(300)
    step = jax.jit(lambda x, weight, dy: jax.vjp(adapter.rms_norm, x, weight)[1](dy))
    wanted = [fastrms.rms_norm_backward(dy[i], x[i], weight) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            results = list(
                pool.map(lambda i: jax.block_until_ready(step(x[i], weight, dy[i])), range(4))
            )
            for result, value in zip(results, wanted, strict=True):
                same(result, value)


def test_threads_take_part(restore, given):
    assert _core.set_parallel_from(1) == 1  # set by the fixture
    fastrms.set_num_threads(3)
    x, residual, weight, dy, dtotal = given(True, 70, 300, N)
    results, vjp = jax.vjp(jax.jit(adapter.add_rms_norm), x, residual, weight)
    y, total, dx, dweight = numpy_add(x, residual, weight, dy, dtotal)
    same(results, [y, total])
    same(vjp((jnp.asarray(dy), jnp.asarray(dtotal))), [dx, dx, dweight])


# ---- refusals ---------------------------------------------------------------------------------

X = np.ones((2, 3), np.float32)
BAD = [
    (lambda: adapter.rms_norm(np.float32(1)), ValueError, "x must have at least one axis"),
    (lambda: adapter.rms_norm(X.astype(int)), TypeError, "x must be of a floating type, got int"),
    (lambda: adapter.rms_norm(X, "w"), TypeError, "weight must be an array .* got str"),
    (lambda: adapter.add_rms_norm(X, object()), TypeError, "residual must be an array .* object"),
    (
        lambda: adapter.rms_norm((ctypes.c_longdouble * 4)()),
        TypeError,
        "x must be an array of a floating type, got c_longdouble_Array_4",
    ),
    (
        lambda: adapter.rms_norm(X, np.ones((1, 3), np.float32)),
        ValueError,
        r"weight must have shape \(3,\), the last axis of x, got \(1, 3\)",
    ),
    (
        lambda: adapter.add_rms_norm(X, X[0]),
        ValueError,
        r"residual must have the shape of x, \(2, 3\), got \(3,\)",
    ),
    (lambda: adapter.rms_norm(X, eps=-1), ValueError, "eps must be zero or more, got -1.0"),
    (lambda: adapter.rms_norm(X, eps=float("nan")), ValueError, "eps must be zero or more"),
    (lambda: adapter.rms_norm(X, eps="1e-5"), TypeError, "eps must be a real number, got str"),
    (
        lambda: jax.jit(lambda eps: adapter.rms_norm(X, eps=eps))(1e-5),
        TypeError,
        "eps must be a Python number, got a traced value",
    ),
    (
        lambda: adapter.rms_norm(X, weight_offset=None),
        TypeError,
        "weight_offset must be a real number, got NoneType",
    ),
    (lambda: jax.jit(fastrms.rms_norm)(X), TypeError, "use fastrms.jax"),
    (
        lambda: fastrms.rms_norm(jax.numpy.ones((2, 3), "bfloat16")),
        TypeError,
        "x must be .* got ArrayImpl; use fastrms.jax.*BF16",
    ),
    (lambda: jax.jvp(adapter.rms_norm, (X,), (X,)), TypeError, "forward-mode"),
    (
        lambda: jax.hessian(lambda x: adapter.rms_norm(x).sum())(X[0]),
        (TypeError, ValueError),
        "forward-mode|cannot be differentiated",
    ),
    (
        lambda: jax.grad(lambda x: jax.grad(lambda x: adapter.rms_norm(x).sum())(x).sum())(X),
        ValueError,
        "cannot be differentiated",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=range(len(BAD)))
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_without_jax(python):
    done = python("import sys; sys.modules['jax'] = None\nimport fastrms.jax")
    assert 'python -m pip install "fastrms[jax]"' in done.stderr
    assert "ImportError" in done.stderr


# ---- the page ---------------------------------------------------------------------------------


def test_docs_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        exec(compile(block, "docs/jax.md", "exec"), names)
