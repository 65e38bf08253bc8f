"""Leading axes that need several strides: used in place, with the bits of a contiguous call."""

import tracemalloc

import numpy as np
import pytest

import fastrms
from fastrms import _core, reference

from .signatures import CALLS, FUNCTIONS, MATRICES, OUTPUTS

N = 33
# Layout -> the shape of the memory, and its view. Segments of 2 to 13 rows cut the groups of 8 rows
# in which backward sums dweight, and its blocks of 32.
WRITABLE = {
    "one of a fused qkv": ((29, 3, 5, N), lambda m: m[:, 1]),
    "long segments": ((9, 2, 13, N), lambda m: m[:, 0]),
    "segments of two": ((40, 3, N), lambda m: m[:, :2]),
    "columns of a fused qkv": ((70, 6 * N), lambda m: m.reshape(70, 6, N)[:, 2:4]),
    "tokens and heads swapped": ((11, 7, N), lambda m: m.swapaxes(0, 1)),
    "three axes turned": ((3, 5, 7, N), lambda m: m.transpose(1, 2, 0, 3)),
    "three axes with gaps": ((4, 6, 8, N + 3), lambda m: m[::2, 1:, ::-3, 3:]),
    "axes of one between": ((5, 1, 9, 1, N), lambda m: m[:, :, :7]),
    "five axes": ((2, 3, 2, 3, 2, N), lambda m: m.transpose(4, 2, 0, 3, 1, 5)),
    "backwards": ((6, 8, N), lambda m: m[::-1, :7]),
    "rows of one number": ((7, 50), lambda m: m[:, 10:, None]),
}
READABLE = {
    **WRITABLE,
    "one batch for all": ((1, 14, N), lambda m: np.broadcast_to(m[:, ::2], (9, 7, N))),
    "one row for each batch": ((9, 2, N), lambda m: np.broadcast_to(m[:, :1], (9, 7, N))),
    "each batch four times": (
        (9, 7, N),
        lambda m: np.broadcast_to(m[:, None, :5], (9, 4, 5, N)),
    ),
    "rows that overlap": (
        (500,),
        lambda m: np.lib.stride_tricks.as_strided(m, (9, 7, N), (40, 12, 4), writeable=False),
    ),
}


@pytest.fixture
def laid_out(draw):
    """Return a function from a layout to memory and its view."""

    def make(layout):
        shape, look = layout
        memory = draw(*shape)
        return memory, look(memory)

    return make


def _bits(function, arguments, accumulate=False):
    """Call, and return the bits of every output."""
    options = {"accumulate": True} if accumulate else {}
    getattr(fastrms, function)(**arguments, **options)
    return {name: arguments[name].tobytes() for name in OUTPUTS[function]}


def _copies(arguments):
    return {name: np.array(value, order="C") for name, value in arguments.items()}


@pytest.mark.parametrize(
    ("function", "name"),
    [(f, name) for f in FUNCTIONS for name in MATRICES[f] if name not in OUTPUTS[f]],
)
def test_an_input_alone(way, arrays, laid_out, unchanged, function, name):
    for title, layout in READABLE.items():
        memory, view = laid_out(layout)
        arguments = {**arrays(function, *view.shape), name: view}
        expected = _bits(function, _copies(arguments))
        with unchanged(memory):
            assert _bits(function, arguments) == expected, title


@pytest.mark.parametrize(("function", "accumulate"), CALLS)
def test_all_arrays(way, arrays, laid_out, function, accumulate):
    """Use the layout for every matrix; a call changes nothing between its elements."""
    for title, layout in WRITABLE.items():
        placed = {name: laid_out(layout) for name in MATRICES[function]}
        shape = placed["x"][1].shape
        arguments = arrays(function, *shape) | {n: view for n, (_, view) in placed.items()}
        copies = _copies(arguments)
        after = {name: memory.copy() for name, (memory, _) in placed.items()}
        expected = _bits(function, copies, accumulate)
        assert _bits(function, arguments, accumulate) == expected, title
        for name, (memory, _) in placed.items():
            layout[1](after[name])[...] = copies[name]
            assert memory.tobytes() == after[name].tobytes(), title


@pytest.mark.parametrize(
    ("function", "output", "source"),
    [
        ("rms_norm", "out", "x"),
        ("add_rms_norm", "out", "x"),
        ("rms_norm_backward", "dx", "dy"),
        ("rms_norm_backward", "dx", "x"),
        ("rms_scale_backward", "dx", "dy"),
    ],
)
def test_in_place(way, arrays, laid_out, function, output, source):
    for title, layout in WRITABLE.items():
        _, view = laid_out(layout)
        arguments = {**arrays(function, *view.shape), source: view, output: view}
        expected = _bits(function, _copies(arguments))
        assert _bits(function, arguments) == expected, title


