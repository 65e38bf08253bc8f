"""Random calls for tests/test_fuzz.py: any layout, type, aliasing and option, right or wrong.

An argument is drawn as a description (Place), so that it can be built twice over equal memories:
once for the call under test, once for its expected result.
"""

import array
import ctypes
from typing import Any, NamedTuple

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from .dtypes import ml_dtypes, rounded
from .signatures import (
    ACCUMULATE,
    MATRICES,
    NUMBERS,
    OUTPUTS,
    REQUIRED,
    SUMS,
    VECTORS,
    beside,
)

FLOAT, DOUBLE, HALF, BFLOAT = "f4", "f8", "f2", "bfloat16"
# What the dtype of each array of a call is drawn from; most calls have float32 alone.
WITHIN_FLOAT32 = (FLOAT, HALF, *([BFLOAT] if ml_dtypes else []))
DTYPES = (*[(FLOAT,)] * 5, (DOUBLE,), WITHIN_FLOAT32, (*WITHIN_FLOAT32, DOUBLE))
MEMORIES = 2  # few, so that arguments often share one
BYTES = 1 << 15
MOST = 2500  # limit on the elements of a matrix
SIZES = (0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 100, 127, 128, 129, 143, 256, 257, 300, 513, 700)
VALUES = (0.0, 1e-5, 1.0, 0.5, -1.0, 0.1, 5e-324, 1e-30, 1e30, np.inf, np.nan, -np.inf, -0.0)
ACCUMULATES = (False, True, True, "dx", "dweight")
HUGE = 10**400  # beyond float64
REALS = (0, 1, True, np.float32(0.25), np.float64(1e-6), np.int64(2), np.array(0.5), HUGE)
NOT_REAL = (None, "1e-5", 1j, [1.0], object)
NOT_INTEGERS = (None, "12", 12.0, [12], np.float32(12))
MOST_SIZE = (1 << 40) - 1
# Scales of the normal values that fill a memory.
SCALES = (1.0, 1.0, 1.0, 0.0, 1e-45, 1e-38, 1e-20, 1e19, 1e37)
SPECIALS = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3e38, 1.0], np.float32)
OTHERS = ("i4", "u4", "c8", "?", "O", "V2", "V4", [("value", "f4")], "i8", "u2", "g", ">f4", ">f8")
NOT_SUMS = ("f2", "f4")
# What a valid argument may be, other than a plain ndarray; bfloat16 exports no buffer.
CONTAINERS = {
    FLOAT: ("subclass", "memmap", "memoryview", "array", "ctypes"),
    DOUBLE: ("subclass", "memmap", "memoryview", "array", "ctypes"),
    HALF: ("subclass", "memmap", "memoryview"),
    BFLOAT: ("subclass", "memmap"),
}
CONTAINERS_OF_SUMS = ("subclass", "memmap", "scalar")
KINDS = ("back", "zero", "gap", "odd", "into", "far")  # of an axis's stride
WRONG = ("type", "masked", "list", "bytes", "number", "integer buffer", "none", "shape", "shape")


class Tagged(np.ndarray):
    """A subclass, to be treated as a plain ndarray."""


class Place(NamedTuple):
    """Where an argument lies in memory, and what it is passed as."""

    memory: int
    offset: int
    shape: tuple
    strides: tuple
    container: str = "ndarray"
    readonly: bool = False
    wrong: str = ""
    other: Any = None  # a wrong dtype
    dtype: str = FLOAT


class Call(NamedTuple):
    function: str
    places: dict  # of each array argument: a Place, or the name of the same object
    options: dict
    seed: int
    fills: tuple  # how each memory is filled
    others: float  # sums passed, as a multiple of those of x and dy; 0: any numbers
    isa: int
    threads: int


class Built(NamedTuple):
    """An argument: the object passed, and the array that it stands for, or None."""

    value: Any
    view: Any


@st.composite
def layouts(draw, shape, item):
    """Draw strides, and how many bytes they reach before and behind the first element."""
    strides, step = [0] * len(shape), item
    axes = range(len(shape))
    kinds = [draw(st.sampled_from(("plain",) * 6 + KINDS)) for _ in axes]
    if "odd" in kinds:  # partly shared elements cannot be compared as numbers
        kinds = ["plain" if kind in ("zero", "into") else kind for kind in kinds]
    rows_in_any_order = (*axes[-1:], *draw(st.permutations(axes[:-1])))
    for axis in draw(st.sampled_from((axes[::-1], rows_in_any_order, axes))):
        kind = kinds[axis]
        step += {"gap": item * draw(st.integers(1, 20)), "odd": 1, "into": -item}.get(kind, 0)
        strides[axis] = {"back": -step, "zero": 0}.get(kind, step)
        if kind == "far" and shape[axis] < 2:  # the stride is never used
            strides[axis] = draw(st.sampled_from((2**40, -(2**62), 3)))
        step *= max(1, shape[axis])
    reaches = [stride * (length - 1) for stride, length in zip(strides, shape, strict=True)]
    before = -sum(reach for reach in reaches if reach < 0)
    behind = sum(reach for reach in reaches if reach > 0) + item
    if before + behind > BYTES or 0 in shape:
        return _plain(shape, item), 0, item * int(np.prod(shape))
    return tuple(strides), before, behind


