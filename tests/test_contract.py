"""Invalid calls: the exception's type, the argument's name in its message, nothing changed."""

import array
import re

import numpy as np
import pytest

import fastrms

from .signatures import (
    ACCUMULATE,
    ARGUMENTS,
    ARGUMENTS_OF,
    BACKWARD,
    FUNCTIONS,
    MATRICES,
    MATRIX_ARGUMENTS,
    NUMBER_ARGUMENTS,
    OUTPUT_ARGUMENTS,
    OUTPUTS,
    REQUIRED,
    REQUIRED_ARGUMENTS,
    ROWS,
    SUM_ARGUMENTS,
    SUMS,
    VECTOR_ARGUMENTS,
    N,
)

# Conversions of a valid argument into one of a wrong type.
WRONG_TYPES = {
    "longdouble": lambda a: a.astype(np.longdouble),
    "complex64": lambda a: a.astype(np.complex64),
    "int32": lambda a: a.astype(np.int32),
    "int64": lambda a: a.astype(np.int64),
    "bool": lambda a: a > 0,
    "object": lambda a: a.astype(object),
    "bytes": lambda a: a.tobytes(),
    "text": lambda a: a.astype(str),
    "structured": lambda a: a.view([("value", a.dtype)]),
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "list": lambda a: a.tolist(),
    "tuple": lambda a: tuple(a.tolist()),
    "float": lambda a: 1.0,
    "integer buffer": lambda a: array.array("i", range(a.size)),
    "str": lambda a: "x",
    "class": lambda a: np.ndarray,
}
# Sums are float64 alone; other arrays are of any kind of float.
WRONG_SUMS = {
    "float32": lambda a: a.astype(np.float32),
    "float16": lambda a: a.astype(np.float16),
    "float32 buffer": lambda a: array.array("f", a.ravel().tolist()),
}
WRONG_MATRICES = {
    "0-d": lambda a: a[0, 0, ...],
    "scalar": lambda a: a[0, 0],
    "a column less": lambda a: a[:, :-1].copy(),
    "a row less": lambda a: a[:-1].copy(),
    "a row more": lambda a: np.vstack([a, a[:1]]),
    "flat": np.ravel,
    "transposed": lambda a: a.T.copy(),
    "an axis more": lambda a: a[None],
    "one row, to broadcast": lambda a: a[:1].copy(),
    "one column, to broadcast": lambda a: a[:, :1].copy(),
    "empty": lambda a: a[:0],
}
WRONG_VECTORS = {
    "0-d": lambda a: a[0, ...],
    "scalar": lambda a: a[0],
    "one less": lambda a: a[:-1].copy(),
    "one more": lambda a: np.append(a, a[:1]),
    "one, to broadcast": lambda a: a[:1].copy(),
    "two rows": lambda a: np.stack([a, a]),
    "a column": lambda a: a[:, None],
    "empty": lambda a: a[:0],
}


@pytest.fixture
def refuse(unchanged):
    """Return a function that asserts the exception of a call, and that no array changes."""

    def call(function, arguments, error, match):
        with unchanged(*arguments.values()), pytest.raises(error, match=match) as caught:
            getattr(fastrms, function)(**arguments)
        assert "\n" not in str(caught.value)

    return call


def _wanted(function, name):
    return "float64" if name in SUMS[function] else "float16, bfloat16, float32 or float64"


@pytest.mark.parametrize(("function", "name"), ARGUMENTS + SUM_ARGUMENTS)
def test_wrong_type(arrays, refuse, function, name):
    for wrong in WRONG_TYPES.values():
        arguments = arrays(function)
        arguments[name] = wrong(arguments[name])
        refuse(function, arguments, TypeError, rf"\b{name}\b.*(float|buffer)")


