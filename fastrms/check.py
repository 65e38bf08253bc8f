"""`fastrms check`: every function x instruction set x thread count x shape, against the reference.

The bounds that fastrms promises are defined here, once, with their reasons; the tests use them too.
"""

import functools
import itertools
import sys

import numpy as np

import fastrms

from . import _arguments, _core, _output, reference
from .conformance.families import rounded
from .conformance.inputs import given
from .conformance.measures import (
    FORMATS,
    SCALES,
    dweight_terms,
    dx_terms,
    format_of,
    ulps,
    unless_same,
    wide,
)

# In ulp of the exact result, where one ulp is more than u = 2**-24 of it. The sum of squares has
# only float64's roundings, so 1 / rms, x / rms and the product with weight round once each, by at
# most u of the result.
FORWARD_ULP = 3.0
FORWARD_ULP_UNWEIGHTED = 2.0
# One more, because weight_offset + weight is rounded to float32 before the product.
FORWARD_ULP_OFFSET = 4.0
# Relative to dx_terms, element by element: 15 u, dx's own rounding included (docs/numerics.md has
# the proof). Products may be subnormal, which adds ROUNDING.
DX = 1e-6
# Relative to the column's sum of |dy * xhat|, beyond the rounding of the result. Float32 sums over
# groups of 8 rows take 12 u of it.
DWEIGHT = 1e-6


# In float64 these scales leave the sums of a split row, which are float64 too, exact enough.
SPLIT_SCALES = (1.0, 1e100)
ROUNDING = 2.0**-149
SHAPES = (
    (1, 1),
    (3, 7),
    (5, 64),
    (17, 100),
    (4, 129),
    (16, 576),
    (199, 33),
    (40, 4096),
    (30, 5125),
)


# Float64's kernels round at each step, so their bounds grow with the row: n / 64 + 10 roundings of
# 2**-53 forward, n / 6 + 32 backward (docs/numerics.md). These are of the longest row above.
LONGEST = max(n for _, n in SHAPES)
FORWARD_64 = LONGEST / 64 + 10
BACKWARD_64 = (LONGEST / 6 + 32) * 2.0**-53


def forward_ulp(weight, weight_offset=0.0, dtype="float32"):
    """Return the bound on the error of y in ulp, for these arguments of a call."""
    if weight is None:
        return in_ulp(FORWARD_ULP_UNWEIGHTED, dtype)
    return in_ulp(FORWARD_ULP if weight_offset == 0 else FORWARD_ULP_OFFSET, dtype)


def in_ulp(bound, dtype):
    """Return float32's bound in ulp of a half, the float32 result rounded; or that of float64."""
    bits = FORMATS[dtype].bits
    if bits > 24:
        return FORWARD_64
    return 0.5 + bound * 2.0 ** (bits - 24) if bits < 24 else bound


def of_terms(bound, dtype):
    """Return the bound relative to terms, of the arithmetic: a half's own rounding is beside it."""
    return BACKWARD_64 if FORMATS[dtype].bits > 24 else bound


def dx_error(dx, exact, dy, x, weight, eps, weight_offset=0.0):
    """Return the largest error of dx beyond rounding, as a multiple of its element's dx_terms.

    Rounding is the smallest number and, for a half, that of the result. An Inf is no error where
    the bound reaches beyond the largest number.
    """
    terms = dx_terms(dy, x, weight, eps, weight_offset)
    form = format_of(dx)
    with np.errstate(all="ignore"):
        rounding = 2.0**form.smallest + (form.bits < 24) * 2.0**-form.bits * np.abs(exact)
        error = np.abs(dx.astype(exact.dtype) - exact) - rounding
        most = of_terms(DX, dx.dtype.name) * terms + rounding
        beyond = np.isinf(dx) & np.isfinite(terms) & (np.abs(exact) + most > form.largest)
        share = np.where((error <= 0) | beyond, 0, error / terms)
    return float(unless_same(share, dx, exact).max(initial=0.0))


