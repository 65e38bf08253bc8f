"""The examination of functions: errors by family, the ends of the range, and the findings."""

import dataclasses

import numpy as np

from .. import _arguments, reference
from . import bits, findings, formulas, inputs, proofs
from .calls import FRAMEWORKS, Framework, Function, said
from .families import EVERYDAY, EXTREME, FAMILIES, rounded
from .measures import FORMATS, ulp_errors, ulps, unless_same
from .report import Cell, Report

SHAPES = (16, 64), (5, 1000), (3, 4096)


class Examination:
    """What to examine and what was found; `steps` are the parts of the work, to be called."""

    def __init__(
        self,
        functions,
        *,
        dtype="float32",
        eps=None,
        weight_offset=0.0,
        framework="numpy",
        families=None,
        shapes=None,
        ulp=None,
        strict=False,
    ):
        for name, value, known in (("dtype", dtype, FORMATS), ("framework", framework, FRAMEWORKS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if weight_offset not in (0, 1):
            raise ValueError(f"weight_offset must be 0 or 1, got {weight_offset}")
        self.families, self.shapes = tuple(families or EVERYDAY), tuple(shapes or SHAPES)
        for family in self.families:
            if family not in FAMILIES:
                raise ValueError(f"{family!r} is none of the families: {', '.join(FAMILIES)}")
        self.dtype, self.eps, self.weight_offset = _arguments.dtype(dtype), eps, weight_offset
        self.ulp, self.strict = ulp, strict
        bridge = Framework(framework, self.dtype)
        roles = {role: function for role, function in functions.items() if function is not None}
        if not roles:
            raise ValueError("there is no function to check")
        self.functions = [Function(role, spec, bridge) for role, spec in roles.items()]
        self.report = Report(self.functions, dtype, framework, self.allowed)
        self.steps = [*self._steps()]

    def bound(self, n):
        """Return the largest error in ulp of a good implementation, on rows of plain size."""
        return 2.0 if FORMATS[self.dtype.name].bits < 24 else 8 + n / 256

    def allowed(self, n, family=""):
        """Return the error that is no finding: `ulp`, or the bound.

        Constant rows may have n / 2 more: the roundings of a float32 sum of equal terms add up.
        """
        if self.ulp is not None:
            return self.ulp
        single = self.dtype.itemsize > 2 and family == "constant" and not self.strict
        return self.bound(n) + (n / 2 if single else 0)

    def _steps(self):
        for function in self.functions:
            for family in self.families:
                yield lambda function=function, family=family: self.measure(function, family)
            for up in (True, False):
                yield lambda function=function, up=up: self.end_of_range(function, up)
            subject = findings.Subject(function, self)
            for prove in (*proofs.PROVERS, *bits.PROVERS):
                yield lambda s=subject, prove=prove: self.report.findings.extend(prove(s))
            yield lambda function=function: self.last(function)

    # ---- errors by family ---------------------------------------------------------------------

    def measure(self, function, family):
        cells = {name: Cell(function.role, name, family) for name in function.results}
        for shape in self.shapes:
            given = inputs.given(family, shape, self.dtype, self.eps)
            try:
                found = function(given)
            except ValueError as error:
                if family not in (*EXTREME, "no rows", "NaN and Inf"):
                    raise
                for cell in cells.values():
                    cell.note = said(error.__cause__ or error)
                break
            exact = inputs.exact(function.role, given, found, self.weight_offset)
            sizes = inputs.sizes(function.role, given, self.weight_offset)
            for name, cell in cells.items():
                one = found[name], exact[name], sizes.get(name)
                if family == "NaN and Inf":
                    one = self._finite_rows(cell, given, *one)
                error, n = ulps(*one), given["x"].shape[-1]
                cell.add(error, ulp_errors(*one), error > self.allowed(n, family), shape)
                cell.above |= error > self.allowed(n)
        for cell in cells.values():
            cell.counts = family not in EXTREME and not (family == "zeros" and given["eps"] == 0)
            if family == "constant" and cell.above and not cell.broken:
                cell.note = "above, as a sum of equal terms may be"
        self.report.cells += cells.values()

    def _finite_rows(self, cell, given, result, exact, size):
        """Return the rows without NaN and Inf; note whether the others are as defined."""
        if not np.array_equal(np.isfinite(result), np.isfinite(exact)):
            cell.note = "not where the definition has them"
        rows = np.isfinite(given["x"].astype(np.float64)).all(axis=-1)
        if result.ndim == 1:
            rows = slice(0, 0)
        return result[rows], exact[rows], None if size is None else size[rows]

    # ---- the ends of the range ----------------------------------------------------------------

    def end_of_range(self, function, up):
        """Note the power of two from which on results are 0, Inf or NaN; found by halving."""
        if function.role == "residual":
            return
        form = FORMATS[self.dtype.name]
        right, wrong = 0, -form.bits - form.smallest if up else form.smallest + 4

        def ended(given):
            return self._ended(function, given)

        if not ended(self._scaled(wrong)):
            return
        while abs(wrong - right) > 1:
            middle = (right + wrong) // 2
            right, wrong = (right, middle) if ended(self._scaled(middle)) else (middle, wrong)
        given = inputs.shrink(self._scaled(wrong), ended)
        name, what, shows = ended(given) or (function.results[0], "another in each run", {})
        words = f"range: {name} is {what} from x = 2**{wrong} {'up' if up else 'down'}"
        found = findings.Subject(function, self).finding(words, given, shows)
        self.report.findings.append(dataclasses.replace(found, failure=self.strict))

    def _scaled(self, exponent):
        """Return one normal row times 2**exponent; without an `eps` small ones have 0."""
        given = inputs.given("normal", (1, 64), self.dtype, self.eps)
        x = rounded(np.ldexp(given["x"].astype(np.float64), exponent), self.dtype)
        eps = 0.0 if exponent < 0 and self.eps is None else given["eps"]
        return given | {"x": x, "residual": np.zeros_like(x), "eps": eps}

    def _ended(self, function, given):
        """Return (result, what it is, arrays) if one should not be 0, Inf, NaN or raised."""
        try:
            found = function(given)
        except ValueError:
            return function.results[0], "an exception", {}
        exact = inputs.exact(function.role, given, found, self.weight_offset)
        for name, result in found.items():
            with np.errstate(all="ignore"):
                right = reference._rounded(exact[name], self.dtype)
            for what, test in (("NaN", np.isnan), ("Inf", np.isinf), ("0", lambda a: a == 0)):
                if (test(result) & ~test(right)).any():
                    return name, what, {name: result, "exact": exact[name]}
        return None

    # ---- the rest -----------------------------------------------------------------------------

    def last(self, function):
        """Report changed inputs, and errors above the bound that no formula explains."""
        for name, (before, after) in function.changed.items():
            found = findings.Finding(bits.CHANGED, function.role, {name: before}, {"after": after})
            self.report.findings.append(found)
        found = [found for found in self.report.findings if found.role == function.role]
        # Two roundings to nearest keep to the bound by themselves.
        explained = {finding.result for finding in found if finding.name != formulas.BEFORE}
        spreads = any(finding.name == bits.NEIGHBOURS for finding in found)
        for name in function.results:
            cells = [
                cell
                for cell in self.report.cells
                if (cell.role, cell.result) == (function.role, name) and cell.broken and cell.counts
                if not (spreads and cell.family == "NaN and Inf")
            ]
            if cells and name not in explained:
                self.report.findings.append(self._error(function, max(cells, key=lambda c: c.ulp)))

    def _error(self, function, cell):
        """Return the finding of an error above the bound, on the smallest input that has it."""
        subject, role, name = findings.Subject(function, self), cell.role, cell.result

        def measured(given):
            found = function(given)
            size = inputs.sizes(role, given, self.weight_offset).get(name)
            return found[name], subject.exact(given, found)[name], size

        def holds(given):
            return ulps(*measured(given)) > self.allowed(given["x"].shape[-1], cell.family)

        given = inputs.given(cell.family, cell.broken, self.dtype, self.eps)
        small = inputs.shrink(given, holds)
        found, exact, size = measured(small)
        errors = unless_same(np.abs(ulp_errors(found, exact, size)), found, exact)
        at = np.unravel_index(errors.argmax(), errors.shape)
        where = f"{name}[{', '.join(map(str, at))}]"
        words = f"{name} is off by {cell.ulp:.3g} ulp in {cell.family} rows; no known formula fits"
        return subject.finding(words, small, {where: found[at], "exact": exact[at]}, name)
