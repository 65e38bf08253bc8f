"""Time a norm on one thread and on two, beside the caller's other work: python bench/beside.py

Calls in a row find the second thread awake, calls after a pause must wake it, and between NumPy's
matmuls it competes with the BLAS threads for the CPUs. The figures are medians in us.
"""

import argparse
import time
from functools import partial
from statistics import median

import numpy as np

import fastrms

SHAPES = ((16, 4096), (512, 576), (64, 11008), (512, 4096))
MATMULS = (256, 512)
CALLS = 40


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matmul(n):
    square = np.full((n, n), 0.5, np.float32)
    return partial(np.matmul, square, square, out=np.empty_like(square))


def measure(norm, rounds):
    """Return {(pattern, threads): (seconds of the norm, seconds of what came after it)}."""
    patterns = {"in a row": None, "after 1 ms": partial(time.sleep, 1e-3)}
    patterns |= {f"beside {n} x {n}": matmul(n) for n in MATMULS}
    found = {(pattern, threads): [] for pattern in patterns for threads in (1, 2)}
    for _ in range(rounds):
        for pattern, threads in found:
            fastrms.set_num_threads(threads)
            after = patterns[pattern]
            for _ in range(CALLS):
                found[pattern, threads].append((seconds(norm), seconds(after) if after else 0))
    return {key: [median(column) for column in np.transpose(found[key])] for key in found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    print("     norm of                 1 thread  2 threads;  the matmul then")
    for rows, n in SHAPES:
        x = np.random.default_rng(0).standard_normal((rows, n), dtype=np.float32)
        weight, out = np.ones(n, np.float32), np.empty_like(x)
        times = measure(partial(fastrms.rms_norm, x, weight, out=out), args.rounds)
        for pattern, threads in times:
            if threads == 1:
                both = times[pattern, 1], times[pattern, 2]
                norms, matmuls = (np.multiply(pair, 1e6) for pair in zip(*both, strict=True))
                line = f"{rows:>4} x {n:<6} {pattern:<17}{norms[0]:>6.0f}{norms[1]:>11.0f}"
                print(line + f"{matmuls[0]:>11.0f}{matmuls[1]:>8.0f}" * ("x" in pattern))