@pytest.mark.parametrize("wrong", WRONG_SUMS)
@pytest.mark.parametrize(("function", "name"), SUM_ARGUMENTS)
def test_sums_are_float64(arrays, refuse, function, name, wrong):
    arguments = arrays(function)
    arguments[name] = WRONG_SUMS[wrong](arguments[name])
    refuse(function, arguments, TypeError, rf"\b{name}\b.*float64")


@pytest.mark.parametrize("came", ["longdouble", "int32", "byte-swapped"])
@pytest.mark.parametrize(("function", "name"), ARGUMENTS + SUM_ARGUMENTS)
def test_message_says_what_is_wanted_and_what_came(arrays, refuse, function, name, came):
    arguments = arrays(function)
    arguments[name] = wrong = WRONG_TYPES[came](arguments[name])
    wanted = rf"must be native {_wanted(function, name)}, got '{re.escape(wrong.dtype.str)}'"
    refuse(function, arguments, TypeError, rf"\b{name} {wanted} \({wrong.dtype}\); ")


@pytest.mark.parametrize("wrong", ["longdouble", "byte-swapped", "bytes"])
@pytest.mark.parametrize(("function", "name"), OUTPUT_ARGUMENTS)
def test_output_is_not_to_be_converted(arrays, refuse, function, name, wrong):
    """No hint suggests out.astype(...): the result would be lost with that temporary array."""
    arguments = arrays(function)
    wanted = "float64" if arguments[name].dtype == np.float64 else "one of these"
    arguments[name] = WRONG_TYPES[wrong](arguments[name])
    hint = f"allocate it as {wanted}, and keep it"
    if (wrong, wanted) == ("bytes", "float64"):
        hint = "float64 numpy.ndarray, got bytes"  # sums must be ndarrays
    refuse(function, arguments, TypeError, rf"\b{name}\b.*{hint}$")


@pytest.mark.parametrize(("function", "name"), ARGUMENTS + SUM_ARGUMENTS)
def test_input_is_to_be_converted(arrays, refuse, function, name):
    if (function, name) in OUTPUT_ARGUMENTS:
        return
    arguments = arrays(function)
    wanted = arguments[name].dtype
    arguments[name] = arguments[name].astype(np.int32)
    refuse(function, arguments, TypeError, rf"{name}\.astype\(np\.{wanted}\)$")


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("function", "name"), ARGUMENTS + SUM_ARGUMENTS)
def test_masked_array(arrays, refuse, function, name, mask):
    """A masked array is an error even if nothing is masked, as the result would have no mask."""
    arguments = arrays(function)
    arguments[name] = np.ma.masked_array(arguments[name], mask)
    hint = r"\.data$" if name in OUTPUTS[function] else r"\.data or .*\.filled"
    refuse(function, arguments, TypeError, rf"\b{name}\b.*masked.* pass {name}{hint}")


@pytest.mark.parametrize(("function", "name"), REQUIRED_ARGUMENTS)
def test_none_for_an_array(arrays, refuse, function, name):
    refuse(function, {**arrays(function), name: None}, TypeError, rf"\b{name}\b.*None")


@pytest.mark.parametrize(("function", "name"), MATRIX_ARGUMENTS)
def test_wrong_matrix(arrays, refuse, function, name):
    """Nothing broadcasts: the message names one of the two arrays that disagree."""
    named = "|".join(ARGUMENTS_OF[function] + SUMS[function])
    for wrong, change in WRONG_MATRICES.items():
        # sum_squares takes x of any number of columns, since no other array has to match it.
        if function != "sum_squares" or "column" not in wrong:
            arguments = arrays(function)
            arguments[name] = change(arguments[name])
            refuse(function, arguments, ValueError, rf"\b({named})\b.*(shape|0-d)")


