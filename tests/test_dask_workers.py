"""fastrms.dask on threads, in two worker processes, and on data larger than their memory."""

import os
import sys
import threading

import numpy as np
import pytest

REASON = 'not installed: python -m pip install "dask[array]" distributed "zarr>=3"'
dask = pytest.importorskip("dask", reason=REASON)
da = pytest.importorskip("dask.array", reason=REASON)
distributed = pytest.importorskip("distributed", reason=REASON)

import cloudpickle  # noqa: E402

import fastrms  # noqa: E402
import fastrms.dask as adapter  # noqa: E402
from fastrms import reference  # noqa: E402
from fastrms.check import FORWARD_ULP, ulps  # noqa: E402

MEMORY_LIMIT = 192 << 20  # of a worker, of which Python with dask takes 70 MB


@pytest.fixture(scope="module")
def client():
    # If both workers are lost the tests end with an error; without this they wait for ever.
    with dask.config.set({"distributed.scheduler.no-workers-timeout": 60}):
        cluster = distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            memory_limit=MEMORY_LIMIT,
            dashboard_address=":0",
        )
    # Workers cannot import this file when the tests run outside the checkout.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with cluster, distributed.Client(cluster) as client:
        yield client


def peak_memory():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


THREADS = """
import os, threading
import dask, dask.array as da, numpy as np
import fastrms, fastrms.dask as adapter

def foreign():
    return len(os.listdir("/proc/self/task")) - threading.active_count()

x = da.ones((4096, 2048), dtype=np.float32, chunks=(2048, columns))
lazy = [adapter.rms_norm(x), *adapter.rms_norm_backward(x, x, np.ones(2048, np.float32))]
before = foreign()
dask.compute(*lazy, scheduler="threads", num_workers=2)
dask.compute(*lazy, scheduler="sync")
print(foreign() - before, fastrms.get_num_threads())
fastrms.rms_norm(np.ones((2048, 2048), np.float32))
print(foreign() - before)
"""


@pytest.mark.parametrize("columns", [2048, 1024])
def test_a_task_starts_no_threads(python, columns):
    """A task on 3 threads would leave 2 native threads behind."""
    found = python(THREADS.replace("columns", str(columns)), FASTRMS_NUM_THREADS="3")
    assert found.stdout == "0 3\n2\n", found.stderr


@pytest.mark.parametrize("columns", [100, 30])
def test_two_worker_processes(client, draw, columns):
    x, dy, weight = draw(40, 100), draw(40, 100), draw(100)
    lazy_x, lazy_dy = (da.from_array(array, chunks=(7, columns)) for array in (x, dy))
    lazy = adapter.rms_norm(lazy_x, weight), *adapter.rms_norm_backward(lazy_dy, lazy_x, weight)
    results = client.gather(client.compute(lazy))
    # The sums have one order, whichever worker computes a block, and whenever it ends.
    here = dask.compute(*lazy, scheduler="sync")
    assert [array.tobytes() for array in results] == [array.tobytes() for array in here]


def foreign_threads():
    return len(os.listdir("/proc/self/task")) - threading.active_count()


def test_a_workers_task_starts_no_threads(client):
    client.run(fastrms.set_num_threads, 3)
    before = client.run(foreign_threads)
    x = da.ones((4096, 2048), dtype=np.float32, chunks=(2048, 2048))
    assert adapter.rms_norm(x, eps=0.0).min().compute() == 1
    assert client.run(foreign_threads) == before


@pytest.mark.parametrize("chunks", [(256, 4096), (512, 1500)], ids=str)
def test_larger_than_memory(client, tmp_path, chunks):
    """Normalise an array larger than the memory of both workers, from zarr to zarr."""
    pytest.importorskip("zarr", minversion="3", reason=REASON)
    shape, weight = (25 << 10, 4096), np.linspace(-2, 2, 4096, dtype=np.float32)
    normal = da.random.default_rng(0).standard_normal
    normal(shape, dtype=np.float32, chunks=chunks).to_zarr(tmp_path / "x", compressors=None)
    x = da.from_zarr(tmp_path / "x")
    assert x.chunksize == chunks
    workers = client.run(os.getpid)
    assert x.nbytes > MEMORY_LIMIT * len(workers)
    adapter.rms_norm(x, weight).to_zarr(tmp_path / "y", compressors=None)
    peaks = client.run(peak_memory)
    print(f"{x.nbytes >> 20} MiB in chunks of {chunks}: workers' peaks", end=" ")
    print(*(f"{peak >> 20} MiB" for peak in peaks.values()), f"of {MEMORY_LIMIT >> 20} MiB")
    assert max(peaks.values()) < MEMORY_LIMIT
    assert client.run(os.getpid) == workers  # none was killed for its memory and restarted
    y = da.from_zarr(tmp_path / "y")
    for row in range(0, shape[0], 1000):
        rows, found = x[row : row + 2].compute(), y[row : row + 2].compute()
        assert ulps(found, reference.rms_norm(rows, weight)) <= FORWARD_ULP
