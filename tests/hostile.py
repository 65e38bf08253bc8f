"""Digest everything that fastrms computes, also after another library has set the FP state.

    python hostile.py FAST_MATH_OBJECT LIBM ROUNDING

loads the object, sets the rounding mode, and only then starts the pool's threads.
"""

import ctypes
import hashlib
import sys
import threading

import numpy as np

import fastrms

FLAGS = 0x3F  # MXCSR's exception flags; the other bits are its control bits
TINY = 5e-324  # the smallest float64


def _bits(low, high, seed):
    """Return floats with biased exponents in [low, high), from bits: no FP state affects them."""
    rng = np.random.default_rng(seed)
    magnitudes = rng.integers(low << 23, high << 23, (96, 70), dtype=np.uint32)
    signs = rng.integers(0, 2, magnitudes.shape, dtype=np.uint32) << 31
    return (magnitudes | signs).view(np.float32)


# Around 1; all finite numbers; subnormal ones, alone and among the smallest normal ones.
SPANS = ((118, 132), (0, 255), (0, 1), (0, 3))
INPUTS = [[_bits(*span, seed) for seed in (1, 2, 3)] for span in SPANS]
# Large enough, some 10 ms a call, that every worker wakes up and takes rows.
LONG = np.tile(_bits(0, 1, 4), (40, 10))


def digests():
    results = [
        result
        for x, dy, held in INPUTS
        for eps in (1e-5, 0.0, TINY)
        for result in _results(x, dy, held, eps)
    ]
    results += [fastrms.rms_norm(LONG, None, 0.0), *fastrms.rms_norm_backward(LONG, LONG, LONG[0])]
    return [hashlib.sha256(result.tobytes()).hexdigest() for result in results]


def _results(x, dy, held, eps):
    weight = held[0].copy()
    added, stream, out = held.copy(), held.copy(), held.copy()
    yield fastrms.rms_norm(x, None, eps)
    yield fastrms.rms_norm(x, weight, eps)
    yield fastrms.rms_norm(x[::-1, ::2], weight[::2], eps, weight_offset=TINY)
    yield fastrms.rms_norm(x, weight, eps, out=out, accumulate=True)
    yield from fastrms.rms_norm_backward(dy, x, weight, eps)
    yield from fastrms.rms_norm_backward(dy, x, weight, eps, weight_offset=1.0)
    yield from fastrms.rms_norm_backward(dy[:2], x[:2], weight, eps)
    yield fastrms.add_rms_norm(x, stream, weight, eps)
    yield stream
    yield fastrms.residual_add(x, added)
    yield fastrms.residual_add(x, added, 0.3)
    squares = fastrms.sum_squares(x)
    products = fastrms.sum_products(dy, x, weight, weight_offset=TINY)
    yield from (squares, products, fastrms.rms_scale(x, squares, 140, weight, eps))
    yield from fastrms.rms_scale_backward(dy, x, squares, products, 140, weight, eps)


def control(libm):
    """Return the control bits of this thread's MXCSR: the last word of glibc's x86-64 fenv_t."""
    environment = (ctypes.c_uint32 * 8)()
    libm.fegetenv(environment)
    return environment[7] & ~FLAGS


def main(fast_math_object, libm_name, rounding):
    """Print the control bits that the pool's threads inherit, and one digest of all results."""
    libm, born = ctypes.CDLL(libm_name), []
    ctypes.CDLL(fast_math_object)
    libm.fesetround(int(rounding))
    before = control(libm)
    fastrms._core.set_parallel_from(1)
    fastrms.set_num_threads(3)
    found = digests()
    worker = threading.Thread(target=lambda: born.append(control(libm)))
    worker.start()
    worker.join()
    assert [before, control(libm)] == born * 2, "a new thread inherits the state of its creator"
    print(before, hashlib.sha256("".join(found).encode()).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
