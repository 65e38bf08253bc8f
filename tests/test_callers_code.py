"""Arguments whose conversion runs the caller's code, which changes the arrays of the same call.

Such a call must behave as if that code had run before it.
"""

import gc
import itertools
import sys
import threading

import numpy as np
import pytest

import fastrms

from .signatures import ARGUMENTS, FUNCTIONS, MATRICES, NUMBER_ARGUMENTS, SUM_ARGUMENTS, N

# NumPy 2.5 deprecates setting the shape or dtype of an array, as these tests do.
pytestmark = pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
# If n were read before the change, (1, n) would pass for n rows of n, (n, 1) for one row of 1.
SHAPES = [(1, N), (N, 1), (2, N // 2)]
SCALARS = [*NUMBER_ARGUMENTS, ("rms_scale", "size"), ("rms_scale_backward", "size")]
VALUES = {"eps": 1e-5, "weight_offset": 0.5, "scale": 0.5, "size": 10 * N}


def _flat(array):
    """Reshape a matrix in place: into rows of one element, or into one row."""
    array.shape = (array.size, 1) if array.shape[-1] > 1 else (1, array.size)


def _as_bytes(array):
    array.dtype = np.uint8


def _read_only(array):
    array.flags.writeable = False


CHANGES = [_flat, _as_bytes, _read_only]


class Number:
    """A number that runs code when it is converted."""

    def __init__(self, value, code):
        self.value, self.code = value, code

    def __float__(self):
        self.code()
        return float(self.value)

    def __index__(self):
        self.code()
        return self.value


class Claims(np.ndarray):
    """An array that runs code when its class is read."""

    code = staticmethod(lambda: None)

    @property
    def __class__(self):
        self.code()
        return Claims


class Exporter:
    """A buffer that runs code when it is exported, and when it is released (Python 3.12)."""

    def __init__(self, array, code):
        self.array, self.code = array, code

    def __buffer__(self, flags):
        self.code()
        return memoryview(self.array)

    def __release_buffer__(self, buffer):
        self.code()


def _outcome(function, arguments):
    """Return the exception of a call, or the shapes and bytes of its results."""
    try:
        results = getattr(fastrms, function)(**arguments)
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    results = results if isinstance(results, tuple) else (results,)
    return [(np.shape(result), np.asarray(result).tobytes()) for result in results]


def _copies(arguments):
    return {name: np.array(value) for name, value in arguments.items()}


def _check(function, arguments, changed, change, name, wrap):
    """Compare a call whose argument `name` changes others with a call after those changes."""
    before, during = _copies(arguments), _copies(arguments)

    def code():
        while left:
            change(left.pop())

    left = [before[other] for other in changed]
    code()
    expected = _outcome(function, before)
    during[name] = wrap(during[name], code)
    left = [during[other] for other in changed]
    assert _outcome(function, during) == expected
    assert not left


def _changes(function, name):
    """Yield each shape, each group of the other matrices, and each change to make to them."""
    others = [m for m in MATRICES[function] if m != name]
    groups = [*([m] for m in others), others] if others else []
    return itertools.product(SHAPES, groups, CHANGES)


@pytest.mark.parametrize(("function", "name"), SCALARS)
def test_number(arrays, function, name):
    for shape, changed, change in _changes(function, name):
        arguments = arrays(function, *shape) | {name: VALUES[name]}
        _check(function, arguments, changed, change, name, lambda v, code: Number(v.item(), code))


def _claims(value, code):
    array = value.view(Claims)
    array.code = code
    return array


@pytest.mark.parametrize(("function", "name"), ARGUMENTS + SUM_ARGUMENTS)
def test_subclass(arrays, function, name):
    for shape, changed, change in _changes(function, name):
        _check(function, arrays(function, *shape), changed, change, name, _claims)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ is new in 3.12")
@pytest.mark.parametrize(("function", "name"), ARGUMENTS)
def test_exporter(arrays, function, name):
    for shape, changed, change in _changes(function, name):
        _check(function, arrays(function, *shape), changed, change, name, Exporter)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_plain_arrays_run_no_python_code(arrays, function):
    """A call runs no Python code, in which a signal handler could run. Outputs lie between the rows
    of inputs, so that NumPy has to tell whether they share memory."""
    memory = np.ones((3, 3, N), np.float32)
    matrices = {name: memory[:, k] for k, name in enumerate(MATRICES[function])}
    arguments = arrays(function, 3, N) | matrices
    frames = []
    sys.setprofile(lambda frame, event, _: frames.append((event, frame.f_code.co_name)))
    try:
        getattr(fastrms, function)(**arguments)
    finally:
        sys.setprofile(None)
    assert not [name for event, name in frames if event == "call"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="before 3.12 a call turns the collector off")
def test_the_garbage_collector_is_left_on(draw):
    """If a call turned it off and on again, it could undo another thread's gc.disable()."""
    lanes = draw(64, 2, N)  # outputs between the rows of inputs, as above
    done = threading.Event()

    def calls():
        while not done.is_set():
            fastrms.rms_norm(lanes[:, 0], out=lanes[:, 1])

    caller = threading.Thread(target=calls)
    caller.start()
    seen = {gc.isenabled() for _ in range(100_000)}
    done.set()
    caller.join()
    assert seen == {True}
