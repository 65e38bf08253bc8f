"""Fuzz every function: a valid call gives what separate copies give, in float32 within the bounds
of the reference, in other dtypes what their meaning is (tests/dtypes.py); an invalid call raises an
exception that the contract allows, and changes nothing.

`faults` decides which calls are invalid, and is written from the contract, not from the code.
`--hypothesis-profile=ci` runs 10,000 examples, `soak` twenty times as many, new ones each time.
"""

from contextlib import contextmanager

import numpy as np
from hypothesis import event, given

import fastrms
from fastrms import _core, reference
from fastrms.check import (
    DWEIGHT,
    DX,
    dweight_error,
    dx_error,
    forward_ulp,
    ulps,
)

from .dtypes import meaning, wide_dtype
from .fuzz_calls import HUGE, MOST_SIZE, NOT_INTEGERS, NOT_REAL, build, calls, fill
from .signatures import NUMBERS, OUTPUTS, REQUIRED, RETURNED, SUMS, VECTORS, beside
from .test_split import FLOAT64


@given(calls())
def test_any_call(call):
    memories = fill(call)
    arguments, before = build(call, memories), [memory.copy() for memory in memories]
    wrong = faults(call, arguments)
    options = {**{name: built.value for name, built in arguments.items()}, **call.options}
    expected = None if wrong else expect(call, arguments, before)
    held = {name: _bits(built.view) for name, built in arguments.items()}
    event("refused" if wrong else call.function)
    event("refused" if wrong else arithmetic(call, arguments))
    with configured(call):
        error, results = attempt(call.function, options)
    if error is None:
        assert not wrong
        _assert_results(call, arguments, results, memories, *expected)
        return
    named = [name for kind, name in wrong if type(error) is kind and name in str(error)]
    assert named, f"{error!r}, where the contract has {wrong}"
    assert [memory.tobytes() for memory in memories] == [old.tobytes() for old in before]
    assert {name: _bits(built.view) for name, built in arguments.items()} == held


def attempt(function, options):
    """Return the exception and the results of a call; one of them is None."""
    try:
        return None, getattr(fastrms, function)(**options)
    except (TypeError, ValueError) as refusal:
        return refusal, None


@contextmanager
def configured(call):
    """Use the call's instruction set and threads, even if the call is small."""
    before = _core.current(), fastrms.get_num_threads(), _core.set_parallel_from(1)
    available = _core.available_isas()
    _core.use_isa(available[call.isa % len(available)])
    fastrms.set_num_threads(call.threads)
    try:
        yield
    finally:
        _core.use_isa(before[0])
        fastrms.set_num_threads(before[1])
        _core.set_parallel_from(before[2])


# ---- the contract -----------------------------------------------------------------------------


def faults(call, arguments):
    """Return the errors that the contract allows for a call: pairs of exception and argument."""
    found = [fault for name, built in arguments.items() for fault in _of_array(call, name, built)]
    views = {name: built.view for name, built in arguments.items() if built.view is not None}
    if views.get("x") is not None and views["x"].ndim:
        found += [(ValueError, name) for name in views if not _fits(call, name, views)]
    outputs = [name for name in OUTPUTS[call.function] if name in views]
    if len(outputs) == 2 and _share(call, *outputs):
        found += [(ValueError, name) for name in outputs]
    return [*found, *_of_options(call, arguments), *_of_size(call, views.get("x"))]


def _fits(call, name, views):
    """Return whether an argument's shape is right, beside x and, for dweight, weight."""
    shape, right = views[name].shape, beside(call.function, name, views["x"].shape)
    if name not in VECTORS[call.function] or shape == right:
        return shape == right
    if name == "dweight" and "weight" in views and shape != views["weight"].shape:
        return False
    return shape == (1,) * (len(shape) - 1) + right


def _of_array(call, name, built):
    """Yield the faults of one argument."""
    if built.value is None and name not in REQUIRED[call.function]:
        return
    output, sums = name in OUTPUTS[call.function], name in SUMS[call.function]
    if built.view is None or (output and isinstance(built.value, np.float64)):
        yield TypeError, name
        return
    if (built.view.ndim == 0 and not sums) or (output and _read_only(built)):
        yield ValueError, name


def _read_only(built):
    return not built.view.flags.writeable


