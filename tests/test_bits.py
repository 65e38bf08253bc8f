"""One row, one answer: results are compared as bytes, never within a tolerance.

A row's result depends only on that row, weight and eps: not on the batch, the row's place in it,
the threads, the instruction set, the strides, nor on whether the call was fused or in place.
"""

import numpy as np
import pytest

import fastrms
from fastrms import _core

# Both sides of a vector's length, one block, many blocks, enough work for several threads.
SHAPES = ((1, 1), (3, 7), (5, 64), (17, 65), (199, 129), (40, 4096), (1031, 129))
# Plain values, and values whose squares underflow or overflow in float32.
SCALES = (1e-45, 1.0, 1e38)
EPS = (0.0, 1e-5)


@pytest.fixture(params=SHAPES, ids="{0[0]}x{0[1]}".format)
def shape(request):
    return request.param


@pytest.fixture(params=SCALES, ids="scale{}".format)
def scaled(request, draw):
    """Return a function from a shape to values of one scale, within float32's range."""
    return lambda *shape: np.clip(draw(*shape), -3, 3) * np.float32(request.param)


def _every_result(x, dy, residual, weight, eps):
    """Return the bytes of everything that every function writes for these inputs."""
    stream, added = residual.copy(), residual.copy()
    results = [
        fastrms.rms_norm(x, None, eps),
        fastrms.rms_norm(x, weight, eps, weight_offset=1.0),
        fastrms.add_rms_norm(x, stream, weight, eps),
        stream,
        fastrms.residual_add(x, added, 0.3),
        *fastrms.rms_norm_backward(dy, x, weight, eps),
        fastrms.rms_norm_backward(dy, x, None, eps)[0],
    ]
    return [result.tobytes() for result in results]


@pytest.mark.parametrize("eps", EPS)
def test_instruction_sets_and_threads(restore, shape, scaled, draw, eps):
    x, residual, dy, weight = scaled(*shape), scaled(*shape), draw(*shape), draw(shape[-1])
    isas, seen = _core.available_isas(), {}
    for isa in (*isas, f"{isas[0]}+{isas[-1]}"):
        _core.use_isa(isa)
        for count in (1, 2, 3):
            fastrms.set_num_threads(count)
            seen[isa, count] = _every_result(x, dy, residual, weight, eps)
    first = seen[isas[0], 1]
    assert [key for key, results in seen.items() if results != first] == []


@pytest.mark.parametrize("largest", [1, 8])
def test_forward_rounds_where_numerics_says(isa, draw, largest):
    """Repeat the steps of docs/numerics.md in NumPy: both paths of weights, and offsets."""
    x, weight = draw(5, 129), draw(129)
    weight[3] = largest
    inv_rms = _inv_rms(x)
    assert fastrms.rms_norm(x).tobytes() == (x * inv_rms).tobytes()
    for weight_offset in (0.0, 1.0, 0.5, -1.0, -0.0, float(np.float32(0.1))):
        factor = weight + np.float32(weight_offset)
        y = fastrms.rms_norm(x, weight, weight_offset=weight_offset)
        assert y.tobytes() == (x * inv_rms * factor).tobytes()


def _inv_rms(x):
    mean = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
    return (1 / np.sqrt(mean + 1e-5)).astype(np.float32)


def test_one_plus_weights_halfway_between_floats(isa, draw):
    """The sum is rounded to even at a midpoint, and to the nearest beside it."""
    halfway = ((np.arange(-40, 40) + 0.5) * 2.0**-23).astype(np.float32)
    beside = [np.nextafter(halfway, np.float32(side)) for side in (-1, 1)]
    weight = np.concatenate([halfway, *beside])
    x = draw(7, weight.size)
    factor = weight + np.float32(1)
    assert len(np.unique(factor)) < len(weight) / 2
    y = fastrms.rms_norm(x, weight, weight_offset=1.0)
    assert y.tobytes() == (x * _inv_rms(x) * factor).tobytes()


@pytest.mark.parametrize("special", [np.nan, -np.nan, np.inf, -np.inf])
def test_instruction_sets_on_nan_and_inf(restore, draw, special):
    """The sign of a NaN must agree too."""
    x, residual, dy, weight = draw(3, 67), draw(3, 67), draw(3, 67), draw(67)
    x[1, 5] = residual[2, 40] = dy[0, 66] = special
    seen = {}
    for isa in _core.available_isas():
        _core.use_isa(isa)
        seen[isa] = _every_result(x, dy, residual, weight, 1e-5)
    first = seen[_core.available_isas()[0]]
    assert [key for key, results in seen.items() if results != first] == []


