"""Out of memory, a call raises MemoryError, changes nothing and leaks nothing."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import fastrms
from fastrms import _core

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def failing_malloc(tmp_path_factory):
    if not shutil.which("gcc") or sys.platform != "linux":
        pytest.skip("needs gcc and LD_PRELOAD, to make malloc fail")
    built = tmp_path_factory.mktemp("malloc") / "failing_malloc.so"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-fno-builtin", HERE / "failing_malloc.c"]
    subprocess.run([*command, "-o", built], check=True)
    return built


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="free-threaded Python always uses its own allocator, no malloc that could fail",
)
def test_every_allocation_fails_in_turn(failing_malloc):
    command = [sys.executable, HERE / "out_of_memory.py", _core.current()]
    environment = {**os.environ, "LD_PRELOAD": str(failing_malloc), "PYTHONMALLOC": "malloc"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[0]) > 100


def test_more_memory_than_there_is(draw):
    """The error is NumPy's own, and says how much was requested."""
    x = np.broadcast_to(draw(1), (1 << 50, 4))
    calls = [fastrms.rms_norm, fastrms.sum_squares, lambda x: fastrms.rms_norm_backward(x, x)]
    for call in calls:
        with pytest.raises(MemoryError, match="Unable to allocate"):
            call(x)


WITHOUT_WORKERS = """
import os, resource
import numpy as np
import fastrms
x = np.random.default_rng(0).standard_normal((1000, 1000), dtype=np.float32)
out, expected = np.empty_like(x), fastrms.reference.rms_norm(x)
threads = os.listdir("/proc/self/task")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
fastrms.set_num_threads(3)
fastrms.rms_norm(x, out=out)  # a thread's stack takes 8 MiB
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert os.listdir("/proc/self/task") == threads
np.testing.assert_allclose(out, expected, rtol=1e-6)
fastrms.rms_norm(x, out=out)
assert len(os.listdir("/proc/self/task")) == len(threads) + 2
"""


@pytest.mark.skipif(not _core.build_info()["pool"], reason="there is no pool")
def test_no_memory_for_a_worker(python):
    """If no thread can be started, the caller does all the work."""
    result = python(WITHOUT_WORKERS)
    assert result.returncode == 0, result.stderr
