"""fastrms.conformance names each planted fault, and passes good implementations of any style."""

import numpy as np
import pytest

from fastrms import conformance

from . import planted
from .dtypes import dtype_of

SMALL = {"shapes": ((16, 64), (5, 257), (4, 1024))}


def check(role, function, dtype="float32", **options):
    dtype_of(dtype)  # or skip
    functions = {"norm": None} | {role: function}
    return conformance.check(**functions, dtype=dtype, **SMALL | options)


def names(findings):
    return {finding.name for finding in findings}


@pytest.mark.parametrize("style", planted.RIGHT)
def test_a_good_implementation_passes(style):
    function, dtype = planted.RIGHT[style]
    assert not check("norm", function, dtype).failures


@pytest.mark.parametrize(("role", "function", "dtype"), planted.RIGHT_COMPANIONS)
def test_a_good_companion_passes(role, function, dtype):
    assert not check(role, function, dtype).failures


@pytest.mark.parametrize(("role", "function", "dtype", "fault"), planted.FAULTS)
def test_a_planted_fault_is_named(role, function, dtype, fault):
    report = check(role, function, dtype)
    lenient = fault in planted.LENIENT
    assert names(report.failures) == (set() if lenient else {fault})
    assert fault in names(report.findings)
    [found] = [found for found in report.findings if found.name == fault]
    assert fault in str(report)
    if lenient:
        assert fault in names(check(role, function, dtype, strict=True).failures)
    elif found.result:
        assert_shown(found, function)


def assert_shown(found, function):
    """The example is small, and the function gives on it what the finding says."""
    (*arrays,) = found.arguments.values()
    assert all(np.size(part) <= 32 for part in arrays)
    results = function(*(np.copy(part) if np.ndim(part) else part for part in arrays))
    results = results if isinstance(results, tuple) else (results,)
    shown = found.shows[found.result]
    assert any(np.array_equal(result, shown, equal_nan=True) for result in results)
    assert not np.array_equal(shown, found.shows["exact"].astype(shown.dtype))
