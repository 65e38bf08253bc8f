"""fastrms.conformance names each planted fault, and passes good implementations of any style."""

import numpy as np
import pytest

from fastrms import conformance

from . import good_norms, planted
from .dtypes import dtype_of

SMALL = {"shapes": ((16, 64), (5, 257), (4, 1024))}


def check(role, function, dtype="float32", **options):
    dtype_of(dtype)  # or skip
    functions = {"norm": None} | {role: function}
    return conformance.check(**functions, dtype=dtype, **SMALL | options)


def names(findings):
    return {finding.name for finding in findings}


@pytest.mark.parametrize("style", good_norms.RIGHT)
def test_a_good_implementation_passes(style):
    function, dtype = good_norms.RIGHT[style]
    assert not check("norm", function, dtype).failures


@pytest.mark.parametrize(("role", "function", "dtype"), good_norms.RIGHT_COMPANIONS)
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


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("role", "function", "fault"),
    [(role, function, fault) for role, function, kind, fault in planted.FAULTS
     if kind == "float32" and function.__name__ in planted.FORMULAS],
)  # fmt: skip
def test_halves_tell_every_formula_apart(role, function, fault, dtype, eps):
    """And arithmetic in float32, rounded once, hides none."""

    def in_half(*arguments):
        *arrays, eps = arguments
        wide = function(*(array.astype(np.float32) for array in arrays), eps)
        if isinstance(wide, tuple):
            return tuple(part.astype(arrays[0].dtype) for part in wide)
        return wide.astype(arrays[0].dtype)

    report = check(role, in_half, dtype, eps=eps, shapes=((4, 33),), families=("normal",))
    assert names(report.failures) == {fault}


def test_two_faults_in_one_function_are_both_named():
    def norm(x, weight, eps):
        return planted.eps_outside(x - good_norms.mean(x), 1 + weight, eps)

    report = check("norm", norm)
    assert names(report.failures) == {
        "eps is outside the root",
        "the mean is subtracted",
        "weight_offset of 1 seems to be added",
    }
    assert [finding.result for finding in report.failures] == ["y"] * 3


def test_failures_read_as_sentences():
    report = conformance.check(planted.eps_outside, backward=planted.n_twice, **SMALL)
    said = "[norm: eps is outside the root, backward divides by n twice]"
    assert repr(report.failures) == said


def test_a_fault_of_the_norm_in_backward():
    def backward(dy, x, weight, eps):
        return planted.n_twice(dy, x, 1 + weight, eps)

    assert names(check("backward", backward).failures) == {
        "backward divides by n twice",
        "weight_offset of 1 seems to be added",
    }


def test_a_fault_in_dweight_alone():
    def backward(dy, x, weight, eps):
        return good_norms.backward(dy, x, weight, eps)[0], good_norms.backward(dy, x, weight, 0.0)[
            1
        ]

    [found] = check("backward", backward).failures
    assert (found.name, found.result) == ("eps is ignored", "dweight")


def test_an_error_that_no_formula_explains_is_shown_where_it_is_largest():
    def norm(x, weight, eps):
        y = good_norms.in_float64(x, weight, eps)
        y[:, 3:4] *= np.float32(1.001)
        return y

    [found] = check("norm", norm).failures
    assert found.name.startswith("y is off by ")
    assert found.name.endswith(" rows; no known formula fits")
    assert found.arguments["x"].size <= 8
    assert next(iter(found.shows)) == "y[0, 3]"


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-6, 1.0, 100.0])
def test_every_eps(eps):
    few = {"eps": eps, "shapes": ((4, 33), (2, 300))}
    assert not check("norm", good_norms.lanes, **few).failures
    for function, fault in (
        (planted.eps_outside, "eps is outside the root"),
        (planted.eps_ignored, "eps is ignored"),
        (planted.layer_norm, "the mean is subtracted"),
    ):
        same = eps == 0 and "eps" in fault
        assert names(check("norm", function, **few).failures) == (set() if same else {fault})


def test_with_an_offset_of_1():
    def norm(x, weight, eps):
        return good_norms.numpy_formula(x, 1 + weight, eps)

    assert not check("norm", norm, weight_offset=1).failures
    assert names(check("norm", good_norms.numpy_formula, weight_offset=1).failures) == {
        "weight_offset of 1 seems to be left out"
    }


@pytest.mark.parametrize("shapes", [((1, 1),), ((2, 3),), ((70, 5), (1, 2))])
def test_small_shapes_of_every_family(shapes):
    every = {"shapes": shapes, "families": conformance.FAMILIES}
    assert not check("norm", good_norms.reciprocal, **every).failures
    assert not check("backward", good_norms.backward, "bfloat16", **every).failures
    assert not check("add", good_norms.add_unrounded, "float16", **every).failures


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "int32"}, "dtype must be one of"),
        ({"framework": "cupy"}, "framework must be one of numpy, torch, jax, mlx"),
        ({"weight_offset": 2}, "weight_offset must be 0 or 1"),
        ({"families": ["nosuch"]}, "'nosuch' is none of the families: normal, "),
    ],
)
def test_a_wrong_option_is_a_value_error(options, said):
    with pytest.raises(ValueError, match=said):
        conformance.check(good_norms.lanes, **options)
    with pytest.raises(ValueError, match="there is no function to check"):
        conformance.check()