def dweight_error(dweight, exact, dy, x, eps):
    """Return the largest error of dweight beyond its rounding, relative to sum |dy * xhat|."""
    with np.errstate(all="ignore"):
        size = dweight_terms(dy, x, eps)
        bits, smallest, _ = format_of(dweight)
        rounding = 2.0**-bits * np.abs(exact) + 2.0**smallest
        error = np.abs(dweight.astype(exact.dtype) - exact) - rounding
        share = np.where(error <= 0, 0, error / size)
    return float(unless_same(share, dweight, exact).max(initial=0.0))


def run(target=None, dtype="float32"):
    """Check this machine, print a table of the largest errors, and return 1 if a bound breaks.

    A line shows each instruction set's largest error over all thread counts. `target` is a file for
    the errors of every thread count as JSON, or STDOUT: the table then goes to stderr.
    """
    stream = sys.stderr if target == _arguments.STDOUT else sys.stdout
    say = functools.partial(print, file=stream, flush=True)
    array_dtype = _arguments.dtype(dtype)
    wide(array_dtype)
    bounds = {
        name: bound and (in_ulp if unit == ULP else of_terms)(bound, dtype)
        for name, (_, bound, unit) in MEASURES.items()
    }
    oracle = "long double" if dtype == "float64" else "float64"
    say(f"fastrms {fastrms.__version__}: largest error of {dtype} against the {oracle} reference")
    isas, counts = _core.available_isas(), THREADS if _core.build_info()["pool"] else (1,)
    settings = [*itertools.product(isas, counts)]
    rows = [*_output.progress(_measure(settings, array_dtype), len(settings))]
    say(f"{'':<12}{'bound':>10}" + "".join(f"{isa:>10}" for isa in isas))
    for name, (_, _, unit) in MEASURES.items():
        errors = [max(row["errors"][name] for row in rows if row["isa"] == isa) for isa in isas]
        digits = 5 if unit == ULP and bounds[name] < 1 else 3  # of a half: 0.50005
        figures = "".join(f"{figure:>10.{digits}g}" for figure in (bounds[name], *errors))
        say(f"{name:<12}{figures}  {unit}")
    broken = sum(not row["errors"][name] <= bounds[name] for row in rows for name in bounds)
    threads = ", ".join(map(str, counts))
    cases = f"{len(SHAPES) * len(SCALES)} cases, each with threads = {threads}"
    say(f"{_output.counted(broken, 'bound')} broken" if broken else f"{cases}; every bound holds")
    if target:
        found = {"version": fastrms.__version__, "dtype": dtype, "bounds": bounds, "rows": rows}
        _arguments.write_json(found | {"broken": broken}, target)
    return 1 if broken else 0


def _measure(settings, dtype):
    """Yield the largest errors of each (instruction set, threads); restore both at the end."""
    before = _core.current(), fastrms.get_num_threads(), _core.set_parallel_from(1)
    try:
        for isa, threads in settings:
            _core.use_isa(isa)
            fastrms.set_num_threads(threads)
            yield {"isa": isa, "threads": threads, "errors": _worst_errors(dtype)}
    finally:
        _core.use_isa(before[0])
        fastrms.set_num_threads(before[1])
        _core.set_parallel_from(before[2])


def _worst_errors(dtype):
    worst = dict.fromkeys(MEASURES, 0.0)
    scales = FORMATS[dtype.name].scales
    for shape, scale in itertools.product(SHAPES, scales):
        case = Case(shape, scale, dtype)
        for name, (measure, _, _) in MEASURES.items():
            worst[name] = max(worst[name], measure(case))
    return worst


class Case:
    """Normal rows of one shape and scale; x has an outlier row and a zero row if there is room."""

    def __init__(self, shape, scale, dtype):
        rows = given("normal", shape, np.dtype(np.float64), 0.0)
        # Thirds of the family's integers use all bits of a float64.
        x, residual, dy = (rows[name] / 3 for name in ("x", "residual", "dy"))
        x *= scale
        x[1:2, 0] = 1e4 * scale if 1e4 * scale < FORMATS[dtype.name].largest else scale
        x[2:3] = 0
        self.x, self.residual, self.dy, self.weight = (
            rounded(array, dtype) for array in (x, residual, dy, rows["weight"] * (4 / 3))
        )
        self.eps = 1e-5 if scale == 1 else 0.0 if shape[0] < 3 else 1e-30
        self.splits = dtype != np.float64 or scale in SPLIT_SCALES

    @property
    def inputs(self):
        """The arrays dy, x and weight, in long double if they are float64."""
        exact = wide(self.x.dtype)
        return [array.astype(exact) for array in (self.dy, self.x, self.weight)]


