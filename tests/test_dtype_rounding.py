"""Conversions: every half is widened exactly, every result is rounded once, ties to even.

What is widened: float16 and bfloat16 to float32 or float64; what is rounded: the reverse. Both go
through calls whose arithmetic is exact: a sum with -0.0, and x / rms with rms = 1.
"""

import itertools

import numpy as np
import pytest

import fastrms
from fastrms import reference

from .dtypes import (
    FORMAT,
    HALVES,
    KINDS,
    decoded,
    differences,
    dtype_of,
    every,
    rounded,
    ties,
)
from .signatures import ACCUMULATE


def _stored(x, out, weight=None):
    """Write x * weight to out, by rms_scale with rms = 1."""
    size = 1 << x.shape[-1].bit_length()  # 1 / size is exact
    return fastrms.rms_scale(x, np.full(x.shape[:-1], float(size)), size, weight, 0.0, out=out)


def _named(found, wanted):
    return {"out": found}, {"out": wanted}


@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("kind", HALVES)
def test_every_half_is_widened_exactly(isa, kind, wide):
    """Through x, and through weight: signed zeros, subnormals, Inf and NaN too."""
    for shape in ((1 << 16,), (256, 256), (1 << 16, 1), (5042, 13)):
        halves = np.resize(every(kind), shape)
        wanted = np.resize(decoded(kind), shape).astype(wide)
        zeros = np.full(shape, -0.0, wide)  # -0.0 + x is x, also for x = -0.0
        assert differences(*_named(fastrms.residual_add(halves, zeros), wanted)) == [], shape
        assert differences(*_named(_stored(halves, zeros), wanted)) == [], shape
    out = _stored(np.ones(1 << 16, wide), np.empty(1 << 16, wide), every(kind))
    np.testing.assert_array_equal(out, decoded(kind))  # 0.0 + weight loses the sign of a zero


@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("kind", HALVES)
def test_ties_round_to_even_and_their_neighbours_to_the_nearest(isa, kind, wide, strided):
    """Every midpoint of two halves, up to the one of the largest and Inf."""
    values, wanted = ties(kind, np.dtype(wide))
    values, wanted = (np.resize(array, (1201, 317)) for array in (values, wanted))
    step = 2 if strided else 1
    wide_x = np.zeros((1201, 317 * step), wide)[:, ::step]
    stored = np.full((1201, 317 * step), -0.0, wanted.dtype)[:, ::step]
    out = np.empty((1201, 317 * step), wanted.dtype)[:, ::step]
    wide_x[...] = values
    assert differences(*_named(fastrms.residual_add(wide_x, stored), wanted)) == []
    assert differences(*_named(_stored(wide_x, out), wanted)) == []


@pytest.mark.parametrize("kind", HALVES)
def test_float64_is_not_rounded_to_float32_on_the_way(isa, kind):
    """A float64 just beside a midpoint becomes the midpoint as float32."""
    values, wanted = ties(kind, np.dtype("float64"))
    assert np.count_nonzero(rounded(values.astype(np.float32), wanted.dtype) != wanted) > 10_000
    assert _stored(values, np.empty_like(wanted)).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("kind", HALVES)
