"""Shared fixtures: instruction sets, thread counts, random data, checks that inputs are kept."""

import gc
import importlib.util
import os
import subprocess
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

CHECKOUT = Path(__file__).resolve().parents[1]

# `python -m pytest` puts the checkout on sys.path: drop it where its fastrms/ is not built.
if not list((CHECKOUT / "fastrms").glob("_core.*.so")):
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != CHECKOUT]

import fastrms  # noqa: E402
from fastrms import _core  # noqa: E402

from .dtypes import dtype_of  # noqa: E402
from .signatures import ARGUMENTS_OF, REQUIRED, ROWS, SUMS, N, beside  # noqa: E402

SEED = 20191016

gc.set_threshold(100_000, 20, 100)  # to collect garbage seldom saves an eighth of the suite's time

# The same examples each time, except in the soak. No deadline: the machine may be busy.
settings.register_profile(
    "suite",
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("ci", settings.get_profile("suite"), max_examples=4_000)
settings.register_profile(
    "soak", settings.get_profile("suite"), max_examples=200_000, derandomize=False, database=None
)
# Only whether a test fails matters here; shrinking the example would take minutes.
settings.register_profile("mutants", settings.get_profile("suite"), phases=[Phase.generate])
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """Run outside the checkout: `python -m` and `-c` import from the working folder first."""
    previous = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(previous)


@pytest.fixture(params=_core.available_isas())
def isa(request):
    """Run the test on each instruction set that this CPU has."""
    previous = _core.current()
    _core.use_isa(request.param)
    yield request.param
    _core.use_isa(previous)


@pytest.fixture(params=(1, 2, 3), ids="threads{}".format)
def threads(request):
    """Run the test with each number of threads, which share even the smallest call."""
    previous, size = fastrms.get_num_threads(), _core.set_parallel_from(1)
    fastrms.set_num_threads(request.param)
    yield request.param
    fastrms.set_num_threads(previous)
    _core.set_parallel_from(size)


@pytest.fixture
def restore():
    """Let threads share even the smallest call, and restore the settings that the test changes."""
    isa, count, size = _core.current(), fastrms.get_num_threads(), _core.set_parallel_from(1)
    yield
    _core.use_isa(isa)
    fastrms.set_num_threads(count)
    _core.set_parallel_from(size)


@pytest.fixture
def way(request, restore):
    """Run the test on one instruction set and 1, 2 or 3 threads, chosen by the test's name.

    Many cases share the ways out. That every way gives the same bits is tested by test_bits.py and
    by the golden digests.
    """
    isas, number = _core.available_isas(), zlib.crc32(request.node.name.encode())
    _core.use_isa(isas[number % len(isas)])
    fastrms.set_num_threads(1 + number // len(isas) % 3)


@pytest.fixture(scope="module")
def one_blas_thread():
    """Use one BLAS thread: several spin while another process, or worker, has one of their CPUs."""
    if importlib.util.find_spec("threadpoolctl") is None:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(SEED)


@pytest.fixture
def draw(rng):
    """Return a function from a shape to normal float32 values, different at each call."""
    return lambda *shape: rng.standard_normal(shape, dtype=np.float32)


@pytest.fixture
def arrays(rng, draw):
    """Return a function that makes valid arguments for a call, with every buffer passed."""

    def make(function, *shape):
        shape = shape or (ROWS, N)
        made = {name: draw(*beside(function, name, shape)) for name in ARGUMENTS_OF[function]}
        made |= {name: rng.uniform(1, 2, shape[:-1]) for name in SUMS[function]}
        if "size" in REQUIRED[function]:
            made["size"] = np.array(10 * shape[-1])  # an array, to be copied and watched too
        return made

    return make


@pytest.fixture
def snapshot():
    """Return a function that captures everything that a call could change in a buffer."""

    def take(array):
        if isinstance(array, np.ndarray):
            data = np.asarray(array)
            return data.shape, data.strides, data.dtype.str, data.tobytes()
        try:
            return memoryview(array).tobytes()
        except TypeError:  # a list, a number, None
            return repr(array)

    return take


@pytest.fixture
def unchanged(snapshot):
    """Return a context manager that asserts that its block changes none of these arrays."""

    @contextmanager
    def watch(*arrays):
        before = [snapshot(array) for array in arrays]
        yield
        assert [snapshot(array) for array in arrays] == before

    return watch


@pytest.fixture
def refused(unchanged):
    """Return a function that returns the message of a call's exception; no array changes."""

    def call(function, arguments, error):
        arrays = [value for value in arguments.values() if isinstance(value, np.ndarray)]
        with unchanged(*arrays), pytest.raises(error) as caught:
            getattr(fastrms, function)(**arguments)
        return str(caught.value)

    return call


@pytest.fixture(params=[False, True], ids=["without bfloat16", "with bfloat16"])
def bfloat16(request):
    """Run the test on mixes of dtypes with bfloat16, if ml_dtypes is there, and without."""
    if request.param:
        dtype_of("bfloat16")  # or skip
    return request.param


@pytest.fixture
def python(tmp_path):
    """Return a function that runs code in a fresh interpreter, away from the checkout."""
    inherited = {name: value for name, value in os.environ.items() if not _configures(name)}

    def run(code, **environment):
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**inherited, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def _configures(variable):
    return variable.startswith(("FASTRMS_", "OMP_", "GOMP_", "PYTHONWARNINGS"))
