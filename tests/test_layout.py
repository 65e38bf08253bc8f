"""Inputs and outputs of any strides: the bits of a contiguous call, no stray write."""

import itertools

import numpy as np
import pytest

import fastrms

from .signatures import BACKWARD, CALLS, FUNCTIONS, MATRICES, OUTPUTS, SUMS, VECTORS

A, B, N = 3, 4, 17
SHAPE = (A, B, N)

# Layout -> (shape of the memory, function to its view of shape (A, B, N)).
WRITABLE = {
    "contiguous": ((A, B, N), lambda m: m),
    "every other batch": ((2 * A, B, N), lambda m: m[::2]),
    "every other row": ((A, 2 * B, N), lambda m: m[:, ::2]),
    "every other element": ((A, B, 2 * N), lambda m: m[..., ::2]),
    "every third element": ((A, B, 3 * N), lambda m: m[..., 1::3]),
    "reversed batches": ((A, B, N), lambda m: m[::-1]),
    "reversed rows": ((A, B, N), lambda m: m[:, ::-1]),
    "all rows reversed": ((A, B, N), lambda m: m[::-1, ::-1]),
    "reversed elements": ((A, B, N), lambda m: m[..., ::-1]),
    "all reversed": ((A, B, N), lambda m: m[::-1, ::-1, ::-1]),
    "slice of a fused qkv": ((A, B, 3 * N), lambda m: m[..., N : 2 * N]),
    "rows that do not collapse": ((A, 2 * B, N), lambda m: m[:, 1 : B + 1]),
    "a window": ((A + 1, B + 2, N + 3), lambda m: m[1:, 1:-1, 2:-1]),
    "swapped leading axes": ((B, A, N), lambda m: m.swapaxes(0, 1)),
    "swapped last axes": ((A, N, B), lambda m: m.swapaxes(1, 2)),
    "Fortran": ((N, B, A), lambda m: m.T),
    "one of an axis": ((A, 2, B, N), lambda m: m[:, 1]),
    "unaligned": ((A * B * N + 1,), lambda m: _at_byte(m, 1)),
    "at an odd float": ((A * B * N + 3,), lambda m: m[3:].reshape(SHAPE)),
}
READABLE = {
    **WRITABLE,
    "one row for all": ((N,), lambda m: np.broadcast_to(m, SHAPE)),
    "one row for each batch": ((A, 1, N), lambda m: np.broadcast_to(m, SHAPE)),
    "one batch for all": ((1, B, N), lambda m: np.broadcast_to(m, SHAPE)),
    "one element for each row": ((A, B, 1), lambda m: np.broadcast_to(m, SHAPE)),
    "one element for all": ((1,), lambda m: np.broadcast_to(m, SHAPE)),
    "sliding window": (
        (A * B + N,),
        lambda m: np.lib.stride_tricks.sliding_window_view(m, N)[: A * B].reshape(SHAPE),
    ),
    "unaligned bytes": ((A, B, N), lambda m: np.frombuffer(b"?" + m.tobytes(), "f", offset=1)),
}
VECTOR_LAYOUTS = {
    "every other element": ((2 * N,), lambda m: m[::2]),
    "reversed": ((N,), lambda m: m[::-1]),
    "a column": ((N, 3), lambda m: m[:, 1]),
    "unaligned": ((N + 1,), lambda m: _at_byte(m, 3)[:N]),
}
READABLE_VECTORS = {**VECTOR_LAYOUTS, "one element": ((1,), lambda m: np.broadcast_to(m, (N,)))}
SUM_LAYOUTS = {  # (A, B), float64
    "every other batch": ((2 * A, B), lambda m: m[::2]),
    "every other element": ((A, 2 * B), lambda m: m[:, ::2]),
    "reversed": ((A, B), lambda m: m[::-1, ::-1]),
    "Fortran": ((B, A), lambda m: m.T),
    "unaligned": ((A * B + 1,), lambda m: _at_byte(m, 4)),
}
READABLE_SUMS = {**SUM_LAYOUTS, "one element": ((1,), lambda m: np.broadcast_to(m, (A, B)))}


def _at_byte(memory, start):
    """Return an unaligned view of the memory, which begins at this byte."""
    end = start + (memory.size - 1) * memory.itemsize
    return memory.view(np.uint8)[start:end].view(memory.dtype)


def _shaped(view, shape):
    return view.reshape(shape) if view.size == np.prod(shape) else view


def _place(values, layout):
    """Return memory and its view with this layout, filled with values if it is writeable."""
    shape, look = layout
    memory = np.linspace(2, -2, np.prod(shape), dtype=values.dtype).reshape(shape)
    view = _shaped(look(memory), values.shape)
    if view.flags.writeable:
        view[...] = values
    return memory, view


@pytest.fixture
def contiguous(arrays):
    """Return a function that makes contiguous arguments for a call, with every buffer passed."""
    return lambda function: arrays(function, *SHAPE)


def _copies(arguments):
    return {name: np.array(value, order="C") for name, value in arguments.items()}


def _run(function, arguments, accumulate):
    """Call with every buffer passed; the results are in them."""
    options = {"accumulate": True} if accumulate else {}
    getattr(fastrms, function)(**arguments, **options)