@pytest.mark.parametrize(("function", "name"), VECTOR_ARGUMENTS + SUM_ARGUMENTS)
def test_wrong_vector(arrays, refuse, function, name):
    for wrong, change in WRONG_VECTORS.items():
        arguments = arrays(function)
        length = len(arguments[name])
        arguments[name] = change(arguments[name])
        error = TypeError if (name, wrong) == ("out", "scalar") else ValueError
        refuse(function, arguments, error, rf"\b{name}\b.*(\({length},\)|0-d|scalar)")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_all_0d(arrays, refuse, function):
    """0-d arrays are an error even if all shapes agree: they have no last axis."""
    matrices = dict.fromkeys(MATRICES[function], np.zeros((), np.float32))
    refuse(function, arrays(function) | matrices, ValueError, rf"\b({'|'.join(matrices)})\b.*0-d")


@pytest.mark.parametrize(("function", "name"), OUTPUT_ARGUMENTS)
def test_read_only_output(arrays, refuse, function, name):
    arguments = arrays(function)
    arguments[name].setflags(write=False)
    refuse(function, arguments, ValueError, rf"\b{name}\b.*read-only")


@pytest.mark.parametrize(("function", "name"), sorted({*OUTPUT_ARGUMENTS} - {*SUM_ARGUMENTS}))
def test_read_only_buffer_as_output(arrays, refuse, function, name):
    arguments = arrays(function)
    arguments[name] = memoryview(arguments[name]).toreadonly()
    refuse(function, arguments, ValueError, rf"\b{name}\b.*read-only")


@pytest.mark.parametrize("eps", [-1e-5, -1.0, -np.inf, np.nan, -5e-324, np.float32(-1)])
@pytest.mark.parametrize("function", [f for f, name in NUMBER_ARGUMENTS if name == "eps"])
def test_bad_eps(arrays, refuse, function, eps):
    refuse(function, {**arrays(function), "eps": eps}, ValueError, r"\beps\b")


NOT_REAL = ["1e-5", None, 1j, [1e-5], np.ones(2)]
# NumPy converts these, with a warning or from text.
NOT_REAL += [np.complex64(1e-5), np.array(1e-5 + 0j), np.str_("1"), np.bytes_(b"1"), np.array("1")]


@pytest.mark.parametrize("bad", NOT_REAL)
@pytest.mark.parametrize(("function", "name"), NUMBER_ARGUMENTS)
def test_number_of_a_wrong_type(arrays, refuse, function, name, bad):
    refuse(function, {**arrays(function), name: bad}, TypeError, rf"\b{name}\b")


@pytest.mark.parametrize("bad", [np.ma.masked, np.ma.array(1, mask=True), np.ma.array(1)])
@pytest.mark.parametrize(
    ("function", "name"),
    [*NUMBER_ARGUMENTS, ("rms_scale", "size"), ("rms_scale_backward", "size")],
)
def test_masked_number(arrays, refuse, function, name, bad):
    refuse(function, {**arrays(function), name: bad}, TypeError, rf"\b{name}\b.*masked")


@pytest.mark.parametrize(("function", "name"), NUMBER_ARGUMENTS)
def test_number_beyond_float64(arrays, refuse, function, name):
    refuse(function, {**arrays(function), name: 10**400}, ValueError, rf"\b{name}\b.*float64")


@pytest.mark.parametrize("function", ACCUMULATE)
def test_accumulate_without_a_buffer(arrays, refuse, function):
    arguments = {name: arrays(function)[name] for name in (*REQUIRED[function], "weight")}
    named = "out" if function == "rms_norm" else "dx"
    refuse(function, {**arguments, "accumulate": True}, ValueError, rf"accumulate.*\b{named}\b")


@pytest.mark.parametrize("function", BACKWARD)
@pytest.mark.parametrize("name", ["dx", "dweight"])
def test_accumulate_without_the_buffer_that_it_names(arrays, refuse, function, name):
    arguments = {n: array for n, array in arrays(function).items() if n != name}
    refuse(function, {**arguments, "accumulate": name}, ValueError, rf"accumulate.*\b{name}=")


