"""Wrong arithmetic, proven: the formula with the fault fits, and the one without it does not."""

import numpy as np

from . import formulas, inputs
from .draws import bell
from .families import rounded
from .findings import same
from .measures import FORMATS

HALF_SUM = "dweight is summed in half precision"


def formula(subject):
    """Yield the faults of the smallest set whose formula fits; none if the right one does."""
    role, offset = subject.function.role, formulas.offset_fault(subject.exam.weight_offset)
    if role == "residual":
        return
    cases = [
        (given, subject.function(given)) for given in inputs.telling(subject.dtype, subject.eps)
    ]

    def fits(result, faults=frozenset()):
        return all(subject.fits(given, found, result, faults) for given, found in cases)

    result, groups = "y", (*formulas.FORWARD, (offset,))
    if role == "backward":
        result, groups = "dx", (*groups, *formulas.BACKWARD)
        if fits("dx"):
            result, groups = "dweight", formulas.FORWARD
    for faults in formulas.fault_sets(groups):
        if fits(result, faults):
            yield from prove(subject, [given for given, _ in cases], result, faults)
            return


def prove(subject, cases, result, faults):
    """Yield each fault with inputs on which the formula fits with it, and not without it."""
    for fault in faults:

        def holds(given, fault=fault):
            found = subject.function(given)
            fits = subject.fits(given, found, result, faults)
            return fits and not subject.fits(given, found, result, faults - {fault})

        given = next(filter(holds, cases), None)
        if given is None:  # two runs differ
            continue
        small = inputs.shrink(given, holds)
        found = subject.function(small)
        more = {result: found[result], "exact": subject.exact(small, found)[result]}
        yield subject.finding(formulas.WORDS.get(fault, fault), small, more, result)


def half_sum(subject):
    """Sum three terms that are exact in half: only a sum of halves rounds twice.

    x is constant and eps is small beside it, so x / rms is 1. The three orders of a sum are
    tried; a sum that is rounded once fits none of them in all columns.
    """
    bits = FORMATS[subject.dtype.name].bits
    if subject.function.role != "backward" or bits >= 24:
        return
    dy = bell((3, 64), 12).astype(np.float64) * 2.0 ** -np.arange(0, 9, 3)[:, None]
    dy = rounded(dy, subject.dtype)
    x = np.full_like(dy, 2.0 ** min(bits, 8))
    given = {"dy": dy, "x": x, "weight": np.ones_like(dy[0]), "eps": subject.eps}
    orders = ((0, 1, 2), (1, 2, 0), (0, 2, 1))

    def summed(given, order):
        first, second, third = (given["dy"][row].astype(np.float64) for row in order)
        halves = rounded(first + second, subject.dtype).astype(np.float64)
        return rounded(halves + third, subject.dtype)

    def once(given):
        return rounded(given["dy"].astype(np.float64).sum(axis=0), subject.dtype)

    for order in orders:

        def holds(smaller, order=order):
            if len(smaller["x"]) != 3:
                return False
            found = subject.function(smaller)["dweight"]
            wrong = summed(smaller, order)
            return same(found, wrong) and not same(wrong, once(smaller))

        if holds(given):
            small = inputs.shrink(given, holds)
            found = subject.function(small)["dweight"]
            more = {"dweight": found, "exact": once(small)}
            yield subject.finding(HALF_SUM, small, more, "dweight")
            return


def rounding(subject):
    """Yield how the results are rounded, if it is not once and to nearest."""
    given = subject.plain(32, 64)
    found = subject.function(given)
    half = FORMATS[subject.dtype.name].bits < 24
    seen = set()
    for result in subject.function.results:

        def ways(given, found, result=result):
            if result == "y" and half:
                source = given | ({"x": found["total"]} if "total" in found else {})
                return formulas.forward_roundings(source, subject.exam.weight_offset)
            return formulas.roundings(subject.exact(given, found)[result], subject.dtype)

        faults = formulas.rounding(found[result], ways(given, found))
        for name in sorted((faults or frozenset()) - seen):
            seen.add(name)

            def holds(smaller, result=result, faults=faults, ways=ways):
                found = subject.function(smaller)
                arrays = ways(smaller, found)
                wrong = same(found[result], arrays[faults])
                return wrong and not same(found[result], arrays[frozenset()])

            small = inputs.shrink(given, holds)
            last = subject.function(small)
            more = {result: last[result], "exact": subject.exact(small, last)[result]}
            yield subject.finding(name, small, more, result)


PROVERS = formula, half_sum, rounding
