"""The pool's workers: some that a call does not need, one that a real-time caller waits for, one
whose memory access faults. Each test runs in its own process, with a fresh pool.
"""

import os
import signal
import sys
from pathlib import Path

import pytest

from fastrms import _core

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not _core.build_info()["pool"], reason="there is no pool"
)

UNWANTED = """
import os
import numpy as np
import fastrms

def ran():
    return {t: int(open(f"/proc/self/task/{t}/schedstat").read().split()[0]) for t in tasks()}

def tasks():
    return os.listdir("/proc/self/task")

x, others, spent = np.ones((512, 4096), np.float32), {*tasks()}, {}
out = np.empty_like(x)
for threads, calls in [(8, 20), (2, 100)] * 3:
    fastrms.set_num_threads(threads)
    before = ran()
    for _ in range(calls):
        fastrms.rms_norm(x, out=out)
    if threads == 2:
        after = ran()
        spent = {t: spent.get(t, 0) + after[t] - before[t] for t in {*after} - others}
print(*sorted(spent.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel has no schedstat")
def test_unwanted_workers_sleep(python):
    """In 300 calls on two threads, six of seven workers have nothing to do."""
    *unwanted, _ = map(int, python(UNWANTED).stdout.split())
    assert len(unwanted) == 6
    assert max(unwanted) < 5e6  # ns


# Caller and worker share one CPU. The caller becomes a real-time thread while the worker is, nearly
# always, within an item; it runs all other items itself and must wait for that one.
REAL_TIME = """
import os, threading, time
import numpy as np
import fastrms
x = np.zeros((4096, 4096), np.float32)
out, cpus, thread = x.copy(), os.sched_getaffinity(0), threading.get_native_id()
fastrms.set_num_threads(2)
os.sched_setaffinity(0, {min(cpus)})
for _ in range(3):
    fastrms.rms_norm(x, out=out)

def promote():
    os.sched_setaffinity(0, cpus - {min(cpus)})
    ready.set()
    time.sleep(0.012)
    os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(1))

for _ in range(8):
    ready, other = threading.Event(), threading.Thread(target=promote)
    other.start()
    ready.wait()
    start = time.perf_counter()
    fastrms.rms_norm(x, out=out)
    print(time.perf_counter() - start)
    other.join()
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
"""


@pytest.mark.skipif(sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="one CPU")
def test_real_time_caller_lets_a_worker_finish(python):
    """If it only yielded, it would wait for the 50 ms a second that the kernel leaves to others."""
    result = python(REAL_TIME)
    if "PermissionError" in result.stderr:
        pytest.skip("may not make a real-time thread")
    assert max(map(float, result.stdout.split())) < 0.5


TRUNCATED = """
import faulthandler, os
import numpy as np
import fastrms
faulthandler.enable()
x = np.memmap("x", np.float32, "w+", shape=(1024, 4096))
out = np.empty_like(x)
fastrms.set_num_threads(2)
for _ in range(20):  # wakes the worker, which begins with the last rows
    fastrms.rms_norm(x, out=out)
os.truncate("x", x.nbytes - 4096)
fastrms.rms_norm(x, out=out)
"""


def test_fault_in_a_worker_reaches_its_handler(python):
    result = python(TRUNCATED)
    assert result.returncode == -signal.SIGBUS
    assert "Bus error" in result.stderr
    assert "<module>" in result.stderr