def _forward(case, weighted=True, **kwargs):
    _, x, weight = case.inputs
    y = fastrms.rms_norm(case.x, case.weight if weighted else None, case.eps, **kwargs)
    return ulps(y, reference.rms_norm(x, weight if weighted else None, case.eps, **kwargs))


def _add_forward(case):
    stream, expected = case.residual.copy(), case.residual.copy()
    y = fastrms.add_rms_norm(case.x, stream, case.weight, case.eps, scale=-0.5)
    reference.residual_add(case.x, expected, -0.5)
    exact = reference.rms_norm(expected.astype(case.inputs[2].dtype), case.inputs[2], case.eps)
    return ulps(y, exact) if np.array_equal(stream, expected) else np.inf


def _backward(case):
    gradients = fastrms.rms_norm_backward(case.dy, case.x, case.weight, case.eps)
    return (*gradients, *reference.rms_norm_backward(*case.inputs, case.eps))


def _dx(case):
    dx, _, exact, _ = _backward(case)
    return dx_error(dx, exact, *case.inputs, case.eps)


def _dweight(case):
    _, dweight, _, exact = _backward(case)
    return dweight_error(dweight, exact, *case.inputs[:2], case.eps)


def _halves(case):
    """Return both halves of the arrays' columns, and the sums over the whole rows."""
    cuts = slice(0, case.x.shape[1] // 2), slice(case.x.shape[1] // 2, None)
    parts = [(case.dy[:, cut], case.x[:, cut], case.weight[cut]) for cut in cuts]
    squares = sum(fastrms.sum_squares(x) for _, x, _ in parts)
    products = sum(fastrms.sum_products(*part) for part in parts)
    return parts, squares, products


def _rms_scale(case):
    if not case.splits:
        return 0.0
    parts, squares, _ = _halves(case)
    size = case.x.shape[1]
    y = [fastrms.rms_scale(x, squares, size, weight, case.eps) for _, x, weight in parts]
    return ulps(np.hstack(y), reference.rms_norm(*case.inputs[1:], case.eps))


def _split_dx(case):
    if not case.splits:
        return 0.0
    parts, squares, products = _halves(case)
    size = case.x.shape[1]
    dx = [
        fastrms.rms_scale_backward(dy, x, squares, products, size, weight, case.eps)[0]
        for dy, x, weight in parts
    ]
    exact, _ = reference.rms_norm_backward(*case.inputs, case.eps)
    return dx_error(np.hstack(dx), exact, *case.inputs, case.eps)


def _residual_add(case):
    stream, expected = case.residual.copy(), case.residual.copy()
    fastrms.residual_add(case.x, stream, 0.5)
    reference.residual_add(case.x, expected, 0.5)
    return ulps(stream, expected.astype(np.float64))


ULP, OF_TERMS = "ulp", "of its terms"
# name: (measure, its bound, the unit of both)
MEASURES = {
    "rms_norm": (_forward, FORWARD_ULP, ULP),
    "no weight": (lambda case: _forward(case, False), FORWARD_ULP_UNWEIGHTED, ULP),
    "1 + weight": (
        lambda case: _forward(case, weight_offset=1.0),
        FORWARD_ULP_OFFSET,
        ULP,
    ),
    "add_rms_norm": (_add_forward, FORWARD_ULP, ULP),
    "dx": (_dx, DX, OF_TERMS),
    "dweight": (_dweight, DWEIGHT, "of sum |dy * x / rms|"),
    "residual_add": (_residual_add, 0.0, ULP),
    "rms_scale": (_rms_scale, FORWARD_ULP, ULP),
    "split dx": (_split_dx, DX, OF_TERMS),
}
THREADS = (1, 2, 3)