def _layouts(function, outputs):
    """Return {argument: its layouts} for the inputs or for the outputs of a function."""
    pairs = zip(
        (MATRICES, VECTORS, SUMS),
        (WRITABLE, VECTOR_LAYOUTS, SUM_LAYOUTS)
        if outputs
        else (READABLE, READABLE_VECTORS, READABLE_SUMS),
        strict=True,
    )
    named = {name: layouts for names, layouts in pairs for name in names[function]}
    return {n: layouts for n, layouts in named.items() if (n in OUTPUTS[function]) == outputs}


def _bits(arguments):
    return {name: value.tobytes() for name, value in arguments.items()}


INPUTS = [(f, name) for f in FUNCTIONS for name in _layouts(f, False)]
BUFFERS = [(f, accumulate, name) for f, accumulate in CALLS for name in _layouts(f, True)]


@pytest.mark.parametrize(("function", "name"), INPUTS)
def test_input(way, contiguous, unchanged, function, name):
    for title, layout in _layouts(function, False)[name].items():
        arguments = contiguous(function)
        memory, arguments[name] = _place(arguments[name], layout)
        expected = _copies(arguments)
        _run(function, expected, False)
        with unchanged(memory):
            _run(function, arguments, False)
        assert _bits(arguments) == _bits(expected), title


@pytest.mark.parametrize(("function", "accumulate", "name"), BUFFERS)
def test_output(way, contiguous, function, accumulate, name):
    """Compare the whole memory: a call changes nothing between the elements of the view."""
    for title, layout in _layouts(function, True)[name].items():
        arguments = contiguous(function)
        memory, arguments[name] = _place(arguments[name], layout)
        expected, expected_memory = _copies(arguments), memory.copy()
        _run(function, expected, accumulate)
        _shaped(layout[1](expected_memory), expected[name].shape)[...] = expected[name]
        _run(function, arguments, accumulate)
        assert memory.tobytes() == expected_memory.tobytes(), title
        assert _bits(arguments) == _bits(expected), title


@pytest.mark.parametrize(("function", "accumulate"), CALLS)
def test_all_arrays_at_once(way, contiguous, function, accumulate):
    for title, layout in WRITABLE.items():
        placed = contiguous(function)
        placed |= {name: _place(placed[name], layout)[1] for name in MATRICES[function]}
        expected = _copies(placed)
        _run(function, expected, accumulate)
        _run(function, placed, accumulate)
        assert _bits(placed) == _bits(expected), title


@pytest.mark.parametrize("order", ["reversed", "transposed", "every other element"])
def test_large_strided(way, draw, order):
    """Work in place on rows that are not contiguous, enough of them for several threads."""
    look = {
        "reversed": lambda m: m[::-1, :513],
        "transposed": lambda m: m.T[:, :513],
        "every other element": lambda m: m[:, :1026:2],
    }[order]
    memory, weight = draw(1030, 1030), draw(513)
    x = look(memory)
    y = fastrms.rms_norm(x.copy(), weight)
    fastrms.rms_norm(x, weight, out=x)
    assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize(
    ("function", "output", "source"),
    [
        ("rms_norm", "out", "x"),
        *((f, "dx", source) for f in BACKWARD for source in ("dy", "x")),
        ("rms_scale", "out", "x"),
        ("add_rms_norm", "out", "x"),
        ("residual_add", "residual", "x"),
        ("add_rms_norm", "residual", "x"),
    ],
)
def test_exact_aliasing(way, contiguous, function, output, source):
    """Work in place if input and output are one object, or two views of the same elements."""
    views = (lambda view: view, lambda view: view[:])
    for (title, layout), second in itertools.product(WRITABLE.items(), views):
        arguments = contiguous(function)
        memory, view = _place(arguments[source], layout)
        arguments[source], arguments[output] = view, second(view)
        expected, expected_memory = _copies(arguments), memory.copy()
        _run(function, expected, False)
        _shaped(layout[1](expected_memory), SHAPE)[...] = expected[output]
        _run(function, arguments, False)
        assert memory.tobytes() == expected_memory.tobytes(), title


@pytest.mark.parametrize("source", ["dy", "x"])
@pytest.mark.parametrize("function", BACKWARD)
def test_dx_accumulates_onto_its_own_input(way, contiguous, function, source):
    arguments = contiguous(function)
    arguments["dx"] = arguments[source]
    expected = _copies(arguments)
    _run(function, expected, True)
    _run(function, arguments, True)
    assert arguments["dx"].tobytes() == expected["dx"].tobytes()
    assert arguments["dweight"].tobytes() == expected["dweight"].tobytes()


def test_a_write_back_copy_of_the_callers_stays_one(draw):
    """NumPy writes an operand of np.nditer back itself, and only when the iteration ends."""
    x, target = draw(A, N), np.zeros((A, N))
    cast = {"op_dtypes": [np.float32], "casting": "same_kind"}
    with np.nditer(target, ["refs_ok"], [["readwrite", "updateifcopy"]], **cast) as iteration:
        operand = iteration.operands[0]
        fastrms.rms_norm(x, out=operand)
        assert operand.flags.writebackifcopy
        operand += 1
    assert (target == operand).all()
