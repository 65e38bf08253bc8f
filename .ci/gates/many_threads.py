"""Do in eight threads at once, for ThreadSanitizer, all that is allowed: import fastrms, call every
function, the C interface too, on shared inputs, and read and change process-wide settings.
`many_threads.py planted` also changes one that must not change then.
"""

import hashlib
import sys
import threading
from importlib import import_module

import numpy as np

THREADS, ROUNDS = 8, 6
SHAPES = ((4, 64), (64, 4096), (160, 4096))  # on one thread; on threads awake; on threads woken
INPUTS = []
for shape in SHAPES:
    x, dy = np.random.default_rng(shape).standard_normal((2, *shape), dtype=np.float32)
    INPUTS.append((x, dy, x[0].copy()))
gate = threading.Barrier(THREADS)


def every_function(fastrms, x, dy, weight):
    """Return the results of every function."""
    gradients = fastrms.rms_norm_backward(dy, x, weight)
    squares, products = fastrms.sum_squares(x), fastrms.sum_products(dy, x, weight)
    scaled = fastrms.rms_scale(x, squares, x.shape[1], weight)
    split = fastrms.rms_scale_backward(dy, x, squares, products, x.shape[1], weight)
    stream, lanes = x.copy(), np.stack([x, dy], axis=1)  # interleaved without overlap
    normed = fastrms.add_rms_norm(dy, stream, weight)
    fastrms.residual_add(lanes[:, 0], lanes[:, 1])
    whole = fastrms.rms_norm(x, weight, 1e-5, weight_offset=1.0)
    from_c = np.empty_like(x)
    addresses = x.ctypes.data, x.shape[1], weight.ctypes.data, from_c.ctypes.data, x.shape[1]
    functions = import_module("fastrms.ctypes").functions
    assert functions.rms_norm(*addresses, *x.shape, 1e-5, 1.0, 0, 0) == 0
    return whole, *gradients, squares, products, scaled, *split, stream, normed, lanes, from_c


def settings(fastrms, number):
    """Read and change settings that calls in other threads read."""
    fastrms.set_num_threads(1 + number % 4)
    assert 1 <= fastrms.get_num_threads() <= 4
    fastrms.show_config("dicts")
    fastrms._core.limit_threads(1 + number % 3)
    if "planted" in sys.argv:
        fastrms._core.set_parallel_from(1 << 16)
    try:
        fastrms.rms_norm(INPUTS[0][0], out=INPUTS[1][0])
    except ValueError:
        return
    raise AssertionError("an output of another shape was not refused")


def work(number, found):
    gate.wait()
    fastrms = import_module("fastrms")
    digests = set()
    for turn in range(ROUNDS):
        settings(fastrms, number + turn)
        digest = hashlib.sha256()
        for inputs in INPUTS:
            for result in every_function(fastrms, *inputs):
                digest.update(result)
        digests.add(digest.hexdigest())
    found[number] = digests


found = {}
threads = [threading.Thread(target=work, args=(number, found)) for number in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == THREADS
assert len(set.union(*found.values())) == 1, found
print(f"{THREADS} threads, {ROUNDS} rounds of {len(SHAPES)} shapes: the same bits")
