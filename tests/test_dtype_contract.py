"""Which dtypes are taken, the dtypes and shapes of results, and what is refused."""

import numpy as np
import pytest

import fastrms
from fastrms import reference

from .dtypes import (
    call,
    copies,
    differences,
    dtype_of,
    meaning,
    mixed,
    mixes,
    without_buffers,
)
from .signatures import (
    ARGUMENTS_OF,
    FUNCTIONS,
    OUTPUTS,
    RETURNED,
    SUMS,
)

FOUR = "must be native float16, bfloat16, float32 or float64"
N = 12
WRONG = {
    "'<i8' (int64)": lambda a: a.astype(np.int64),
    "'|b1' (bool)": lambda a: a > 0,
    "'<c8' (complex64)": lambda a: a.astype(np.complex64),
    "'>f2' (>f2)": lambda a: a.astype(">f2"),
    "'>f4' (>f4)": lambda a: a.astype(">f4"),
    "'>f8' (>f8)": lambda a: a.astype(">f8"),
}


def _refuses(arrays, refused, function, convert, got=None):
    """Assert the whole message, for each array argument in turn."""
    for name in ARGUMENTS_OF[function]:
        arguments = arrays(function)
        array = arguments[name] = convert(arguments[name])
        hint = f"convert it first: {name}.astype(np.float32)"
        if name in OUTPUTS[function]:
            hint = "it is written, so allocate it as one of these, and keep it"
        got = got or f"'{array.dtype.str}' ({array.dtype})"
        assert refused(function, arguments, TypeError) == f"{name} {FOUR}, got {got}; {hint}"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_another_dtype_is_refused(arrays, refused, function):
    for got, convert in WRONG.items():
        _refuses(arrays, refused, function, convert, got)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_longdouble_is_refused(arrays, refused, function):
    if np.finfo(np.longdouble).nmant == 52:
        pytest.skip("longdouble is float64 on this platform")
    _refuses(arrays, refused, function, lambda a: a.astype(np.longdouble))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_another_dtype_of_ml_dtypes_is_refused(arrays, refused, function):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4):
        _refuses(arrays, refused, function, lambda a, dtype=dtype: a.astype(dtype))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_saved_bfloat16_is_to_be_viewed(arrays, refused, function):
    """np.save forgets the name: np.load gives two bytes without a meaning."""
    for name in ARGUMENTS_OF[function]:
        arguments = arrays(function)
        arguments[name] = arguments[name].astype(np.float16).view("V2")
        message = refused(function, arguments, TypeError)
        assert message.startswith(f"{name} {FOUR}, got '|V2' (")
        assert f"{name}.view(ml_dtypes.bfloat16)" in message


@pytest.mark.parametrize("function", FUNCTIONS)
def test_sums_stay_float64(arrays, refused, function):
    for name in SUMS[function]:
        for kind in ("float16", "float32"):
            arguments = arrays(function)
            arguments[name] = arguments[name].astype(kind)
            assert f"{name} must be" in refused(function, arguments, TypeError)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_read_only(rng, refused, unchanged, bfloat16, function):
    """A read-only input is read; a read-only output is refused, and nothing is written."""
    for mix in mixes(function, 20, bfloat16):
        made = mixed(rng, function, mix, (3, N))
        read = {name: made[name] for name in mix if name not in OUTPUTS[function]}
        for array in read.values():
            array.setflags(write=False)
        wanted = meaning(function, made)
        with unchanged(*read.values()):
            assert differences(call(function, copies(made) | read), wanted) == [], mix
        for name in set(OUTPUTS[function]) & set(made):
            arguments = copies(made)
            arguments[name].setflags(write=False)
            message = refused(function, arguments, ValueError)
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
