"""What fastrms refuses: the type of exception, the name in its message, and nothing changed."""

import array

import numpy as np
import pytest

import fastrms

from .signatures import (
    ARGUMENTS,
    ARGUMENTS_OF,
    MATRICES,
    MATRIX_ARGUMENTS,
    NORMS,
    OUTPUT_ARGUMENTS,
    OUTPUTS,
    REQUIRED,
    REQUIRED_ARGUMENTS,
    ROWS,
    VECTOR_ARGUMENTS,
    N,
)

SWAPPED = np.dtype(np.float32).newbyteorder().str
# What is not an array of native float32: (what an array of the right shape becomes).
WRONG_TYPES = {
    "float64": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "longdouble": lambda a: a.astype(np.longdouble),
    "complex64": lambda a: a.astype(np.complex64),
    "int32": lambda a: a.astype(np.int32),
    "int64": lambda a: a.astype(np.int64),
    "bool": lambda a: a > 0,
    "object": lambda a: a.astype(object),
    "bytes": lambda a: a.tobytes(),
    "text": lambda a: a.astype(str),
    "structured": lambda a: a.view([("value", np.float32)]),
    "byte-swapped": lambda a: a.astype(SWAPPED),
    "list": lambda a: a.tolist(),
    "tuple": lambda a: tuple(a.tolist()),
    "float": lambda a: 1.0,
    "double buffer": lambda a: array.array("d", a.ravel().tolist()),
    "str": lambda a: "x",
    "class": lambda a: np.ndarray,
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
    "a row": lambda a: a[None],
    "a column": lambda a: a[:, None],
    "empty": lambda a: a[:0],
}
NUMBERS = [(f, name) for f in NORMS for name in ("eps", "weight_offset")]
NUMBERS += [("residual_add", "scale")]


@pytest.fixture
def refuse(unchanged):
    """Return a function that asserts a refusal: its type, the name in it, and nothing written."""

    def call(function, arguments, error, match):
        with unchanged(*arguments.values()), pytest.raises(error, match=match) as caught:
            getattr(fastrms, function)(**arguments)
        assert "\n" not in str(caught.value)

    return call


@pytest.mark.parametrize("wrong", WRONG_TYPES)
@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
def test_wrong_type(arrays, refuse, function, name, wrong):
    arguments = arrays(function)
    arguments[name] = WRONG_TYPES[wrong](arguments[name])
    refuse(function, arguments, TypeError, rf"\b{name}\b.*float32")


@pytest.mark.parametrize("came", ["float64", "float16", "int32", SWAPPED])
@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
def test_message_says_what_came(arrays, refuse, function, name, came):
    arguments = arrays(function)
    arguments[name] = arguments[name].astype(came)
    refuse(function, arguments, TypeError, rf"\b{name}\b.*{came}")


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
def test_masked_array(arrays, refuse, function, name, mask):
    """Refused even where nothing is masked yet: the result would have no mask to carry on."""
    arguments = arrays(function)
    arguments[name] = np.ma.masked_array(arguments[name], mask)
    refuse(function, arguments, TypeError, rf"\b{name}\b.*masked")


@pytest.mark.parametrize(("function", "name"), REQUIRED_ARGUMENTS)
def test_none_for_an_array(arrays, refuse, function, name):
    refuse(function, {**arrays(function), name: None}, TypeError, rf"\b{name}\b.*None")


@pytest.mark.parametrize("wrong", WRONG_MATRICES)
@pytest.mark.parametrize(("function", "name"), MATRIX_ARGUMENTS)
def test_wrong_matrix(arrays, refuse, function, name, wrong):
    """Nothing broadcasts: the message names the array or the one that it disagrees with."""
    arguments = arrays(function)
    arguments[name] = WRONG_MATRICES[wrong](arguments[name])
    named = "|".join(ARGUMENTS_OF[function])
    refuse(function, arguments, ValueError, rf"\b({named})\b.*(shape|0-d)")


@pytest.mark.parametrize("wrong", WRONG_VECTORS)
@pytest.mark.parametrize(("function", "name"), VECTOR_ARGUMENTS)
def test_wrong_vector(arrays, refuse, function, name, wrong):
    arguments = arrays(function)
    arguments[name] = WRONG_VECTORS[wrong](arguments[name])
    refuse(function, arguments, ValueError, rf"\b{name}\b.*(\({N},\)|0-d)")