def test_batch_and_position(way, shape, scaled, draw):
    """A row gives the same bits alone, in the batch, and in the reversed batch."""
    x, dy, weight = scaled(*shape), draw(*shape), draw(shape[-1])
    y = fastrms.rms_norm(x, weight)
    dx, _ = fastrms.rms_norm_backward(dy, x, weight)
    assert fastrms.rms_norm(x[::-1].copy(), weight)[::-1].tobytes() == y.tobytes()
    for row in {0, len(x) // 2, len(x) - 1}:
        assert fastrms.rms_norm(x[row], weight).tobytes() == y[row].tobytes()
        dx_row, _ = fastrms.rms_norm_backward(dy[row], x[row], weight)
        assert dx_row.tobytes() == dx[row].tobytes()


def test_neighbours_do_not_matter(isa, draw):
    """A row that needs float64 changes no bit of the rows beside it."""
    x, dy, weight = draw(9, 100), draw(9, 100), draw(100)
    y = fastrms.rms_norm(x, weight)
    dx, _ = fastrms.rms_norm_backward(dy, x, weight)
    extreme = x.copy()
    extreme[1::2] *= np.float32(1e37)
    assert fastrms.rms_norm(extreme, weight)[::2].tobytes() == y[::2].tobytes()
    changed, _ = fastrms.rms_norm_backward(dy, extreme, weight)
    assert changed[::2].tobytes() == dx[::2].tobytes()


def test_outliers_in_a_batch(isa, draw):
    """A row with one element up to 20 times as large gives the same bits in a batch as alone."""
    x, rows = draw(200, 100), np.arange(200)
    x[rows, rows % 100] *= np.linspace(1, 20, 200, dtype=np.float32)
    y = fastrms.rms_norm(x)
    assert [row for row in rows if fastrms.rms_norm(x[row]).tobytes() != y[row].tobytes()] == []


def test_shape_of_the_batch(way, draw):
    """How the leading axes divide the rows changes no bit."""
    x, dy, weight = draw(120, 33), draw(120, 33), draw(33)
    y = fastrms.rms_norm(x, weight)
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight)
    for leading in ((2, 60), (3, 4, 10), (1, 2, 5, 3, 4)):
        deep = (*leading, 33)
        assert fastrms.rms_norm(x.reshape(deep), weight).tobytes() == y.tobytes()
        results = fastrms.rms_norm_backward(dy.reshape(deep), x.reshape(deep), weight)
        assert [result.tobytes() for result in results] == [dx.tobytes(), dweight.tobytes()]


@pytest.mark.parametrize("offset", range(1, 17))
def test_alignment(isa, draw, offset):
    """Where a row starts within a vector or a cache line changes no bit."""
    x, weight = draw(5, 70), draw(70)
    y = fastrms.rms_norm(x, weight)
    shifted = np.empty(x.size + offset, np.float32)[offset:].reshape(x.shape)
    shifted[...] = x
    out = np.empty(x.size + 17 - offset, np.float32)[17 - offset :].reshape(x.shape)
    fastrms.rms_norm(shifted, weight, out=out)
    assert out.tobytes() == y.tobytes()


def test_in_place(way, shape, scaled, draw):
    x, dy, weight = scaled(*shape), draw(*shape), draw(shape[-1])
    y = fastrms.rms_norm(x, weight)
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight)
    work = x.copy()
    assert fastrms.rms_norm(work, weight, out=work).tobytes() == y.tobytes()
    for overwritten in ("dy", "x"):
        inputs = {"dy": dy.copy(), "x": x.copy()}
        results = fastrms.rms_norm_backward(**inputs, weight=weight, dx=inputs[overwritten])
        assert [result.tobytes() for result in results] == [dx.tobytes(), dweight.tobytes()]


def test_out_of_place_into_a_buffer(way, shape, scaled, draw):
    """A buffer that is passed receives the bits of a new result, whatever it held before."""
    x, dy, weight = scaled(*shape), draw(*shape), draw(shape[-1])
    out = np.full(shape, np.nan, np.float32)
    assert fastrms.rms_norm(x, weight, out=out).tobytes() == fastrms.rms_norm(x, weight).tobytes()
    new = fastrms.rms_norm_backward(dy, x, weight)
    dx, dweight = np.full(shape, np.nan, np.float32), np.full(shape[-1], np.nan, np.float32)
    fastrms.rms_norm_backward(dy, x, weight, dx=dx, dweight=dweight)
    assert [dx.tobytes(), dweight.tobytes()] == [result.tobytes() for result in new]


