"""Which dtypes and shapes of a weight are taken, what comes back, and what is refused."""

import inspect
import itertools

import numpy as np
import pytest

import fastrms
from fastrms import reference

from .dtypes import (
    KINDS,
    call,
    copies,
    differences,
    dtype_of,
    meaning,
    mixed,
    mixes,
    rounded,
    without_buffers,
)
from .signatures import (
    ARGUMENTS_OF,
    BACKWARD,
    FUNCTIONS,
    OUTPUTS,
    RETURNED,
    SUMS,
    VECTORS,
)

FOUR = "must be native float16, bfloat16, float32 or float64"
WITH_WEIGHT = [function for function in FUNCTIONS if "weight" in VECTORS[function]]
N = 12
WRONG = {
    "'<i8' (int64)": lambda a: a.astype(np.int64),
    "'|b1' (bool)": lambda a: a > 0,
    "'<c8' (complex64)": lambda a: a.astype(np.complex64),
    "'>f2' (>f2)": lambda a: a.astype(">f2"),
    "'>f4' (>f4)": lambda a: a.astype(">f4"),
    "'>f8' (>f8)": lambda a: a.astype(">f8"),
}


@pytest.fixture(params=[False, True], ids=["without bfloat16", "with bfloat16"])
def bfloat16(request):
    if request.param:
        dtype_of("bfloat16")  # or skip
    return request.param


@pytest.fixture
def refuse(unchanged):
    """Return a function that returns the message of a call's exception; no array changes."""

    def refused(function, arguments, error):
        arrays = [value for value in arguments.values() if isinstance(value, np.ndarray)]
        with unchanged(*arrays), pytest.raises(error) as caught:
            getattr(fastrms, function)(**arguments)
        return str(caught.value)

    return refused


def _refuses(arrays, refuse, function, convert, got=None):
    """Assert the whole message, for each array argument in turn."""
    for name in ARGUMENTS_OF[function]:
        arguments = arrays(function)
        array = arguments[name] = convert(arguments[name])
        hint = f"convert it first: {name}.astype(np.float32)"
        if name in OUTPUTS[function]:
            hint = "it is written, so allocate it as one of these, and keep it"
        got = got or f"'{array.dtype.str}' ({array.dtype})"
        assert refuse(function, arguments, TypeError) == f"{name} {FOUR}, got {got}; {hint}"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_another_dtype_is_refused(arrays, refuse, function):
    for got, convert in WRONG.items():
        _refuses(arrays, refuse, function, convert, got)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_longdouble_is_refused(arrays, refuse, function):
    if np.finfo(np.longdouble).nmant == 52:
        pytest.skip("longdouble is float64 on this platform")
    _refuses(arrays, refuse, function, lambda a: a.astype(np.longdouble))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_another_dtype_of_ml_dtypes_is_refused(arrays, refuse, function):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4):
        _refuses(arrays, refuse, function, lambda a, dtype=dtype: a.astype(dtype))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_saved_bfloat16_is_to_be_viewed(arrays, refuse, function):
    """np.save forgets the name: np.load gives two bytes without a meaning."""
    for name in ARGUMENTS_OF[function]:
        arguments = arrays(function)
        arguments[name] = arguments[name].astype(np.float16).view("V2")
        message = refuse(function, arguments, TypeError)
        assert message.startswith(f"{name} {FOUR}, got '|V2' (")
        assert f"{name}.view(ml_dtypes.bfloat16)" in message