def test_nan_inf_and_overflow_are_stored(isa, kind, wide):
    """A NaN must not become Inf, whichever bit of its payload is set."""
    bits, infinity = {
        "float32": (np.uint32, 0x7F800000),
        "float64": (np.uint64, 0x7FF << 52),
    }[wide]
    payloads = bits(1) << np.arange(np.finfo(wide).nmant, dtype=bits)
    out = np.empty(payloads.shape, dtype_of(kind))
    for sign in (1, -1):
        nan = np.copysign((bits(infinity) | payloads).view(wide), sign)
        assert np.isnan(fastrms.residual_add(nan, np.zeros_like(out))).all()
        assert np.isnan(_stored(nan, out)).all()
    large = np.array([np.inf, -np.inf, np.finfo(wide).max, -np.finfo(wide).max], wide)
    stored = fastrms.residual_add(large, np.zeros(4, out.dtype))
    assert stored.astype(float).tolist() == [np.inf, -np.inf] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_residual_of_the_same_dtype_is_np_add(isa, threads, rng, kind):
    dtype, shape = dtype_of(kind), (41, 333)
    for number in range(6):
        x, residual = (
            np.frombuffer(rng.bytes(shape[0] * shape[1] * dtype.itemsize), dtype).reshape(shape)
            if number % 2  # any bits, or numbers of one size
            else rounded(rng.standard_normal(shape), dtype)
            for _ in range(2)
        )
        stored = residual.copy()
        with np.errstate(all="ignore"):
            wanted = np.add(residual, x)
        assert differences(*_named(fastrms.residual_add(x, residual.copy()), wanted)) == []
        fastrms.add_rms_norm(x, stored)
        assert differences(*_named(stored, wanted)) == []


@pytest.mark.parametrize("add", [fastrms.residual_add, fastrms.add_rms_norm])
@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("kind", HALVES)
def test_residual_of_two_dtypes_is_the_sum_in_the_larger(isa, rng, kind, wide, add):
    """Rounded to the call's arithmetic, then to the residual's dtype."""
    x, held = rng.standard_normal((2, 3, 1000)).astype(wide)
    stored = rounded(held, dtype_of(kind))
    wanted = rounded(stored.astype(wide) + x, dtype_of(kind))
    add(x, stored)
    assert stored.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kind", HALVES)
def test_error_of_half_results(isa, rng, kind):
    """Three ulp of float32, and one rounding: 2**-16 and 2**-13 of these ulp each."""
    dtype, (bits, smallest) = dtype_of(kind), FORMAT[kind]
    for n, spread in itertools.product((1, 16, 100, 9000), (1, 30)):
        x = rounded(rng.standard_normal((40, n)) * rng.uniform(1, spread, (40, 1)), dtype)
        weight = rounded(rng.standard_normal(n) * 2, dtype)
        stream = rounded(rng.standard_normal((40, n)), dtype)
        squares = fastrms.sum_squares(x)
        added = stream.copy()
        results = [
            (fastrms.rms_norm(x, weight), reference.rms_norm(x, weight)),
            (fastrms.rms_scale(x, squares, n, weight), reference.rms_norm(x, weight)),
            (fastrms.add_rms_norm(x, added, weight), reference.rms_norm(added, weight)),
        ]
        for y, exact in results:
            ulp = np.ldexp(1.0, np.maximum(np.frexp(exact)[1] - bits, smallest))
            error = np.abs(y.astype(float) - exact) / ulp
            assert y.dtype == dtype
            assert error.max() <= 0.5 + 3 * 2.0 ** (bits - 24) + 1e-9  # the reference


@pytest.mark.parametrize("function", ACCUMULATE)
@pytest.mark.parametrize("kind", HALVES)
def test_accumulate_adds_in_float32(isa, kind, function):
    """1 + half an ulp + a bit that a half does not hold: rounding before the sum would lose it."""
    ulp = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[kind]
    small = np.float32(ulp / 2 * (1 + ulp / 4))
    x, held = np.array([[1, -1]], np.float32), np.ones(2, dtype_of(kind))
    if function == "rms_norm":
        weight = np.array([small, 1])
        fastrms.rms_norm(x, weight, 0.0, out=held[None], accumulate=True)
        assert held.astype(float).tolist() == [1 + ulp, 0]
        return
    dy, weight = np.array([[small, 0]]), np.ones_like(held)
    sums = (np.array([2.0]), np.array([0.0]), 2) if function == "rms_scale_backward" else ()
    getattr(fastrms, function)(dy, x, *sums, weight, 0.0, dweight=held, accumulate=True)
    assert held.astype(float).tolist() == [1 + ulp, 1]
