"""A signal during a long call: its handler runs between two pieces, and ends the call if it raises.

.ci/gates/interrupt.py measures how soon after Ctrl-C a call ends.
"""

import signal
import sys
import threading
import tracemalloc
from array import array
from contextlib import contextmanager

import numpy as np
import pytest

import fastrms

from .signatures import ARGUMENTS_OF, BACKWARD, FUNCTIONS, MATRICES, OUTPUTS, SUMS, beside

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs an interval timer")
ROWS, N = 6200, 4096  # two pieces
HELD = np.float32(7)  # what outputs hold before a call
WRITES_ROWS = [f for f in FUNCTIONS if {*OUTPUTS[f]} & {*MATRICES[f]}]


@contextmanager
def _ticks(handler):
    """Send this process a signal every millisecond; a piece takes about ten."""
    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _interrupt(function, arguments, inside):
    """Call, and raise KeyboardInterrupt from the first handler for which inside() is true."""

    raised = []

    def handler(*_):
        if not raised and inside():
            raised.append(True)
            raise KeyboardInterrupt

    with _ticks(handler), pytest.raises(KeyboardInterrupt):
        getattr(fastrms, function)(**arguments)


def _arguments(function, draw):
    """Return a long call's arguments: inputs broadcast one row, outputs are filled with HELD."""
    arguments = {name: np.full(ROWS, float(N)) for name in SUMS[function]}
    if arguments:
        arguments["size"] = N
    for name in ARGUMENTS_OF[function]:
        shape = beside(function, name, (ROWS, N))
        output = name in OUTPUTS[function]
        arguments[name] = np.full(shape, HELD) if output else np.broadcast_to(draw(N), shape)
    return arguments


def _expected(function, arguments):
    """Return the finished row of each output; it is the same for all rows, as the inputs are."""
    few = {
        name: np.copy(value[:1] if np.shape(value)[:1] == (ROWS,) else value)
        for name, value in arguments.items()
    }
    for name in OUTPUTS[function]:
        few[name][...] = HELD
    getattr(fastrms, function)(**few)
    return {name: few[name][0] for name in OUTPUTS[function] if name != "dweight"}


@pytest.mark.parametrize("function", WRITES_ROWS)
@pytest.mark.parametrize("count", [1, 2])
def test_rows_are_done_or_as_they_were(restore, draw, function, count):
    fastrms.set_num_threads(count)
    arguments = _arguments(function, draw)
    expected = _expected(function, arguments)
    watched = arguments[next(iter(expected))]
    _interrupt(function, arguments, lambda: watched[0, 0] != HELD)
    done = {}
    for name, row in expected.items():
        output = arguments[name]
        finished = (output == row).all(axis=1)
        assert ((output == HELD).all(axis=1) | finished).all()
        assert 0 < finished.sum() < len(finished)
        done[name] = finished
    if function in BACKWARD:
        assert (arguments["dweight"] == HELD).all()
        return
    first, *others = done.values()
    assert not first[first.sum() :].any(), "rows are done in order"
    assert all((other == first).all() for other in others)


@pytest.mark.parametrize(
    ("function", "dtypes"),
    [
        ("rms_norm", {"x": "f8", "weight": "f8", "out": "f8"}),
        ("add_rms_norm", {"x": "f2", "weight": "f8", "residual": "f4", "out": "f2"}),
    ],
    ids=["float64", "mixed"],
)
def test_rows_of_other_dtypes(restore, draw, function, dtypes):
    """Rows are done or as they were, and the scratch that they are staged in is freed."""
    fastrms.set_num_threads(2)
    arguments = _arguments(function, draw)
    for name, dtype in dtypes.items():
        if name == "x":
            arguments[name] = np.broadcast_to(draw(N).astype(dtype), (ROWS, N))
        else:
            arguments[name] = arguments[name].astype(dtype)
    expected = _expected(function, arguments)
    watched = arguments[next(iter(expected))]
    tracemalloc.start()
    try:
        _interrupt(function, arguments, lambda: watched[0, 0] != HELD)
        assert tracemalloc.get_traced_memory()[0] < 2**16
    finally:
        tracemalloc.stop()
    for name, row in expected.items():
        finished = (arguments[name] == row).all(axis=1)
        assert 0 < finished.sum() < ROWS
        assert not finished[finished.sum() :].any(), "rows are done in order"
        assert (arguments[name][~finished] == HELD).all()


