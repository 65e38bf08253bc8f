#!/usr/bin/env python3
"""Check calls on more than 2**31 elements, more than 2**31 rows and rows more than 2**31 bytes
apart, in less than 300 MB.

A large array is one tile of memory, mapped repeatedly. The tile's size divides no power of two, so
an offset cut to 32 bits lands elsewhere. In the outputs the landmarks (the first rows, those about
2**31, the last) have memory of their own, which must hold what a call on these rows alone gives.
"""

import os
import sys
import time
from contextlib import ExitStack

import numpy as np
from tiled import PAGE, Region, memory

import fastrms

FULL = os.environ.get("FULL") == "1"
FLOATS = PAGE // 4
TILE = 1021 * PAGE
BEYOND = 3 << 24  # elements after 2**31: more than a piece, so that pieces begin there too
MOST_BYTES = 300 << 20
FUNCTIONS = ("rms_norm", "residual_add", "add_rms_norm", "rms_norm_backward")
SPLIT = "the functions of a split axis"  # called in turn


def normal(size, seed):
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def call(function, x, other, first, second, weight):
    """Call with the inputs x and other, the outputs first and second; return dweight, or None."""
    if function == "rms_norm":
        fastrms.rms_norm(x, weight, out=first)
    elif function == "residual_add":
        fastrms.residual_add(x, first)
    elif function == "add_rms_norm":
        fastrms.add_rms_norm(x, first, weight, out=second)
    elif function == SPLIT:
        sums = fastrms.sum_squares(x), fastrms.sum_products(other, x, weight)
        fastrms.rms_scale(x, sums[0], x.shape[1], weight, out=first)
        return fastrms.rms_scale_backward(other, x, *sums, x.shape[1], weight, dx=second)[1]
    else:
        return fastrms.rms_norm_backward(other, x, weight, dx=first)[1]
    return None


def alone(function, arrays, rows, weight):
    """Return what the outputs hold after a call on copies of some rows."""
    few = [array[rows].copy() for array in arrays]
    call(function, *few, weight)
    return few[2:]


def large(stack, rows, n, landmarks):
    """Return x, dy and two outputs of shape (rows, n), and fill their tiles and landmarks."""
    arrays = []
    for seed in range(4):
        region = stack.enter_context(Region(rows * n * 4))
        region.tile(TILE)
        if seed >= 2:
            for first in landmarks:
                region.place(first * PAGE, 2 * PAGE)
        floats = region.floats()
        floats[: TILE // 4] = normal(TILE // 4, seed)
        for first in landmarks:
            floats[first * FLOATS :][: 2 * FLOATS] = normal(2 * FLOATS, seed)
        arrays.append(floats[: rows * n].reshape(rows, n))
    return arrays


def many(rows, n, functions):
    """Call on (rows, n) and compare at the landmarks; return how many comparisons failed."""
    wrong, weight = 0, normal(n, 9)
    pages = rows * n // FLOATS
    landmarks = [0, (1 << 31) // FLOATS - 1, pages - 2]
    for function in functions:
        with ExitStack() as stack:
            started, arrays = time.perf_counter(), large(stack, rows, n, landmarks)
            places = [slice(f * FLOATS // n, (f + 2) * FLOATS // n) for f in landmarks]
            expected = [alone(function, arrays, place, weight) for place in places]
            dweight = call(function, *arrays, weight)
            for place, results in zip(places, expected, strict=True):
                for array, result in zip(arrays[2:], results, strict=True):
                    wrong += array[place].tobytes() != result.tobytes()
            if dweight is not None:
                wrong += not dweight_is_right(dweight, *arrays[:2], weight)
            report(f"{function} of {rows} x {n}", wrong, started)
    return wrong


def dweight_is_right(dweight, x, dy, weight):
    """Return whether dweight is a tile's, times the tiles, plus that of the rows beyond."""
    tile = TILE // 4 // len(weight)
    times, rest = divmod(len(x), tile)
    parts = [fastrms.rms_norm_backward(dy[:k], x[:k], weight)[1] for k in (tile, rest)]
    exact = times * parts[0].astype(float) + (parts[1] if rest else 0)
    sizes = np.abs(dy[:tile] * fastrms.rms_norm(x[:tile])).sum(axis=0, dtype=float) * (times + 1)
    return bool(np.all(np.abs(dweight - exact) <= 2e-6 * sizes))  # 1e-6 on either side


def far_apart(n=3000):
    """Call on rows more than 2**31 bytes apart, in both orders; return how many are wrong."""
    stride, count, wrong = (1 << 31) + PAGE, 5, 0
    weight = normal(n, 9)
    for function in (*FUNCTIONS, SPLIT):
        for turn in (1, -1):
            with ExitStack() as stack:
                started, arrays = time.perf_counter(), []
                for seed in range(4):
                    region = stack.enter_context(Region(stride * count))
                    for row in range(count):
                        region.place(row * stride, -(-n * 4 // PAGE) * PAGE)
                    array = region.floats().reshape(count, stride // 4)[::turn, :n]
                    array[...] = normal((count, n), seed)
                    arrays.append(array)
                expected = alone(function, arrays, slice(None), weight)
                call(function, *arrays, weight)
                for array, result in zip(arrays[2:], expected, strict=True):
                    wrong += array.tobytes() != result.tobytes()
            report(f"{function}, rows {turn * stride} bytes apart", wrong, started)
    return wrong


worst = 0


def report(what, wrong, started):
    global worst
    worst = max(worst, memory())
    if wrong or FULL:
        print(f"{what}: {'WRONG' if wrong else 'right'}, {time.perf_counter() - started:.1f} s")


def main():
    fastrms.set_num_threads(2)
    wrong = far_apart()
    wrong += many((1 << 31) // FLOATS + BEYOND // FLOATS, FLOATS, (*FUNCTIONS, SPLIT))
    # All four take minutes; forward walks as the add does. A split axis needs 16 GiB of sums.
    wrong += many((1 << 31) + BEYOND, 1, FUNCTIONS if FULL else ["residual_add"])
    print(f"beyond 2**31: {wrong} wrong; {worst >> 20} MiB at most, bound {MOST_BYTES >> 20}")
    return wrong > 0 or worst > MOST_BYTES


if __name__ == "__main__":
    sys.exit(main())
