#!/usr/bin/env python3
"""Make a million calls, rejected ones too: resident memory grows by less than 1 MB."""

import contextlib
import os
import sys

import numpy as np

import fastrms

FULL = os.environ.get("FULL") == "1"
CALLS = 10_000_000 if FULL else 1_000_000
MOST_BYTES = 1 << 20


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cases():
    """Return functions without arguments: each path through the door, and each error."""
    rng = np.random.default_rng(0)
    x, dy, residual = (rng.standard_normal((4, 70), np.float32) for _ in range(3))
    weight, out, few = x[0].copy(), np.empty_like(x), memoryview(x)
    many = np.repeat(x, 10, axis=0)  # more than one block of dweight
    apart, huge = np.empty((70, 4), np.float32).T, np.broadcast_to(x[0], (1 << 50, 70))
    norm, backward = fastrms.rms_norm, fastrms.rms_norm_backward
    add, residual_add = fastrms.add_rms_norm, fastrms.residual_add
    return [
        lambda: norm(x),
        lambda: norm(x, weight, 1, weight_offset=1.0, out=out, accumulate=True),
        lambda: norm(few, weight, out=apart),
        lambda: norm(x[1:], out=x[:-1]),
        lambda: backward(dy, x, weight),
        lambda: backward(dy, x, weight, weight_offset=1.0, dx=apart, dweight=x[0, ::-1].copy()),
        lambda: backward(x, x, weight, dx=out, accumulate=True),
        lambda: backward(many, many, weight),
        lambda: add(dy, residual.copy(), weight),
        lambda: add(dy, apart, weight, out=out),
        lambda: residual_add(x, apart, 0.5),
        lambda: norm(x, weight, -1.0),
        lambda: norm(x, weight, "1"),
        lambda: norm(x, weight[1:]),
        lambda: norm(x.astype(int)),
        lambda: norm([1.0]),
        lambda: norm(np.ma.array(x)),
        lambda: norm(x, accumulate=True),
        lambda: norm(huge),
        lambda: backward(dy, x, dweight=weight),
        lambda: backward(dy, x, weight, dx=out, dweight=out[0]),
        lambda: backward(dy, x[1:], weight),
        lambda: backward(huge, huge),
        lambda: add(dy, out, out=out),
        lambda: residual_add(x, x[0]),
        lambda: residual_add(x, np.broadcast_to(weight, x.shape)),
        lambda: fastrms.set_num_threads(0),
    ]


def mixed_cases():
    """Return the same for arrays of several dtypes, whose rows are staged in scratch."""
    rng = np.random.default_rng(0)
    x, dy, double = (rng.standard_normal((40, 70)).astype(kind) for kind in ("f2", "f4", "f8"))
    weight, row, apart = double[:1].copy(), x[0].copy(), np.empty((70, 40), np.float16).T
    norm, backward = fastrms.rms_norm, fastrms.rms_norm_backward
    return [
        lambda: norm(double, row),
        lambda: norm(x, weight, out=apart, accumulate=True),
        lambda: norm(memoryview(x), row, out=memoryview(dy)),
        lambda: backward(dy, x, weight),
        lambda: backward(double, x, row, dx=apart, dweight=dy[0, ::-1].copy(), accumulate=True),
        lambda: fastrms.add_rms_norm(x, apart, weight, scale=0.5, out=dy),
        lambda: fastrms.residual_add(x, double),
        lambda: fastrms.sum_products(x, dy, weight),
        lambda: norm(x.view("V2")),
        lambda: backward(x, x, row, dweight=weight),
        lambda: norm(x, out=x.view(">f2")),
    ]


def split_cases():
    """Return the same for the functions of a split last axis."""
    x, dy = np.random.default_rng(0).standard_normal((2, 4, 70), np.float32)
    weight, out, sums = x[0].copy(), np.empty_like(x), np.ones(4)
    apart, far = np.empty((70, 4), np.float32).T, np.ones(8)[::2]
    squares, products = fastrms.sum_squares, fastrms.sum_products
    scale, backward = fastrms.rms_scale, fastrms.rms_scale_backward
    return [
        lambda: squares(x),
        lambda: squares(apart, out=far),
        lambda: products(dy, apart, weight, weight_offset=1.0, out=far),
        lambda: scale(x, sums, 140, weight),
        lambda: scale(x[0], sums[0], 140, weight),
        lambda: scale(x, far, 140, out=apart),
        lambda: backward(dy, x, sums, far, 140, weight),
        lambda: backward(x, x, far, sums, 140, weight, 1, dx=apart, dweight=dy[0], accumulate=True),
        lambda: squares([1.0]),
        lambda: squares(x, out=sums[1:]),
        lambda: squares(x[0], out=sums[0]),
        lambda: products(dy[1:], x),
        lambda: products(dy, x, weight, out=np.broadcast_to(sums, 4)),
        lambda: scale(x, sums, 69),
        lambda: scale(x, sums, 1 << 70),
        lambda: scale(x, sums, 140.0),
        lambda: scale(x, sums, 140, weight, -1.0),
        lambda: scale(x, np.ma.array(sums), 140),
        lambda: scale(x, x, 140),
        lambda: backward(dy, x, sums, sums[1:], 140, weight),
        lambda: backward(dy, x, sums, [1.0] * 4, 140, dx=out),
    ]


def main():
    errors, every = (TypeError, ValueError, MemoryError), [*cases(), *mixed_cases(), *split_cases()]
    rounds = CALLS // len(every)
    for count in range(rounds + 1):
        if count == rounds // 100:  # by now every cache is warm
            before = resident()
        for case in every:
            with contextlib.suppress(*errors):
                case()
    grown = resident() - before
    print(f"{CALLS:,} calls: {grown / 1024:.0f} KiB more, bound {MOST_BYTES >> 10}")
    return grown > MOST_BYTES


if __name__ == "__main__":
    sys.exit(main())
