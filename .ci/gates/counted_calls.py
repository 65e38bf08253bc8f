"""Call each kernel under callgrind, which writes its count after every call. instructions.py runs
this: counted_calls.py COUNTER, the compiled counter.c.
"""

import ctypes
import sys

import numpy as np

import fastrms

LENGTHS = (64, 100, 576, 4096)
# The difference is the cost of 64 rows, without the call's own. A block has 32 rows.
ROWS = (32, 96)


def calls(rows, n):
    x, other, out = np.random.default_rng(0).standard_normal((3, rows, n), dtype=np.float32)
    weight, dweight = np.ones((2, n), np.float32)
    return {
        "forward": lambda: fastrms.rms_norm(x, weight, out=out),
        "add + norm": lambda: fastrms.add_rms_norm(x, other, weight, out=out),
        "backward": lambda: fastrms.rms_norm_backward(other, x, weight, dx=out, dweight=dweight),
        "residual add": lambda: fastrms.residual_add(x, other),
    }


def count(counter, call, what):
    call()  # does the work that only a first call has
    counter.start()
    call()
    counter.stop(what)


if __name__ == "__main__":
    counter = ctypes.CDLL(sys.argv[1])
    count(counter, lambda: None, b"nothing")
    for n in LENGTHS:
        for rows in ROWS:
            for kernel, call in calls(rows, n).items():
                count(counter, call, f"{kernel}, {n}, {rows}".encode())
    for kernel, call in calls(1, 64).items():
        count(counter, call, f"{kernel}, 64, 1".encode())
