"""Partly shared memory: a call gives what copies would give; two outputs are an error."""

import itertools

import numpy as np
import pytest

import fastrms

from .signatures import ARGUMENTS_OF, CALLS, FUNCTIONS, OUTPUTS

N = 19
MEMORY = (N + 2) * (N + 2)


def _square(memory):
    return memory.reshape(N + 2, N + 2)


def _flat(memory, start, *shape):
    return memory[start : start + np.prod(shape)].reshape(shape)


# Two (N, N) views of one memory.
TWO_MATRICES = {
    "the same": lambda m: (_flat(m, 0, N, N), _flat(m, 0, N, N)),
    "an element later": lambda m: (_flat(m, 0, N, N), _flat(m, 1, N, N)),
    "an element earlier": lambda m: (_flat(m, 1, N, N), _flat(m, 0, N, N)),
    "a row later": lambda m: (_flat(m, 0, N, N), _flat(m, N, N, N)),
    "a row earlier": lambda m: (_flat(m, N, N, N), _flat(m, 0, N, N)),
    "part of a row later": lambda m: (_flat(m, 0, N, N), _flat(m, N + 3, N, N)),
    "shifted columns": lambda m: (_square(m)[:N, :N], _square(m)[:N, 1 : N + 1]),
    "columns shifted back": lambda m: (_square(m)[:N, 2:], _square(m)[:N, :N]),
    "diagonal": lambda m: (_square(m)[:N, :N], _square(m)[2:, 2:]),
    "reversed rows": lambda m: (_square(m)[:N, :N], _square(m)[:N, :N][::-1]),
    "reversed elements": lambda m: (_square(m)[:N, :N], _square(m)[:N, :N][:, ::-1]),
    "transposed": lambda m: (_square(m)[:N, :N], _square(m)[:N, :N].T),
}
# The first, an input, repeats one row of the second.
BROADCAST = {
    "its first row": lambda m: (np.broadcast_to(_flat(m, 0, N, N)[0], (N, N)), _flat(m, 0, N, N)),
    "its last row": lambda m: (np.broadcast_to(_flat(m, 0, N, N)[-1], (N, N)), _flat(m, 0, N, N)),
}
# An (N, N) and an (N,) view of one memory.
MATRIX_AND_VECTOR = {
    "first row": lambda m: (_flat(m, 0, N, N), _flat(m, 0, N)),
    "last row": lambda m: (_flat(m, 0, N, N), _flat(m, N * (N - 1), N)),
    "across two rows": lambda m: (_flat(m, 0, N, N), _flat(m, N * 5 + 7, N)),
    "beyond the end": lambda m: (_flat(m, 0, N, N), _flat(m, N * N - 1, N)),
    "before the start": lambda m: (_flat(m, N - 1, N, N), _flat(m, 0, N)),
    "a column": lambda m: (_flat(m, 0, N, N), _flat(m, 0, N, N)[:, 3]),
    "the diagonal": lambda m: (_flat(m, 0, N, N), m[: N * N : N + 1]),
    "reversed row": lambda m: (_flat(m, 0, N, N), _flat(m, 0, N)[::-1]),
}
TWO_VECTORS = {
    "the same": lambda m: (_flat(m, 0, N), _flat(m, 0, N)),
    "an element later": lambda m: (_flat(m, 0, N), _flat(m, 1, N)),
    "an element earlier": lambda m: (_flat(m, 1, N), _flat(m, 0, N)),
    "reversed": lambda m: (_flat(m, 0, N), _flat(m, 0, N)[::-1]),
}


def _pairs(function, first_is_output):
    """Return the pairs of float32 arguments: (input, output), or (output, output)."""
    names = ARGUMENTS_OF[function]
    outputs = [name for name in OUTPUTS[function] if name in names]
    if first_is_output:
        return list(itertools.combinations(outputs, 2))
    return [(i, o) for i in names for o in outputs if i not in outputs]


def _overlaps(first, second):
    """Return the ways in which two arguments can overlap, and whether to swap the two views."""
    vectors = ("weight", "dweight")
    if first in vectors and second in vectors:
        return TWO_VECTORS, False
    if first in vectors:
        return MATRIX_AND_VECTOR, True
    if second in vectors:
        return MATRIX_AND_VECTOR, False
    return TWO_MATRICES, False


def _ways(source, output):
    overlaps, _ = _overlaps(source, output)
    return (*overlaps, *(BROADCAST if overlaps is TWO_MATRICES else ()))


def _views(first, second, how, memory):
    overlaps, turned = _overlaps(first, second)
    views = {**overlaps, **BROADCAST}[how](memory)
    return views[::-1] if turned else views


INPUT_AND_OUTPUT = [(f, accumulate, *pair) for f, accumulate in CALLS for pair in _pairs(f, False)]
TWO_OUTPUTS = [(f, *pair) for f in FUNCTIONS for pair in _pairs(f, True)]


@pytest.fixture
def separate(arrays):
    """Return a function that makes arguments for a call that share no memory."""
    return lambda function: arrays(function, N, N)


def _copies(arguments):
    return {name: np.array(value, order="C") for name, value in arguments.items()}


def _call(function, arguments, accumulate):
    options = {"accumulate": True} if accumulate else {}
    getattr(fastrms, function)(**arguments, **options)