@pytest.mark.parametrize("into_x", [False, True])
def test_fused_is_separate(way, shape, scaled, draw, into_x):
    x, residual, weight = scaled(*shape), scaled(*shape), draw(shape[-1])
    stream = residual.copy()
    y = fastrms.rms_norm(fastrms.residual_add(x, stream), weight, 1e-6, weight_offset=1.0)
    fused, out = residual.copy(), x.copy() if into_x else None
    x = out if into_x else x
    result = fastrms.add_rms_norm(x, fused, weight, 1e-6, weight_offset=1.0, out=out)
    assert result.tobytes() == y.tobytes()
    assert fused.tobytes() == stream.tobytes()


def test_residual_add_is_np_add(way, shape, scaled):
    residual, x = scaled(*shape), scaled(*shape)
    with np.errstate(over="ignore"):
        expected = np.add(residual, x)
    assert fastrms.residual_add(x, residual).tobytes() == expected.tobytes()


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulate_is_a_separate_add(way, shape, scaled, draw, weighted):
    x, dy, skip = scaled(*shape), draw(*shape), draw(*shape)
    weight = draw(shape[-1]) if weighted else None
    with np.errstate(over="ignore"):  # a gradient of tiny rows overflows, and so does the sum
        expected = np.add(skip, fastrms.rms_norm(x, weight))
        expected_dx = np.add(skip, fastrms.rms_norm_backward(dy, x, weight)[0])
    out, dx = skip.copy(), skip.copy()
    fastrms.rms_norm(x, weight, out=out, accumulate=True)
    assert out.tobytes() == expected.tobytes()
    fastrms.rms_norm_backward(dy, x, weight, dx=dx, accumulate=True)
    assert dx.tobytes() == expected_dx.tobytes()


@pytest.mark.parametrize("passed", [("dx",), ("dweight",), ("dx", "dweight")], ids="+".join)
def test_accumulate_into_the_buffers_that_are_passed(way, shape, draw, passed):
    """Add into the buffers that are passed; a gradient without a buffer is a new array."""
    x, dy, weight = draw(*shape), draw(*shape), draw(shape[-1])
    new = dict(zip(("dx", "dweight"), fastrms.rms_norm_backward(dy, x, weight), strict=True))
    held = {name: draw(*new[name].shape) for name in passed}
    expected = {**new, **{name: np.add(held[name], new[name]) for name in passed}}
    results = fastrms.rms_norm_backward(dy, x, weight, **held, accumulate=True)
    for result, name in zip(results, ("dx", "dweight"), strict=True):
        assert result.tobytes() == expected[name].tobytes()
        assert name not in passed or result is held[name]


@pytest.mark.parametrize("name", ["dx", "dweight"])
def test_accumulate_into_one_of_two(way, shape, draw, name):
    """Add into the named buffer alone; the other is overwritten."""
    x, dy, weight = draw(*shape), draw(*shape), draw(shape[-1])
    expected = dict(zip(("dx", "dweight"), fastrms.rms_norm_backward(dy, x, weight), strict=True))
    held = {name: draw(*array.shape) for name, array in expected.items()}
    expected[name] = np.add(held[name], expected[name])
    fastrms.rms_norm_backward(dy, x, weight, **held, accumulate=name)
    for name, array in held.items():
        assert array.tobytes() == expected[name].tobytes()


def test_accumulate_onto_itself(isa, draw):
    """With out=x, `out += y` computes all of the post-norm residual x + norm(x)."""
    x, weight = draw(17, 100), draw(100)
    expected = np.add(x, fastrms.rms_norm(x, weight))
    assert fastrms.rms_norm(x, weight, out=x, accumulate=True).tobytes() == expected.tobytes()


def test_dweight_sums_in_a_fixed_order(way, draw):
    """Strides and a reused buffer do not change a sum over many blocks of rows."""
    x, dy, weight = draw(2053, 65), draw(2053, 65), draw(65)
    _, dweight = fastrms.rms_norm_backward(dy, x, weight)
    wide = np.zeros((2, 2053, 130), np.float32)[:, ::-1, ::2]
    wide[0], wide[1] = x, dy
    _, strided = fastrms.rms_norm_backward(wide[1], wide[0], weight, dweight=np.ones_like(weight))
    assert strided.tobytes() == dweight.tobytes()


