"""The four dtypes in tests: exact rounding, mixed arguments, and the meaning of a mixed call."""

import itertools
import random

import numpy as np
import pytest

import fastrms

from .signatures import (
    ARGUMENTS_OF,
    MATRICES,
    NUMBERS,
    OUTPUTS,
    REQUIRED,
    RETURNED,
    SUMS,
    beside,
)

try:
    import ml_dtypes
except ModuleNotFoundError:
    ml_dtypes = None

HALVES = ("float16", "bfloat16")
KINDS = (*HALVES, "float32", "float64")
# Bits of the significand, and the exponent of the smallest subnormal number.
FORMAT = {"float16": (11, -24), "bfloat16": (8, -133)}
ADDS = ("residual_add", "add_rms_norm")


def dtype_of(kind):
    """Return the dtype; skip the test if it is bfloat16 and ml_dtypes is missing."""
    if kind != "bfloat16":
        return np.dtype(kind)
    if ml_dtypes is None:
        pytest.skip("ml_dtypes is not installed: no bfloat16 in NumPy")
    return np.dtype(ml_dtypes.bfloat16)


def rounded(values, dtype):
    """Round once, to nearest even: ml_dtypes rounds a float64 twice, first to float32."""
    dtype = np.dtype(dtype)
    with np.errstate(all="ignore"):
        values = np.asarray(values).astype(np.float64)
        if dtype.name not in FORMAT:
            return values.astype(dtype)
        bits, smallest = FORMAT[dtype.name]
        quantum = np.maximum(np.frexp(values)[1] - bits, smallest)
        whole = np.rint(np.ldexp(values, -quantum))
        return np.ldexp(whole, quantum).astype(np.float32).astype(dtype)


def every(kind):
    """Return all 65,536 numbers of a half, in the order of their bits."""
    return np.arange(1 << 16, dtype=np.uint16).view(dtype_of(kind))


def decoded(kind):
    """Return the values of `every` in float64, from sign, exponent and fraction."""
    stored = np.arange(1 << 16)
    width, smallest = FORMAT[kind][0] - 1, FORMAT[kind][1]
    top = (1 << (15 - width)) - 1  # the exponent of Inf and NaN
    exponent, fraction = stored >> width & top, stored & ((1 << width) - 1)
    whole = np.where(exponent > 0, fraction + (1 << width), fraction).astype(np.float64)
    value = np.ldexp(whole, np.maximum(exponent, 1) - 1 + smallest)
    value[exponent == top] = np.where(fraction[exponent == top] > 0, np.nan, np.inf)
    return np.where(stored >> 15 > 0, -value, value)


def ties(kind, dtype):
    """Return numbers of `dtype` halfway between two halves, those beside, and what each becomes.

    For this purpose Inf is the number after the largest: 2**16 or 2**128.
    """
    below = decoded(kind)[: 1 << 15]
    below = below[np.isfinite(below)]
    above = np.append(below[1:], 2 * below[-1] - below[-2])
    halves = every(kind)
    low, high = halves[: len(below)], halves[1 : len(below) + 1]
    middle = ((below + above) / 2).astype(dtype)
    even = np.where(np.arange(len(below)) % 2 == 0, low, high)
    beside = [np.nextafter(middle, dtype.type(side)) for side in (0, np.inf)]
    values = np.concatenate([middle, *beside])
    wanted = np.concatenate([even, low, high])
    return np.concatenate([values, -values]), np.concatenate([wanted, -wanted])


def mixes(function, count, bfloat16):
    """Return a kind for each array, up to `count` times: with a bfloat16 array, or without.

    Each mix of matrices comes once, if `count` allows; the kinds of the vectors are drawn.
    """
    if bfloat16:
        dtype_of("bfloat16")
    draw = random.Random(f"{function} {count}")
    kinds = KINDS if bfloat16 else tuple(kind for kind in KINDS if kind != "bfloat16")
    names, matrices = ARGUMENTS_OF[function], MATRICES[function]
    found = [
        dict(zip(names, (*mix, *draw.choices(kinds, k=len(names) - len(mix))), strict=True))
        for mix in itertools.product(kinds, repeat=len(matrices))
    ]
    found = [mix for mix in found if ("bfloat16" in mix.values()) == bfloat16]
    return draw.sample(found, min(count, len(found)))


