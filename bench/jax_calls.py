"""Time fastrms.jax against jax's own jitted formula: the table of docs/jax.md.

Both take turns in one process, and the best round of each counts. A gradient is dx and dweight for
given x, weight and dy, compiled into one program. The summand, x forward and dtotal backward, is
computed in the program, as a layer's output is. JAX returns new arrays: run this with
MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=9999999999, or page faults dominate the large shapes.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import fastrms.jax

SHAPES = (1, 64), (1, 4096), (16, 4096), (512, 576), (65536, 128), (512, 4096), (4096, 4096)


def formula(x, weight, eps=1e-5):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def add_formula(x, residual, weight):
    total = residual + x
    return formula(total, weight), total


def gradient(norm, x, weight, dy):
    return jax.vjp(norm, x, weight)[1](dy)


def after_layer(add, x, residual, weight):
    return add(2 * x, residual, weight)


def add_gradient(add, x, residual, weight, dy):
    return jax.vjp(add, x, residual, weight)[1]((dy, 2 * dy))


def cases(rows, n):
    """Yield for each column the two functions and their arguments."""
    rng = np.random.default_rng(0)
    x, residual, dy = (jnp.asarray(rng.standard_normal((rows, n), "f")) for _ in range(3))
    weight = jnp.asarray(rng.standard_normal(n, "f"))
    ours, theirs = (fastrms.jax.rms_norm, fastrms.jax.add_rms_norm), (formula, add_formula)
    yield ours[0], theirs[0], (x, weight)
    yield *(partial(after_layer, f[1]) for f in (ours, theirs)), (x, residual, weight)
    yield *(partial(gradient, f[0]) for f in (ours, theirs)), (x, weight, dy)
    yield *(partial(add_gradient, f[1]) for f in (ours, theirs)), (x, residual, weight, dy)


def best(functions, arguments, seconds):
    """Return the best time of each function, in seconds."""
    functions = [jax.jit(function) for function in functions]
    results = [[np.inf], [np.inf]]
    for function in functions:
        jax.block_until_ready(function(*arguments))
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(results[0]) < 10:
        for function, times in zip(functions, results, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            times.append(time.perf_counter() - start)
    return [min(times) for times in results]


def cell(ours, theirs):
    """Return both times, and the ratio of the formula's to fastrms.jax's, as text."""
    unit, scale = ("ms", 1e3) if theirs > 1e-3 else ("us", 1e6)
    return f"{ours * scale:.3g}, {theirs * scale:.3g} {unit}: {theirs / ours:.2g}x"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2, help="for each cell")
    seconds = parser.parse_args().seconds
    print(f"jax {jax.__version__}, {fastrms.get_num_threads()} threads\n")
    print("| rows x n | norm | add + norm | gradient of norm | gradient of add + norm |")
    print("|---|---|---|---|---|")
    for rows, n in SHAPES:
        cells = [cell(*best(two, given, seconds)) for *two, given in cases(rows, n)]
        print(f"| {rows} x {n} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