@pytest.mark.parametrize("function", WRITES_ROWS)
def test_outputs_that_go_by_a_copy(draw, function):
    """Outputs that need a copy stay unchanged, and the copy is freed."""
    arguments = _arguments(function, draw)
    for name in OUTPUTS[function]:
        if name != "dweight":
            arguments[name] = np.full((N, ROWS), HELD).T
    tracemalloc.start()
    try:
        copied = arguments["x"].nbytes // 2
        _interrupt(function, arguments, lambda: tracemalloc.get_traced_memory()[0] > copied)
        assert tracemalloc.get_traced_memory()[0] < 2**20
    finally:
        tracemalloc.stop()
    assert all((arguments[name] == HELD).all() for name in OUTPUTS[function])


def test_handler_that_returns(restore, draw):
    """A handler that returns changes nothing, nor does a signal during another thread's call."""
    fastrms.set_num_threads(2)
    arguments = _arguments("rms_norm_backward", draw)
    calls, dweight = [], []

    def call():
        dx = np.empty((ROWS, N), np.float32)
        inputs = {name: arguments[name] for name in ("dy", "x", "weight")}
        dweight.append(fastrms.rms_norm_backward(**inputs, dx=dx)[1].tobytes())

    call()
    with _ticks(lambda *_: calls.append(threading.current_thread())):
        call()
        other = threading.Thread(target=call)
        other.start()
        other.join()
    assert set(calls) == {threading.main_thread()}
    assert len(set(dweight)) == 1


def test_pieces_of_a_block_add_up_to_the_same_bits(restore, draw):
    """One thread computes a block of dweight in two pieces, two threads in four."""
    shape = 64, 1 << 20
    x, dy, weight = np.broadcast_to(draw(shape[1]), shape), draw(*shape), draw(shape[1])
    results = []
    for count in (1, 2):
        fastrms.set_num_threads(count)
        results.append(fastrms.rms_norm_backward(dy, x, weight)[1].tobytes())
    assert results[0] == results[1]


# Arrays taken away from a running call, by a signal handler, which is certain to run inside it.


def test_the_last_reference_goes(draw):
    held = _arguments("rms_norm", draw)
    row = held["x"][:1].copy()
    expected = fastrms.rms_norm(row, held["weight"])
    out = held.pop("out")

    def call():
        return fastrms.rms_norm(held.pop("x"), held.pop("weight"), out=out)

    def pull(*_):
        nonlocal out, pulled
        if out is not None and out[0, 0] != HELD:
            out, pulled = None, True

    pulled = False
    with _ticks(pull):
        result = call()
    assert pulled
    assert (result == expected).all()


@pytest.mark.parametrize("name", ["x", "residual"])
def test_resize_is_refused(draw, name):
    arguments = {"x": np.tile(draw(N), (ROWS, 1)), "residual": np.full((ROWS, N), HELD)}
    expected = arguments["x"][0] + HELD
    watched, errors = arguments["residual"], []

    def resize(*_):
        if watched[0, 0] != HELD and not errors:
            try:
                arguments[name].resize(1)
            except ValueError as error:
                errors.append(error)

    with _ticks(resize):
        fastrms.residual_add(**arguments)
    assert "cannot resize" in str(errors[0])
    assert (arguments["residual"] == expected).all()


def test_exported_buffer_cannot_grow(draw):
    buffer = array("f", bytes(4 * ROWS * N))
    x, errors = np.broadcast_to(draw(N), (ROWS, N)), []

    def grow(*_):
        if buffer[0] != 0 and not errors:
            try:
                buffer.append(1)
            except BufferError as error:
                errors.append(error)

    with _ticks(grow):
        fastrms.residual_add(x, memoryview(buffer).cast("b").cast("f", (ROWS, N)))
    assert "exporting buffers" in str(errors[0])
    assert (np.frombuffer(buffer, np.float32).reshape(ROWS, N) == x).all()
    buffer.append(1)