def _of_options(call, arguments):
    given_buffers = {name for name, built in arguments.items() if built.value is not None}
    for name in NUMBERS[call.function]:
        number = call.options.get(name, 0.0)
        if any(number is bad for bad in NOT_REAL):
            yield TypeError, name
        elif number is HUGE or (name == "eps" and not number >= 0):
            yield ValueError, name
    adds = call.options.get("accumulate", False)
    if adds and not given_buffers & ({"out", "dx", "dweight"} if adds is True else {adds}):
        yield ValueError, "accumulate"
    if "dweight" in given_buffers and "weight" not in given_buffers:
        yield ValueError, "dweight"


def _of_size(call, x):
    if "size" in call.options:
        size = call.options["size"]
        if any(size is bad for bad in NOT_INTEGERS):
            yield TypeError, "size"
        elif size > MOST_SIZE or (x is not None and x.ndim and size < x.shape[-1]):
            yield ValueError, "size"


def _share(call, first, second):
    """Return whether two arguments share a byte, by marking the bytes of each."""
    built = build(call, fill(call))
    if built[first].value is built[second].value:  # it may have memory of its own
        return built[first].view.size > 0
    marks = []
    for name in (first, second):
        blank = [np.zeros_like(memory) for memory in fill(call)]
        view = build(call, blank)[name].view
        if not view.flags.writeable:
            return False  # that is a fault already
        view.view(f"u{view.itemsize}")[...] = np.iinfo(f"u{view.itemsize}").max
        marks.append(np.concatenate(blank) != 0)
    return bool(np.any(marks[0] & marks[1]))


# ---- the answer -------------------------------------------------------------------------------


def expect(call, arguments, memories):
    """Return the memories and the arguments as a correct call leaves them, and all results."""
    copies = {name: built.view.copy("C") for name, built in arguments.items() if _passed(built)}
    if arithmetic(call, arguments) == "float32":
        results = of_float32(call, copies)
    else:
        results = meaning(call.function, copies, **call.options)
    after_memories = [memory.copy() for memory in memories]
    after = build(call, after_memories)
    with np.errstate(all="ignore"):
        for name in results.keys() & copies.keys():
            after[name].view[...] = results[name]
    return after_memories, after, results


def _passed(built):
    return built.value is not None


def arithmetic(call, arguments):
    """Return "float32" if all arrays are, else "float64" if the arithmetic is, or "mixed"."""
    given = {name: built.view for name, built in arguments.items() if _passed(built)}
    dtypes = {view.dtype for name, view in given.items() if name not in SUMS[call.function]}
    if dtypes == {np.dtype(np.float32)}:
        return "float32"
    return "float64" if wide_dtype(call.function, given) == np.float64 else "mixed"


def of_float32(call, copies):
    """Return all results of a call of float32 arrays, with the outputs that it adds to."""
    numbers = {name: value for name, value in call.options.items() if name != "accumulate"}
    shapes = {name: value.shape for name, value in copies.items()}
    flat = {
        name: value.reshape(beside(call.function, name, shapes["x"]))
        for name, value in copies.items()
    }
    results = separate(call.function, flat, numbers)
    with np.errstate(all="ignore"):
        for name in results.keys() & flat.keys():
            if call.options.get("accumulate") in (True, name):
                results[name] = np.add(flat[name], results[name])
    if "dweight" in results:
        shape = shapes.get("dweight", shapes["weight"])
        results["dweight"] = results["dweight"].reshape(shape)
    return results


def separate(function, copies, numbers):
    """Call with separate contiguous arrays; check the results and return them by name."""
    inputs = {
        name: value.copy()
        for name, value in copies.items()
        if name not in OUTPUTS[function] or name == "residual"
    }
    exact_inputs = {name: value.copy() for name, value in inputs.items()}
    result = getattr(fastrms, function)(**inputs, **numbers)
    result = result if isinstance(result, tuple) else (result,)
    results = dict(zip(RETURNED[function], result, strict=True))
    results.update((name, inputs[name]) for name in OUTPUTS[function] if name in inputs)
    if copies["x"].size or "out" in SUMS[function]:
        with np.errstate(all="ignore"):
            exact = getattr(reference, function)(**exact_inputs, **numbers)
            if "residual" in results:
                assert _bits(results["residual"]) == _bits(exact_inputs["residual"])
            if function in EXACT:
                EXACT[function](results, exact, copies, numbers)
    return {name: value for name, value in results.items() if value is not None}


def _exact_norm(results, exact, copies, numbers):
    out = results["out"]
    if "weight" in copies:  # Inf times an x / rms that is 0 in float32: docs/numerics.md
        lost = np.isinf(copies["weight"]) & np.isnan(out)
        exact = np.where(lost & np.isinf(exact), np.nan, exact)
    assert ulps(out, exact) <= forward_ulp(copies.get("weight"), _offset(numbers))


