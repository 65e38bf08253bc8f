"""Shared memory in numba, by the table of docs/callers.md: in place, or a ValueError."""

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

import fastrms  # noqa: E402
import fastrms.numba  # noqa: E402

from .signatures import ARGUMENTS_OF, OUTPUTS  # noqa: E402
from .test_overlap import MEMORY, N, _overlaps, _pairs, _views, _ways  # noqa: E402

IN_PLACE = [("x", "out"), ("x", "residual"), ("x", "dx"), ("dy", "dx")]
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@numba.njit
def rms_norm(x, out, weight):
    fastrms.rms_norm(x, weight, out=out)


@numba.njit
def add_rms_norm(x, residual, out, weight):
    fastrms.add_rms_norm(x, residual, weight, out=out)


@numba.njit
def rms_norm_backward(dy, x, dx, weight, dweight):
    fastrms.rms_norm_backward(dy, x, weight, dx=dx, dweight=dweight)


@numba.njit
def residual_add(x, residual):
    fastrms.residual_add(x, residual)


CALLS = {f.__name__: f for f in (rms_norm, add_rms_norm, rms_norm_backward, residual_add)}


@DTYPES
@pytest.mark.parametrize("function", CALLS)
def test_every_pair(draw, arrays, unchanged, function, dtype):
    cases = [(*pair, how) for pair in _pairs(function, False) for how in _ways(*pair)]
    cases += [(*pair, how) for pair in _pairs(function, True) for how in _overlaps(*pair)[0]]
    for first, second, how in cases:
        memory = draw(MEMORY).astype(dtype)
        given = {name: value.astype(dtype) for name, value in arrays(function, N, N).items()}
        given[first], given[second] = views = _views(first, second, how, memory)
        if not all(view.flags.c_contiguous for view in views):
            continue
        separate = {name: np.array(given[name]) for name in ARGUMENTS_OF[function]}
        arguments = [given[name] for name in ARGUMENTS_OF[function]]
        if how == "the same" and (first, second) in IN_PLACE:
            CALLS[function](*arguments)
            getattr(fastrms, function)(**separate)
            for name in OUTPUTS[function]:
                assert given[name].tobytes() == separate[name].tobytes()
        else:
            with unchanged(memory, *arguments), pytest.raises(ValueError, match="an output must"):
                CALLS[function](*arguments)


def test_arrays_of_two_dtypes(draw, unchanged):
    """The same address is another array in another dtype, and parts of one overlap."""
    memory = draw(4 * N * N)
    x, weight = draw(N, N), memory[2 * N : 3 * N]
    for wide in (memory[: 2 * N * N], memory[: 2 * N]):
        output = wide.view(np.float64).reshape(-1, N)
        dx, dweight = (output, draw(N)) if len(output) == N else (draw(N, N), output[0])
        narrow = memory[: N * N].reshape(N, N)
        for dy, row in ((narrow, draw(N)), (x, memory[N : 2 * N])):
            with unchanged(memory), pytest.raises(ValueError, match="an output must"):
                rms_norm_backward(dy, x, dx, row, dweight)
    rms_norm_backward(x, x, draw(N, N), weight, memory[: 2 * N].view(np.float64))  # side by side


def test_an_empty_array_shares_nothing(draw):
    memory, dweight = draw(3 * N), np.ones(N, np.float32)
    empty = memory[N + 2 :][:0].reshape(0, N)
    rms_norm_backward(empty, empty.copy(), empty, memory[N : 2 * N], dweight)
    assert not dweight.any()
