"""Arrays of other libraries: the error suggests a conversion, and that conversion works."""

import array
import ctypes

import numpy as np
import pytest

import fastrms

from .signatures import ARGUMENTS, ROWS, N


def refusal(x):
    with pytest.raises(TypeError, match=r"x must be a numpy.ndarray or a buffer of floats") as e:
        fastrms.rms_norm(x)
    return str(e.value)


class ArrayFunction:
    def __array_function__(self, *arguments):
        raise AssertionError("fastrms let another library's array take over a call")


class ArrayUfunc:
    def __array_ufunc__(self, *arguments, **keywords):
        raise AssertionError("fastrms let another library's array take over a call")


class Duck:
    """An object whose only protocol is NumPy's conversion, which would be a hidden copy."""

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("fastrms converted an array")


class Exported:
    """An array of another library, which exports DLPack alone."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


@pytest.mark.parametrize(
    "value", [ArrayFunction(), ArrayUfunc()], ids=lambda value: str(type(value))
)
@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
def test_every_argument_refuses_what_takes_over_numpy_calls(
    arrays, unchanged, function, name, value
):
    arguments = {**arrays(function), name: value}
    with (
        unchanged(*arguments.values()),
        pytest.raises(TypeError, match=rf"{name} must be .*\({name}.data, {name}.to_numpy\(\)\)"),
    ):
        getattr(fastrms, function)(**arguments)


@pytest.mark.parametrize("value", [[1.0], Duck(), object(), 3.0, None])
def test_no_way_out_where_there_is_none(value):
    assert refusal(value).endswith(f"got {type(value).__name__}")


def test_a_buffer_that_cannot_be_had(draw):
    buffer = memoryview(draw(ROWS, N))
    buffer.release()
    assert refusal(buffer).startswith("x must be a numpy.ndarray or a buffer of floats, got ")
    assert "got memoryview (" in refusal(buffer)
    assert "released" in refusal(buffer)


class Pair(ctypes.Structure):
    _fields_ = [("a", ctypes.c_float), ("b", ctypes.c_int)]


class Either(ctypes.Union):
    _fields_ = [("a", ctypes.c_float), ("b", ctypes.c_int)]


class Bits(ctypes.Structure):
    _fields_ = [("a", ctypes.c_int, 3), ("b", ctypes.c_int, 5)]


LongDoubles = ctypes.c_longdouble * 4
FLOATS = np.arange(1, 5, dtype=np.float32)
# Buffers of other elements: the advice for each, a piece of Python that makes a float array of it.
BUFFERS = {
    "bytes": (FLOATS.tobytes(), "np.frombuffer(x, np.float32)"),
    "bytearray": (bytearray(FLOATS), "np.frombuffer(x, np.float32)"),
    "chars": (memoryview(FLOATS.tobytes()).cast("c"), "np.frombuffer(x, np.float32)"),
    "integers": (array.array("q", [1, 2, 3, 4]), "np.asarray(x).astype(np.float32)"),
    "other order": (
        (ctypes.c_float.__ctype_be__ * 4)(1, 2, 3, 4),
        "np.asarray(x).astype(np.float32)",
    ),
    "structures": ((Pair * 4)((1, 0), (2, 0), (3, 0), (4, 0)), "np.asarray(x)['a']"),
    "an ndarray of structures": (np.array([(i, 0) for i in FLOATS], "f4,i4"), "x['f0']"),
    "an ndarray of bytes": (FLOATS.view("V4"), "x.view(np.float32)"),
    "an ndarray of small integers": (np.arange(1, 5, dtype=np.uint8), "x.astype(np.float32)"),
    "long doubles": (LongDoubles(1, 2, 3, 4), "np.frombuffer(x, dtype)"),
    "wide characters": ((ctypes.c_wchar * 4)(), "np.frombuffer(x, dtype)"),
    "pointers": ((ctypes.c_char_p * 4)(), "np.frombuffer(x, dtype)"),
    "bit fields": ((Bits * 4)(), "np.frombuffer(x, dtype)"),
    "unions": ((Either * 4)(), "np.frombuffer(x, dtype)"),  # NumPy warns of these: an error here
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_of_other_elements(kind):
    buffer, way = BUFFERS[kind]
    with pytest.raises(TypeError, match=r"^x must be .*float.*; ") as refused:
        fastrms.rms_norm(buffer)
    assert str(refused.value).endswith(way)
    if isinstance(buffer, LongDoubles):
        way = way.replace("dtype", "np.longdouble") + ".astype(np.float32)"
    if "dtype)" not in way:
        given = eval(way, {"np": np, "x": buffer})
        assert fastrms.rms_norm(given).tobytes() == fastrms.rms_norm(FLOATS).tobytes()
    with pytest.raises(TypeError, match=r"^out must be .*float"):
        fastrms.rms_norm(FLOATS, out=buffer)


def test_a_read_only_buffer_is_no_output():
    buffer = memoryview(FLOATS.tobytes()).cast("f")
    assert fastrms.rms_norm(buffer).tobytes() == fastrms.rms_norm(FLOATS).tobytes()
    with pytest.raises(ValueError, match="out must be writeable, got a read-only array"):
        fastrms.rms_norm(FLOATS, out=buffer)


def test_dlpack(draw):
    x = draw(ROWS, N)
    assert refusal(Exported(x)).endswith("got Exported; pass np.from_dlpack(x)")
    shared = np.from_dlpack(Exported(x))
    assert np.shares_memory(shared, x)
    assert fastrms.rms_norm(shared).tobytes() == fastrms.rms_norm(x).tobytes()


def test_dask(draw):
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    x = draw(ROWS, N)
    lazy = da.from_array(x)
    assert refusal(lazy).endswith("got Array; use fastrms.dask, or pass x.compute()")
    assert fastrms.rms_norm(lazy.compute()).tobytes() == fastrms.rms_norm(x).tobytes()
    with pytest.raises(TypeError, match=r"out must be .*got Array; use fastrms\.dask$"):
        fastrms.rms_norm(x, out=lazy)


@pytest.mark.filterwarnings("ignore")  # of pandas and xarray about each other, at import
def test_xarray_and_pandas(draw):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x = draw(N)
    for owner, held in [
        (xarray.DataArray(x), lambda owner: owner.data),
        (pandas.Series(x), lambda owner: owner.to_numpy()),
    ]:
        assert refusal(owner).endswith("; pass the ndarray that it holds (x.data, x.to_numpy())")
        assert fastrms.rms_norm(held(owner)).tobytes() == fastrms.rms_norm(x).tobytes()


def test_torch(draw):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = draw(ROWS, N)
    tensor = torch.from_numpy(x)
    for owner in (tensor, torch.nn.Parameter(tensor)):
        assert "; use fastrms.torch, or pass x.numpy()" in refusal(owner)
    assert fastrms.rms_norm(tensor.numpy()).tobytes() == fastrms.rms_norm(x).tobytes()


# Importing fastrms and calling it imports none of these libraries.
def test_import_brings_no_engine(python):
    run = python(
        "import sys, numpy, fastrms, fastrms.__main__\n"
        "fastrms.rms_norm(numpy.ones((2, 3), numpy.float32))\n"
        "print(*{'torch', 'dask', 'distributed', 'mpi4py', 'xarray', 'pandas'} & set(sys.modules))"
    )
    assert (run.stdout, run.stderr) == ("\n", "")


@pytest.mark.parametrize(("adapter", "engine"), [("torch", "torch"), ("dask", "dask.array")])
def test_an_adapter_without_its_engine_names_the_extra(python, adapter, engine):
    code = f"import sys; sys.modules[{engine!r}] = None; import fastrms, fastrms.{adapter}"
    wanted = f'{engine} is not installed: python -m pip install "fastrms[{adapter}]"'
    assert python(code).stderr.splitlines()[-1] == f"ImportError: {wanted}"