@pytest.mark.parametrize("layout", ["one of a fused qkv", "three axes with gaps"])
@pytest.mark.parametrize("special", [np.nan, 3e38, 1e-45, 0.0])
def test_rows_beyond_float32(way, draw, laid_out, special, layout):
    """Some rows of a group are added to dweight in float64, before the float32 sum of the rest."""
    _, x = laid_out(WRITABLE[layout])
    x[::3, ..., 5] = special
    arguments = {"dy": draw(*x.shape), "x": x, "weight": draw(N), "dx": np.empty_like(x)}
    arguments["dweight"] = np.empty(N, np.float32)
    expected = _bits("rms_norm_backward", _copies(arguments))
    assert _bits("rms_norm_backward", arguments) == expected


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nothing_is_copied(draw, arrays, function):
    """A call copies neither inputs nor outputs."""
    shape = (64, 16, 128)
    arguments = arrays(function, *shape)
    for name in MATRICES[function]:
        arguments[name] = draw(64, 3, 16, 128)[:, 1]
    call = getattr(fastrms, function)
    tracemalloc.start()
    call(**arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < arguments["x"].nbytes / 4


def test_few_rows_of_two_strides(isa, draw):
    """Up to 8 rows need no blocks of dweight, unless they are several segments."""
    x, dy, weight = draw(2, 5, N)[:, :3], draw(2, 3, N), draw(N)
    found = fastrms.rms_norm_backward(dy, x, weight)
    expected = fastrms.rms_norm_backward(dy, x.copy(), weight)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]


def test_streamed_past_the_caches(way, draw):
    """Use rows aligned to cache lines, with cache sizes set below the size of the arrays."""
    previous = _core.set_caches(1 << 12, 1, True)
    try:
        for n in (64, 576):
            qkv, dy, weight = draw(20, 3, 5, n), draw(20, 5, n), draw(n)
            x = qkv[:, 1]
            assert fastrms.rms_norm(x).tobytes() == fastrms.rms_norm(x.copy()).tobytes()
            found = fastrms.rms_norm_backward(dy, x, weight, dx=qkv[:, 0])
            expected = fastrms.rms_norm_backward(dy, x.copy(), weight)
            assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]
    finally:
        _core.set_caches(*previous)


def test_streamed_off_cache_lines(restore, isa, draw):
    """Segments that start off a cache line sum dweight apart, though the first one is on a line."""
    x, dy, weight = draw(64, 32, 73), draw(64, 32, 73), draw(73)
    memory = np.empty(64 * (32 * 80 + 8) + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    segments = memory[start : start + 64 * (32 * 80 + 8)].reshape(64, -1)
    dx = segments[:, : 32 * 80].reshape(64, 32, 80)[..., :73]
    previous, found = _core.set_caches(1 << 16, 1, False), []
    try:
        for threads in (1,) + (2,) * 100:
            fastrms.set_num_threads(threads)
            found.append(fastrms.rms_norm_backward(dy, x, weight, dx=dx)[1].tobytes())
    finally:
        _core.set_caches(*previous)
    assert set(found) == {found[0]}


@pytest.mark.parametrize("strides", [(5 * N, N - 1), (N, N), (N, 2 * N), (2 * N, N), (-N, 2 * N)])
def test_an_output_whose_rows_overlap(way, draw, strides):
    """The result is as if rows were written one after the other, on any number of threads."""
    memory, x = draw(40 * N), draw(4, 5, N)
    expected = memory.copy()

    def look(m):
        steps = tuple(4 * s for s in (*strides, 1))
        return np.lib.stride_tricks.as_strided(m[10 * N :], (4, 5, N), steps)

    look(expected)[...] = fastrms.rms_norm(x)
    fastrms.rms_norm(x, out=look(memory))
    assert memory.tobytes() == expected.tobytes()


def test_qk_norm_on_a_fused_qkv(isa, draw):
    """Normalise q and k in place, each with its weight; v stays unchanged."""
    qkv, weights = draw(37, 3, 4, 128), draw(2, 128)
    exact = qkv.astype(np.float64)
    for i in range(2):
        exact[:, i] = reference.rms_norm(exact[:, i], weights[i], 1e-6)
    v = qkv[:, 2].tobytes()
    for i in range(2):
        q = qkv[:, i]
        assert fastrms.rms_norm(q, weights[i], 1e-6, out=q) is q
    np.testing.assert_allclose(qkv, exact, rtol=4e-7)
    assert qkv[:, 2].tobytes() == v


def test_more_axes_than_anyone_has(isa, draw):
    """Use as many axes as NumPy allows; twelve are longer than 1, and no two of them merge."""
    most = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
    every_other = draw(*(3,) * 12)[(slice(None, None, 2),) * 12]
    x = every_other[(..., *(None,) * (most - 12))]
    assert x.ndim == most
    assert fastrms.rms_norm(x, out=x.copy()).tobytes() == fastrms.rms_norm(x.copy()).tobytes()


def test_axes_go_on_by_a_product_of_stride_and_length(isa, draw):
    """Axes with strides of 7 and 5 floats, two rows each, do not merge: 7 is not 5 * 2."""
    x, memory = draw(2, 2, 2), draw(14)
    stream = np.lib.stride_tricks.as_strided(memory, (2, 2, 2), (28, 20, 4))
    expected = stream.copy()
    y = fastrms.add_rms_norm(x, expected)
    assert fastrms.add_rms_norm(x, stream).tobytes() == y.tobytes()
    assert stream.tobytes() == expected.tobytes()
