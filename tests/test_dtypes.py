"""Mixed dtypes: the bits of the call on widened arrays, each output rounded once.

The call's arithmetic is float64 if x, dy, residual, out or dx is float64, and float32 otherwise.
Each case covers the mixes with a bfloat16 array, or those without: the first need ml_dtypes.
"""

import itertools

import numpy as np
import pytest

import fastrms
from fastrms import _core, reference

from .dtypes import (
    ADDS,
    KINDS,
    call,
    copies,
    differences,
    dtype_of,
    meaning,
    mixed,
    mixes,
    offset,
    rounded,
    without_buffers,
)
from .signatures import BACKWARD, CALLS, FUNCTIONS

ROWS = (1, 3, 9, 40, 70)
# 1: the smallest row. 7, 16, 100: around a vector. 9000: too long to be staged with others.
LENGTHS = (1, 7, 16, 100, 1024, 9000)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(("function", "accumulate"), CALLS)
def test_widened_call_rounded_once(rng, bfloat16, function, accumulate, n):
    """Every mix of matrices if n is small; the kinds of weight and dweight are drawn."""
    options, wrong = {"accumulate": True} if accumulate else {}, []
    for rows in ROWS[:3] if n == LENGTHS[-1] else ROWS:
        for number, mix in enumerate(mixes(function, max(2, 8000 // n), bfloat16)):
            given = mixed(rng, function, mix, (rows, n))
            options |= offset(function, number)
            calls = [(given, options)]
            if not accumulate:
                calls += [
                    (without_buffers(function, given), options),
                    (without_buffers(function, given, weight=False), {}),
                ]
            for arguments, chosen in calls:
                wanted = meaning(function, arguments, **chosen)
                found = call(function, copies(arguments), **chosen)
                names = differences(found, wanted)
                if names:
                    wrong.append((rows, mix, list(arguments), chosen, names))
    assert wrong == []


@pytest.mark.parametrize("name", ["dx", "dweight"])
@pytest.mark.parametrize("function", BACKWARD)
def test_accumulate_into_one_of_two(rng, bfloat16, function, name):
    for mix in mixes(function, 40, bfloat16):
        arguments = mixed(rng, function, mix, (9, 33))
        wanted = meaning(function, arguments, accumulate=name)
        assert differences(call(function, arguments, accumulate=name), wanted) == [], mix


@pytest.mark.parametrize("function", FUNCTIONS)
def test_instruction_sets_and_threads(restore, rng, bfloat16, function):
    """Dweight is the sum over more than one block; the number of threads changes no bit."""
    for shape, count in (((70, 300), 12), ((5, 9000), 2)):
        for mix in mixes(function, count, bfloat16):
            given, wrong = mixed(rng, function, mix, shape), []
            wanted = meaning(function, given)
            for isa in _core.available_isas():
                _core.use_isa(isa)
                for threads in (1, 2, 3):
                    fastrms.set_num_threads(threads)
                    names = differences(call(function, copies(given)), wanted)
                    wrong += [(isa, threads, names)] if names else []
            assert wrong == [], mix


@pytest.mark.parametrize("kind", KINDS)
def test_row_is_the_same_alone(restore, isa, rng, kind):
    """Not even a neighbour that needs another path changes a row."""
    dtype = dtype_of(kind)
    for n, threads in itertools.product((5, 100, 1024), (1, 3)):
        fastrms.set_num_threads(threads)
        x, dy = (rounded(rng.standard_normal((33, n)), dtype) for _ in range(2))
        x[1::4] *= dtype.type(60) if kind == "float16" else dtype.type(1e30)
        weight = rounded(rng.standard_normal(n), dtype)
        y = fastrms.rms_norm(x, weight)
        dx, _ = fastrms.rms_norm_backward(dy, x, weight)
        for row in (0, 1, 17, 32):
            alone, _ = fastrms.rms_norm_backward(dy[row], x[row], weight)
            assert fastrms.rms_norm(x[row], weight).tobytes() == y[row].tobytes()
            assert alone.tobytes() == dx[row].tobytes()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_any_bits(restore, rng, bfloat16, function):
    """All bit patterns are equally likely: subnormals, Inf, NaN, and results that overflow."""
    for mix in mixes(function, 60, bfloat16):
        given = mixed(rng, function, mix, (7, 40))
        for name in mix:
            if function not in ADDS:  # there a sum of any numbers is not exact in float32
                width = given[name].dtype.itemsize
                raw = np.frombuffer(rng.bytes(given[name].size * width), given[name].dtype)
                given[name] = raw.reshape(given[name].shape).copy()
        given["x"][0, 3] = np.inf
        given["x"][1, 5] = np.nan
        wanted = meaning(function, given)
        for isa in _core.available_isas():
            _core.use_isa(isa)
            assert differences(call(function, copies(given)), wanted) == [], (isa, mix)


def test_scale_of_add_rms_norm(isa, threads, rng, bfloat16):
    """The bits of residual_add with that scale, then of rms_norm."""
    scales, every_mix = (1.0, -1.0, 0.5, 3.0, 0.3, -1e-3), mixes("add_rms_norm", 64, bfloat16)
    for scale, mix in itertools.product(scales, every_mix):
        given = mixed(rng, "add_rms_norm", mix, (9, 70))
        separate, fused = copies(given), copies(given)
        stored = fastrms.residual_add(separate["x"], separate["residual"], scale)
        y = fastrms.add_rms_norm(**fused, scale=scale)
        assert y is fused["out"]
        assert fused["residual"].tobytes() == stored.tobytes(), mix
        # x may ask for float64 here, so rms_norm has to read a float64 too.
        wide = "float64" if "float64" in (mix["x"], mix["residual"], mix["out"]) else "float32"
        fastrms.rms_norm(stored.astype(wide), given["weight"], out=separate["out"])
        assert y.tobytes() == separate["out"].tobytes(), mix
        held, added = given["residual"].astype(float), scale * given["x"].astype(float)
        if mix["residual"] == "float64":  # whether or not the product is rounded
            assert np.all(np.abs(stored - (held + added)) <= 2.0**-52 * (abs(held) + abs(added)))
            continue
        once, twice = held + added, (held + added).astype(wide)
        either = [rounded(values, stored.dtype) for values in (once, twice)]
        assert np.all((stored == either[0]) | (stored == either[1])), mix


def test_scale_of_the_reference(rng):
    x, residual = rng.standard_normal((2, 5, 16))
    stream = residual.copy()
    y = reference.add_rms_norm(x, stream, scale=0.3)
    np.testing.assert_allclose(stream, residual + 0.3 * x, rtol=1e-15, atol=1e-15)
    np.testing.assert_array_equal(y, reference.rms_norm(stream))
    np.testing.assert_array_equal(reference.add_rms_norm(x, residual), reference.rms_norm(residual))


def test_scale_is_a_keyword(draw, unchanged):
    x, residual = draw(3, 5), draw(3, 5)
    with unchanged(x, residual):
        with pytest.raises(TypeError, match="positional"):
            fastrms.add_rms_norm(x, residual, None, 1e-5, 0.5)
        for wrong in ("1", None, 1j, [1.0]):
            with pytest.raises(TypeError, match=r"\bscale\b"):
                fastrms.add_rms_norm(x, residual, scale=wrong)