@pytest.mark.parametrize("weighted", [False, True])
def test_few_long_rows_have_the_bits_of_each_alone(way, draw, weighted):
    """Without a weight they are split over threads, with one they need no blocks."""
    x, dy, weight = draw(3, 11_008), draw(3, 11_008), draw(11_008) if weighted else None
    dx, _ = fastrms.rms_norm_backward(dy, x, weight)
    alone = [fastrms.rms_norm_backward(dy[row], x[row], weight)[0] for row in range(3)]
    assert dx.tobytes() == np.stack(alone).tobytes()


@pytest.fixture
def caches():
    """Return a function that overrides the cache sizes, until the test ends."""
    previous = _core.set_caches(1 << 15, 1 << 24, False)
    yield _core.set_caches
    _core.set_caches(*previous)


def _written_into(out, x, other, weight):
    """Return the bytes of all outputs of the functions that can write into `out`."""
    stream = other.copy()
    calls = (
        lambda: [fastrms.rms_norm(x, weight, out=out)],
        lambda: [fastrms.rms_norm(x, None, out=out)],
        lambda: [fastrms.add_rms_norm(x, stream, weight, out=out), stream],
        lambda: [*fastrms.rms_norm_backward(other, x, weight, dx=out)],
        lambda: [fastrms.rms_norm_backward(other, x, None, dx=out)[0]],
    )
    return [result.tobytes() for call in calls for result in call()]


# Rows that start anywhere within a cache line, some too long for a batch of rows.
@pytest.mark.parametrize(("rows", "n"), [(290, 31), (71, 128), (40, 576), (9, 5003), (3, 30_001)])
@pytest.mark.parametrize("start", [0, 1, 16])
@pytest.mark.parametrize("level", [0, 1 << 15, 1 << 24])
@pytest.mark.parametrize(("stream_bytes", "fetches"), [(0, False), (0, True), (1 << 40, True)])
def test_caches_change_no_bit(way, caches, draw, rows, n, start, level, stream_bytes, fetches):
    """Neither cache sizes nor streaming change a bit, and no store leaves the output."""
    x, other, weight = draw(rows, n), draw(rows, n), draw(n)
    caches(1 << 15, 1 << 40, False)
    expected = _written_into(np.empty_like(x), x, other, weight)
    memory = np.full(rows * n + 48, 7, np.float32)
    start += -memory.ctypes.data % 64 // 4
    out = memory[start : start + rows * n].reshape(rows, n)
    caches(level, stream_bytes, fetches)
    assert _written_into(out, x, other, weight) == expected
    assert np.all(memory[:start] == 7)
    assert np.all(memory[start + rows * n :] == 7)


def test_streaming_that_depends_on_threads_changes_no_bit(restore, caches, draw):
    """A forward of just so many bytes is streamed on one thread alone, if its rows are long."""
    for n in (64, 576):
        x, weight, found = draw(64, n), draw(n), set()
        memory = np.empty(64 * n + 16, np.float32)
        start = -memory.ctypes.data % 64 // 4  # narrow rows are streamed on cache lines alone
        out = memory[start : start + 64 * n].reshape(64, n)
        for stream_bytes in (1 << 40, 2 * x.nbytes):
            caches(1 << 15, stream_bytes, False)
            for threads in (1, 2):
                fastrms.set_num_threads(threads)
                found.add(fastrms.rms_norm(x, weight, out=out).tobytes())
        assert len(found) == 1


@pytest.mark.parametrize(("rows", "n"), [(290_000, 31), (3, 3_000_001)])
def test_pieces_between_signals(isa, draw, rows, n):
    """Large calls run in pieces, to check for signals; their rows have the bits of small calls."""
    x, dy, weight = draw(rows, n), draw(rows, n), draw(n)
    few = slice(rows // 3, rows // 3 + max(1, 40_000 // n))
    y = fastrms.rms_norm(x, weight)
    assert y[few].tobytes() == fastrms.rms_norm(x[few], weight).tobytes()
    dx = fastrms.rms_norm_backward(dy, x, weight)[0]
    assert dx[few].tobytes() == fastrms.rms_norm_backward(dy[few], x[few], weight)[0].tobytes()
    assert dx[-1].tobytes() == fastrms.rms_norm_backward(dy[-1], x[-1], weight)[0].tobytes()


def test_repeated_calls(threads, draw):
    """Threads finish in any order; the result is always the same."""
    x, dy, weight = draw(1031, 129), draw(1031, 129), draw(129)
    results = {
        b"".join(result.tobytes() for result in fastrms.rms_norm_backward(dy, x, weight))
        for _ in range(10)
    }
    assert len(results) == 1
