"""Another's functions: found by name, called with arrays of their framework, results checked.

Whatever goes wrong in one is a ValueError of one line. Each call's inputs are compared with copies
and restored, and its results are copied, since a function may reuse its buffers.
"""

import functools
import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np

# What a function takes and returns, by names that all functions share.
SIGNATURES = {
    "norm": (("x", "weight", "eps"), ("y",)),
    "backward": (("dy", "x", "weight", "eps"), ("dx", "dweight")),
    "add": (("x", "residual", "weight", "eps"), ("y", "total")),
    "residual": (("x", "residual"), ("total",)),
}
FRAMEWORKS = {
    "numpy": "numpy",
    "torch": '"fastrms[torch]"',
    "jax": '"fastrms[jax]"',
    "mlx": "mlx",
}


def load(spec):
    """Return the function that MODULE:FUNCTION or FILE.py:FUNCTION names."""
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ValueError(f"{spec!r} is neither MODULE:FUNCTION nor FILE.py:FUNCTION")
    function = getattr(_module(where), name, None)
    if not callable(function):
        raise ValueError(f"{where} has no function {name!r}")
    return function


@functools.cache
def _module(where):
    path = Path(where)
    if path.suffix == ".py" and not path.is_file():
        raise ValueError(f"there is no file {where}")
    before = [*sys.path]
    sys.path.insert(0, str(path.resolve().parent) if path.suffix == ".py" else "")
    try:
        if path.suffix != ".py":
            return importlib.import_module(where)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(spec.name, module)  # where dataclasses look for it
        spec.loader.exec_module(module)
        return module
    except (Exception, SystemExit) as error:
        raise ValueError(f"cannot import {where}: {said(error)}") from error
    finally:
        sys.path[:] = before


def said(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}".rstrip(": ")


class Framework:
    """How arrays go in and out of a framework; imports it, or names the extra to install."""

    def __init__(self, name, dtype):
        self.name, self.dtype = name, dtype
        try:
            module = "mlx.core" if name == "mlx" else name
            self.module = importlib.import_module(module)
        except ImportError:
            wanted = f"python -m pip install {FRAMEWORKS[name]}"
            raise ImportError(f"--framework {name} needs {name}: {wanted}") from None
        if name == "jax" and dtype == np.float64:
            self.module.config.update("jax_enable_x64", True)
        kinds = {"numpy": "ndarray", "torch": "Tensor", "jax": "Array", "mlx": "array"}
        self.kind = getattr(self.module, kinds[name])

    def give(self, array):
        """Return the framework's array, over the same memory in NumPy and torch."""
        bfloat16 = array.dtype.name == "bfloat16"
        if self.name == "torch":
            if bfloat16:
                return self.module.from_numpy(array.view(np.int16)).view(self.module.bfloat16)
            return self.module.from_numpy(array)
        if self.name == "mlx":
            if bfloat16:
                return self.module.array(array.view(np.uint16)).view(self.module.bfloat16)
            return self.module.array(array)
        return self.module.numpy.array(array) if self.name == "jax" else array

    def take(self, array):
        """Return a NumPy copy of the framework's array."""
        if not isinstance(array, self.kind):
            raise ValueError(f"wanted an array of {self.name}, got {type(array).__name__}")
        if str(array.dtype).endswith("bfloat16") and self.dtype.name != "bfloat16":
            raise ValueError(f"wanted {self.dtype}, got bfloat16")
        if self.name == "torch":
            array = array.detach().contiguous()
            if array.dtype == self.module.bfloat16:
                return array.view(self.module.int16).numpy().view(self.dtype).copy()
            return array.numpy().copy()
        if self.name == "mlx" and array.dtype == self.module.bfloat16:
            return np.array(array.view(self.module.uint16)).view(self.dtype)
        return np.array(array)


class Function:
    """One function under examination: `role` is a key of SIGNATURES."""

    def __init__(self, role, spec, framework):
        self.role, self.framework = role, framework
        self.arguments, self.results = SIGNATURES[role]
        self.function = spec if callable(spec) else load(spec)
        self.name = getattr(spec, "__name__", repr(spec)) if callable(spec) else spec
        self.changed = {}  # argument: its values before and after the first call that changed it

    def __call__(self, given):
        """Return {name: array} for the arguments in `given`; leave those as they were."""
        given = {name: given[name] for name in self.arguments}
        arrays = {name: value for name, value in given.items() if name != "eps"}
        before = {name: array.copy() for name, array in arrays.items()}
        inputs = {name: self.framework.give(array) for name, array in arrays.items()}
        try:
            with np.errstate(all="ignore"):
                found = self.function(*(inputs.get(name, given[name]) for name in given))
        except (Exception, SystemExit) as error:
            raise ValueError(f"{self.name} raised {said(error)} ({_shapes(arrays)})") from error
        if len(self.results) == 1:
            found = (found,)
        if not isinstance(found, tuple | list) or len(found) != len(self.results):
            wanted, got = " and ".join(self.results), getattr(found, "shape", type(found).__name__)
            got = f"{len(found)} results" if isinstance(found, tuple | list) else got
            raise ValueError(f"{self.name} must return {wanted}, got {got}")
        results = {
            name: self._checked(name, value, arrays)
            for name, value in zip(self.results, found, strict=True)
        }
        self._compare(arrays, inputs, before)
        return results

    def _checked(self, name, value, arrays):
        like = arrays["weight" if name == "dweight" else "x"]
        try:
            array = self.framework.take(value)
        except Exception as error:
            raise ValueError(f"{self.name}: {name}: {' '.join(str(error).split())}") from error
        if (array.shape, array.dtype) != (like.shape, like.dtype):
            raise ValueError(
                f"{self.name}: {name} must have shape {like.shape} and dtype {like.dtype}, "
                f"got {array.shape} and {array.dtype} ({_shapes(arrays)})"
            )
        return array

    def _compare(self, arrays, inputs, before):
        for name, array in arrays.items():
            after = self.framework.take(inputs[name])
            if after.tobytes() != before[name].tobytes():
                self.changed.setdefault(name, (before[name], after))
                np.copyto(array, before[name])


def _shapes(arrays):
    return ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
