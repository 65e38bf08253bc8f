"""What fastrms takes and what it refuses: type of exception, the argument's name, nothing changed."""

import array
import ctypes

import numpy as np
import pytest

import fastrms

ROWS, N = 6, 12
# For each function: its arrays, by argument, in the shape (ROWS, N) or (N,).
MATRICES = {
    "rms_norm": ("x", "out"),
    "rms_norm_backward": ("dy", "x", "dx"),
    "add_rms_norm": ("x", "residual", "out"),
    "residual_add": ("residual", "x"),
}
VECTORS = {
    "rms_norm": ("weight",),
    "rms_norm_backward": ("weight", "dweight"),
    "add_rms_norm": ("weight",),
    "residual_add": (),
}
REQUIRED = {
    "rms_norm": ("x",),
    "rms_norm_backward": ("dy", "x"),
    "add_rms_norm": ("x", "residual"),
    "residual_add": ("residual", "x"),
}
OUTPUTS = {
    "rms_norm": ("out",),
    "rms_norm_backward": ("dx", "dweight"),
    "add_rms_norm": ("residual", "out"),
    "residual_add": ("residual",),
}
NORMS = ("rms_norm", "rms_norm_backward", "add_rms_norm")
ARGUMENTS_OF = {f: MATRICES[f] + VECTORS[f] for f in MATRICES}
ARGUMENTS = [(f, name) for f in ARGUMENTS_OF for name in ARGUMENTS_OF[f]]
MATRIX_ARGUMENTS = [(f, name) for f in MATRICES for name in MATRICES[f]]
VECTOR_ARGUMENTS = [(f, name) for f in VECTORS for name in VECTORS[f]]
OUTPUT_ARGUMENTS = [(f, name) for f in OUTPUTS for name in OUTPUTS[f]]
REQUIRED_ARGUMENTS = [(f, name) for f in REQUIRED for name in REQUIRED[f]]

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


@pytest.fixture
def arrays(draw):
    """Return a function from a function's name to valid arguments, every buffer passed."""

    def make(function):
        matrices = {name: draw(ROWS, N) for name in MATRICES[function]}
        return {**matrices, **{name: draw(N) for name in VECTORS[function]}}

    return make


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
    named = "|".join(MATRICES[function])
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
@pytest.mark.parametrize(
    ("function", "name"),
    [(f, name) for f in NORMS for name in ("eps", "weight_offset")] + [("residual_add", "scale")],
)
def test_number_of_a_wrong_type(arrays, refuse, function, name, bad):
    refuse(function, {**arrays(function), name: bad}, TypeError, rf"\b{name}\b")


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


@pytest.mark.parametrize("function", ["add_rms_norm", "rms_norm_backward"])
def test_one_object_as_both_outputs(draw, refuse, function):
    """One row, so that dx and dweight agree in shape."""
    both = draw(N)
    names = OUTPUTS[function]
    inputs = {name: draw(N) for name in (*REQUIRED[function], "weight") if name not in names}
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


