#!/usr/bin/env python3
"""Check that every instruction set gives the same bits for hostile rows; all NaNs count as equal.

A million rows, or ten million with FULL=1: random bit patterns, many special values, exponents far
apart; sizes around every vector, lane and batch; any alignment and row stride; one thread or two;
some outputs larger than the cache, which are streamed.
"""

import os
import sys
import time

import numpy as np

import fastrms
from fastrms import _core

FULL = os.environ.get("FULL") == "1"
ROWS = 10_000_000 if FULL else 1_000_000
SEED = 2019_10_16
# Vectors of 4 to 16, the peel to a line, 32 lanes, lengths at which a batch has fewer rows.
EDGES = (1, 4, 8, 16, 32, 64, 112, 128, 144, 256, 384, 512, 640, 1024, 1152, 2048)
SPECIALS = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 2.0**-126, 3.4028235e38, -3.4028235e38,
     1.0, -1.0, 2.0**-63, 2.0**63, 2.0**-50, 2.0, 2.0**44, 1e19, 1e-19],
    np.float32,
)  # fmt: skip
EPS = (0.0, 1e-5, 1e-6, 5e-324, 1e-45, 1e-30, 2.0**-100, 0.5, 1e30, 1e308, np.inf)
# 2**127 is a float32, unlike 1e30 and 0.1.
OFFSETS = (0.0, 0.0, 0.0, 1.0, -1.0, 0.5, 0.1, 1e30, np.inf, 2.0**127)
FACTORS = (1.0, 0.5, -1.0, 0.1, 0.0, 1e30, 1e-300, np.inf, np.nan)
BATCH = 1 << 16  # elements
STREAMED = 5 << 22  # elements of an output that, with its input, exceeds every cache threshold


def bit_patterns(rng, shape):
    return rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32)


def normals(rng, shape):
    return rng.standard_normal(shape, np.float32)


def one_scale(rng, shape):
    """Draw a scale for each row, from the smallest subnormal to the largest finite."""
    scale = np.exp2(rng.uniform(-149, 128, (shape[0], 1)))
    return (np.clip(normals(rng, shape), -1, 1) * scale).astype(np.float32)


def wild(rng, shape):
    """Draw a scale for each element, within a span drawn for each row."""
    span = rng.uniform(0, 149, (shape[0], 1))
    exponents = rng.uniform(-1, 0.85, shape) * span
    return (np.sign(normals(rng, shape)) * np.exp2(exponents)).astype(np.float32)


def with_specials(rng, shape):
    """Draw normal rows, and make a share of the elements of some rows special."""
    values = normals(rng, shape)
    share = rng.choice((0.0, 0.002, 0.05, 1.0), (shape[0], 1))
    chosen = rng.random(shape, np.float32) < share
    values[chosen] = rng.choice(SPECIALS, np.count_nonzero(chosen))
    return values


def with_outliers(rng, shape):
    values = normals(rng, shape)
    columns = rng.integers(0, shape[1], shape[0])
    values[np.arange(shape[0]), columns] *= np.exp2(rng.uniform(0, 100, shape[0]))
    return values


KINDS = (bit_patterns, normals, normals, one_scale, wild, with_specials, with_outliers)


def values(rng, shape):
    """Return rows of one kind, at a random alignment and row stride."""
    rows, n = shape
    stride, start = n + int(rng.choice((0, 0, 1, 5, 16))), int(rng.integers(0, 17))
    memory = np.empty(start + rows * stride, np.float32)[start:].reshape(rows, stride)[:, :n]
    with np.errstate(all="ignore"):
        memory[...] = rng.choice(KINDS)(rng, shape)
    return memory


def size(rng):
    if rng.random() < 0.8:
        return max(1, int(rng.choice(EDGES)) + int(rng.integers(-2, 3)))
    return int(np.exp2(rng.uniform(0, 14.5)))


def again(array):
    """Return a copy with the same strides and the same offset in a cache line."""
    rows, n = array.shape
    stride, start = array.strides[0] // 4, array.ctypes.data % 64 // 4
    memory = np.empty(rows * stride + 32, np.float32)
    skip = (start - memory.ctypes.data % 64 // 4) % 16
    copy = memory[skip : skip + rows * stride].reshape(rows, stride)[:, :n]
    copy[...] = array
    return copy


def calls(x, other, weight, options, factor):
    """Yield everything that every function writes for these inputs."""
    for w in (weight, None):
        yield fastrms.rms_norm(x, w, **options)
        yield fastrms.rms_norm(x, w, **options, out=again(other), accumulate=True)
        yield fastrms.add_rms_norm(x, stream := again(other), w, **options)
        yield stream
        yield from fastrms.rms_norm_backward(other, x, w, **options)[: 1 if w is None else 2]
    dx, dweight = again(other), np.array(weight)
    yield from fastrms.rms_norm_backward(
        other, x, weight, **options, dx=dx, dweight=dweight, accumulate=True
    )
    yield fastrms.residual_add(x, again(other), factor)
    yield fastrms.residual_add(x, again(other))


def bits(array):
    """Return the array as integers, the same one for every NaN."""
    return np.where(np.isnan(array), np.float32(np.nan), array).view(np.uint32)


def batch(rng, shape):
    """Compare one batch; return how many elements were compared, and the calls that differ."""
    x, other = values(rng, shape), values(rng, shape)
    weight = values(rng, (1, shape[1]))[0]
    options = {"eps": float(rng.choice(EPS)), "weight_offset": float(rng.choice(OFFSETS))}
    factor = float(rng.choice(FACTORS))
    fastrms.set_num_threads(int(rng.integers(1, 3)))
    first, elements, differ = None, 0, []
    for isa in _core.available_isas():
        _core.use_isa(isa)
        results = [bits(result) for result in calls(x, other, weight, options, factor)]
        first = first or results
        elements += sum(result.size for result in results)
        for number, (result, expected) in enumerate(zip(results, first, strict=True)):
            if not np.array_equal(result, expected):
                differ.append(f"{isa}: result {number} of shape {shape}, {options}, {factor=}")
    return elements, differ


def main():
    isas = _core.available_isas()
    if len(isas) == 1:
        sys.exit("isa_fuzz: this CPU runs one instruction set, there is nothing to compare")
    _core.set_parallel_from(1 << 15)
    rng = np.random.default_rng(SEED)
    start, rows, elements, batches = time.monotonic(), 0, 0, 0
    while rows < ROWS:
        n = size(rng)
        streamed = batches % 400 == 399
        n = n + 512 if streamed else n
        shape = max(3, min(4096, BATCH // n)), n
        shape = (STREAMED // n, n) if streamed else shape
        compared, differ = batch(rng, shape)
        if differ:
            sys.exit("\n".join([f"isa_fuzz: bits differ, seed {SEED}, batch {batches}", *differ]))
        rows, elements, batches = rows + shape[0], elements + compared, batches + 1
    print(
        f"isa_fuzz: {rows:,} rows, {elements:,} elements in {batches} batches, seed {SEED}: "
        f"{', '.join(isas)} agree bit for bit ({time.monotonic() - start:.0f} s)"
    )


if __name__ == "__main__":
    main()
