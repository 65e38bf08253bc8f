#!/usr/bin/env python3
"""Check that every instruction set gives the same bits for hostile rows; all NaNs count as equal.

A million rows, or ten million with FULL=1: random bit patterns, many special values, exponents far
apart; sizes around every vector, lane and batch; any alignment and row stride; one thread or two;
some outputs larger than the cache, which are streamed. A quarter of the batches are of other dtypes
than float32: float64, or one of four for each array.
"""

import os
import sys
import time

import ml_dtypes
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
DTYPES = [np.dtype(kind) for kind in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
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


def values(rng, shape, dtype):
    """Return rows of one kind, at a random alignment and row stride."""
    rows, n = shape
    stride, start = n + int(rng.choice((0, 0, 1, 5, 16))), int(rng.integers(0, 17))
    memory = np.empty(start + rows * stride, dtype)[start:].reshape(rows, stride)[:, :n]
    kind = rng.choice(KINDS)
    if kind is bit_patterns and dtype != np.float32:
        memory[...] = np.frombuffer(rng.bytes(rows * n * dtype.itemsize), dtype).reshape(shape)
        return memory
    with np.errstate(all="ignore"):
        memory[...] = kind(rng, shape)
        if dtype == np.float64:  # digits that float32 lacks, and its own range
            memory *= rng.uniform(1, 2, shape) * 2.0 ** rng.choice((0, 0, -900, 900))
    return memory


def size(rng):
    if rng.random() < 0.8:
        return max(1, int(rng.choice(EDGES)) + int(rng.integers(-2, 3)))
    return int(np.exp2(rng.uniform(0, 14.5)))


def again(array):
    """Return a copy with the same strides and the same offset in a cache line."""
    rows, n = array.shape
    item = array.itemsize
    stride, start = array.strides[0] // item, array.ctypes.data % 64 // item
    memory = np.empty(rows * stride + 128 // item, array.dtype)
    skip = (start - memory.ctypes.data % 64 // item) % (64 // item)
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
    with np.errstate(invalid="ignore"):  # a bfloat16 NaN that signals
        same = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return same.view(f"u{array.itemsize}")


def dtypes_of(rng, streamed):
    """Return the dtypes of x, of dy and the arrays that are added to, and of weight."""
    drawn = 7 if streamed else rng.integers(0, 8)
    if drawn == 0:
        return [DTYPES[1]] * 3
    return [DTYPES[k] for k in rng.integers(0, 4, 3)] if drawn == 1 else [DTYPES[0]] * 3


def batch(rng, shape, dtypes):
    """Compare one batch; return how many elements were compared, and the calls that differ."""
    x, other = values(rng, shape, dtypes[0]), values(rng, shape, dtypes[1])
    weight = values(rng, (1, shape[1]), dtypes[2])[0]
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
                differ.append(f"{isa}: result {number} of {shape}, {dtypes}, {options}, {factor=}")
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
        compared, differ = batch(rng, shape, dtypes_of(rng, streamed))
        if differ:
            sys.exit("\n".join([f"isa_fuzz: bits differ, seed {SEED}, batch {batches}", *differ]))
        rows, elements, batches = rows + shape[0], elements + compared, batches + 1
    print(
        f"isa_fuzz: {rows:,} rows, {elements:,} elements in {batches} batches, seed {SEED}: "
        f"{', '.join(isas)} agree bit for bit ({time.monotonic() - start:.0f} s)"
    )


if __name__ == "__main__":
    main()