# Every kind of call leaves its inputs alone: all but the outputs, and those that are not passed.
@pytest.mark.parametrize("passed", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("function", MATRICES)
def test_inputs_unchanged(arrays, unchanged, function, accumulate, weighted, passed):
    arguments = arrays(function)
    options = set(OUTPUTS[function]) - set(REQUIRED[function])
    without = set() if passed else options
    without |= set() if weighted else {"weight", "dweight"}
    arguments = {name: value for name, value in arguments.items() if name not in without}
    for name in set(arguments) - set(OUTPUTS[function]):
        arguments[name].setflags(write=False)
    inputs = [value for name, value in arguments.items() if name not in OUTPUTS[function]]
    if accumulate and passed and function in ("rms_norm", "rms_norm_backward"):
        arguments["accumulate"] = True
    with unchanged(*inputs):
        getattr(fastrms, function)(**arguments)


def _buffers(kind, values):
    """Return a writable float32 buffer that is no ndarray, holding values."""
    if kind == "array":
        return array.array("f", values.ravel().tolist())
    if kind == "memoryview":
        return memoryview(values.copy())
    if kind == "ctypes":
        return (ctypes.c_float * values.size)(*values.ravel().tolist())
    return np.ctypeslib.as_ctypes(values.copy())


# A flat array.array or ctypes array is one row.
FLAT = ("array", "memoryview", "ctypes")


@pytest.mark.parametrize("kind", FLAT)
@pytest.mark.parametrize("function", MATRICES)
def test_buffers_in_and_out(draw, unchanged, function, kind):
    """Zero-copy both ways: the result is in the buffer that was passed, which comes back itself."""
    values = {name: draw(N) for name in ARGUMENTS_OF[function]}
    buffers = {name: _buffers(kind, value) for name, value in values.items()}
    expected = getattr(fastrms, function)(**values)
    inputs = [buffers[name] for name in buffers if name not in OUTPUTS[function]]
    with unchanged(*inputs):
        results = getattr(fastrms, function)(**buffers)
    if function != "rms_norm_backward":
        expected, results = (expected,), (results,)
    returned = [name for name in ("dx", "dweight", "out") if name in buffers] or ["residual"]
    for result, name, value in zip(results, returned, expected, strict=True):
        assert result is buffers[name]
        assert bytes(memoryview(result)) == value.tobytes()
    if "residual" in buffers:
        assert bytes(memoryview(buffers["residual"])) == values["residual"].tobytes()


def test_two_dimensional_ctypes(draw):
    x = draw(ROWS, N)
    out = np.ctypeslib.as_ctypes(np.zeros_like(x))
    assert fastrms.rms_norm(np.ctypeslib.as_ctypes(x.copy()), out=out) is out
    assert bytes(memoryview(out)) == fastrms.rms_norm(x).tobytes()


@pytest.mark.parametrize("kind", FLAT)
def test_new_result_of_a_buffer_is_an_ndarray(draw, kind):
    x = draw(N)
    y = fastrms.rms_norm(_buffers(kind, x))
    assert type(y) is np.ndarray
    assert y.tobytes() == fastrms.rms_norm(x).tobytes()


class Tagged(np.ndarray):
    """A subclass that would notice if fastrms let it take part."""

    def __array_finalize__(self, source):
        self.tag = getattr(source, "tag", None)

    def __array_wrap__(self, *arguments, **keywords):
        raise AssertionError("fastrms returned a result through __array_wrap__")


def _tagged(values, tmp_path):
    return values.view(Tagged)


def _memmap(values, tmp_path):
    mapped = np.memmap(tmp_path / "values", np.float32, "w+", shape=values.shape)
    mapped[...] = values
    return mapped


SUBCLASSES = pytest.mark.parametrize("subclass", [_tagged, _memmap])


@SUBCLASSES
def test_subclass_in(draw, tmp_path, subclass):
    x, dy, weight = draw(ROWS, N), draw(ROWS, N), draw(N)
    expected = fastrms.rms_norm(x, weight), *fastrms.rms_norm_backward(dy, x, weight)
    x = subclass(x, tmp_path)
    results = fastrms.rms_norm(x, weight), *fastrms.rms_norm_backward(dy, x, weight)
    for result, value in zip(results, expected, strict=True):
        assert type(result) is np.ndarray
        assert result.tobytes() == value.tobytes()


@SUBCLASSES
def test_subclass_out(draw, tmp_path, subclass):
    x, residual = draw(ROWS, N), draw(ROWS, N)
    out = subclass(np.zeros_like(x), tmp_path)
    assert fastrms.rms_norm(x, out=out) is out
    assert out.tobytes() == fastrms.rms_norm(x).tobytes()
    stream = subclass(residual, tmp_path)
    assert fastrms.residual_add(stream, x) is stream
    assert stream.tobytes() == (residual if stream.base is residual else residual + x).tobytes()


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("shape", [(N,), (ROWS, N), (2, 3, N), (2, 1, 3, 2, N)])
def test_new_results(draw, shape, layout):
    """Plain, C-contiguous, owned by nobody else, of the shape of x."""
    x, dy, weight = draw(*shape), draw(*shape), draw(N)
    if layout == "strided":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    elif layout == "F":
        x = np.asfortranarray(x)
    results = {
        "y": fastrms.rms_norm(x, weight),
        "dx": fastrms.rms_norm_backward(dy, x, weight)[0],
        "fused": fastrms.add_rms_norm(x, dy, weight),
    }
    for result in results.values():
        assert type(result) is np.ndarray
        assert (result.shape, result.dtype) == (shape, np.float32)
        assert result.flags.c_contiguous
        assert result.flags.writeable
        assert not np.shares_memory(result, x)


@pytest.mark.parametrize("shape", [(0, N), (3, 0, N), (0, 0, N)])
def test_empty_batch(draw, shape):
    x, weight = draw(*shape), draw(N)
    dx, dweight = fastrms.rms_norm_backward(x, x, weight)
    assert fastrms.rms_norm(x, weight).shape == dx.shape == shape
    assert fastrms.add_rms_norm(x, x.copy(), weight).shape == shape
    assert fastrms.residual_add(x, x.copy()) is x
    np.testing.assert_array_equal(dweight, np.zeros(N, np.float32), strict=True)


@pytest.mark.parametrize("shape", [(0,), (ROWS, 0), (0, 0), (2, 3, 0)])
def test_empty_rows(draw, shape):
    x, weight = draw(*shape), draw(0)
    dx, dweight = fastrms.rms_norm_backward(x, x, weight)
    assert fastrms.rms_norm(x, weight).shape == dx.shape == shape
    assert fastrms.add_rms_norm(x, x.copy(), weight).shape == shape
    assert fastrms.residual_add(x, x.copy()) is x
    assert dweight.shape == (0,)


def test_dweight_of_an_empty_batch_overwrites_or_adds(draw):
    x, weight = draw(0, N), draw(N)
    held = draw(N)
    added = held.copy()
    fastrms.rms_norm_backward(x, x, weight, dweight=added, accumulate=True)
    assert added.tobytes() == held.tobytes()
    fastrms.rms_norm_backward(x, x, weight, dweight=held)
    assert not held.any()


@pytest.mark.parametrize("number", [np.float32(1e-5), np.float64(1e-5), 0, 1, True, np.int64(1)])
def test_numbers_of_any_real_type(draw, number):
    x = draw(ROWS, N)
    expected = fastrms.rms_norm(x, None, float(number)).tobytes()
    assert fastrms.rms_norm(x, None, number).tobytes() == expected


def test_defaults(draw):
    x, dy, weight = draw(ROWS, N), draw(ROWS, N), draw(N)
    assert fastrms.rms_norm(x).tobytes() == fastrms.rms_norm(x, None, 1e-5).tobytes()
    explicit = fastrms.rms_norm(x, weight, 1e-5, weight_offset=0.0, out=None, accumulate=False)
    assert fastrms.rms_norm(x, weight).tobytes() == explicit.tobytes()
    dx, dweight = fastrms.rms_norm_backward(dy, x)
    assert dweight is None
    assert dx.tobytes() == fastrms.rms_norm_backward(dy, x, None, 1e-5)[0].tobytes()