@pytest.mark.parametrize(("function", "accumulate", "source", "output"), INPUT_AND_OUTPUT)
def test_input_and_output(way, draw, separate, function, accumulate, source, output):
    """Compare the whole memory with that after a call on copies whose output is written back."""
    for how in _ways(source, output):
        memory = draw(MEMORY)
        arguments = separate(function)
        arguments[source], arguments[output] = _views(source, output, how, memory)
        expected = _copies(arguments)
        _call(function, expected, accumulate)
        expected_memory = memory.copy()
        _views(source, output, how, expected_memory)[1][...] = expected[output]
        _call(function, arguments, accumulate)
        assert memory.tobytes() == expected_memory.tobytes(), how
        for name in OUTPUTS[function]:
            assert arguments[name].tobytes() == expected[name].tobytes(), how


@pytest.mark.parametrize(("function", "first", "second"), TWO_OUTPUTS)
def test_two_outputs(draw, separate, unchanged, function, first, second):
    named = rf"(?=.*\b{first}\b)(?=.*\b{second}\b)"
    for how in _overlaps(first, second)[0]:
        memory = draw(MEMORY)
        arguments = separate(function)
        arguments[first], arguments[second] = _views(first, second, how, memory)
        with unchanged(memory, *arguments.values()), pytest.raises(ValueError, match=named):
            getattr(fastrms, function)(**arguments)


@pytest.mark.parametrize(
    "look",
    [
        lambda m: (m[:N, : 2 * N : 2], m[:N, 1 : 2 * N : 2]),
        lambda m: (m[: 2 * N : 2, :N], m[1 : 2 * N : 2, :N]),
        lambda m: (m[:N, :N], m[:N, N : 2 * N]),
        lambda m: (m[:N, :N], m[N : 2 * N, :N]),
    ],
    ids=["columns", "rows", "side by side", "one below the other"],
)
@pytest.mark.parametrize(
    ("function", "first", "second"),
    [
        ("add_rms_norm", "out", "residual"),
        ("rms_norm", "out", "x"),
        ("rms_norm_backward", "dx", "x"),
        ("rms_scale", "out", "x"),
        ("rms_scale_backward", "dx", "x"),
        ("residual_add", "residual", "x"),
    ],
)
def test_interleaved_but_disjoint(way, draw, separate, function, first, second, look):
    """Ranges of addresses overlap, elements do not: no error, no stray write."""
    memory = draw(2 * N, 2 * N)
    arguments = separate(function)
    arguments[first], arguments[second] = look(memory)
    expected = _copies(arguments)
    _call(function, expected, False)
    expected_memory = memory.copy()
    for view, name in zip(look(expected_memory), (first, second), strict=True):
        view[...] = expected[name]
    _call(function, arguments, False)
    assert memory.tobytes() == expected_memory.tobytes()


def test_dx_and_dweight_interleaved(isa, draw):
    """Two outputs share one memory: dweight is a column that dx leaves out."""
    memory, x, dy, weight = draw(N, N + 1), draw(N, N), draw(N, N), draw(N)
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight)
    expected = np.hstack([dx, dweight[:, None]])
    fastrms.rms_norm_backward(dy, x, weight, dx=memory[:, :N], dweight=memory[:, N])
    assert memory.tobytes() == expected.tobytes()


@pytest.mark.parametrize("rows", [1, 2, 8, 9])
@pytest.mark.parametrize("source", ["x", "dy", "weight"])
@pytest.mark.parametrize("shift", [-40, 0, 1, 100])
def test_dweight_over_an_input(way, draw, source, rows, shift):
    """dweight must not overwrite rows that are still to be read."""
    n, memory = 600, draw(8000)
    arguments = {"x": draw(rows, n), "dy": draw(rows, n), "weight": draw(n)}
    shape = arguments[source].shape
    arguments[source] = memory[1000 : 1000 + np.prod(shape)].reshape(shape)
    dx, dweight = fastrms.rms_norm_backward(**_copies(arguments))
    buffer = memory[1000 + shift :][:n]
    new_dx, _ = fastrms.rms_norm_backward(**arguments, dweight=buffer)
    assert new_dx.tobytes() == dx.tobytes()
    assert buffer.tobytes() == dweight.tobytes()


def test_an_empty_array_shares_nothing(isa, draw, unchanged):
    """An empty dx is valid, even if its address lies within weight or dweight."""
    memory, dweight = draw(3 * N), np.ones(N, np.float32)
    empty = memory[N + 2 :][:0].reshape(0, N)
    with unchanged(memory):
        fastrms.rms_norm_backward(empty, empty.copy(), memory[N : 2 * N], dx=empty, dweight=dweight)
    assert not dweight.any()
    empty = dweight[3:][:0].reshape(0, N)
    fastrms.rms_norm_backward(empty, empty, memory[:N], dx=empty, dweight=dweight)


def test_weight_of_one_element_within_out(isa, draw):
    memory, x = draw(5), draw(5, 1)
    y = fastrms.rms_norm(x, memory[2:3].copy())
    out = memory.reshape(5, 1)
    assert fastrms.rms_norm(x, memory[2:3], out=out).tobytes() == y.tobytes()


def test_overlap_between_threads(way, draw):
    """With several threads, none may read rows that another has already overwritten."""
    rows, n, shift = 1024, 512, 3
    memory, weight = draw((rows + shift) * n), draw(n)
    x = memory[: rows * n].reshape(rows, n)
    out = memory[shift * n :].reshape(rows, n)
    y = fastrms.rms_norm(x.copy(), weight)
    assert fastrms.rms_norm(x, weight, out=out) is out
    assert out.tobytes() == y.tobytes()