@pytest.mark.parametrize("function", NORMS)
def test_all_0d(refuse, function):
    """0-d everywhere: the shapes agree, and there is no last axis."""
    arguments = {name: np.zeros((), np.float32) for name in REQUIRED[function]}
    refuse(function, arguments, ValueError, rf"\b({'|'.join(arguments)})\b")


@pytest.mark.parametrize(("function", "name"), OUTPUT_ARGUMENTS)
def test_read_only_output(arrays, refuse, function, name):
    arguments = arrays(function)
    arguments[name].setflags(write=False)
    refuse(function, arguments, ValueError, rf"\b{name}\b.*read-only")


@pytest.mark.parametrize(("function", "name"), OUTPUT_ARGUMENTS)
def test_read_only_buffer_as_output(arrays, refuse, function, name):
    arguments = arrays(function)
    arguments[name] = memoryview(arguments[name]).toreadonly()
    refuse(function, arguments, ValueError, rf"\b{name}\b.*read-only")


@pytest.mark.parametrize("eps", [-1e-5, -1.0, -np.inf, np.nan, -5e-324, np.float32(-1)])
@pytest.mark.parametrize("function", NORMS)
def test_bad_eps(arrays, refuse, function, eps):
    refuse(function, {**arrays(function), "eps": eps}, ValueError, r"\beps\b")


@pytest.mark.parametrize("bad", ["1e-5", None, 1j, [1e-5], np.ones(2)])
@pytest.mark.parametrize(("function", "name"), NUMBERS)
def test_number_of_a_wrong_type(arrays, refuse, function, name, bad):
    refuse(function, {**arrays(function), name: bad}, TypeError, rf"\b{name}\b")


@pytest.mark.parametrize(("function", "name"), NUMBERS)
def test_number_beyond_float64(arrays, refuse, function, name):
    refuse(function, {**arrays(function), name: 10**400}, ValueError, rf"\b{name}\b.*float64")


@pytest.mark.parametrize("function", ["rms_norm", "rms_norm_backward"])
def test_accumulate_without_a_buffer(arrays, refuse, function):
    arguments = {name: arrays(function)[name] for name in (*REQUIRED[function], "weight")}
    named = "out" if function == "rms_norm" else "dx"
    refuse(function, {**arguments, "accumulate": True}, ValueError, rf"accumulate.*\b{named}\b")


def test_dweight_without_weight(arrays, refuse):
    arguments = {**arrays("rms_norm_backward"), "weight": None}
    refuse("rms_norm_backward", arguments, ValueError, r"\bdweight\b.*weight")


@pytest.mark.parametrize(
    ("function", "first", "second"),
    [("rms_norm_backward", "dx", "dweight"), ("add_rms_norm", "out", "residual")],
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
@pytest.mark.parametrize("function", ["add_rms_norm", "rms_norm_backward"])
def test_one_object_as_both_outputs(draw, refuse, function, n):
    """One row, so that dx and dweight agree in shape."""
    both = draw(n)
    names = OUTPUTS[function]
    inputs = {name: draw(n) for name in (*REQUIRED[function], "weight") if name not in names}
    refuse(function, {**inputs, **dict.fromkeys(names, both)}, ValueError, rf"\b{names[0]}\b")


@pytest.mark.parametrize(
    ("function", "positional"),
    [("rms_norm", 4), ("rms_norm_backward", 5), ("add_rms_norm", 5), ("residual_add", 4)],
)
def test_keyword_only(draw, unchanged, function, positional):
    matrices = [draw(ROWS, N) for _ in REQUIRED[function]]
    arguments = [*matrices, draw(N), 1e-5, 0.0, None][:positional]
    if function == "residual_add":
        arguments = [*matrices, 1.0, None]
    with unchanged(*matrices), pytest.raises(TypeError, match="positional"):
        getattr(fastrms, function)(*arguments)


@pytest.mark.parametrize("function", MATRICES)
def test_unknown_keyword(arrays, refuse, function):
    refuse(function, {**arrays(function), "axis": -1}, TypeError, "axis")


@pytest.mark.parametrize("function", MATRICES)
def test_missing_argument(function):
    with pytest.raises(TypeError, match="argument"):
        getattr(fastrms, function)()