@pytest.mark.parametrize("function", FUNCTIONS)
def test_sums_stay_float64(arrays, refuse, function):
    for name in SUMS[function]:
        for kind in ("float16", "float32"):
            arguments = arrays(function)
            arguments[name] = arguments[name].astype(kind)
            assert f"{name} must be" in refuse(function, arguments, TypeError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_read_only(arrays, refuse, unchanged, function, kind):
    """A read-only input is read; a read-only output is refused, and nothing is written."""
    made = arrays(function)
    for name in ARGUMENTS_OF[function]:
        made[name] = made[name].astype(dtype_of(kind))
    inputs = [name for name in ARGUMENTS_OF[function] if name not in OUTPUTS[function]]
    for name in inputs:
        made[name].setflags(write=False)
    wanted, read = meaning(function, made), {name: made[name] for name in inputs}
    with unchanged(*read.values()):
        assert differences(call(function, copies(made) | read), wanted) == []
    for name in OUTPUTS[function]:
        arguments = copies(made)
        arguments[name].setflags(write=False)
        message = refuse(function, arguments, ValueError)
        assert name in message
        assert "read-only" in message


# ---- what comes back ----------------------------------------------------------------------------


SHAPES = [(3, N), (N,), (2, 3, N), (0, N), (3, 0), (0,), (2, 0, N)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_new_results(rng, bfloat16, shape):
    """Y and dx have x's dtype, dweight has weight's; also of empty arrays."""
    for function in FUNCTIONS:
        for mix in mixes(function, 30, bfloat16):
            given = mixed(rng, function, mix, shape)
            if "size" in given:
                given["size"] = max(1, given["size"])
            arguments = without_buffers(function, given)
            dtypes = {"out": given["x"].dtype, "dx": given["x"].dtype}
            dtypes |= {"residual": given["x"].dtype}
            dtypes |= {name: given[name].dtype for name in ("residual", "weight") if name in given}
            dtypes["dweight"] = dtypes.get("weight")
            if function in ("sum_squares", "sum_products"):
                dtypes["out"] = np.dtype("float64")
            found = call(function, arguments)
            for name in RETURNED[function]:
                assert type(found[name]) is np.ndarray
                assert found[name].dtype == dtypes[name], (function, mix, name)
                sums = name in SUMS[function]
                wanted = shape[-1:] if name == "dweight" else shape[:-1] if sums else shape
                assert found[name].shape == wanted
            if "dweight" in found and 0 in shape:
                assert not found["dweight"].astype(float).any()
            passed = call(function, given)  # which asserts that outputs are those passed
            assert {name: passed[name].dtype for name in passed if name in mix} == {
                name: dtype_of(mix[name]) for name in passed if name in mix
            }


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_buffers_of_python(draw, kind):
    """A memoryview is read and written in place, as one of float32 is."""
    x, out = draw(3, N).astype(kind), np.empty((3, N), kind)
    wanted = fastrms.rms_norm(x)
    y = fastrms.rms_norm(memoryview(x))
    assert (y.dtype, y.tobytes()) == (wanted.dtype, wanted.tobytes())
    view = memoryview(out)
    assert fastrms.rms_norm(memoryview(x), out=view) is view
    assert out.tobytes() == wanted.tobytes()


def test_only_matrices_decide_the_arithmetic(draw):
    """A float64 weight, dweight or sum leaves it float32; a float64 out or dx does not."""
    x, dy, weight = draw(9, 100), draw(9, 100), draw(100)
    narrow, wide = weight.astype(np.float16), weight.astype(np.float64)
    assert fastrms.rms_norm(x, wide).tobytes() == fastrms.rms_norm(x, weight).tobytes()
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight)
    for given, dtype in ((narrow, np.float16), (wide, np.float64)):
        _, held = fastrms.rms_norm_backward(dy, x, weight, dweight=np.empty_like(given))
        assert held.tobytes() == dweight.astype(dtype).tobytes()
    out = fastrms.rms_norm(x, weight, out=np.empty(x.shape))
    assert np.abs(out - reference.rms_norm(x, weight)).max() < 1e-14
    assert out.tobytes() == fastrms.rms_norm(x.astype(float), wide).tobytes()
    wide_dx = np.empty(x.shape)
    _, wide_dweight = fastrms.rms_norm_backward(dy, x, weight, dx=wide_dx)
    exact, exact_dweight = reference.rms_norm_backward(dy, x, weight)
    assert np.abs(wide_dx - exact).max() < 1e-13
    assert wide_dweight.dtype == np.float32
    assert wide_dweight.tobytes() == exact_dweight.astype(np.float32).tobytes()
    assert np.abs(wide_dx - dx).max() > 1e-9


# ---- shapes of weight and dweight ---------------------------------------------------------------


@pytest.mark.parametrize("function", WITH_WEIGHT)
def test_leading_axes_of_one(rng, bfloat16, function):
    """Weight may have the shape (1, ..., 1, n); a new dweight has its shape."""
    every_mix = enumerate(mixes(function, 40, bfloat16))
    for (number, mix), n in itertools.product(every_mix, (1, N, 100)):
        shape = ((n,), (1, n), (1, 1, n), (1, 1, 1, n))[number % 4]
        given = mixed(rng, function, mix, ((7, n), (2, 3, n), (n,))[number % 3])
        given["weight"] = given["weight"].reshape(shape)
        calls = [without_buffers(function, given), given]
        if "dweight" in given:
            calls.append(given | {"dweight": given["dweight"].reshape(shape)})
        for arguments in calls:
            wanted = meaning(function, arguments)
            assert differences(call(function, copies(arguments)), wanted) == [], (mix, shape)


@pytest.mark.parametrize("function", BACKWARD)
def test_accumulate_into_dweight_of_two_axes(rng, function):
    for shape in ((N,), (1, N)):
        given = mixed(rng, function, dict.fromkeys(ARGUMENTS_OF[function], "float32"), (9, N))
        given["weight"], given["dweight"] = given["weight"][None], given["dweight"].reshape(shape)
        wanted = meaning(function, given, accumulate=True)
        assert differences(call(function, given, accumulate=True), wanted) == []


@pytest.mark.parametrize("function", WITH_WEIGHT)
def test_another_shape_is_refused(arrays, refuse, function):
    shapes = ((), (N - 1,), (1,), (1, N + 1), (N, 1), (2, N), (2, 1, N), (1, 2, N), (N, N), (0, N))
    for name, shape in itertools.product(VECTORS[function], shapes):
        for kind in ("float16", "float32", "float64"):
            arguments = arrays(function) | {name: np.ones(shape, kind)}
            message = refuse(function, arguments, ValueError)
            assert message.startswith(f"{name} must have "), shape


@pytest.mark.parametrize("function", BACKWARD)
def test_dweight_has_one_axis_or_the_shape_of_weight(arrays, refuse, function):
    for weight, dweight in (((N,), (1, N)), ((1, N), (1, 1, N)), ((1, 1, N), (1, N))):
        shapes = {"weight": np.ones(weight, np.float32), "dweight": np.ones(dweight, np.float32)}
        message = refuse(function, arrays(function) | shapes, ValueError)
        assert message.startswith("dweight must have ")


@pytest.mark.parametrize("kind", KINDS)
def test_weight_beyond_float32(kind):
    """Beside float32 and halves, a float64 weight is rounded to float32: once, maybe to Inf."""
    x = rounded([[1.0, -1.0, 1.0, -1.0]], dtype_of(kind))
    weight = np.array([1e300, 1e300, 1e-300, 1 + 2.0**-24 + 2.0**-50])
    y = fastrms.rms_norm(x, weight, 0.0).astype(float)
    if kind == "float64":
        np.testing.assert_allclose(y, x * weight, rtol=1e-15)
    else:
        once = rounded(np.float64(1 + 2.0**-23), x.dtype)
        assert y.tolist() == [[np.inf, -np.inf, 0, -once]]


@pytest.mark.parametrize("kind", KINDS)
def test_reference_takes_these_weights(rng, kind):
    x, dy = rng.standard_normal((2, 5, N))
    weight = rounded(rng.standard_normal(N), dtype_of(kind))
    y = reference.rms_norm(x, weight)
    dx, dweight = reference.rms_norm_backward(dy, x, weight)
    for shape in ((1, N), (1, 1, N)):
        again = reference.rms_norm(x, weight.reshape(shape))
        assert (again.shape, again.tobytes()) == (x.shape, y.tobytes())
        found = reference.rms_norm_backward(dy, x, weight.reshape(shape))
        assert [array.shape for array in found] == [x.shape, shape]
        assert [array.tobytes() for array in found] == [dx.tobytes(), dweight.tobytes()]
        for held in (np.empty(shape), np.empty(N)):
            _, passed = reference.rms_norm_backward(dy, x, weight.reshape(shape), dweight=held)
            assert passed is held
            assert held.tobytes() == dweight.tobytes()


def test_reference_has_the_same_signature():
    parameters = inspect.signature(reference.add_rms_norm).parameters
    assert list(parameters) == ["x", "residual", "weight", "eps", "weight_offset", "scale", "out"]
    assert parameters["scale"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["scale"].default == 1.0


def test_numba_takes_a_weight_of_two_axes(draw):
    numba = pytest.importorskip("numba", reason="numba is not installed")
    pytest.importorskip("fastrms.numba")

    @numba.njit
    def both(dy, x, weight):
        return fastrms.rms_norm(x, weight), fastrms.rms_norm_backward(dy, x, weight)

    x, dy, weight = draw(5, N), draw(5, N), draw(1, N)
    y, (dx, dweight) = both(dy, x, weight)
    wanted_dx, wanted = fastrms.rms_norm_backward(dy, x, weight[0])
    assert y.tobytes() == fastrms.rms_norm(x, weight[0]).tobytes()
    assert dx.tobytes() == wanted_dx.tobytes()
    assert (dweight.shape, dweight.tobytes()) == ((1, N), wanted.tobytes())


# ---- ml_dtypes ----------------------------------------------------------------------------------

RECOGNISED = """
import sys
import numpy as np
import fastrms

x = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
for kind in (np.float16, np.float64):
    assert fastrms.rms_norm(x.astype(kind)).dtype == kind
try:
    fastrms.rms_norm(x.astype(np.float16).view("V2"))
except TypeError as error:
    assert "x.view(ml_dtypes.bfloat16)" in str(error)
assert "ml_dtypes" not in sys.modules, "fastrms imports it"
import ml_dtypes
short = x.astype(ml_dtypes.bfloat16)
y = fastrms.rms_norm(short, short[0])
wide = short.astype(np.float32)
assert y.dtype == ml_dtypes.bfloat16
assert y.tobytes() == fastrms.rms_norm(wide, wide[0]).astype(ml_dtypes.bfloat16).tobytes()
saved = short.view("V2").view(ml_dtypes.bfloat16)
assert fastrms.rms_norm(saved, short[0]).tobytes() == y.tobytes()
"""


@pytest.mark.parametrize("first", ["fastrms", "ml_dtypes"])
def test_bfloat16_is_recognised_without_an_import(python, first):
    dtype_of("bfloat16")  # or skip
    lines = RECOGNISED.splitlines()
    if first == "ml_dtypes":
        lines = ["import ml_dtypes", *(line for line in lines if "fastrms imports it" not in line)]
    result = python("\n".join(lines))
    assert result.returncode == 0, result.stderr