def _plain(shape, item):
    return tuple(item * int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


@st.composite
def places(draw, shape, output, dtype, sums):
    """Draw an argument of this shape, most often a valid one."""
    item = np.dtype(dtype).itemsize
    wrong = draw(st.sampled_from(("",) * 250 + WRONG))
    if wrong == "shape":
        shape = draw(st.sampled_from((shape[1:], (2, *shape), shape[::-1], (*shape[:-1], 7))))
    strides, before, behind = draw(layouts(shape, item))
    room = BYTES - before - behind
    assume(room >= 0)  # a wrong shape may need more
    near = min(room, item * draw(st.integers(0, 300)))  # overlaps others partly
    start = draw(st.sampled_from((0, near, near, room, draw(st.integers(0, room)))))
    start -= 0 if draw(st.integers(0, 7)) == 0 else start % item
    readonly = draw(st.integers(0, 40 if output else 5)) == 0
    container = "ndarray"
    if draw(st.integers(0, 3)) == 0:
        container = draw(st.sampled_from(CONTAINERS_OF_SUMS if sums else CONTAINERS[dtype]))
    other = draw(st.sampled_from((*OTHERS, *NOT_SUMS) if sums else OTHERS))
    memory = draw(st.integers(0, MEMORIES - 1))
    start += before
    return Place(memory, start, shape, strides, container, readonly, wrong, other, dtype)


@st.composite
def shapes(draw):
    n = draw(st.sampled_from(SIZES))
    leading = []
    for _ in range(draw(st.integers(0, 3))):
        most = MOST // max(1, max(1, n) * int(np.prod(leading)))
        leading.append(min(most, draw(st.sampled_from((0, 1, 2, 3, 4, 5, 8, 9, 33, 70)))))
    return *leading, n


@st.composite
def calls(draw):
    function = draw(st.sampled_from((*MATRICES, "rms_norm_backward", "rms_norm_backward")))
    shape = draw(shapes())
    required = REQUIRED[function]
    names = [*MATRICES[function], *VECTORS[function], *SUMS[function]]
    chosen = [name for name in names if name in required or draw(st.integers(0, 3))]
    places_of, dtypes = {}, draw(st.sampled_from(DTYPES))
    for name in chosen:
        sums, own = name in SUMS[function], beside(function, name, shape)
        dtype = DOUBLE if sums else draw(st.sampled_from(dtypes))
        if name in VECTORS[function]:
            own = draw(st.sampled_from(_vector_shapes(own, places_of)))
        twins = [
            other
            for other, place in places_of.items()
            if isinstance(place, Place) and (place.shape, place.dtype) == (own, dtype)
        ]
        if twins and draw(st.integers(0, 4)) == 0:
            twin = draw(st.sampled_from(twins))  # the same object, or another view of its elements
            places_of[name] = twin if draw(st.booleans()) else places_of[twin]
        else:
            places_of[name] = draw(places(own, name in OUTPUTS[function], dtype, sums))
    return Call(
        function,
        places_of,
        draw(options(function, shape[-1])),
        draw(st.integers(0, 2**32)),
        tuple(
            draw(st.sampled_from((*SCALES, "wild", "bits", "specials"))) for _ in range(MEMORIES)
        ),
        draw(st.sampled_from((0.0, 1.0, 1.0, 2.5))),
        draw(st.integers(0, 2)),
        draw(st.sampled_from((1, 1, 1, 2))),
    )


def _vector_shapes(own, places_of):
    """Return shapes for weight, or beside a weight for dweight; the last two may be wrong then."""
    axes, weight = ((1, *own), (1, 1, *own)), places_of.get("weight")
    if isinstance(weight, Place):
        return *[own, weight.shape] * 10, *axes
    return *[own] * 5, *axes


@st.composite
def options(draw, function, n):
    chosen = {}
    for name in NUMBERS[function]:
        kind = draw(st.sampled_from("--------nnnnffrw" if name == "eps" else "----nnfr"))
        if kind != "-":
            kinds = {"n": VALUES, "r": REALS, "w": NOT_REAL}
            values = st.floats() if kind == "f" else st.sampled_from(kinds[kind])
            chosen[name] = draw(values)
            if name == "weight_offset" and kind == "f":
                chosen[name] = draw(st.floats(-1e50, 1e50))  # the gradient stays within float64
            if name == "eps" and kind in "nf" and draw(st.integers(0, 5)):
                chosen[name] = abs(chosen[name])
    if "size" in REQUIRED[function]:
        right = (n, n, n, np.int64(n), np.array(n), n + 1, 3 * n + 7, 1 << 32, MOST_SIZE)
        wrong = (n - 1, -1, MOST_SIZE + 1, -(1 << 63), HUGE, *NOT_INTEGERS)
        chosen["size"] = draw(st.sampled_from(wrong if draw(st.integers(0, 20)) == 0 else right))
    if function in ACCUMULATE and draw(st.booleans()):
        kinds = (False, True) if function == "rms_norm" else ACCUMULATES
        chosen["accumulate"] = draw(st.sampled_from(kinds))
    return chosen


def fill(call):
    """Return the memories that hold the arguments of a call."""
    rng = np.random.default_rng(call.seed)
    memories = [_values(rng, kind, BYTES // 4).view(np.uint8) for kind in call.fills]
    for place in call.places.values():
        if not isinstance(place, str) and place.dtype != FLOAT:
            _put_numbers(rng, place, call.fills[place.memory], memories)
    if call.others:
        _put_sums(call, memories)
    return memories


def _put_numbers(rng, place, kind, memories):
    """Fill an argument anew: halves of a float32 are no numbers of one size."""
    view = _view(place, memories)
    if kind == "bits":
        raw = np.frombuffer(rng.bytes(view.size * view.itemsize), view.dtype)
        view[...] = raw.reshape(view.shape)
        return
    values = _values(rng, kind, view.size).astype(np.float64).reshape(view.shape)
    if place.dtype == DOUBLE and kind == "wild":
        values = np.ldexp(values, rng.integers(-900, 900, view.shape))
    view[...] = rounded(values, view.dtype)


def _put_sums(call, memories):
    """Write sums that match the rows of a call into its arguments for sums."""
    views = {}
    for name, place in call.places.items():
        views[name] = views[place] if isinstance(place, str) else _view(place, memories)
    for name, factors in (("sum_squares", ("x", "x")), ("sum_products", ("dy", "x"))):
        if name in views and views["x"].ndim and len({views[f].shape for f in factors}) == 1:
            with np.errstate(all="ignore"):
                first, second = (views[f].astype(np.float64) for f in factors)
                sums = call.others * (first * second).sum(axis=-1)
            if sums.shape == views[name].shape:
                views[name][...] = sums


def _view(place, memories):
    memory = memories[place.memory].data
    return np.ndarray(place.shape, place.dtype, memory, place.offset, place.strides)


def _values(rng, kind, count):
    if kind == "bits":
        return rng.integers(0, 1 << 32, count, np.uint32).view(np.float32)
    normal = rng.standard_normal(count, np.float32)
    if kind == "wild":
        return np.ldexp(normal, rng.integers(-140, 120, count))
    if kind == "specials":
        return np.where(rng.random(count) < 0.02, rng.choice(SPECIALS, count), normal)
    return np.clip(normal, -3, 3) * np.float32(kind)


def build(call, memories):
    """Return {name: Built} for the arguments of a call."""
    built = {}
    for name, place in call.places.items():
        built[name] = built[place] if isinstance(place, str) else _build(place, memories)
    return built


def _build(place, memories):
    view = _view(place, memories)
    if place.wrong not in ("", "shape"):
        return Built(_wrong(place, view), None)
    if place.container == "array":
        value = array.array("f" if place.dtype == FLOAT else "d", view.tobytes())
        return Built(value, np.frombuffer(value, view.dtype) if view.size else view.reshape(-1))
    if place.container == "scalar" and not view.ndim:
        return Built(view[()], view.copy())
    if place.container == "ctypes" and view.flags.c_contiguous and view.ndim:
        kind = ctypes.c_float if place.dtype == FLOAT else ctypes.c_double
        for length in reversed(place.shape):
            kind = kind * length
        value = kind.from_buffer(memories[place.memory].data, place.offset)
        return Built(value, view)
    if place.readonly:
        view.setflags(write=False)
    kinds = {"subclass": lambda v: v.view(Tagged), "memmap": lambda v: v.view(np.memmap)}
    kinds["memoryview"] = memoryview
    return Built(kinds.get(place.container, lambda v: v)(view), view)


def _wrong(place, view):
    makers = {
        "type": lambda: np.zeros(place.shape, place.other),
        "masked": lambda: np.ma.masked_array(view),
        "list": lambda: view.tolist(),
        "bytes": lambda: view.tobytes(),
        "number": lambda: 1.0,
        "integer buffer": lambda: array.array("i", [0] * view.size),
        "none": lambda: None,
    }
    return makers[place.wrong]()