def mixed(rng, function, mix, shape):
    """Return arguments of these kinds; those that are added have 15 bits: float32 holds the sum."""
    made = {}
    for name in ARGUMENTS_OF[function]:
        values = rng.standard_normal(beside(function, name, shape))
        if function in ADDS and name in ("x", "residual"):
            values = np.rint(np.clip(values, -7, 7) * 2**12) / 2**12
        made[name] = rounded(values, dtype_of(mix[name]))
    made |= {name: rng.uniform(1, 2, shape[:-1]) for name in SUMS[function]}
    if "size" in REQUIRED[function]:
        made["size"] = 10 * shape[-1]
    return made


def without_buffers(function, arguments, weight=True):
    """Keep the required arguments, and weight."""
    kept = (*REQUIRED[function], *(("weight",) if weight else ()))
    return {name: value for name, value in arguments.items() if name in kept}


def offset(function, number):
    """Return 0.0 or 1.0 as weight_offset, in turn, if the function has one."""
    return {"weight_offset": float(number % 2)} if "weight_offset" in NUMBERS[function] else {}


def copies(arguments):
    return {
        name: np.array(value, order="C") if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }


def wide_dtype(function, arguments):
    """Return the dtype of the call's arithmetic."""
    given = (arguments[name].dtype for name in MATRICES[function] if name in arguments)
    return np.float64 if np.float64 in given else np.float32


def meaning(function, arguments, **options):
    """Return {output: its array after the call}: widen all arrays, call, round each output once."""
    wide = wide_dtype(function, arguments)
    shapes = {name: value.shape for name, value in arguments.items() if name != "size"}
    dtypes = {name: value.dtype for name, value in arguments.items() if name != "size"}
    for name, source in (("out", "x"), ("dx", "x"), ("dweight", "weight")):
        shapes.setdefault(name, shapes.get(source))
        dtypes.setdefault(name, dtypes.get(source))
    widened = copies(arguments)
    with np.errstate(all="ignore"):  # a float64 weight beyond float32
        for name in {*ARGUMENTS_OF[function]} & {*arguments}:
            flat = beside(function, name, shapes["x"])
            widened[name] = widened[name].astype(wide).reshape(flat)
    found = {}
    if function == "add_rms_norm":  # the norm reads what was stored
        added = {"x": widened.pop("x"), "residual": widened.pop("residual")}
        scale = {"scale": options.pop("scale")} if "scale" in options else {}
        stored = rounded(fastrms.residual_add(**added, **scale), dtypes["residual"])
        widened["x"], found["residual"] = stored.astype(wide), stored
    called = "rms_norm" if function == "add_rms_norm" else function
    results = getattr(fastrms, called)(**widened, **options)
    results = results if isinstance(results, tuple) else (results,)
    for name, result in zip(RETURNED[function], results, strict=True):
        if name in SUMS[function]:
            found[name] = result
        elif result is not None:
            found[name] = rounded(result, dtypes[name]).reshape(shapes[name])
    return found


def call(function, arguments, **options):
    """Call, and return {output: its array}; an output that was passed is the one returned."""
    results = getattr(fastrms, function)(**arguments, **options)
    results = results if isinstance(results, tuple) else (results,)
    found = {name: arguments[name] for name in OUTPUTS[function] if name in arguments}
    for name, result in zip(RETURNED[function], results, strict=True):
        assert name not in found or result is found[name]
        if result is not None:
            found[name] = result
    return found


def differences(found, wanted):
    """Return the names of the outputs whose dtype, shape or bits differ; any NaN is the same."""
    assert found.keys() == wanted.keys()
    return [name for name in wanted if _seen(found[name]) != _seen(wanted[name])]


def _seen(array):
    plain = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return array.dtype, array.shape, plain.tobytes()
