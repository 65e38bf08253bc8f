"""fastrms.dask: the bits of one machine for chunks of whole rows, its bounds for all chunks."""

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

REASON = 'dask is not installed: extra "fastrms[dask]"'
dask = pytest.importorskip("dask", reason=REASON)
da = pytest.importorskip("dask.array", reason=REASON)

from dask.callbacks import Callback  # noqa: E402

import fastrms  # noqa: E402
import fastrms.dask as adapter  # noqa: E402
from fastrms import reference  # noqa: E402
from fastrms.check import (  # noqa: E402
    DWEIGHT,
    DX,
    FORMATS,
    SCALES,
    dweight_error,
    dx_error,
    forward_ulp,
    ulps,
)

from .dtypes import KINDS, dtype_of  # noqa: E402
from .signatures import N  # noqa: E402

DOCS = Path(__file__).parent.parent / "docs" / "dask.md"
SHAPE = (7, 5, N)
CHUNKS = [(7, 5, N), (2, 3, N), (1, 1, N), ((3, 4), 5, N)]
OPTIONS = {"eps": 1e-3, "weight_offset": 1.0}


@pytest.fixture
def given(draw):
    return draw(*SHAPE), draw(*SHAPE), draw(*SHAPE), draw(N)


def lazily(weight, kind):
    return da.from_array(weight, chunks=5) if kind == "dask" else weight


def exact_bits(lazy, array):
    """Assert that a dask array computes to the shape, dtype and bits of `array`."""
    assert (lazy.shape, lazy.dtype) == (array.shape, array.dtype)
    computed = lazy.compute(scheduler="threads", num_workers=2)
    assert type(computed) is np.ndarray
    assert (computed.shape, computed.dtype) == (array.shape, array.dtype)
    assert computed.tobytes() == array.tobytes()


