"""fastrms.dask: the bits of one machine for any chunking of the rows, lazily, a task a block."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

REASON = 'dask is not installed: extra "fastrms[dask]"'
dask = pytest.importorskip("dask", reason=REASON)
da = pytest.importorskip("dask.array", reason=REASON)

import fastrms  # noqa: E402
import fastrms.dask as adapter  # noqa: E402

from .signatures import N  # noqa: E402

DOCS = Path(__file__).parent.parent / "docs" / "dask.md"
SHAPE = (7, 5, N)
CHUNKS = [(7, 5, N), (2, 3, N), (1, 1, N), ((3, 4), 5, N)]
OPTIONS = {"eps": 1e-3, "weight_offset": 1.0}


@pytest.fixture
def given(draw):
    return draw(*SHAPE), draw(*SHAPE), draw(*SHAPE), draw(N)


def lazily(weight, kind):
    return {"array": weight, "dask": da.from_array(weight, chunks=5), "none": None}[kind]


def exact_bits(lazy, array):
    """The array that a dask array promised, if it has the bits of `array`."""
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
    weights = lazily(weight, kind)
    weight = None if kind == "none" else weight
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
        # The library's bound for dweight, of each of the two.
        bound = 2e-6 * np.abs(dy * x * inv_rms).sum(axis=(0, 1))
        assert np.all(np.abs(dweight.compute() - wanted_dweight) <= bound)
    y, total = adapter.add_rms_norm(lazy[0], lazy[1], weights, **OPTIONS)
    wanted = fastrms.add_rms_norm(x, residual, weight, **OPTIONS)
    exact_bits(y, wanted)
    exact_bits(total, residual)


def test_chunks_of_two_arrays_need_not_fit(given):
    x, residual, dy, weight = given
    x, dy = da.from_array(x, chunks=(2, 5, N)), da.from_array(dy, chunks=(3, 2, N))
    dx, _ = adapter.rms_norm_backward(dy, x, weight)
    exact_bits(dx, fastrms.rms_norm_backward(given[2], given[0], weight)[0])
    y, _ = adapter.add_rms_norm(x, da.from_array(residual, chunks=(1, 5, N)), weight)
    exact_bits(y, fastrms.add_rms_norm(given[0], residual, weight))


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


def test_one_task_a_block(given):
    x, weight = da.from_array(given[0], chunks=(1, 1, N)), given[3]
    # For each of 35 blocks the slice of x and the norm of it.
    assert len(adapter.rms_norm(x, weight).__dask_graph__()) == 2 * 35


REFUSED = [
    (TypeError, "x must be a dask array, got ndarray", lambda x, w: (x.compute(), w)),
    (TypeError, "x must be native float32, got '<f8'", lambda x, w: (x.astype(float), w)),
    (TypeError, "weight must be native float32", lambda x, w: (x, w.astype(float))),
    (TypeError, "weight must be native float32", lambda x, w: (x, da.from_array(w.astype(int)))),
    (ValueError, rf"weight must have shape \({N},\)", lambda x, w: (x, w[1:])),
    (ValueError, rf"weight must have shape \({N},\)", lambda x, w: (x, da.from_array(w[1:]))),
    (ValueError, "eps must be zero or more", lambda x, w: (x, w, -1.0)),
    (ValueError, "x must have its last axis in one chunk, got 3", lambda x, w: (x.rechunk(5), w)),
    (ValueError, "x must have at least one axis, got a 0-d", lambda x, w: (x[0, 0, 0], w)),
]


@pytest.mark.parametrize(("error", "message", "change"), REFUSED)
def test_refused_when_the_graph_is_made(given, error, message, change):
    x = da.from_array(given[0], chunks=(2, 3, N))
    with pytest.raises(error, match=message):
        adapter.rms_norm(*change(x, given[3]))


def test_shapes_must_agree(given):
    x = da.from_array(given[0])
    with pytest.raises(ValueError, match="residual must have the shape of x"):
        adapter.add_rms_norm(x, x[:1])
    with pytest.raises(ValueError, match="dy must have the shape of x"):
        adapter.rms_norm_backward(x[:, :1], x)


def test_two_worker_processes(given):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    x, _, dy, weight = given
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster) as client:
        lazy, dy = (da.from_array(array, chunks=(2, 3, N)) for array in (x, dy))
        y, (dx, dweight) = (
            adapter.rms_norm(lazy, weight),
            adapter.rms_norm_backward(dy, lazy, weight),
        )
        results = client.gather(client.compute([y, dx, dweight]))
        # distributed sets OMP_NUM_THREADS for its workers: no pool of threads in each of them.
        assert set(client.run(fastrms.get_num_threads).values()) == {1}
    wanted = fastrms.rms_norm(x, weight), fastrms.rms_norm_backward(given[2], x, weight)[0]
    assert [array.tobytes() for array in results[:2]] == [array.tobytes() for array in wanted]
    one_machine = dask.compute(dweight, scheduler="sync")[0]
    assert results[2].tobytes() == one_machine.tobytes()


def test_docs_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), names)
