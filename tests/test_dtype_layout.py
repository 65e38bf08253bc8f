"""Strides, in place and overlap with mixed dtypes: the bits of separate, contiguous arrays."""

import itertools

import numpy as np
import pytest

import fastrms
from fastrms import _core

from .dtypes import call, copies, differences, dtype_of, meaning, mixed, mixes
from .signatures import ACCUMULATE, CALLS, FUNCTIONS, MATRICES, OUTPUTS, VECTORS

A, B, N = 3, 4, 37
LAYOUTS = {  # shape of the memory, function to its view of shape (A, B, N)
    "slice of heads": ((A, B, 3 * N), lambda m: m[..., N : 2 * N]),
    "window": ((A + 1, B + 2, N + 3), lambda m: m[1:, 1:-1, 2:-1]),
    "reversed rows": ((A, B, N), lambda m: m[::-1, ::-1]),
    "reversed elements": ((A, B, N), lambda m: m[..., ::-1]),
    "every other element": ((A, B, 2 * N), lambda m: m[..., 1::2]),
    "transposed last axis": ((A, N, B), lambda m: m.swapaxes(1, 2)),
    "Fortran": ((N, B, A), lambda m: m.T),
    "unaligned": ((A * B * N + 1,), lambda m: _odd(m).reshape(A, B, N)),
}
VECTOR_LAYOUTS = {
    "slice": ((3 * N,), lambda m: m[N : 2 * N]),
    "reversed": ((N,), lambda m: m[::-1]),
    "a column": ((N, 3), lambda m: m[:, 1]),
    "unaligned": ((N + 1,), lambda m: _odd(m)),
}
BROADCAST = {
    "one row": lambda x: x[:1, :1],
    "a row for each batch": lambda x: x[:, :1],
    "an element for each row": lambda x: x[..., :1],
    "one element": lambda x: x[:1, :1, :1],
}
# The output and the input that may be one array.
IN_PLACE = [
    ("rms_norm", "out", "x"),
    ("rms_norm_backward", "dx", "dy"),
    ("rms_norm_backward", "dx", "x"),
    ("add_rms_norm", "out", "x"),
    ("add_rms_norm", "residual", "x"),
    ("residual_add", "residual", "x"),
    ("rms_scale", "out", "x"),
    ("rms_scale_backward", "dx", "dy"),
    ("rms_scale_backward", "dx", "x"),
]


def _odd(memory):
    """Return a view of all elements but one, which starts at an odd byte."""
    end = 1 + (memory.size - 1) * memory.itemsize
    return memory.view(np.uint8)[1:end].view(memory.dtype)


def _place(values, layout):
    """Return memory and its view with this layout, filled with the values."""
    shape, look = layout
    memory = np.linspace(2, -2, int(np.prod(shape))).reshape(shape).astype(values.dtype)
    look(memory)[...] = values
    return memory, look(memory)


@pytest.mark.parametrize(("function", "accumulate"), CALLS)
def test_strides(restore, rng, bfloat16, function, accumulate):
    """Give each array a layout of its own; compare the memory around outputs too."""
    options = {"accumulate": True} if accumulate else {}
    turn = itertools.cycle(itertools.product(_core.available_isas(), (1, 3)))
    for number, mix in enumerate(mixes(function, 40, bfloat16)):
        given = mixed(rng, function, mix, (A, B, N))
        placed, chosen = dict(given), {}
        for position, name in enumerate(mix):
            layouts = VECTOR_LAYOUTS if name in VECTORS[function] else LAYOUTS
            chosen[name] = list(layouts)[(number + 3 * position) % len(layouts)]
            placed[name] = _place(given[name], layouts[chosen[name]])
        memories = {name: placed[name][0].copy() for name in mix}
        arguments = placed | {name: placed[name][1] for name in mix}
        wanted = meaning(function, given, **options)
        isa, threads = next(turn)
        _core.use_isa(isa)
        fastrms.set_num_threads(threads)
        assert differences(call(function, arguments, **options), wanted) == [], (mix, chosen)
        for name in mix:
            if name in OUTPUTS[function]:
                layouts = VECTOR_LAYOUTS if name in VECTORS[function] else LAYOUTS
                layouts[chosen[name]][1](memories[name])[...] = wanted[name]
            assert placed[name][0].tobytes() == memories[name].tobytes(), (name, mix, chosen)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_broadcast_inputs(rng, bfloat16, function):
    for how, mix in itertools.product(BROADCAST, mixes(function, 12, bfloat16)):
        given = mixed(rng, function, mix, (A, B, N))
        for name in set(MATRICES[function]) - set(OUTPUTS[function]):
            given[name] = np.broadcast_to(BROADCAST[how](given[name]).copy(), (A, B, N))
        wanted = meaning(function, given)
        assert differences(call(function, given), wanted) == [], (how, mix)


@pytest.mark.parametrize(("function", "output", "source"), IN_PLACE)
def test_in_place(restore, rng, bfloat16, function, output, source):
    """One object, or two views of the same elements, of each layout; the rest is mixed."""
    ways = [(layout, again) for layout in LAYOUTS for again in (False, True)]
    adding = [False, True] if function in ACCUMULATE else [False]
    for number, mix in enumerate(mixes(function, 48, bfloat16)):
        mix[output] = mix[source]
        layout, again = ways[number % len(ways)]
        for accumulate in adding:
            options = {"accumulate": accumulate} if accumulate else {}
            arguments = mixed(rng, function, mix, (A, B, N))
            _, view = _place(arguments[source], LAYOUTS[layout])
            arguments[source], arguments[output] = view, view[:] if again else view
            wanted = meaning(function, arguments, **options)
            fastrms.set_num_threads(1 + number % 3)
            names = differences(call(function, arguments, **options), wanted)
            assert names == [], (mix, layout, options)


