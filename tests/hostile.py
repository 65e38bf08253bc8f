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
HALVES = [[(a.view(np.uint32) >> 16).astype(np.uint16).view("f2") for a in i] for i in INPUTS]


def _doubles(low, high, seed):
    """Return the same as _bits in float64: exponents in [low, high) of 2047."""
    rng = np.random.default_rng(seed)
    magnitudes = rng.integers(low << 52, high << 52, (96, 70), dtype=np.uint64)
    signs = rng.integers(0, 2, magnitudes.shape, dtype=np.uint64) << np.uint64(63)
    return (magnitudes | signs).view(np.float64)


# Around 1; all finite numbers; subnormal in float64; subnormal or inexact once they are float32.
DOUBLES = [
    [_doubles(*span, seed) for seed in (1, 2, 3)]
    for span in ((1014, 1028), (0, 2047), (0, 2), (867, 900))
]
# Large enough, some 10 ms a call, that every worker wakes up and takes rows.
LONG = np.tile(_bits(0, 1, 4), (40, 10))


def digests():
    results = [
        result
        for x, dy, held in INPUTS
        for eps in (1e-5, 0.0, TINY)
        for result in _results(x, dy, held, eps)
    ]
    for mixed in zip(INPUTS, HALVES, DOUBLES, strict=True):
        results += _mixed_results(*mixed)
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


def _mixed_results(single, half, double):
    """Yield results of float64 calls, and of mixed calls: all conversions, and of weights too."""
    (x, _, held), (x16, dy16, held16), (x64, dy64, held64) = single, half, double
    for weight in (held[0], held16[0], held64[0]):
        yield fastrms.rms_norm(x64, weight, 0.0)
        yield fastrms.rms_norm(x16[::-1, ::2], weight[::2], 0.0, weight_offset=TINY)
        yield fastrms.rms_norm(x, weight, out=held16.copy())
        yield from fastrms.rms_norm_backward(dy64, x64, weight, 0.0)
        yield from fastrms.rms_norm_backward(dy16, x, weight, 0.0, dweight=weight.copy())
        yield from fastrms.rms_norm_backward(dy64[:2], x16[:2], weight)
    for added, residual in ((x64, held64), (x64, held16), (x16, held), (x16, held16), (x, held64)):
        stream = residual.copy()
        yield fastrms.add_rms_norm(added, stream, held64[0], 0.0, scale=0.3)
        yield fastrms.residual_add(added, stream)
        yield fastrms.sum_squares(added)
    squares, products = fastrms.sum_squares(x64), fastrms.sum_products(dy16, x64, held64[0])
    yield from fastrms.rms_scale_backward(dy16, x64, squares, products, 140, held64[0])


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
