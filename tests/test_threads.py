"""Threads, forked processes, settings from the environment; the compiled extension is required."""

import importlib.machinery
import json
import shutil
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastrms
from fastrms import _core

from .signatures import FUNCTIONS, SUMS

LARGE = (2048, 2048)
needs_pool = pytest.mark.skipif(
    not _core.build_info()["pool"], reason="there is no pool: every call is serial"
)


# float32 for every function, and one function each of float64 and of staged rows.
IN_DTYPES = [(function, "float32") for function in FUNCTIONS]
IN_DTYPES += [("rms_norm_backward", "float64"), ("add_rms_norm", "mixed")]


def _in(dtype, arguments):
    """Return arguments in this dtype; "mixed" is float16 x with float32 for the rest."""
    if dtype == "float32":
        return arguments
    dtypes = {"x": "float16"} if dtype == "mixed" else dict.fromkeys(arguments, dtype)
    return {name: value.astype(dtypes.get(name, value.dtype)) for name, value in arguments.items()}


def _everything(x, dy, weight):
    """Return the bytes of a forward and a backward call."""
    results = fastrms.rms_norm(x, weight), *fastrms.rms_norm_backward(dy, x, weight)
    return b"".join(result.tobytes() for result in results)


# The compiled kernels, and no silent substitute.


@pytest.mark.parametrize("name", [*FUNCTIONS, "set_num_threads", "get_num_threads"])
def test_functions_are_compiled(name):
    function = getattr(fastrms, name)
    assert not isinstance(function, types.FunctionType)
    assert function.__module__ == "fastrms._core"
    assert function is getattr(_core, name)


def test_extension_is_a_shared_object():
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    assert _core.__file__.endswith(suffixes)


def test_import_fails_without_the_extension(python, tmp_path):
    package = Path(fastrms.__file__).parent
    shutil.copytree(package, tmp_path / "fastrms", ignore=shutil.ignore_patterns("*.so", "*.pyd"))
    # An editable install has a finder of its own, which would find the checkout's extension.
    finders = "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in repr(f)]"
    result = python(f"{finders}; import fastrms")
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith(("ImportError", "ModuleNotFoundError"))
    assert "compiled extension" in message
    assert "circular" not in message


# FASTRMS_ISA and the switch.


@pytest.mark.parametrize("name", _core.available_isas())
def test_isa_from_the_environment(python, name):
    result = python("import fastrms._core as c; print(c.current())", FASTRMS_ISA=name)
    assert result.stdout.strip() == name


def test_fastest_isa_by_default(python):
    result = python("import fastrms._core as c; print(c.current())")
    assert result.stdout.strip() == _core.preferred_isa()
    isas = _core.available_isas()
    assert _core.preferred_isa() in (isas[-1], "+".join(isas[-2:]))  # the latter on Zen 4


def test_baseline_is_always_there():
    assert "baseline" in _core.available_isas()


def test_unknown_isa_from_the_environment(python):
    result = python("import fastrms", FASTRMS_ISA="sse9")
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: FASTRMS_ISA")
    assert all(word in message for word in ("sse9", *_core.available_isas()))


@pytest.mark.parametrize("name", ["sse9", "", "V3", "baseline ", "+baseline", "baseline+"])
def test_switch_to_an_unknown_isa(restore, name):
    before = _core.current()
    with pytest.raises(ImportError, match=", ".join(_core.available_isas())):
        _core.use_isa(name)
    assert _core.current() == before


# How many threads.


@needs_pool
@pytest.mark.parametrize("count", [1, 2, 3, 17, 1024])
def test_set_and_get(restore, count):
    assert fastrms.set_num_threads(count) is None
    assert fastrms.get_num_threads() == count


@pytest.mark.parametrize(
    ("bad", "error"),
    [(0, ValueError), (-1, ValueError), (1025, ValueError), (10**30, ValueError)]
    + [(bad, TypeError) for bad in (1.0, "2", None, [1], np.float32(2))],
)
def test_bad_number_of_threads(restore, bad, error):
    before = fastrms.get_num_threads()
    with pytest.raises(error, match=r"\bn\b"):
        fastrms.set_num_threads(bad)
    assert fastrms.get_num_threads() == before


@needs_pool
def test_limit_of_one_thread_of_python(restore):
    """An adapter whose engine runs calls in parallel limits those calls, and no others."""
    fastrms.set_num_threads(3)
    found = []
    other = threading.Thread(target=lambda: found.append(fastrms.get_num_threads()))
    before = _core.limit_threads(2)
    try:
        assert fastrms.get_num_threads() == 2
        other.start()
        other.join()
        assert found == [3]
        fastrms.set_num_threads(1)
        assert fastrms.get_num_threads() == 1
    finally:
        assert _core.limit_threads(before) == 2
    fastrms.set_num_threads(3)
    assert fastrms.get_num_threads() == 3


def test_number_of_any_integer_type(restore):
    fastrms.set_num_threads(np.int64(2))
    assert fastrms.get_num_threads() == 2


@needs_pool
@pytest.mark.parametrize(("function", "dtype"), IN_DTYPES)
def test_workers_take_part(restore, arrays, function, dtype):
    """A call waits for no worker to start, so only a worker's CPU time shows that it took part."""
    fastrms.set_num_threads(2)
    call, arguments = getattr(fastrms, function), _in(dtype, arrays(function, *LARGE))
    assert _workers_take_part(lambda: call(**arguments))


