"""The functions `*_any` of fastrms.h, called through ctypes: the bits of the Python calls for
arrays of any kinds; the smallest scratch; an error code for each bad call, which writes nothing.
"""

import ctypes
import itertools

import numpy as np
import pytest

import fastrms
from fastrms import _core
from fastrms.ctypes import Array, Call, functions

from .c_api import (
    BAD_EPS,
    BAD_FLAG,
    BAD_KIND,
    BAD_POINTER,
    BAD_SCRATCH,
    BAD_SIZE,
    BAD_STRIDE,
    OK,
)
from .dtypes import (
    KINDS,
    call,
    copies,
    differences,
    dtype_of,
    mixed,
    mixes,
    rounded,
    wide_dtype,
)
from .signatures import MATRICES, OUTPUTS, VECTORS

FUNCTIONS = [name for name in MATRICES if hasattr(functions, f"{name}_any")]
NUMBER_OF = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}  # enum fastrms_kind
FLAGS = [(name, 0) for name in FUNCTIONS] + [("rms_norm", 1)]
FLAGS += [("rms_norm_backward", flags) for flags in (1, 2, 3)]
IN_PYTHON = {0: False, 1: "dx", 2: "dweight", 3: True}
GUARD = 0xA5
FUNCTION = pytest.mark.parametrize("function", FUNCTIONS)


@pytest.fixture
def three_threads(restore):
    """Use three threads, even for the smallest call."""
    fastrms.set_num_threads(3)


