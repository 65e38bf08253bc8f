"""Forked processes, and calls from several threads."""

import multiprocessing
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastrms

unix = pytest.mark.skipif(sys.platform == "win32", reason="no fork there")

FORKS = """
import os, signal, threading, warnings
import numpy as np
import fastrms
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, about forks beside threads
fastrms._core.set_parallel_from(1)
fastrms.set_num_threads(3)
x = np.random.default_rng(0).standard_normal((300, 500), dtype=np.float32)
expected = [a.tobytes() for a in (fastrms.rms_norm(x), *fastrms.rms_norm_backward(x, x, x[0]))]
stop = threading.Event()
def work():
    while not stop.is_set():
        fastrms.rms_norm_backward(x, x, x[0])
        fastrms.rms_norm(x)
worker = threading.Thread(target=work)
worker.start()
failed = 0
for _ in range(200):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that hangs
        found = [a.tobytes() for a in (fastrms.rms_norm(x), *fastrms.rms_norm_backward(x, x, x[0]))]
        os._exit(found != expected or fastrms.get_num_threads() != 1)
    failed += os.waitpid(child, 0)[1] != 0
stop.set()
worker.join()
print(failed)
"""


@unix
def test_forks_while_another_thread_is_inside_a_call(python):
    result = python(FORKS)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "0"


MULTIPROCESSING = """
import multiprocessing, warnings
import numpy as np
import fastrms
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, about forks beside threads
def results(seed):
    fastrms._core.set_parallel_from(1)
    x = np.random.default_rng(seed).standard_normal((300, 500), dtype=np.float32)
    dx, dweight = fastrms.rms_norm_backward(x, x, x[0])
    return b"".join(a.tobytes() for a in (fastrms.rms_norm(x), dx, dweight))
if __name__ == "__main__":
    expected = [results(seed) for seed in range(4)]
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        assert pool.map(results, range(4)) == expected
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(python, tmp_path, method):
    script = tmp_path / "main.py"
    script.write_text(MULTIPROCESSING.format(method=method))
    result = python(f"import runpy; runpy.run_path({str(script)!r}, None, '__main__')")
    assert result.returncode == 0, result.stderr


def test_eight_threads_and_shared_inputs(draw):
    """Each thread makes 10,000 calls, which share every input and no output."""
    x, dy, weight = draw(3, 200), draw(3, 200), draw(200)
    y = fastrms.rms_norm(x, weight)
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight)
    stream = x + dy

    def work(_):
        out, residual = np.empty_like(x), np.empty_like(x)
        wrong = 0
        for _ in range(2500):
            fastrms.rms_norm(x, weight, out=out)
            wrong += out.tobytes() != y.tobytes()
            residual[...] = x
            fastrms.residual_add(dy, residual)
            wrong += residual.tobytes() != stream.tobytes()
            found = fastrms.rms_norm_backward(dy, x, weight, dx=out)
            wrong += [a.tobytes() for a in found] != expected
            fastrms.add_rms_norm(x, residual, weight, out=out)
            wrong += [out.tobytes(), residual.tobytes()] != twice
        return wrong

    expected = [dx.tobytes(), dweight.tobytes()]
    twice = [fastrms.rms_norm(stream + x, weight).tobytes(), (stream + x).tobytes()]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [0] * 8


def test_thread_with_a_small_stack(isa, draw):
    """64 KiB are enough for a call of every function; Python's minimum is 32."""
    x, dy, weight = draw(600, 700), draw(600, 700), draw(700)
    expected = fastrms.rms_norm(x, weight).tobytes()
    gradients = [a.tobytes() for a in fastrms.rms_norm_backward(dy, x, weight)]
    found = []

    def work():
        found.append(fastrms.rms_norm(x, weight).tobytes())
        found.extend(a.tobytes() for a in fastrms.rms_norm_backward(dy, x, weight))
        found.append(fastrms.add_rms_norm(x, np.zeros_like(x), weight).tobytes())
        fastrms.residual_add(x[:, ::-1], dy, 0.5)
        with pytest.raises(ValueError, match="eps"):
            fastrms.rms_norm(x, weight, -1)

    previous = threading.stack_size(64 << 10)
    try:
        thread = threading.Thread(target=work)
        thread.start()
    finally:
        threading.stack_size(previous)
    thread.join()
    assert found == [expected, *gradients, expected]
