"""What a finding is, and what every prover of one needs."""

from dataclasses import dataclass

import numpy as np

from . import formulas, inputs
from .families import EPS

# Reported, but no failure unless the check is strict: many good implementations have them.
BATCH = "a row's bits depend on the batch"
ALIGNMENT = "a row's bits depend on alignment"
LENIENT = (BATCH, ALIGNMENT, formulas.BEFORE)


@dataclass(frozen=True, repr=False)
class Finding:
    """A fault in words, the role of the function that has it, and a small input that shows it."""

    name: str
    role: str
    arguments: dict  # name: array or number
    shows: dict  # what came of them, and what is right
    failure: bool = True
    result: str = ""  # whose error it explains

    def __repr__(self):
        return self.name if self.name.startswith(self.role) else f"{self.role}: {self.name}"


class Subject:
    """A function under examination: how to call it, and what is right."""

    def __init__(self, function, exam):
        self.function, self.exam, self.dtype = function, exam, exam.dtype
        self.eps = EPS if exam.eps is None else exam.eps

    def finding(self, name, given, shows, result=""):
        arguments = {key: given[key] for key in self.function.arguments}
        failure = self.exam.strict or name not in LENIENT
        return Finding(name, self.function.role, arguments, shows, failure, result)

    def plain(self, rows=8, n=64):
        return inputs.given("normal", (rows, n), self.dtype, self.exam.eps)

    def exact(self, given, found, faults=frozenset()):
        return inputs.exact(self.function.role, given, found, self.exam.weight_offset, faults)

    def fits(self, given, found, result, faults=frozenset()):
        bound = self.exam.bound(given["x"].shape[-1])
        return formulas.fits(found[result], self.exact(given, found, faults)[result], bound)

    def wrong(self, given):
        found = self.function(given)
        exact = self.exact(given, found)
        bound = self.exam.bound(given["x"].shape[-1])
        return not all(formulas.fits(found[name], exact[name], bound) for name in found)

    def by_row(self, given):
        """Return the results that belong to rows, side by side."""
        found = self.function(given)
        return np.concatenate([v for name, v in found.items() if name != "dweight"], axis=-1)


def same(one, other):
    """Whether two arrays have the same bits; any NaN is the same."""
    return ((one == other) | (np.isnan(one) & np.isnan(other))).all()