def _exact_backward(results, exact, copies, numbers):
    dy, x, eps = copies["dy"], copies["x"], float(numbers.get("eps", 1e-5))
    weight = copies.get("weight")
    assert dx_error(results["dx"], exact[0], dy, x, weight, eps, _offset(numbers)) <= DX
    if "weight" in copies:
        assert dweight_error(results["dweight"], exact[1], dy, x, eps) <= DWEIGHT


def _exact_squares(results, exact, copies, numbers):
    _assert_close(results["out"], exact, FLOAT64 * exact)


def _exact_products(results, exact, copies, numbers):
    sizes = np.abs(copies["dy"] * copies["x"].astype(np.float64) * _factor(copies, numbers))
    _assert_close(results["out"], exact, FLOAT64 * sizes.sum(axis=-1))


def _exact_scale(results, exact, copies, numbers):
    """Check the rows whose given sum is not below the sum of the part itself."""
    sums, own = copies["sum_squares"], reference.sum_squares(copies["x"])
    rows = (sums >= (1 - FLOAT64) * own) | np.isnan(sums)
    _exact_norm({"out": results["out"][rows]}, exact[rows], copies, numbers)


def _exact_scale_backward(results, exact, copies, numbers):
    squares, products = (copies[name][..., None] for name in ("sum_squares", "sum_products"))
    size, dy = int(numbers["size"]), copies["dy"]
    rms = np.sqrt(squares / size + np.float64(numbers.get("eps", 1e-5)))
    xhat = copies["x"] / rms
    terms = np.abs(dy * _factor(copies, numbers)) + np.abs(xhat * (products / rms / size))
    _assert_close(results["dx"], exact[0], FLOAT64 * terms / rms)
    if "weight" in copies:
        sizes = np.abs(dy * xhat).reshape(-1, dy.shape[-1]).sum(axis=0)
        _assert_close(results["dweight"], exact[1], FLOAT64 * sizes)


EXACT = {
    "rms_norm": _exact_norm,
    "rms_norm_backward": _exact_backward,
    "add_rms_norm": _exact_norm,
    "sum_squares": _exact_squares,
    "sum_products": _exact_products,
    "rms_scale": _exact_scale,
    "rms_scale_backward": _exact_scale_backward,
}


def _offset(numbers):
    return np.float64(numbers.get("weight_offset", 0.0))


def _factor(copies, numbers):
    if "weight" not in copies:
        return np.float64(1)
    return _offset(numbers) + copies["weight"].astype(np.float64)


def _assert_close(result, exact, noise):
    """Assert that errors are within float64's noise plus the rounding to the result's dtype."""
    dtype = np.finfo(result.dtype)
    same = (result == exact.astype(result.dtype)) | (np.isnan(result) & np.isnan(exact))
    rounding = dtype.eps / 2 * np.abs(exact) + dtype.smallest_subnormal
    finite = np.clip(result, dtype.min, dtype.max)  # Inf, if no more than the noise is beyond it
    error = np.abs(finite.astype(np.float64) - exact)
    assert (same | (np.isfinite(noise) & (error <= noise + rounding))).all()


def _assert_results(call, arguments, results, memories, after_memories, after, expected):
    """Compare all memory and the results: the objects that were passed, or new arrays."""
    results = results if isinstance(results, tuple) else (results,)
    for name, result in zip(RETURNED[call.function], results, strict=True):
        if name not in expected:
            assert result is None
        elif name in arguments and _passed(arguments[name]):
            assert result is arguments[name].value
        else:
            assert type(result) is np.ndarray
            assert result.flags.c_contiguous
            assert not any(np.shares_memory(result, memory) for memory in memories)
            assert result.shape == expected[name].shape
            assert result.dtype == expected[name].dtype
            assert _bits(result) == _bits(expected[name])
    for name in OUTPUTS[call.function]:
        if name in arguments and _passed(arguments[name]):
            _one_nan(arguments[name].view)
            _one_nan(after[name].view)
    for name, built in arguments.items():
        assert _bits(built.view) == _bits(after[name].view), name
    assert [memory.tobytes() for memory in memories] == [m.tobytes() for m in after_memories]


def _one_nan(view):
    """Make every NaN of an output the same: payloads are not promised."""
    with np.errstate(invalid="ignore"):
        view[np.isnan(view)] = np.nan


def _bits(view):
    """Return an array's bytes, with every NaN made the same."""
    if view is None:
        return None
    with np.errstate(invalid="ignore"):  # a bfloat16 NaN that signals
        return np.where(np.isnan(view), view.dtype.type(np.nan), view).tobytes()