def described(arguments, **numbers):
    """Return the Call of some arrays: eps is 1e-5, scale 1, and threads 1."""
    rows, n = arguments["x"].shape
    arrays = {
        name: Array(a.ctypes.data, a.strides[0] // a.itemsize, NUMBER_OF[a.dtype.name])
        for name, a in arguments.items()
    }
    given = {"rows": rows, "n": n, "eps": 1e-5, "scale": 1.0, "threads": 1}
    return Call(**arrays, **(given | numbers))


def run(function, arguments, size=None, shift=8, **numbers):
    """Call in scratch of `size` bytes, `shift` after a cache line and between guards."""
    filled = described(arguments, **numbers)
    if size is None:
        size = functions.any_scratch_bytes(filled.rows, filled.n, filled.threads)
    memory = np.full(size + 256, GUARD, np.uint8)
    first = -memory.ctypes.data % 64 + shift
    filled.scratch, filled.scratch_size = memory.ctypes.data + first, size
    code = made(function, filled)
    guards = memory if code else np.delete(memory, slice(first, first + size))
    assert (guards == GUARD).all()
    return code


def made(function, filled):
    return getattr(functions, f"{function}_any")(ctypes.byref(filled))


def spread(array, gap, turn):
    """Return a copy with `gap` numbers between its rows, in reverse order if turn is -1."""
    rows, n = array.shape
    memory = np.full((rows, n + gap), 77, array.dtype)[::turn, :n]
    memory[...] = array
    return memory


def spread_all(arguments, seed):
    """Spread the matrices, each in its own way."""
    ways = itertools.islice(itertools.cycle([(0, 1), (3, 1), (5, -1), (0, -1)]), seed, None)
    return {
        name: spread(array, *next(ways)) if array.ndim == 2 else array.copy()
        for name, array in arguments.items()
    }


def unweighted(arguments):
    return {name: array for name, array in arguments.items() if array.ndim == 2}


def options_for(function, flags, number):
    """Return the numbers of a call from C, and from Python."""
    numbers = {}
    if function in ("add_rms_norm", "residual_add"):
        numbers["scale"] = (1.0, -0.3)[number % 2]
    if function != "residual_add":
        numbers |= {"weight_offset": number % 3 / 2, "eps": 1e-6}
    in_python = dict(numbers)
    if flags:
        numbers["flags"] = flags
        in_python["accumulate"] = True if function == "rms_norm" else IN_PYTHON[flags]
    return numbers, in_python


def outputs(function, arguments):
    return {name: arguments[name].tobytes() for name in OUTPUTS[function] if name in arguments}


# ---- bits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["pool", "here"])
@pytest.mark.parametrize(("function", "flags"), FLAGS)
def test_bits(three_threads, rng, bfloat16, function, flags, shared):
    """Every mix of matrices, or 16; weight and dweight of any kind."""
    isas = itertools.cycle(_core.available_isas())
    for shape in ((1, 1), (3, 17), (9, 100), (70, 130), (3, 9000)):
        for number, mix in enumerate(mixes(function, 16, bfloat16)):
            _core.use_isa(next(isas))
            given = mixed(rng, function, mix, shape)
            if number % 5 == 4 and flags != 2:  # without a weight there is no dweight to add to
                given = unweighted(given)
            numbers, in_python = options_for(function, flags, number)
            wanted = copies(given)
            call(function, wanted, **in_python)
            found = spread_all(given, number)
            assert run(function, found, threads=int(not shared), **numbers) == OK
            assert outputs(function, found) == outputs(function, wanted), (shape, mix)


ROUND_FIRST = 4


@pytest.mark.parametrize("function", ["rms_norm", "add_rms_norm"])
def test_round_first(three_threads, rng, bfloat16, function):
    """x / rms is rounded to out's kind or, if the call computes in that, to its input's; then the
    product with the weight is rounded."""
    norm_input = {"rms_norm": "x", "add_rms_norm": "residual"}[function]
    for shape in ((1, 1), (3, 17), (70, 130), (3, 9000)):
        for number, mix in enumerate(mixes(function, 24, bfloat16)):
            given = mixed(rng, function, mix, shape)
            given["x"].flat[0] = np.inf if function == "rms_norm" else 1
            wanted = copies(given)
            numbers = {"eps": 1e-6, "weight_offset": number % 2 / 2}
            if function == "add_rms_norm":
                call(function, wanted)  # stores the sum
            wide = wide_dtype(function, given)
            out, held = given["out"].dtype, wanted[norm_input]
            kind = held.dtype if out == wide else out
            with np.errstate(all="ignore"):
                xhat = rounded(fastrms.rms_norm(held.astype(wide), eps=1e-6), kind).astype(wide)
                factor = wide(numbers["weight_offset"]) + given["weight"].astype(wide)
                wanted["out"] = rounded(xhat * factor, out)
            found = spread_all(given, number)
            assert run(function, found, threads=0, flags=ROUND_FIRST, **numbers) == OK
            assert differences({"out": found["out"]}, {"out": wanted["out"]}) == [], (shape, mix)
            for name, array in found.items():  # inputs, and the gaps between rows
                assert name in OUTPUTS[function] or (array == given[name]).all()
                assert array.ndim == 1 or (array.base[:, shape[1] :] == 77).all()


@FUNCTION
def test_in_place(three_threads, rng, bfloat16, function):
    """An output may be an input of its kind."""
    pairs = {
        "rms_norm": [("out", "x")],
        "add_rms_norm": [("out", "x"), ("residual", "x")],
        "rms_norm_backward": [("dx", "dy"), ("dx", "x")],
        "residual_add": [("residual", "x")],
    }
    for mix, (output, source) in itertools.product(mixes(function, 64, bfloat16), pairs[function]):
        given = mixed(rng, function, mix | {output: mix[source]}, (40, 70))
        given[output] = given[source]
        wanted = {name: array.copy() for name, array in given.items()}
        wanted[output] = wanted[source]
        call(function, wanted)
        assert run(function, given, threads=0) == OK
        assert outputs(function, given) == outputs(function, wanted), mix


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_of_stride_zero(rng, kind):
    x = np.broadcast_to(rounded(rng.standard_normal(64), dtype_of(kind)), (50, 64))
    out = np.empty((50, 64), dtype_of(kind))
    assert run("rms_norm", {"x": x, "out": out}) == OK
    assert out.tobytes() == fastrms.rms_norm(np.array(x)).tobytes()


# ---- scratch ----------------------------------------------------------------------------------


def least(function, given, shift, **numbers):
    """Return the smallest size of scratch that serves."""
    low, high = 0, functions.any_scratch_bytes(*given["x"].shape, numbers["threads"])
    assert run(function, copies(given), high, shift, **numbers) == OK
    while low < high:
        middle = (low + high) // 2
        code = run(function, copies(given), middle, shift, **numbers)
        assert code in (OK, BAD_SCRATCH)
        low, high = (low, middle) if code == OK else (middle + 1, high)
    return low


@pytest.mark.parametrize("shape", [(2, 50), (70, 130), (3, 9000)], ids=str)
@FUNCTION
def test_the_smallest_scratch(three_threads, rng, function, shape):
    """What is too small writes nothing; what is too small for all threads changes no bit."""
    several = [mix for half in (False, True) for mix in some(function, half)]
    for (number, mix), threads in itertools.product(enumerate(several), (1, 0)):
        given, shift = mixed(rng, function, mix, shape), number % 8 * 8
        wanted = copies(given)
        call(function, wanted)
        size = least(function, given, shift, threads=threads)
        found = copies(given)
        assert run(function, found, size - 1, shift, threads=threads) == BAD_SCRATCH
        assert [a.tobytes() for a in found.values()] == [a.tobytes() for a in given.values()]
        enough = functions.any_scratch_bytes(*shape, threads)
        for between in (size, (size + enough) // 2, enough):
            found = copies(given)
            assert run(function, found, between, shift, threads=threads) == OK
            assert outputs(function, found) == outputs(function, wanted), (mix, between)


def some(function, bfloat16):
    """Return four mixes, two if they need ml_dtypes, none without it."""
    try:
        return mixes(function, 2 if bfloat16 else 4, bfloat16)
    except pytest.skip.Exception:
        return []


def test_no_scratch_for_bad_sizes():
    for sizes in ((-1, 4, 1), (4, -1, 1), (4, 1 << 40, 0), (4, 4, 2)):
        assert functions.any_scratch_bytes(*sizes) == 0


# ---- errors -----------------------------------------------------------------------------------

ROWS, N = 4, 10
NUMBERS = [
    *(("rows", rows, BAD_SIZE) for rows in (-1, 1 << 60)),
    *(("n", n, BAD_SIZE) for n in (-1, 1 << 40)),
    *(("threads", threads, BAD_FLAG) for threads in (2, -1)),
    *(("scratch", address, BAD_SCRATCH) for address in (None, 4)),
    *(("scratch_size", size, BAD_SCRATCH) for size in (0, 63)),
]


BAD_FLAGS = {
    "rms_norm_backward": (4, 8, -1),
    "rms_norm": (2, 5, 8, -1),
    "add_rms_norm": (1, 2, 5, 8),
}


def wrong(function, arguments):
    """Return (field, value, code): a field of an array is named `array.field`, an address added."""
    found = list(NUMBERS)
    if function != "residual_add":
        found += [("eps", eps, BAD_EPS) for eps in (-1e-300, float("nan"))]
        found += [("flags", flags, BAD_FLAG) for flags in BAD_FLAGS[function]]
    for name, array in arguments.items():
        found += [(f"{name}.kind", kind, BAD_KIND) for kind in (-1, 4)]
        found += [
            (f"{name}.data", shift, BAD_POINTER) for shift in {1, array.itemsize // 2} if shift
        ]
        if name not in VECTORS[function]:
            found += [(f"{name}.data", None, BAD_POINTER)]
        if name in OUTPUTS[function] and name not in VECTORS[function]:
            far = (1 << 63) // array.itemsize // ROWS + 1
            strides = (N - 1, 1 - N, 0, 1 << 62, far, -far, -1 << 63)
            found += [(f"{name}.stride", stride, BAD_STRIDE) for stride in strides]
    if function == "rms_norm_backward":  # both or neither
        found += [(f"{name}.data", None, BAD_POINTER) for name in VECTORS[function]]
    return found


@FUNCTION
def test_errors(rng, bfloat16, function):
    for mix in mixes(function, 12, bfloat16):
        given = mixed(rng, function, mix, (ROWS, N))
        before = [array.tobytes() for array in given.values()]
        scratch = np.full(functions.any_scratch_bytes(ROWS, N, 1) // 8, 7.0)
        room = {"scratch": scratch.ctypes.data, "scratch_size": scratch.nbytes}
        for field, value, code in wrong(function, given):
            filled = described(given, **room)
            target, _, inner = field.partition(".")
            if inner:
                change(getattr(filled, target), inner, value)
            else:
                change(filled, target, value)
            assert made(function, filled) == code, (mix, field, value)
            assert [array.tobytes() for array in given.values()] == before
            assert (scratch == 7).all()
        assert made(function, described(given, **room)) == OK


def change(struct, field, value):
    """Set a field; move an address."""
    if field in ("data", "scratch") and value is not None:
        value += getattr(struct, field)
    setattr(struct, field, value)


@pytest.mark.parametrize(
    ("function", "one", "other"),
    [("add_rms_norm", "residual", "out"), ("rms_norm_backward", "dx", "dweight")],
)
def test_two_outputs_in_one_place(draw, function, one, other):
    given = {name: draw(ROWS, N) for name in MATRICES[function]}
    given |= {name: draw(N) for name in VECTORS[function]}
    before = given[one].tobytes()
    given[other] = given[one]
    assert run(function, given) == BAD_POINTER
    assert given[one].tobytes() == before


@FUNCTION
def test_the_fields_of_other_functions_are_not_read(rng, function):
    given = mixed(rng, function, dict.fromkeys(MATRICES[function] + VECTORS[function], "float16"),
                  (ROWS, N))  # fmt: skip
    wanted = copies(given)
    call(function, wanted)
    filled = described(given)
    lacking = {"x", "residual", "out", "dy", "dx", "weight", "dweight"} - {*given}
    numbers = {name: Array(1, 1, 99) for name in lacking}
    if function == "residual_add":
        numbers["flags"] = 99
    elif function != "add_rms_norm":
        numbers["scale"] = np.nan
    if function == "residual_add":
        numbers |= {"eps": np.nan, "weight_offset": np.nan}
    scratch = np.empty(functions.any_scratch_bytes(ROWS, N, 1) // 8)
    numbers |= {"scratch": scratch.ctypes.data, "scratch_size": scratch.nbytes}
    for name, value in numbers.items():
        setattr(filled, name, value)
    assert made(function, filled) == OK
    assert outputs(function, given) == outputs(function, wanted)


# ---- empty arrays, floating-point state -------------------------------------------------------


@FUNCTION
def test_empty(function):
    """Addresses of empty arrays do not matter; a dweight of no rows is zeros, or left to add to."""
    nowhere = Array(1, 0, 2)
    matrices = dict.fromkeys(MATRICES[function], nowhere)
    vectors = dict.fromkeys(VECTORS[function], nowhere)
    for rows in (0, 3):
        assert made(function, Call(rows=rows, n=0, scratch=None, **matrices, **vectors)) == OK
        wrong = Call(rows=rows, n=0, **(matrices | {"x": Array(1, 0, 4)}))
        assert made(function, wrong) == BAD_KIND
    scratch = np.empty(functions.any_scratch_bytes(0, 5, 1) // 8)
    room = {"scratch": scratch.ctypes.data, "scratch_size": scratch.nbytes}
    for kind, flags in itertools.product(("float16", "float32", "float64"), (0, 2)):
        total = np.ones(5, kind)
        one = Array(total.ctypes.data, 0, NUMBER_OF[kind])
        vectors = dict.fromkeys(VECTORS[function], one)
        numbers = {"flags": flags if "dweight" in vectors else 0} | room
        assert made(function, Call(rows=0, n=5, **matrices, **vectors, **numbers)) == OK
        assert total.all() == ("dweight" not in vectors or flags == 2)
        assert total.any() == total.all()


def test_the_floating_point_state_is_left_alone(three_threads, rng):
    """A call neither uses nor changes the caller's state; test_fp_state.py defines the states."""
    from .test_fp_state import STATES, _state

    for function, wide in itertools.product(FUNCTIONS, ("float32", "float64")):
        kinds = itertools.cycle(("float16", wide))
        mix = {name: next(kinds) for name in MATRICES[function] + VECTORS[function]}
        given = mixed(rng, function, mix, (40, 70))
        for name in MATRICES[function]:
            given[name][:2] *= given[name].dtype.type(1e-6)  # subnormal, and inexact
        wanted = copies(given)
        call(function, wanted)
        for state, threads in itertools.product(STATES.values(), (0, 1)):
            found = copies(given)
            filled = described(found, threads=threads)
            scratch = np.empty(functions.any_scratch_bytes(40, 70, threads) // 8)
            filled.scratch, filled.scratch_size = scratch.ctypes.data, scratch.nbytes
            pointer, function_any = ctypes.byref(filled), getattr(functions, f"{function}_any")
            with _state(state):
                code = function_any(pointer)
            assert code == OK
            assert outputs(function, found) == outputs(function, wanted)
            with _state(state):  # an error
                filled.threads = 2
                code = function_any(pointer)
            assert code == BAD_FLAG