@needs_pool
@pytest.mark.parametrize("rows", [2, 3, 8])
def test_workers_take_part_in_long_rows(restore, draw, rows):
    """A row may be longer than a piece, after which a call checks for signals."""
    fastrms.set_num_threads(2)
    row = draw((1 << 23) + 1)
    x, short = np.broadcast_to(row, (rows, len(row))), draw(rows, 1 << 19)
    assert _workers_take_part(lambda: fastrms.sum_squares(x))
    assert _workers_take_part(lambda: fastrms.rms_norm_backward(short, short))


def _workers_take_part(call):
    def time_of_others():
        before = time.process_time() - time.thread_time()
        for _ in range(20):
            call()
        return time.process_time() - time.thread_time() - before

    # 20 calls of about 1 ms, in each of which a worker without work spins for 0.02 ms. A busy
    # machine, where a worker may wait for a CPU for seconds, gets more tries.
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if time_of_others() > 0.004:
            return True
    return False


# Processes and threads of the caller.

FORK = """
import os, signal, sys
import numpy as np
import fastrms
fastrms._core.set_parallel_from(1)
x = np.random.default_rng(0).standard_normal({shape}, dtype=np.float32)
fastrms.set_num_threads(3)
before = fastrms.rms_norm(x)
child = os.fork()
if child == 0:
    signal.alarm(30)  # a pool that did not survive the fork hangs for ever
    fastrms.set_num_threads(3)
    dx, dweight = fastrms.rms_norm_backward(x, x, x[0])
    same = fastrms.rms_norm(x).tobytes() == before.tobytes()
    os._exit(not same or fastrms.get_num_threads() != 1)
_, status = os.waitpid(child, 0)
after = fastrms.rms_norm(x)  # the parent's pool still works
sys.exit(status != 0 or after.tobytes() != before.tobytes() or fastrms.get_num_threads() != 3)
"""


@needs_pool
@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_forked_child(python):
    result = python(FORK.format(shape=LARGE))
    assert result.returncode == 0, result.stderr


def test_calls_from_two_threads(threads, draw):
    """Calls that write different memory do not disturb each other, whatever they read."""
    x, weight = draw(500, 513), draw(513)
    gradients = [draw(500, 513) for _ in range(4)]
    alone = [_everything(x, dy, weight) for dy in gradients]
    with ThreadPoolExecutor(len(gradients)) as pool:
        for _ in range(5):
            together = pool.map(lambda dy: _everything(x, dy, weight), gradients)
            assert list(together) == alone


def test_calls_from_two_threads_in_other_dtypes(threads, draw):
    """A float64 call and mixed calls at a time, each with scratch of its own."""
    x, dy, weight = draw(500, 513), draw(500, 513), draw(513)
    kinds = [("f8", "f8", "f8"), ("f2", "f4", "f4"), ("f2", "f2", "f8"), ("f4", "f8", "f2")]
    calls = [[a.astype(k) for a, k in zip((x, dy, weight), kind, strict=True)] for kind in kinds]
    alone = [_everything(*call) for call in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        for _ in range(5):
            assert list(pool.map(lambda call: _everything(*call), calls)) == alone


@pytest.fixture
def no_forced_switch():
    """Let a thread lose the GIL only where it releases it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(interval)


# Not those with sums: NumPy itself releases the GIL in the np.zeros that they call.
@pytest.mark.parametrize(("function", "dtype"), [c for c in IN_DTYPES if not SUMS[c[0]]])
def test_gil_is_released(no_forced_switch, restore, arrays, function, dtype):
    """Another Python thread makes progress while one large call runs."""
    fastrms.set_num_threads(1)
    arguments = _in(dtype, arrays(function, *LARGE))
    ticks, done = [0], threading.Event()

    def count():
        while not done.wait(1e-4):
            ticks[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    try:
        call = getattr(fastrms, function)
        before = ticks[0]
        for _ in range(50):  # a busy machine gets more tries
            call(**arguments)
            if ticks[0] > before:
                break
        after = ticks[0]
    finally:
        done.set()
        counter.join()
    assert after > before


# show_config and the public names.


def test_show_config_prints(capsys):
    assert fastrms.show_config() is None
    printed = capsys.readouterr().out
    assert fastrms.__version__ in printed
    assert all(isa in printed for isa in _core.current().split("+"))
    assert fastrms.show_config("stdout") is None
    assert capsys.readouterr().out == printed


def test_show_config_dicts(capsys, isa, threads):
    config = fastrms.show_config(mode="dicts")
    assert capsys.readouterr().out == ""
    assert json.loads(json.dumps(config)) == config
    values = [value for section in config.values() for value in section.values()]
    for value in (fastrms.__version__, np.__version__, isa, fastrms.get_num_threads()):
        assert value in values
    if isa != "baseline":
        assert config["instruction set"]["vectors"] == f"of {8 if isa == 'v3' else 16} floats"


@pytest.mark.parametrize("bad", ["json", "", None, 1])
def test_show_config_bad_mode(capsys, bad):
    with pytest.raises(ValueError, match="mode"):
        fastrms.show_config(bad)
    assert capsys.readouterr().out == ""


def test_public_names():
    for name in fastrms.__all__:
        assert hasattr(fastrms, name)
    assert {*FUNCTIONS, "set_num_threads", "get_num_threads", "show_config", "reference"} <= set(
        fastrms.__all__
    )
