"""Arguments and results: buffers, subclasses, empty arrays, new results, unchanged inputs."""

import array
import ctypes

import numpy as np
import pytest

import fastrms

from .signatures import ACCUMULATE, ARGUMENTS_OF, FUNCTIONS, OUTPUTS, REQUIRED, RETURNED, ROWS, N


# No call changes its inputs, which are all the arguments but the outputs.
@pytest.mark.parametrize("passed", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_inputs_unchanged(arrays, unchanged, function, accumulate, weighted, passed):
    arguments = arrays(function)
    options = set(OUTPUTS[function]) - set(REQUIRED[function])
    without = set() if passed else options
    without |= set() if weighted else {"weight", "dweight"}
    arguments = {name: value for name, value in arguments.items() if name not in without}
    for name in set(arguments) - set(OUTPUTS[function]):
        arguments[name].setflags(write=False)
    inputs = [value for name, value in arguments.items() if name not in OUTPUTS[function]]
    if accumulate and passed and function in ACCUMULATE:
        arguments["accumulate"] = True
    with unchanged(*inputs):
        getattr(fastrms, function)(**arguments)


def _buffers(kind, values):
    """Return a writeable float32 buffer of these values that is not an ndarray."""
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
@pytest.mark.parametrize("function", FUNCTIONS)
def test_buffers_in_and_out(arrays, unchanged, function, kind):
    """Nothing is copied: a call writes into the buffer that is passed, and returns that object."""
    values = arrays(function, N)
    buffers = {name: np.array(value) for name, value in values.items()}
    buffers |= {name: _buffers(kind, values[name]) for name in ARGUMENTS_OF[function]}
    expected = getattr(fastrms, function)(**values)
    inputs = [buffers[name] for name in buffers if name not in OUTPUTS[function]]
    with unchanged(*inputs):
        results = getattr(fastrms, function)(**buffers)
    if not isinstance(results, tuple):
        expected, results = (expected,), (results,)
    for result, name, value in zip(results, RETURNED[function], expected, strict=True):
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
    """A subclass that fails the test if a result goes through its __array_wrap__."""

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
    expected = np.add(residual, x)
    stream = subclass(residual, tmp_path)
    assert fastrms.residual_add(x, stream) is stream
    assert stream.tobytes() == expected.tobytes()


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("shape", [(N,), (ROWS, N), (2, 3, N), (2, 1, 3, 2, N)])
def test_new_results(draw, shape, layout):
    """New results are plain, C-contiguous, of the shape of x, and share no memory with it."""
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
    assert fastrms.residual_add(x.copy(), x) is x
    np.testing.assert_array_equal(dweight, np.zeros(N, np.float32), strict=True)


@pytest.mark.parametrize("shape", [(0,), (ROWS, 0), (0, 0), (2, 3, 0)])
def test_empty_rows(draw, shape):
    x, weight = draw(*shape), draw(0)
    dx, dweight = fastrms.rms_norm_backward(x, x, weight)
    assert fastrms.rms_norm(x, weight).shape == dx.shape == shape
    assert fastrms.add_rms_norm(x, x.copy(), weight).shape == shape
    assert fastrms.residual_add(x.copy(), x) is x
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
