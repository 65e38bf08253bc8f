"""Fail every allocation of every function in turn, those of Python and NumPy included.

Run: LD_PRELOAD=failing_malloc.so PYTHONMALLOC=malloc python out_of_memory.py ISA
"""

import ctypes
import gc
import sys
import warnings

import numpy as np

import fastrms

malloc = ctypes.PyDLL(None)
malloc.call_failing.restype = ctypes.py_object
malloc.call_failing.argtypes = [*[ctypes.py_object] * 3, ctypes.c_long, ctypes.c_void_p]
# NumPy's own errors after a failed allocation: np.shares_memory, np.asarray of a memoryview.
NUMPYS = ("Error in computing overlap", "multi-dimensional sub-views are not implemented")
ROWS, N = 70, 300  # three blocks of rows, and arrays too large for NumPy's cache of small ones


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def strided(*shape):
    """Return an array that a call has to copy: its rows are not contiguous."""
    held = np.empty((*shape[:-1], 2 * shape[-1]), np.float32)[..., ::2]
    held[...] = draw(*shape)
    return held


def calls():
    """Yield for each path of each function: its name, its arguments, names of those it writes."""
    for make in (draw, strided):
        x, dy, weight = make(ROWS, N), make(ROWS, N), make(N)
        for offset in (0.0, 1.0):
            norm = {"weight": weight, "weight_offset": offset}
            yield "rms_norm", {"x": x, **norm}, ()
            yield "rms_norm", {"x": x, **norm, "out": make(ROWS, N)}, ("out",)
            yield "rms_norm_backward", {"dy": dy, "x": x, **norm}, ()
            outputs = {"dx": make(ROWS, N), "dweight": make(N)}
            yield "rms_norm_backward", {"dy": dy, "x": x, **norm, **outputs}, (*outputs,)
            stream = {"residual": make(ROWS, N)}
            yield "add_rms_norm", {"x": x, **norm, **stream}, ("residual",)
            outputs = {**stream, "out": make(ROWS, N)}
            yield "add_rms_norm", {"x": x, **norm, **outputs}, (*outputs,)
        yield "residual_add", {"x": x, "residual": make(ROWS, N)}, ("residual",)
        shifted = make(ROWS + 1, N)
        yield "rms_norm", {"x": shifted[1:], "out": shifted[:-1]}, ("x", "out")
        yield "rms_norm", {"x": memoryview(draw(ROWS, N)), "weight": weight}, ()


def split_calls():
    """Yield the same for the functions of a split last axis."""
    for make in (draw, strided):
        x, dy, weight = make(ROWS, N), make(ROWS, N), make(N)
        sums, out = np.ones((2, 2 * ROWS))[:, :: 1 if make is draw else 2][:, :ROWS]
        part = {"x": x, "weight": weight, "weight_offset": 1.0}
        whole = {**part, "sum_squares": sums, "size": 2 * N}
        both = {"dy": dy, **whole, "sum_products": sums}
        for outputs in ({}, {"out": out}):
            yield "sum_squares", {"x": x, **outputs}, (*outputs,)
            yield "sum_products", {"dy": dy, **part, **outputs}, (*outputs,)
        for outputs in ({}, {"out": make(ROWS, N)}):
            yield "rms_scale", {**whole, **outputs}, (*outputs,)
        for outputs in ({}, {"dx": make(ROWS, N), "dweight": make(N)}):
            yield "rms_scale_backward", {**both, **outputs}, (*outputs,)


def mixed_calls():
    """Yield the same for arrays of several dtypes, whose rows are staged in scratch."""
    half, single, double = np.float16, np.float32, np.float64
    for make in (draw, strided):
        for first, second, third in ((half, single, double), (double, half, half)):
            x, weight = make(ROWS, N).astype(first), make(N).astype(third)
            dy, out = make(ROWS, N).astype(third), make(ROWS, N).astype(second)
            yield "rms_norm", {"x": x, "weight": weight}, ()
            yield "rms_norm", {"x": x, "weight": weight, "out": out}, ("out",)
            outputs = {"residual": out, "out": make(ROWS, N).astype(third)}
            yield "add_rms_norm", {"x": x, "weight": weight, **outputs}, (*outputs,)
            yield "residual_add", {"x": x, "residual": out}, ("residual",)
            outputs = {"dx": out, "dweight": make(N).astype(second)}
            for given in ({}, outputs, {**outputs, "accumulate": True}):
                arguments = {"dy": dy, "x": x, "weight": weight, **given}
                yield "rms_norm_backward", arguments, tuple({*given} & {*outputs})
            yield "sum_products", {"dy": dy, "x": x, "weight": weight}, ()


def attempt(function, arguments, count):
    """Call and fail allocation `count`, from 0; return the error, and whether it got that far."""
    failed = ctypes.c_int()
    try:
        malloc.call_failing(function, (), arguments, count, ctypes.byref(failed))
    except BaseException as error:
        return error, failed.value
    return None, failed.value


def survive(name, arguments, written):
    """Fail each allocation of a call in turn; return how many allocations it makes."""
    function = getattr(fastrms, name)
    for key in written:
        arguments[key][...] = 1
    held = {key: np.array(arguments[key]) for key in written}
    count = 0
    while True:
        error, failed = attempt(function, arguments, count)
        if not failed:
            assert error is None, error
            return count
        assert error is None or isinstance(error, MemoryError) or str(error) in NUMPYS, repr(error)
        for key in written:
            if error is not None:
                assert np.array_equal(arguments[key], held[key]), (name, count, key)
            arguments[key][...] = held[key]
        count += 1


def left_by(case):
    """Return how many blocks a call leaks when each of its allocations fails in turn."""
    gc.collect()
    before = malloc.living_blocks()
    survive(*case)
    gc.collect()
    return malloc.living_blocks() - before - 1  # `before` is a block itself


def scratch_is_taken_once():
    """Compare allocations with those of float32, which needs scratch for sums of dweight alone."""
    x, dy, out, weight, dweight = draw(ROWS, N), draw(ROWS, N), draw(ROWS, N), draw(N), draw(N)
    outputs = {"dx": out, "dweight": dweight}
    for name, arguments, written, more in (
        ("rms_norm", {"x": x, "out": out}, ("out",), 1),
        ("add_rms_norm", {"x": x, "residual": dy, "out": out}, ("residual", "out"), 1),
        ("residual_add", {"x": x, "residual": out}, ("residual",), 1),
        ("sum_squares", {"x": x}, (), 1),
        ("rms_norm_backward", {"dy": dy, "x": x, "dx": out}, ("dx",), 1),
        ("rms_norm_backward", {"dy": dy, "x": x, "weight": weight, **outputs}, (*outputs,), 0),
    ):
        mixed = {**arguments, "x": x.astype(np.float16)}
        counts = [
            min(survive(name, given, written) for _ in range(3))  # Python fills caches at first
            for given in (arguments, mixed)
        ]
        assert counts[1] - counts[0] == more, (name, counts)


def main(isa):
    warnings.simplefilter("error")
    fastrms._core.use_isa(isa)
    total = 0
    for threads in (1, 2):
        fastrms.set_num_threads(threads)
        fastrms._core.set_parallel_from(1 if threads > 1 else 1 << 30)
        scratch_is_taken_once()
        for case in (*calls(), *split_calls(), *mixed_calls()):
            tries = (left_by(case) <= 0 for _ in range(4))  # Python fills caches at first
            assert any(tries), f"{case[0]} with {list(case[1])} leaks blocks"
            total += survive(*case)
    print(total, "allocations failed in turn, nothing lost or leaked")


if __name__ == "__main__":
    main(sys.argv[1])
