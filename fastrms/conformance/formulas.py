"""The right formulas and the known wrong ones, and which of them a result fits.

A formula is the right one with a set of faults. All sets are tried, the smallest first, so that two
faults in one function are found together; none fits a result by chance, because it has to agree in
every element, to the bound of the dtype.
"""

import itertools

import numpy as np

from .. import reference
from .measures import format_of, units, unless_same, wide

OUTSIDE = "eps is outside the root"
IGNORED = "eps is ignored"
MEAN = "the mean is subtracted"
NO_MEAN_TERM = "backward lacks the mean term"
TWICE = "backward divides by n twice"
NO_WEIGHT = "backward forgets weight"
LAYER_NORM = "backward keeps LayerNorm's term"
SPREAD = "the mean is subtracted, and rms is about it"
WORDS = {SPREAD: MEAN}  # one fault to the reader
# Of each group at most one holds.
FORWARD = ((OUTSIDE, IGNORED), (MEAN, SPREAD))
BACKWARD = ((NO_MEAN_TERM, TWICE), (NO_WEIGHT,), (LAYER_NORM,))


def offset_fault(weight_offset):
    """Return the fault of taking the other convention for weights."""
    return f"weight_offset of 1 seems to be {'left out' if weight_offset else 'added'}"


def fault_sets(groups):
    """Return every choice of at most one fault of each group, the smallest sets first."""
    choices = itertools.product(*((None, *faults) for faults in groups))
    return sorted((frozenset(filter(None, choice)) for choice in choices), key=len)


def forward(given, weight_offset=0.0, faults=frozenset()):
    """Return y of Rows as a dict, in wide floats."""
    xhat, _ = _normalised(given, faults)
    return {"y": xhat * _factor(given, weight_offset, faults)}


def backward(given, weight_offset=0.0, faults=frozenset()):
    """Return dx and dweight of Rows."""
    dy = given["dy"].astype(wide(given["x"].dtype))
    xhat, rms = _normalised(given, faults)
    with np.errstate(all="ignore"):
        g = dy if NO_WEIGHT in faults else dy * _factor(given, weight_offset, faults)
        mean = reference._mean(g * xhat) / (g.shape[-1] if TWICE in faults else 1)
        term = 0 if NO_MEAN_TERM in faults else xhat * mean
        along = reference._mean(g) if LAYER_NORM in faults else 0
        return {"dx": (g - along - term) / rms, "dweight": (dy * xhat).sum(axis=0)}


def _normalised(given, faults):
    x = given["x"].astype(wide(given["x"].dtype))
    eps = 0 if IGNORED in faults else given["eps"]
    with np.errstate(all="ignore"):
        centred = x - reference._mean(x) if faults & {MEAN, SPREAD} else x
        spread = centred if SPREAD in faults else x
        if OUTSIDE in faults:
            rms = np.sqrt(reference._mean(spread * spread)) + eps
        else:
            rms = reference._rms(spread, eps)
        return centred / rms, rms


def _factor(given, weight_offset, faults):
    other = offset_fault(weight_offset) in faults
    weight = given["weight"].astype(wide(given["weight"].dtype))
    return (1 - weight_offset if other else weight_offset) + weight


def fits(result, exact, bound):
    """Whether a result is within `bound` ulp of a formula's; the ulp is of its row's largest."""
    with np.errstate(all="ignore"):
        size = np.abs(exact).max(axis=-1, keepdims=True, initial=0.0)
        error = np.abs(result.astype(exact.dtype) - exact) / units(format_of(result), size)
    return bool((unless_same(error, result, exact) <= bound).all())


# ---- roundings --------------------------------------------------------------------------------

TRUNCATES = "truncates instead of rounding"
BEFORE = "rounds x / rms before the weight"


def rounded_to_zero(values, dtype):
    """Round towards zero to a dtype."""
    near = reference._rounded(values, dtype)
    with np.errstate(all="ignore"):
        beyond = np.abs(near.astype(values.dtype)) > np.abs(values)
    bits = near.view(f"u{near.itemsize}")
    return (bits - beyond.astype(bits.dtype)).view(dtype)  # one unit of the last place less


def rounding(result, ways, share=0.97):
    """Return the set of roundings in `ways`, {set: array}, whose bits a result has; or None.

    Only elements in which the ways differ count. A few may differ because of the arithmetic before
    the rounding.
    """
    arrays = [way.view(f"u{way.itemsize}") for way in ways.values()]
    differ = np.any([array != arrays[0] for array in arrays], axis=0)
    if differ.sum() < 32:
        return None
    bits = result.view(f"u{result.itemsize}")
    shares = [np.mean((array == bits)[differ]) for array in arrays]
    best = int(np.argmax(shares))
    return list(ways)[best] if shares[best] >= share else None


def forward_roundings(given, weight_offset):
    """Return what y is if x / rms * weight is rounded once or twice, to nearest or to zero."""
    dtype = given["x"].dtype
    xhat, _ = _normalised(given, frozenset())
    factor = _factor(given, weight_offset, frozenset())
    ways = {}
    for faults, to in ((frozenset(), reference._rounded), ({TRUNCATES}, rounded_to_zero)):
        ways[frozenset(faults)] = to(xhat * factor, dtype)
        twice = to(to(xhat, dtype).astype(xhat.dtype) * factor, dtype)
        ways[frozenset({*faults, BEFORE})] = twice
    return ways


def roundings(exact, dtype):
    """Return what a result is if it is rounded once, to nearest or to zero."""
    near, cut = reference._rounded(exact, dtype), rounded_to_zero(exact, dtype)
    return {frozenset(): near, frozenset({TRUNCATES}): cut}