@pytest.mark.parametrize("kind", ["array", "dask", "none"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_bits_of_one_machine(given, chunks, kind):
    x, residual, dy, weight = given
    lazy = [da.from_array(array, chunks=chunks) for array in (x, residual, dy)]
    weight = None if kind == "none" else weight
    weights = lazily(weight, kind)
    exact_bits(
        adapter.rms_norm(lazy[0], weights, **OPTIONS), fastrms.rms_norm(x, weight, **OPTIONS)
    )
    dx, dweight = adapter.rms_norm_backward(lazy[2], lazy[0], weights, **OPTIONS)
    wanted_dx, wanted_dweight = fastrms.rms_norm_backward(dy, x, weight, **OPTIONS)
    exact_bits(dx, wanted_dx)
    if weight is None:
        assert dweight is None
    else:
        assert (dweight.shape, dweight.dtype) == ((N,), np.float32)
        inv_rms = 1 / np.sqrt(np.mean(np.square(x, dtype=float), axis=-1, keepdims=True) + 1e-3)
        # Each of the two is within half of this.
        bound = 2 * DWEIGHT * np.abs(dy * x * inv_rms).sum(axis=(0, 1))
        assert np.all(np.abs(dweight.compute() - wanted_dweight) <= bound)
    y, total = adapter.add_rms_norm(lazy[0], lazy[1], weights, **OPTIONS)
    wanted = fastrms.add_rms_norm(x, residual, weight, **OPTIONS)
    exact_bits(y, wanted)
    exact_bits(total, residual)


SPLIT = [
    ((7, 5, N), (2, 3, 5)),
    ((7, 5, N), (7, 5, 1)),
    ((2, 3, N), (1, 3, (5, 0, 7))),
    ((N,), (5,)),
    ((40, 4099), (16, 1000)),
    ((0, N), (1, 5)),
]


@pytest.mark.parametrize("kind", ["array", "dask", "none"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("shape", "chunks"), SPLIT, ids=str)
def test_split_last_axis_is_within_the_bounds(draw, shape, chunks, scale, kind):
    x, dy = draw(*shape) * np.float32(scale), draw(*shape)
    weight = None if kind == "none" else draw(shape[-1])
    lazy_x, lazy_dy = da.from_array(x, chunks=chunks), da.from_array(dy, chunks=chunks)
    weights, eps = lazily(weight, kind), 1e-5 * min(scale, 1.0) ** 2
    y = adapter.rms_norm(lazy_x, weights, eps)
    dx, dweight = adapter.rms_norm_backward(lazy_dy, lazy_x, weights, eps)
    for lazy in (y, dx):
        assert (lazy.shape, lazy.dtype, lazy.chunks) == (shape, np.float32, lazy_x.chunks)
    assert ulps(y.compute(), reference.rms_norm(x, weight, eps)) <= forward_ulp(weight)
    exact_dx, exact_dweight = reference.rms_norm_backward(dy, x, weight, eps)
    assert dx_error(dx.compute(), exact_dx, dy, x, weight, eps) <= DX
    if weight is None:
        assert dweight is None
    else:
        assert (dweight.shape, dweight.dtype) == ((shape[-1],), np.float32)
        assert dweight_error(dweight.compute(), exact_dweight, dy, x, eps) <= DWEIGHT


PAIRS = [(one, other) for one in KINDS for other in KINDS]


@pytest.mark.parametrize(("dtype", "other"), PAIRS, ids=map("-".join, PAIRS))
def test_dtypes_are_those_of_the_numpy_functions(given, dtype, other):
    """x and dy are of one dtype, residual and weight of the other."""
    x, residual, dy, weight = given
    dtype, other = dtype_of(dtype), dtype_of(other)
    x, dy = x.astype(dtype), dy.astype(dtype)
    residual, weight = residual.astype(other), weight.astype(other).reshape(1, N)
    lazy = [da.from_array(array, chunks=(2, 3, N)) for array in (x, residual, dy)]
    y, total = adapter.add_rms_norm(lazy[0], lazy[1], weight, scale=0.3, **OPTIONS)
    dx, dweight = adapter.rms_norm_backward(lazy[2], lazy[0], weight, **OPTIONS)
    exact_bits(adapter.rms_norm(lazy[0], weight), fastrms.rms_norm(x, weight))
    exact_bits(y, fastrms.add_rms_norm(x, residual, weight, scale=0.3, **OPTIONS))
    exact_bits(total, residual)
    wanted_dx, wanted = fastrms.rms_norm_backward(dy, x, weight, **OPTIONS)
    exact_bits(dx, wanted_dx)
    assert (dweight.shape, dweight.dtype) == (wanted.shape, wanted.dtype)
    computed = dweight.compute().astype(np.float64)
    unit = 2.0 ** (1 - FORMATS[other.name].bits)
    np.testing.assert_allclose(computed, wanted.astype(np.float64), rtol=unit, atol=1e-5)


@pytest.mark.parametrize("dtype", KINDS)
def test_a_split_last_axis_keeps_dtypes(given, dtype):
    x, residual, dy, weight = given
    dtype = dtype_of(dtype)
    lazy = [da.from_array(array.astype(dtype), chunks=(2, 3, 5)) for array in (x, dy)]
    y, total = adapter.add_rms_norm(lazy[0], da.from_array(residual), weight, scale=0.3)
    dx, dweight = adapter.rms_norm_backward(lazy[1], lazy[0], da.from_array(weight[np.newaxis]))
    for array in (y, dx):
        assert array.dtype == array.compute().dtype == dtype
    for array, shape in ((total, x.shape), (dweight, (1, N))):
        assert array.compute().shape == array.shape == shape
        assert array.dtype == array.compute().dtype == np.float32


def test_split_last_axis_takes_offset_eps_and_residual(given):
    x, residual, dy, weight = given
    lazy = [da.from_array(array, chunks=(2, 3, 5)) for array in given[:3]]
    y, total = adapter.add_rms_norm(lazy[0], lazy[1], weight, **OPTIONS)
    exact_bits(total, x + residual)
    bound = forward_ulp(weight, OPTIONS["weight_offset"])
    assert ulps(y.compute(), reference.rms_norm(x + residual, weight, **OPTIONS)) <= bound
    dx, dweight = adapter.rms_norm_backward(lazy[2], lazy[0], weight, **OPTIONS)
    exact_dx, exact_dweight = reference.rms_norm_backward(dy, x, weight, **OPTIONS)
    assert dx_error(dx.compute(), exact_dx, dy, x, weight, **OPTIONS) <= DX
    assert dweight_error(dweight.compute(), exact_dweight, dy, x, OPTIONS["eps"]) <= DWEIGHT


def test_sums_of_a_split_row_are_added_in_the_order_of_the_columns():
    # 2**53 + 1 rounds to 2**53, both times; 1 + 1 added first would not be lost.
    parts = da.from_array(np.array([[2.0**53, 1, 1, -(2.0**53)]]), chunks=(1, 1))
    assert adapter.row_sums(parts).compute() == [[0.0]]
    assert adapter.row_sums(parts[:, ::-1]).compute() == [[2.0]]


def test_chunks_of_two_arrays_need_not_fit(given):
    x, residual, dy, weight = given
    x, dy = da.from_array(x, chunks=(2, 5, N)), da.from_array(dy, chunks=(3, 2, N))
    dx, _ = adapter.rms_norm_backward(dy, x, weight)
    exact_bits(dx, fastrms.rms_norm_backward(given[2], given[0], weight)[0])
    y, _ = adapter.add_rms_norm(x, da.from_array(residual, chunks=(1, 5, N)), weight)
    exact_bits(y, fastrms.add_rms_norm(given[0], residual, weight))


@pytest.mark.parametrize("chunks", [(5, N), (5, 5)], ids=str)
def test_unknown_numbers_of_rows(draw, chunks):
    x, residual, dy, weight = draw(23, N), draw(23, N), draw(23, N), draw(N)
    lazy = [da.from_array(array, chunks=chunks) for array in (x, residual, dy)]
    kept = lazy[0][:, 0] > 0
    unknown = [array[kept] for array in lazy]
    known = [array[kept].compute_chunk_sizes() for array in lazy]
    assert np.isnan(unknown[0].shape[0])
    assert not np.isnan(known[0].shape[0])

    def results(x, residual, dy):
        y, total = adapter.add_rms_norm(x, residual, weight, **OPTIONS)
        gradients = adapter.rms_norm_backward(dy, x, weight, **OPTIONS)
        return adapter.rms_norm(x, weight, **OPTIONS), y, total, *gradients

    for got, wanted in zip(results(*unknown), results(*known), strict=True):
        assert got.numblocks == wanted.numblocks
        assert got.compute().tobytes() == wanted.compute().tobytes()


@pytest.mark.parametrize("call", [adapter.add_rms_norm, adapter.rms_norm_backward])
def test_unknown_numbers_of_rows_must_agree(draw, call):
    x, row = da.from_array(draw(9, N), chunks=(3, N)), da.arange(9, chunks=3)
    three, two = x[row % 3 > 0], x[:6][row[:6] > 0]
    for first, second in [(three, two), (three, x)]:
        with pytest.raises(ValueError, match=r"unknown in 3 blocks.*call compute_chunk_sizes\(\)"):
            call(first, second)
    # As many blocks, but of one row, which NumPy would broadcast.
    lazy = call(three, x[row % 3 > 1])[0]
    # Without threads: a failed compute leaves tasks behind in them, for the next test to count.
    with pytest.raises(ValueError, match="must have the shape of x"):
        lazy.compute(scheduler="sync")


def test_nothing_runs_before_compute_and_each_block_once(given, monkeypatch):
    x, _, dy, weight = given
    calls = []
    for name in ("rms_norm", "rms_norm_backward"):
        function = getattr(fastrms, name)

        def counted(x, *arguments, function=function, **options):
            calls.append(x.shape)
            return function(x, *arguments, **options)

        monkeypatch.setattr(fastrms, name, counted)
    lazy, dy = (da.from_array(array, chunks=(2, 3, N)) for array in (x, dy))
    y, gradients = adapter.rms_norm(lazy, weight), adapter.rms_norm_backward(dy, lazy, weight)
    assert {np.prod(shape) for shape in calls} == {0}  # the checks, on arrays without rows
    blocks = sorted((*rows, N) for rows in itertools.product((2, 2, 2, 1), (3, 2)))
    for results in [(y,), gradients]:
        calls.clear()
        dask.compute(*results, scheduler="sync")
        assert sorted(calls) == blocks


def tasks(*lazy):
    """Count the tasks of each kind that dask runs, after it has fused some."""
    keys = []
    with Callback(pretask=lambda key, *_: keys.append(key)):
        dask.compute(*lazy, scheduler="sync")
    return Counter(re.sub("-[0-9a-f]{32}$", "", key[0]) for key in keys if type(key) is tuple)


def test_one_task_a_block(given):
    x, dy, weight = *(da.from_array(array, chunks=(1, 1, N)) for array in given[:2]), given[3]
    assert tasks(adapter.rms_norm(x, weight)) == {"rms_norm": 35}
    assert tasks(*adapter.add_rms_norm(x, dy, weight)) == {"add": 35, "rms_norm": 35}
    found = tasks(*adapter.rms_norm_backward(dy, x, weight))
    assert found["rms_norm_backward"] == 35


def test_one_task_a_block_and_phase(given):
    x, dy, weight = *(da.from_array(array, chunks=(1, 1, 5)) for array in given[:2]), given[3]
    # 35 blocks of rows in 3 columns.
    forward = {"squares": 105, "row-sums": 35, "scale": 105}
    assert tasks(adapter.rms_norm(x, weight)) == forward
    assert tasks(*adapter.add_rms_norm(x, dy, weight)) == {"add": 105, **forward}
    found = tasks(*adapter.rms_norm_backward(dy, x, weight))
    assert (found["products"], found["row-sums"], found["scale_backward"]) == (105, 35, 105)


def test_no_block_of_a_split_row_meets_another(given):
    x, weight = da.from_array(given[0], chunks=(1, 1, 5)), given[3]
    y = adapter.rms_norm(x, weight)
    graph = dask.optimize(y)[0].__dask_graph__()
    for key, needed in graph.get_all_dependencies().items():
        assert sum(needed_key[0] == x.name for needed_key in needed) <= 1, key


NATIVE = "must be native float16, bfloat16, float32 or float64"
REFUSED = [
    (TypeError, "x must be a dask array, got ndarray", lambda x, w: (x.compute(), w)),
    (TypeError, f"x {NATIVE}, got '<i8'", lambda x, w: (x.astype(int), w)),
    (TypeError, f"x {NATIVE}, got '>f4'", lambda x, w: (x.astype(">f4"), w)),
    (TypeError, f"weight {NATIVE}", lambda x, w: (x, w.astype(int))),
    (TypeError, f"weight {NATIVE}", lambda x, w: (x, da.from_array(w.astype(int)))),
    (ValueError, rf"weight must have shape \({N},\)", lambda x, w: (x, w[1:])),
    (ValueError, rf"weight must have shape \({N},\)", lambda x, w: (x, da.from_array(w[1:]))),
    (ValueError, "eps must be zero or more", lambda x, w: (x, w, -1.0)),
    (ValueError, rf"weight must have shape \({N},\)", lambda x, w: (x.rechunk(5), w[1:])),
    (ValueError, "x must have at least one axis, got a 0-d", lambda x, w: (x[0, 0, 0], w)),
    (ValueError, r"call x\.compute_chunk_sizes", lambda x, w: (x[..., x[0, 0] > 0], w)),
    (ValueError, r"call weight\.compute_chunk_sizes", lambda x, w: (x, x[0, 0][x[0, 0] > 0])),
    (TypeError, "x must be a plain array, got a masked", lambda x, w: (da.ma.masked_less(x, 0), w)),
    (TypeError, "weight must be a plain array", lambda x, w: (x, da.ma.masked_less(x[0, 0], 0))),
]


@pytest.mark.parametrize(("error", "message", "change"), REFUSED)
def test_refused_when_the_graph_is_made(given, error, message, change):
    x = da.from_array(given[0], chunks=(2, 3, N))
    with pytest.raises(error, match=message):
        adapter.rms_norm(*change(x, given[3]))


@pytest.mark.parametrize("dtype", ["int64", "V2"])
@pytest.mark.parametrize("name", ["x", "residual"])
def test_an_array_of_another_dtype_is_to_be_converted(given, name, dtype):
    """The hint is a copy for residual too: it is only read here, so that loses nothing."""
    arrays = {"x": da.from_array(given[0]), "residual": da.from_array(given[0])}
    other = np.empty(given[0].shape, dtype)
    arrays[name] = da.from_array(other)
    with pytest.raises(TypeError) as numpys:
        fastrms.rms_norm(other)
    with pytest.raises(TypeError) as refused:
        adapter.add_rms_norm(**arrays)
    assert re.sub(rf"\b{name}\b", "x", str(refused.value)) == str(numpys.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", [(1, N), (2, 5)], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_no_warning_beyond_the_range(kind, chunks, sign):
    """Each block's sums may be finite or Inf, and theirs Inf or NaN. A warning is an error here."""
    dtype = dtype_of(kind)
    large = float(FORMATS[kind].largest) * 0.9
    dy = (np.array([1, 1, sign, sign])[:, None] * np.full((4, N), large)).astype(dtype)
    for x in (np.ones((4, N), dtype), np.full((4, N), large**0.5).astype(dtype), dy):
        weight = np.ones(N, dtype)
        arrays = [da.from_array(array, chunks=chunks) for array in (dy, x)]
        lazy = *adapter.rms_norm_backward(*arrays, weight), *adapter.add_rms_norm(*arrays, weight)
        assert [array.dtype for array in dask.compute(*lazy)] == [dtype] * 4


def test_shapes_must_agree(given):
    x = da.from_array(given[0])
    with pytest.raises(ValueError, match="residual must have the shape of x"):
        adapter.add_rms_norm(x, x[:1])
    with pytest.raises(ValueError, match="dy must have the shape of x"):
        adapter.rms_norm_backward(x[:, :1], x)


def test_docs_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), names)