@pytest.mark.parametrize("bad", ["", "both", "dx,dweight", "DX", "out", "False", 2, -1])
@pytest.mark.parametrize("function", ACCUMULATE)
def test_accumulate_by_another_name(arrays, refuse, function, bad):
    wanted = "True or False" if function == "rms_norm" else 'True, False, "dx" or "dweight"'
    wanted = f"accumulate must be {wanted}, got {bad!r}"
    refuse(function, {**arrays(function), "accumulate": bad}, ValueError, wanted)


@pytest.mark.parametrize("name", ["dx", "dweight"])
def test_forward_has_one_output_to_add_to(arrays, refuse, name):
    wanted = f"accumulate must be True or False, got '{name}'"
    refuse("rms_norm", {**arrays("rms_norm"), "accumulate": name}, ValueError, wanted)


@pytest.mark.parametrize("bad", [None, 1.0, np.array([1, 0]), ["dx"]])
@pytest.mark.parametrize("function", ACCUMULATE)
def test_accumulate_of_another_type(arrays, refuse, function, bad):
    wanted = f"accumulate must be True.*, got {type(bad).__name__}"
    refuse(function, {**arrays(function), "accumulate": bad}, TypeError, wanted)


@pytest.mark.parametrize("function", BACKWARD)
def test_dweight_without_weight(arrays, refuse, function):
    arguments = {**arrays(function), "weight": None}
    refuse(function, arguments, ValueError, r"\bdweight\b.*weight")


@pytest.mark.parametrize(
    ("function", "first", "second"),
    [*((f, "dx", "dweight") for f in BACKWARD), ("add_rms_norm", "out", "residual")],
)
@pytest.mark.parametrize("start", [0, 1, N - 1, N])
def test_outputs_that_overlap(draw, arrays, refuse, function, first, second, start):
    memory = draw(2 * ROWS * N)
    arguments = arrays(function)
    arguments[first] = memory[: ROWS * N].reshape(ROWS, N)
    shape = arguments[second].shape
    arguments[second] = memory[start : start + np.prod(shape)].reshape(shape)
    refuse(function, arguments, ValueError, rf"(?=.*\b{first}\b)(?=.*\b{second}\b)")


@pytest.mark.parametrize("n", [1, N])
@pytest.mark.parametrize("function", ["add_rms_norm", *BACKWARD])
def test_one_object_as_both_outputs(draw, arrays, refuse, function, n):
    """With one row, dx and dweight have the same shape."""
    both = dict.fromkeys(OUTPUTS[function], draw(n))
    refuse(function, arrays(function, n) | both, ValueError, rf"\b{OUTPUTS[function][0]}\b")


@pytest.mark.parametrize(
    ("function", "positional"),
    [*zip(FUNCTIONS, (4, 5, 5, 4, 2, 4, 6, 8), strict=True)],
)
def test_keyword_only(arrays, unchanged, function, positional):
    made = arrays(function)
    required = [made[name] for name in REQUIRED[function]]
    arguments = [*required, made.get("weight"), 1e-5, 0.0][:positional]
    with unchanged(*required), pytest.raises(TypeError, match="positional"):
        getattr(fastrms, function)(*arguments)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_unknown_keyword(arrays, refuse, function):
    refuse(function, {**arrays(function), "axis": -1}, TypeError, "axis")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_missing_argument(function):
    with pytest.raises(TypeError, match="argument"):
        getattr(fastrms, function)()


@pytest.mark.parametrize(("value", "same"), [(np.True_, True), (1, True), (0, False)])
def test_accumulate_is_true_or_false(draw, value, same):
    x, dx = draw(3, 5), draw(3, 5)
    wanted, _ = fastrms.rms_norm_backward(x, x, dx=dx.copy(), accumulate=same)
    got, _ = fastrms.rms_norm_backward(x, x, dx=dx.copy(), accumulate=value)
    assert got.tobytes() == wanted.tobytes()
