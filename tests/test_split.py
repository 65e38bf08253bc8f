"""The functions for a split last axis: the sums, and the parts together against the whole."""

import itertools

import numpy as np
import pytest

import fastrms
from fastrms import reference
from fastrms.check import (
    DWEIGHT,
    DX,
    FORWARD_ULP,
    dweight_error,
    dx_error,
    ulps,
)

# float64 throughout: 2**-53 a rounding, and a sum of 5,125 terms has many.
FLOAT64 = 1e-12
LENGTHS = (1, 5, 15, 16, 17, 33, 100, 127, 128, 129, 300, 1000, 5125)
SCALES = (1.0, 1e-30, 1e-45, 1e19, 1e37)


@pytest.fixture
def problem(rng):
    def make(n, rows=19, scale=1.0):
        x = (rng.standard_normal((rows, n)) * scale).astype(np.float32)
        x[2, 0] *= np.float32(min(1e3, 1e38 / max(abs(float(x[2, 0])), 1e-30)))
        x[3] = 0
        dy = rng.uniform(0.5, 2.0, (rows, n)).astype(np.float32)
        weight = rng.uniform(-1.0, 3.0, n).astype(np.float32)
        return dy, x, weight

    return make


def pieces(n, parts):
    """Return slices of uneven length that cover range(n)."""
    cuts = sorted({0, n, *(n * part * part // (parts * parts) for part in range(1, parts))})
    return [slice(a, b) for a, b in itertools.pairwise(cuts)]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n", LENGTHS)
def test_one_part_has_the_bits_of_rms_norm(isa, problem, n, scale):
    _, x, weight = problem(n, scale=scale)
    squares = fastrms.sum_squares(x)
    for eps in (0.0, 1e-25, 1e-5, 1e30):
        for arguments, offset in ((weight, 0.0), (weight, 1.0), (None, 0.0), (weight * 1e3, 0.0)):
            y = fastrms.rms_scale(x, squares, n, arguments, eps, weight_offset=offset)
            whole = fastrms.rms_norm(x, arguments, eps, weight_offset=offset)
            np.testing.assert_array_equal(y, whole)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n", LENGTHS)
def test_sums_are_exact_to_their_bounds(isa, problem, n, scale):
    dy, x, weight = problem(n, scale=scale)
    squares = fastrms.sum_squares(x)
    assert squares.dtype == np.float64
    assert squares.shape == x.shape[:-1]
    np.testing.assert_allclose(squares, reference.sum_squares(x), rtol=FLOAT64)
    products = fastrms.sum_products(dy, x, weight, weight_offset=0.5)
    size = reference.sum_products(np.abs(dy), np.abs(x), np.abs(weight) + 0.5)
    error = np.abs(products - reference.sum_products(dy, x, weight, weight_offset=0.5))
    assert (error <= FLOAT64 * size).all()


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("n", [5, 100, 1000, 5125])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_parts_make_the_whole(problem, n, parts, scale):
    dy, x, weight = problem(n, scale=scale)
    eps = 1e-5 if scale == 1 else 0.0
    x[3] = x[4]  # a row of zeros gives NaN if eps is 0
    cuts = pieces(n, parts)
    squares = sum(fastrms.sum_squares(x[:, cut]) for cut in cuts)
    products = sum(fastrms.sum_products(dy[:, cut], x[:, cut], weight[cut]) for cut in cuts)
    y = [fastrms.rms_scale(x[:, cut], squares, n, weight[cut], eps) for cut in cuts]
    assert ulps(np.hstack(y), reference.rms_norm(x, weight, eps)) <= FORWARD_ULP
    gradients = [
        fastrms.rms_scale_backward(dy[:, cut], x[:, cut], squares, products, n, weight[cut], eps)
        for cut in cuts
    ]
    dx, dweight = (np.concatenate(part, axis=-1) for part in zip(*gradients, strict=True))
    exact_dx, exact_dweight = reference.rms_norm_backward(dy, x, weight, eps)
    assert dx_error(dx, exact_dx, dy, x, weight, eps) <= DX
    assert dweight_error(dweight, exact_dweight, dy, x, eps) <= DWEIGHT


def test_a_gradient_along_the_row_cancels_to_its_bound(problem):
    _, x, weight = problem(1000)
    dy = x / weight
    squares, products = fastrms.sum_squares(x), fastrms.sum_products(dy, x, weight)
    dx, _ = fastrms.rms_scale_backward(dy, x, squares, products, 1000, weight)
    exact, _ = reference.rms_norm_backward(dy, x, weight)
    assert dx_error(dx, exact, dy, x, weight, 1e-5) <= DX


def test_one_row_alone_is_its_row(problem):
    dy, x, weight = problem(100)
    squares, products = fastrms.sum_squares(x), fastrms.sum_products(dy, x, weight)
    assert fastrms.sum_squares(x[2]) == squares[2]
    assert fastrms.sum_products(dy[2], x[2], weight) == products[2]
    y = fastrms.rms_scale(x[2], squares[2], 100, weight)
    np.testing.assert_array_equal(y, fastrms.rms_scale(x, squares, 100, weight)[2])
    sums = squares[2], products[2]
    dx, dweight = fastrms.rms_scale_backward(dy[2], x[2], *sums, 100, weight)
    row = fastrms.rms_scale_backward(dy[2:3], x[2:3], squares[2:3], products[2:3], 100, weight)
    np.testing.assert_array_equal(dx, row[0][0])
    np.testing.assert_array_equal(dweight, row[1])


def test_the_longest_row_and_the_largest_weight_stay_in_float32(isa):
    """One element is all of a long row: 1 / rms, scaled by 2**63, times a weight of 2**44."""
    x, weight = np.eye(1, 64, dtype=np.float32), np.full(64, 2.0**44, np.float32)
    y = fastrms.rms_scale(x, np.ones(1), 2**40 - 1, weight, 0.0)
    assert ulps(y, reference.rms_scale(x, np.ones(1), 2**40 - 1, weight, 0.0)) <= FORWARD_ULP


@pytest.mark.parametrize("weighted", [False, True])
def test_reference_is_the_whole_formula_in_parts(problem, weighted):
    dy, x, weight = problem(12)
    weight = weight if weighted else None
    squares = reference.sum_squares(x)
    products = reference.sum_products(dy, x, weight)
    np.testing.assert_allclose(
        reference.rms_scale(x, squares, 12, weight), reference.rms_norm(x, weight), rtol=1e-13
    )
    parts = reference.rms_scale_backward(dy, x, squares, products, 12, weight)
    whole = reference.rms_norm_backward(dy, x, weight)
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-12)
    if weighted:
        np.testing.assert_allclose(parts[1], whole[1], rtol=1e-13)
    else:
        assert parts[1] is whole[1] is None


def test_threads_change_no_bit(restore, problem):
    dy, x, weight = problem(100, rows=2000)

    def results():
        sums = fastrms.sum_squares(x), fastrms.sum_products(dy, x, weight)
        y = fastrms.rms_scale(x, sums[0], 150, weight)
        return *sums, y, *fastrms.rms_scale_backward(dy, x, *sums, 150, weight)

    fastrms.set_num_threads(1)
    expected = [result.tobytes() for result in results()]
    fastrms.set_num_threads(3)
    assert [result.tobytes() for result in results()] == expected


def test_gradients_are_added_to_those_that_are_there(problem):
    dy, x, weight = problem(20, rows=6)
    sums = fastrms.sum_squares(x), fastrms.sum_products(dy, x, weight)
    held = np.ones_like(x), np.ones_like(weight)
    fresh = fastrms.rms_scale_backward(dy, x, *sums, 20, weight)
    fastrms.rms_scale_backward(
        dy, x, *sums, 20, weight, dx=held[0], dweight=held[1], accumulate=True
    )
    np.testing.assert_array_equal(held[0], 1 + fresh[0])
    np.testing.assert_array_equal(held[1], 1 + fresh[1])


def test_a_single_row_and_none(problem):
    _, x, weight = problem(30, rows=5)
    total = fastrms.sum_squares(x[0])
    assert total.shape == ()
    whole = fastrms.rms_norm(x[0], weight)
    np.testing.assert_array_equal(fastrms.rms_scale(x[0], total, 30, weight), whole)
    np.testing.assert_array_equal(fastrms.rms_scale(x[0], total[()], 30, weight), whole)
    assert fastrms.sum_squares(x[:0]).shape == (0,)
    np.testing.assert_array_equal(fastrms.sum_squares(x[:, :0]), np.zeros(5))
    assert fastrms.rms_scale(x[:, :0], np.ones(5), 30).shape == (5, 0)


def test_sums_may_lie_in_the_memory_that_is_written(problem):
    _, x, weight = problem(8, rows=4)
    memory = np.empty(4 * 8 * 4 + 64, np.uint8)
    out = memory[: x.nbytes].view(np.float32).reshape(x.shape)
    sums = memory[8:40].view(np.float64)
    expected = fastrms.rms_scale(x, fastrms.sum_squares(x), 8, weight)
    sums[:] = fastrms.sum_squares(x)
    np.testing.assert_array_equal(fastrms.rms_scale(x, sums, 8, weight, out=out), expected)
    out[:] = x
    expected = fastrms.sum_squares(x)
    np.testing.assert_array_equal(fastrms.sum_squares(out, out=sums), expected)


@pytest.mark.parametrize("function", ["rms_scale", "rms_scale_backward"])
@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (11, ValueError, "size, .* at least that of x, 12, .* got 11"),
        (1 << 40, ValueError, r"size, .* below 2\*\*40, got 1099511627776"),
        (10**400, ValueError, r"size must be below 2\*\*40, got a larger integer"),
        (12.0, TypeError, "size must be an integer, got float"),
        ("12", TypeError, "size must be an integer, got str"),
    ],
)
def test_size_is_refused(arrays, unchanged, function, size, error, message):
    arguments = arrays(function, 6, 12)
    with unchanged(*arguments.values()), pytest.raises(error, match=message):
        getattr(fastrms, function)(**arguments | {"size": size})


def test_a_scalar_is_no_output(draw):
    """A scalar may be an input, the sum of a single row; as an output it would lose the result."""
    with pytest.raises(TypeError, match=r"out must be .* got a scalar"):
        fastrms.sum_squares(draw(3), out=np.float64(1))


@pytest.mark.parametrize("n", range(1, 20))
def test_an_infinite_offset_reaches_the_row_alone(isa, n):
    """The zeros that pad the last vector are left out: times Inf they would be NaN."""
    ones = np.ones((2, n), np.float32)
    sums = fastrms.sum_products(ones, ones, ones[0], weight_offset=np.inf)
    assert np.array_equal(sums, [np.inf, np.inf])