# ---- one memory, two dtypes ---------------------------------------------------------------------

SIZE = A * B * N


def _memory(rng):
    """Return bytes that are moderate positive numbers in each of the four dtypes."""
    return rng.integers(0x3C00, 0x4000, 16 * SIZE, np.uint16).view(np.uint8)


def _view(memory, start, dtype, shape=(A, B, N)):
    return memory[start : start + int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)


def _starts(width, other):
    """Yield the first byte of each of two views: the same, a little later, half an array later."""
    yield from ((64, 64), (64, 64 + other), (64 + width, 64), (64, 66), (80, 64))
    yield from ((64, 64 + SIZE * width // 2 // 8 * 8), (64 + N * width, 64))
    yield (0, SIZE * (width - other)) if width > other else (SIZE * (other - width), 0)  # one end


def _expected(function, arguments, memory, look):
    """Return the memory after a call on copies, whose result is written to the output's view."""
    separate = copies(arguments)
    call(function, separate)
    after = memory.copy()
    output, view = look(after)
    view[...] = separate[output]
    return after


@pytest.mark.parametrize(("function", "output", "source"), IN_PLACE)
def test_views_of_one_memory(isa, rng, bfloat16, function, output, source):
    """Partial overlap of any two dtypes, and of one: no element is read after it is written."""
    for mix in mixes(function, 64, bfloat16):
        first, second = dtype_of(mix[source]), dtype_of(mix[output])
        for start, other in _starts(first.itemsize, second.itemsize):
            memory, arguments = _memory(rng), mixed(rng, function, mix, (A, B, N))
            arguments[source] = _view(memory, start, first)
            arguments[output] = _view(memory, other, second)
            after = _expected(
                function,
                arguments,
                memory,
                lambda m, other=other, second=second: (output, _view(m, other, second)),
            )
            call(function, arguments)
            assert memory.tobytes() == after.tobytes(), (mix, start, other)


@pytest.mark.parametrize("function", ["rms_norm_backward", "rms_scale_backward"])
def test_vectors_within_matrices(isa, rng, bfloat16, function):
    """Dweight within x or dy, weight within dx: of two dtypes."""
    for mix in mixes(function, 60, bfloat16):
        for output, source in (("dweight", "x"), ("dweight", "dy"), ("dx", "weight")):
            for start in (64, 66, 64 + 2 * N):
                memory = _memory(rng)
                arguments = mixed(rng, function, mix, (A, B, N))
                views = {}
                for name, at in ((source, 64), (output, start)):
                    views[name] = (at, arguments[name].dtype, arguments[name].shape)
                    arguments[name] = _view(memory, *views[name])
                after = _expected(
                    function,
                    arguments,
                    memory,
                    lambda m, name=output, view=views[output]: (name, _view(m, *view)),
                )
                call(function, arguments)
                assert memory.tobytes() == after.tobytes(), (mix, output, source, start)


@pytest.mark.parametrize("function", ["rms_norm_backward", "rms_scale_backward", "add_rms_norm"])
def test_two_outputs_in_one_memory(rng, unchanged, bfloat16, function):
    """An error, whichever the two dtypes and however little is shared."""
    first, second = OUTPUTS[function]
    for mix in mixes(function, 40, bfloat16):
        memory, arguments = _memory(rng), mixed(rng, function, mix, (A, B, N))
        width = arguments[first].dtype.itemsize
        arguments[first] = _view(memory, 64, arguments[first].dtype)
        shape = arguments[second].shape
        for start in (64, 66, 64 + SIZE * width - 2):
            arguments[second] = _view(memory, start, arguments[second].dtype, shape)
            named = rf"(?=.*\b{first}\b)(?=.*\b{second}\b)"
            with (
                unchanged(memory, *arguments.values()),
                pytest.raises(ValueError, match=named),
            ):
                call(function, arguments)


def test_interleaved_views_of_two_dtypes(isa, draw):
    """Columns of float16 between those of float32: no overlap, no stray write."""
    memory = draw(B, 2 * N)
    x = memory.view(np.float16)[:, 2::4]
    x[...] = draw(B, N)
    out = memory[:, ::2]
    kept, wanted = x.copy(), fastrms.rms_norm(x.astype(np.float32))
    fastrms.rms_norm(x, out=out)
    assert out.tobytes() == wanted.tobytes()
    assert x.tobytes() == kept.tobytes()
    memory = draw(B, 2 * N)
    memory[:, ::2] = kept
    wide, half = memory[:, ::2], memory.view(np.float16)[:, 2::4]
    fastrms.rms_norm(wide, out=half)
    assert half.tobytes() == wanted.astype(np.float16).tobytes()
    assert wide.tobytes() == kept.astype(np.float32).tobytes()


def test_one_memory_as_both_halves(draw):
    """Of one size, but not in place: the dtypes differ."""
    x = draw(3, N).astype(np.float16)
    out, apart = x.view(dtype_of("bfloat16")), np.empty((3, N), dtype_of("bfloat16"))
    fastrms.rms_norm(x, out=apart)
    fastrms.rms_norm(x, out=out)
    assert out.tobytes() == apart.tobytes()
