"""Inputs of one call as a dict, their exact results, and smaller inputs that still show a fault."""

import numpy as np

from . import formulas
from .draws import bell
from .families import rounded, rows_of
from .measures import dweight_terms, dx_terms, wide


def given(family, shape, dtype, eps):
    """Return the inputs of every function: a family's rows, and a normal residual."""
    rows = rows_of(family, shape, dtype, eps)
    return rows._asdict() | {"residual": rounded(bell(rows.x.shape, 3), dtype)}


def telling(dtype, eps):
    """Yield inputs of which one at least has results far apart under any two formulas.

    A mean square of about eps shows whether eps is there, one of about eps**2 where it is, and a
    small n whether a mean is divided by n again. Means of x and dy are not zero.
    """
    for n, scale in ((32, np.sqrt(eps or 1.0)), (32, eps or 1.0), (4, np.sqrt(eps or 1.0))):
        parts = (
            (0.5 + bell((4, n), stream).astype(np.float64)) * size
            for stream, size in ((8, scale), (9, 1.0), (10, 0.1 * scale))
        )
        x, dy, residual = (rounded(part, dtype) for part in parts)
        weight = rounded(1 + 0.25 * bell((n,), 11).astype(np.float64), dtype)
        yield {"dy": dy, "x": x, "weight": weight, "eps": eps, "residual": residual}


def exact(role, inputs, found, weight_offset, faults=frozenset()):
    """Return {name: exact result}; y of add is that of the total which the function returned."""
    if role == "norm":
        return formulas.forward(inputs, weight_offset, faults)
    if role == "backward":
        return formulas.backward(inputs, weight_offset, faults)
    kind = wide(inputs["x"].dtype)
    with np.errstate(all="ignore"):
        total = inputs["x"].astype(kind) + inputs["residual"].astype(kind)
    if role == "residual":
        return {"total": total}
    return formulas.forward(inputs | {"x": found["total"]}, weight_offset, faults) | {
        "total": total
    }


def sizes(role, inputs, weight_offset):
    """Return {name: magnitude of the terms} of the results whose ulp is that of their terms."""
    if role != "backward":
        return {}
    kind = wide(inputs["x"].dtype)
    dy, x, weight = (inputs[name].astype(kind) for name in ("dy", "x", "weight"))
    return {
        "dx": dx_terms(dy, x, weight, inputs["eps"], weight_offset),
        "dweight": dweight_terms(dy, x, inputs["eps"]),
    }


def shrink(inputs, holds):
    """Return smaller and rounder inputs for which `holds` is still true, found by halving."""

    def still(candidate):
        try:
            return holds(candidate)
        except ValueError:  # the function takes no such shape
            return False

    while smaller := next(filter(still, _halves(inputs)), None):
        inputs = smaller
    for name in [name for name in inputs if name != "eps"]:
        inputs = next(filter(still, _rounder(inputs, name)), inputs)
    return inputs


def _halves(inputs):
    rows, n = inputs["x"].shape
    for half in (slice(0, (rows + 1) // 2), slice(rows // 2, rows)) if rows > 1 else ():
        yield {k: v[half].copy() if np.ndim(v) == 2 else v for k, v in inputs.items()}
    for half in (slice(0, (n + 1) // 2), slice(n // 2, n)) if n > 1 else ():
        yield {k: v[..., half].copy() if np.ndim(v) else v for k, v in inputs.items()}


def _rounder(inputs, name):
    array = inputs[name]
    if name == "weight":
        yield inputs | {name: np.ones_like(array)}
    for digits in (1, 2, 3):
        values = [float(f"{float(value):.{digits}g}") for value in array.flat]
        rounder = np.array(values, np.float64).reshape(array.shape)
        yield inputs | {name: rounded(rounder, array.dtype)}
