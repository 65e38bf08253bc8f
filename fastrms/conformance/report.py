"""What an examination found: `failures`, the same as text for a person, and as a dict for JSON."""

import numpy as np

import fastrms

from .. import _output

MOST, FIRST = 8, 3  # numbers of an array that are shown: all, or the first ones
NAME, WIDTH = 12, 15  # columns of the table


class Cell:
    """The errors of one result in one family, in ulp: the largest, and the mean with its sign."""

    def __init__(self, role, result, family):
        self.role, self.result, self.family = role, result, family
        self.ulp, self.note, self.counts = 0.0, "", True
        self.measured = self.above = False
        self.broken = None  # the shape on which the error was above the bound
        self._sum, self._count = 0.0, 0

    def add(self, largest, errors, broken, shape):
        if broken and (self.broken is None or largest >= self.ulp):
            self.broken = shape
        self.ulp, self.measured = max(self.ulp, largest), True
        finite = errors[np.isfinite(errors)].astype(np.float64)
        self._sum, self._count = self._sum + float(finite.sum()), self._count + finite.size

    @property
    def bias(self):
        return self._sum / self._count if self._count else 0.0

    def as_dict(self):
        names = ("family", "role", "result", "ulp", "bias", "note")
        return {name: getattr(self, name) for name in names} | {"broken": self.broken is not None}


class Report:
    """What was found. `failures` is empty if the functions conform; str() is one screen."""

    def __init__(self, functions, dtype, framework, allowed):
        self.names = {function.role: function.name for function in functions}
        self.dtype, self.framework, self.allowed = dtype, framework, allowed
        self.cells, self.findings = [], []

    @property
    def failures(self):
        """The findings that count."""
        return [finding for finding in self.findings if finding.failure]

    def __str__(self):
        return "\n".join([*self._header(), "", *self._table(), *self._findings()])

    def as_dict(self):
        return {
            "version": fastrms.__version__,
            "functions": self.names,
            "dtype": self.dtype,
            "framework": self.framework,
            "cells": [cell.as_dict() for cell in self.cells],
            "findings": [
                {
                    "name": finding.name,
                    "role": finding.role,
                    "failure": finding.failure,
                    "arguments": _plain(finding.arguments),
                    "shows": _plain(finding.shows),
                }
                for finding in self.findings
            ],
            "failures": len(self.failures),
        }

    # ---- text ---------------------------------------------------------------------------------

    def _header(self):
        shown = (str(self.allowed(0)).removesuffix(".0"), self.allowed(256) - self.allowed(0))
        bound = f"{shown[0]} + n / 256" if shown[1] else shown[0]
        about = f"fastrms {fastrms.__version__}, {self.dtype}, arrays of {self.framework}"
        yield from (about, *(f"{role:<{NAME}}{name}" for role, name in self.names.items()))
        yield f"errors in ulp: the largest (! above {bound}), and the mean (below 0: towards zero)"

    def _table(self):
        columns = list(dict.fromkeys((cell.role, cell.result) for cell in self.cells))
        titles = [self._title(*column, columns) for column in columns]
        yield f"{'':<{NAME}}" + "".join(f"{title:>{WIDTH}}" for title in titles)
        for family in dict.fromkeys(cell.family for cell in self.cells):
            cells = {(c.role, c.result): c for c in self.cells if c.family == family}
            figures = "".join(_figures(cells[column]) for column in columns)
            notes = dict.fromkeys(c.note for c in cells.values() if c.note)
            yield f"{family:<{NAME}}{figures}  {'; '.join(notes)}".rstrip()

    @staticmethod
    def _title(role, result, columns):
        """Return the result's name, with its role where another role has one of that name."""
        if [name for _, name in columns].count(result) == 1:
            return result
        alone = [name for name, _ in columns].count(role) == 1
        return role if alone else f"{role} {result}"

    def _findings(self):
        for failure, title in ((True, "findings"), (False, "reported (with --strict: findings)")):
            chosen = [finding for finding in self.findings if finding.failure == failure]
            if chosen:
                yield from ("", f"{title}:")
            for finding in chosen:
                yield f"- {finding if len(self.names) > 1 else finding.name}"
                for example in (finding.arguments, finding.shows) if failure else ():
                    if example:
                        yield f"    {', '.join(f'{k} = {_short(v)}' for k, v in example.items())}"
        count = len(self.failures)
        yield from ("", _output.counted(count, "finding") if count else "no finding")


def _figures(cell):
    if cell.family == "no rows" or not cell.measured:
        return f"{'ok' if cell.measured else 'raises':>{WIDTH}}"
    mark = "!" if cell.broken and cell.counts else " "
    largest = f"{cell.ulp:.3g}" if cell.ulp < 1000 else f"{cell.ulp:.1e}".replace("e+0", "e")
    # The mean of errors that large says nothing.
    return f"{largest + mark:>{WIDTH - 7}}{f'{cell.bias:+.2f}' if cell.ulp < 1000 else '':>7}"


def _short(part):
    """Return an array as text, or its first numbers and its shape."""
    if not np.ndim(part):
        return _number(part)
    if np.size(part) > MOST:
        first = " ".join(map(_number, part.flat[:FIRST]))
        return f"[{first} ...] of {'x'.join(map(str, part.shape))}"
    if np.ndim(part) == 2 and len(part) == 1:
        part = part[0]
    return f"[{' '.join(map(_short, part))}]"


def _number(value):
    """Return the shortest text that gives this number in its dtype; 10 digits of an exact one."""
    return f"{value:.10g}" if isinstance(value, np.longdouble | float) else str(value)


def _plain(example):
    """Return an example for JSON: every number as a float."""
    return {name: np.asarray(part).astype(np.float64).tolist() for name, part in example.items()}
