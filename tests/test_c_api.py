"""The C interface of fastrms.h, called through ctypes, gives the bits of the Python calls."""

import itertools
import sys

import numpy as np
import pytest

import fastrms
from fastrms import _core
from fastrms.ctypes import functions

from .c_api import OK, at, scratch_of, stride

SHAPES = [(1, 1), (1, 64), (3, 17), (8, 33), (40, 96), (71, 130), (9, 1003), (300, 40)]
# A weight, one with an offset, none.
WEIGHTS = pytest.mark.parametrize(("weighted", "offset"), [(True, 0.0), (True, 1.0), (False, 0.0)])
THREADS = pytest.mark.parametrize("shared", [True, False], ids=["pool", "here"])


@pytest.fixture
def three_threads(restore):
    """Use three threads, even for the smallest call."""
    fastrms.set_num_threads(3)


def spread(array, gap, turn=1):
    """Return a copy with `gap` NaNs between its rows, in reverse order if turn is -1."""
    rows, n = array.shape
    memory = np.full((rows, n + gap), np.nan, np.float32)[::turn, :n]
    memory[...] = array
    return memory


# ---- bits -------------------------------------------------------------------------------------


@THREADS
@WEIGHTS
@pytest.mark.parametrize("accumulate", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(way, draw, shape, weighted, offset, accumulate, shared):
    x, out = spread(draw(*shape), 3), spread(draw(*shape), 5, -1)
    weight = draw(shape[1]) if weighted else None
    options = {"weight_offset": offset, "accumulate": bool(accumulate)}
    expected = fastrms.rms_norm(x, weight, 1e-6, out=out.copy(), **options)
    numbers = (*shape, 1e-6, offset, accumulate, int(not shared))
    code = functions.rms_norm(at(x), stride(x), at(weight), at(out), stride(out), *numbers)
    assert (code, out.tobytes()) == (OK, expected.tobytes())
    assert np.isnan(out.base[:, shape[1] :]).all()


@THREADS
@WEIGHTS
@pytest.mark.parametrize("into_x", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm(way, draw, shape, weighted, offset, into_x, shared):
    x, residual = spread(draw(*shape), 0), spread(draw(*shape), 7)
    weight = draw(shape[1]) if weighted else None
    stream = residual.copy()
    expected = fastrms.add_rms_norm(x, stream, weight, weight_offset=offset)
    out = x if into_x else np.empty_like(x)
    code = functions.add_rms_norm(
        *(at(x), stride(x), at(residual), stride(residual), at(weight), at(out), stride(out)),
        *(*shape, 1e-5, offset, int(not shared)),
    )
    assert (code, out.tobytes(), residual.tobytes()) == (
        OK,
        expected.tobytes(),
        stream.tobytes(),
    )


@WEIGHTS
@pytest.mark.parametrize("accumulate", [0, 1, 2, 3])
@pytest.mark.parametrize("into", ["dx", "dy", "x"])
def test_rms_norm_backward(way, draw, weighted, offset, accumulate, into):
    for shape, shared in itertools.product(SHAPES, (True, False)):
        check_backward(draw, shape, weighted, offset, accumulate, into, shared)


def check_backward(draw, shape, weighted, offset, accumulate, into, shared):
    if not weighted and accumulate > 1:
        accumulate -= 2  # there is no dweight
    given = {"dy": draw(*shape), "x": draw(*shape), "dx": draw(*shape)}
    weight, dweight = (draw(shape[1]), draw(shape[1])) if weighted else (None, None)
    wanted = python_backward(given, weight, dweight, into, offset, accumulate)
    dy, x = spread(given["dy"], 1), spread(given["x"], 0, -1)
    dx = {"dx": spread(given["dx"], 2), "dy": dy, "x": x}[into]
    threads = int(not shared)
    scratch, used = scratch_of(*shape, threads)
    code = functions.rms_norm_backward(
        *(at(dy), stride(dy), at(x), stride(x), at(weight), at(dx), stride(dx), at(dweight)),
        *(at(scratch), *shape, 1e-5, offset, accumulate, threads),
    )
    found = [dx.tobytes(), None if dweight is None else dweight.tobytes()]
    assert (code, found) == (OK, wanted)
    assert np.isnan(scratch[used:]).all()


def python_backward(given, weight, dweight, into, offset, accumulate):
    """Return the bytes of dx and dweight from Python, with the accumulate flags of C."""
    given = {name: array.copy() for name, array in given.items()}
    dx, total = given[into], None if dweight is None else dweight.copy()
    options = {"weight_offset": offset}
    if accumulate in (0, 3) or weight is None:
        options |= {"dx": dx, "dweight": total, "accumulate": bool(accumulate)}
    else:  # a buffer that is not passed is not added to
        options |= {"dx": dx} if accumulate == 1 else {"dweight": total}
        options["accumulate"] = True
    dx, total = fastrms.rms_norm_backward(given["dy"], given["x"], weight, **options)
    return [dx.tobytes(), None if total is None else total.tobytes()]


@THREADS
@pytest.mark.parametrize("scale", [1.0, -0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_residual_add(way, draw, shape, scale, shared):
    x, residual = spread(draw(*shape), 0), spread(draw(*shape), 3)
    expected = fastrms.residual_add(x=x, residual=residual.copy(), scale=scale)
    code = functions.residual_add(
        at(x), stride(x), at(residual), stride(residual), *shape, scale, int(not shared)
    )
    assert (code, residual.tobytes()) == (OK, expected.tobytes())


@THREADS
@WEIGHTS
@pytest.mark.parametrize("shape", SHAPES)
def test_the_functions_of_a_split_axis(way, draw, shape, weighted, offset, shared):
    (rows, n), size, threads = shape, 3 * shape[1], int(not shared)
    x, dy, out = spread(draw(*shape), 2), spread(draw(*shape), 0), draw(*shape)
    weight, dweight = (draw(n), draw(n)) if weighted else (None, None)
    squares, products = np.full((2, rows), np.nan)
    codes = [
        functions.sum_squares(at(x), stride(x), at(squares), rows, n, threads),
        functions.sum_products(
            at(dy), stride(dy), at(x), stride(x), at(weight), at(products), rows, n, offset, threads
        ),
    ]
    assert squares.tobytes() == fastrms.sum_squares(x).tobytes()
    expected = fastrms.sum_products(dy, x, weight, weight_offset=offset)
    assert products.tobytes() == expected.tobytes()
    codes += [
        functions.rms_scale(
            *(at(x), stride(x), at(squares), at(weight), at(out), stride(out)),
            *(rows, n, size, 1e-5, offset, threads),
        )
    ]
    expected = fastrms.rms_scale(x, squares, size, weight, weight_offset=offset)
    assert out.tobytes() == expected.tobytes()
    scratch, used = scratch_of(rows, n, threads)
    sums = fastrms.rms_scale_backward(dy, x, squares, products, size, weight, weight_offset=offset)
    codes += [
        functions.rms_scale_backward(
            *(at(dy), stride(dy), at(x), stride(x), at(squares), at(products), at(weight)),
            *(at(out), stride(out), at(dweight), at(scratch)),
            *(rows, n, size, 1e-5, offset, 0, threads),
        )
    ]
    assert out.tobytes() == sums[0].tobytes()
    assert not weighted or dweight.tobytes() == sums[1].tobytes()
    assert np.isnan(scratch[used:]).all()
    assert codes == [OK] * 4


def test_a_broadcast_input(draw):
    """An input of stride 0 repeats one row."""
    x, out = draw(64), np.empty((5, 64), np.float32)
    assert functions.rms_norm(at(x), 0, None, at(out), 64, 5, 64, 1e-5, 0.0, 0, 1) == OK
    assert (out == fastrms.rms_norm(x)).all()


def test_in_groups_of_blocks(three_threads, draw):
    """Rows are so long that not all blocks run at once, although scratch has room for all."""
    rows, n = 70, 300_000
    dy, x, weight, dweight = draw(rows, n), draw(rows, n), draw(n), np.empty(n, np.float32)
    scratch, used = scratch_of(rows, n, 0)
    dx, expected = fastrms.rms_norm_backward(dy, x, weight)
    code = functions.rms_norm_backward(
        *(at(dy), n, at(x), n, at(weight), at(dy), n, at(dweight), at(scratch)),
        *(rows, n, 1e-5, 0.0, 0, 0),
    )
    assert (code, dweight.tobytes()) == (OK, expected.tobytes())
    assert np.array_equal(dy, dx)
    assert np.isnan(scratch[used:]).all()


@pytest.mark.parametrize(("rows", "n"), [(0, 5), (4, 0), (0, 0)])
def test_empty(rows, n):
    """Pointers to empty arrays may be invalid; dweight of no rows, sums of no columns are zeros."""
    weight, total, sums = np.ones(n, np.float32), np.ones(n, np.float32), np.ones(rows)
    scratch, _ = scratch_of(rows, n, 1)
    numbers = (rows, n, 1e-5, 0.0)
    assert functions.rms_norm(None, n, None, None, n, *numbers, 0, 1) == OK
    assert functions.add_rms_norm(None, n, None, n, None, None, n, *numbers, 1) == OK
    assert functions.residual_add(None, n, None, n, rows, n, 1.0, 1) == OK
    assert functions.sum_squares(None, n, at(sums), rows, n, 1) == OK
    assert not sums.any()
    sums[:] = 1
    assert functions.sum_products(None, n, None, n, None, at(sums), rows, n, 0.0, 1) == OK
    assert not sums.any()
    assert functions.rms_scale(None, n, None, None, None, n, rows, n, n, 1e-5, 0.0, 1) == OK
    backward = (None, n, None, n, at(weight), None, n, at(total), at(scratch), *numbers)
    assert functions.rms_norm_backward(*backward, 2, 1) == OK
    assert total.all()
    assert functions.rms_norm_backward(*backward, 0, 1) == OK
    assert not total.any()


STARTED = """
import os
import numpy as np
import fastrms
from fastrms.ctypes import functions
fastrms.set_num_threads(2)
at, n = (lambda array: array.ctypes.data), 1024
x, w, dw = (np.ones(shape, np.float32) for shape in ((n, n), n, n))
back = at(x), n, at(x), n, at(w), at(x), n, at(dw)
room = np.ones(functions.scratch_bytes(n, n, 0) // 8)
numbers = n, n, 1e-5, 0.0, 0
calls = {
    "forward": (functions.rms_norm, at(x), n, None, at(x), n),
    "backward": (functions.rms_norm_backward, *back, at(room)),
}
function, *arrays = calls[NAME]
before = len(os.listdir("/proc/self/task"))
for threads in (1, 0):
    assert function(*arrays, *numbers, threads) == 0
    print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux lists a process's threads")
@pytest.mark.skipif(not _core.build_info()["pool"], reason="there is no pool")
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_threads_of_a_call(python, name):
    """threads = 1 stays on the calling thread, threads = 0 starts the pool."""
    done = python(STARTED.replace("NAME", repr(name)))
    assert done.stdout.split() == ["0", "1"], done.stderr
