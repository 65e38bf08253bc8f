"""`fastrms check`: every bound holds on this machine, and a result that breaks one is reported."""

import sys

import numpy as np
import pytest

import fastrms
from fastrms import _core, check, reference
from fastrms.__main__ import main

from .dtypes import KINDS, dtype_of


@pytest.fixture
def report(monkeypatch, capsys):
    """Return a function that runs a small check and returns its exit code and its output."""
    monkeypatch.setattr(check, "SHAPES", ((3, 7), (5, 129)))

    def run(dtype="float32"):
        return check.run(dtype=dtype), capsys.readouterr().out

    return run


@pytest.mark.parametrize("dtype", KINDS)
def test_every_bound_holds(report, dtype):
    before = _core.current(), fastrms.get_num_threads()
    code, text = report(dtype_of(dtype).name)
    assert code == 0
    assert text.endswith("; every bound holds\n")
    measures = [line[:12].rstrip() for line in text.splitlines()[2:-1]]
    assert measures == list(check.MEASURES)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert (_core.current(), fastrms.get_num_threads()) == before


FUNCTIONS = sorted({*vars(reference)} & {*fastrms.__all__})


@pytest.mark.parametrize(
    ("function", "wrong"),
    [*((function, 1e-3) for function in FUNCTIONS), ("rms_norm", np.nan), ("rms_norm", np.inf)],
)
def test_one_wrong_element_is_reported(report, monkeypatch, function, wrong):
    real = getattr(fastrms, function)

    def spoilt(*args, **kwargs):
        result = real(*args, **kwargs)
        first = result[0] if isinstance(result, tuple) else result
        first.flat[-1] += wrong * (1 + abs(first.flat[-1]))
        return result

    monkeypatch.setattr(fastrms, function, spoilt)
    code, text = report()
    assert code == 1
    assert text.endswith(" broken\n")


@pytest.mark.parametrize("command", ["check", "bench"])
def test_bfloat16_needs_ml_dtypes(monkeypatch, capsys, command):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert main([command, "--dtype", "bfloat16"]) == 2
    out, error = capsys.readouterr()
    wanted = "bfloat16 needs ml_dtypes: python -m pip install ml_dtypes"
    assert (out, error) == ("", f"fastrms {command}: {wanted}\n")


@pytest.mark.parametrize("dtype", KINDS)
def test_an_ulp_and_the_largest_number_of_each_dtype(dtype):
    one = np.ones(1, dtype_of(dtype))
    bits, smallest, _ = check.FORMATS[dtype]
    assert check.ulps(one, np.array([1 + 2.0 ** (1 - bits)])) == 1
    zero = np.zeros(1, one.dtype)
    assert check.ulps(zero, np.array([2.0**smallest])) == 1
    with np.errstate(over="ignore"):
        largest = np.array([check.FORMATS[dtype].largest]).astype(one.dtype)
        assert np.isfinite(largest)
        assert np.isinf(largest * one.dtype.type(1 + 2.0 ** (1 - bits)))


def test_the_bound_of_a_half_is_that_of_float32_and_a_rounding():
    weight = np.ones(1)
    assert check.forward_ulp(weight, dtype="bfloat16") == 0.5 + 3 * 2.0**-16
    assert check.forward_ulp(weight, dtype="float16") == 0.5 + 3 * 2.0**-13
    assert check.forward_ulp(weight, 1.0) == 4


def test_terms_of_dx_by_hand():
    """The root of (1 + 49) / 2 is 5; g is 6 and -1, xhat 0.2 and 1.4, mean|g * xhat| 1.3."""
    dy, x, weight = (np.array(values, np.float32) for values in ([3, -1], [1, 7], [1, 0]))
    terms = check.dx_terms(dy, x, weight, 0.0, 1.0)
    np.testing.assert_allclose(terms, [6.26 / 5, 2.82 / 5], rtol=1e-15)


@pytest.mark.parametrize("column", [0, 3])
@pytest.mark.parametrize("share", [0.5, 2.0])
def test_an_error_is_compared_with_the_terms_of_its_element(draw, column, share):
    dy, x, weight = draw(2, 50), draw(2, 50), draw(50)
    x[:, 0] *= 1e6
    dx, _ = reference.rms_norm_backward(dy, x, weight, weight_offset=1.0)
    terms = check.dx_terms(dy, x, weight, 1e-5, 1.0)
    wrong = dx.copy()
    wrong[1, column] += share * check.DX * terms[1, column] + check.ROUNDING
    error = check.dx_error(wrong, dx, dy, x, weight, 1e-5, 1.0)
    np.testing.assert_allclose(error, share * check.DX, rtol=1e-6)


@pytest.mark.parametrize(("shift", "may_be_inf"), [(60, False), (140, False), (160, True)])
def test_an_inf_is_right_where_the_bound_is_beyond_float32(shift, may_be_inf):
    """The exact dx is 0, its terms are 2 * 2**shift."""
    x, exact = np.float32([1e-31]), np.zeros(1)

    def error(value):
        return check.dx_error(np.float32([value]), exact, np.ldexp(x, shift), x, None, 0.0)

    assert error(np.inf) == error(-np.inf) == (0 if may_be_inf else np.inf)
    assert error(np.nan) == np.inf
    assert error(2.0**40) == 2.0 ** (39 - shift)


def test_an_inf_of_the_wrong_sign_is_an_error():
    dy, x = np.float32([np.inf, 1]), np.float32([0, 1])
    exact = np.array([-np.inf, 1])
    assert check.dx_error(np.float32([np.inf, 1]), exact, dy, x, None, 1.0) == np.inf
    assert check.ulps(np.float32([np.inf, 1]), exact) == np.inf


def test_an_error_where_the_exact_result_is_zero():
    """Terms of 0 leave 2**-149, and the ulp of 0 is the smallest float."""
    zero, x = np.zeros(1, np.float32), np.ones(1, np.float32)
    for size, error in ((1, 0.0), (2, np.inf)):
        value = np.float32([size * check.ROUNDING])
        assert check.dx_error(value, np.zeros(1), zero, x, None, 0.0) == error
        assert check.ulps(value, np.zeros(1)) == size
