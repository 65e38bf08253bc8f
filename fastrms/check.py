"""`fastrms check`: every function x instruction set x thread count x shape, against the reference.

The bounds that fastrms promises are defined here, once, with their reasons; the tests use them too.
"""

import functools
import itertools
import sys

import numpy as np

import fastrms

from . import _arguments, _core, _output, reference

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

ROUNDING = 2.0**-149
LARGEST = float(np.finfo(np.float32).max)
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
SCALES = (1e-45, 1e-30, 1.0, 1e19, 1e37)


def ulps(result, exact):
    """Return the largest error in units in the last place of the exact result."""
    return float(_unless_same(ulp_errors(result, exact), result, exact).max(initial=0.0))


def ulp_errors(result, exact):
    """Return each error in units in the last place of the exact result; NaN at NaN and Inf."""
    with np.errstate(all="ignore"):
        # Not np.spacing of the rounded result: below a power of two that is the unit above it.
        exponent = np.where(exact == 0, -149, np.frexp(exact)[1] - 24)
        unit = np.ldexp(1.0, np.maximum(exponent, -149))
        return np.abs(result.astype(np.float64) - exact) / unit


def forward_ulp(weight, weight_offset=0.0):
    """Return the bound on the error of y in ulp, for these arguments of a call."""
    if weight is None:
        return FORWARD_ULP_UNWEIGHTED
    return FORWARD_ULP if weight_offset == 0 else FORWARD_ULP_OFFSET


def dx_terms(dy, x, weight, eps, weight_offset=0.0):
    """Return ``(|g| + |xhat| * mean|g * xhat|) / rms``, the magnitudes that dx is made of.

    As in the reference, ``g = dy * (weight_offset + weight)`` and ``xhat = x / rms``.
    """
    dy, x = dy.astype(np.float64), x.astype(np.float64)
    with np.errstate(all="ignore"):
        rms = reference._rms(x, eps)
        xhat = np.abs(x / rms)
        g = np.abs(dy * reference._factor(weight, weight_offset))
        return (g + xhat * reference._mean(g * xhat)) / rms


def dx_error(dx, exact, dy, x, weight, eps, weight_offset=0.0):
    """Return the largest error of dx beyond ROUNDING, as a multiple of its element's dx_terms.

    An Inf is no error where DX times the terms is more than float32's largest number.
    """
    terms = dx_terms(dy, x, weight, eps, weight_offset)
    with np.errstate(all="ignore"):
        error = np.abs(dx.astype(np.float64) - exact) - ROUNDING
        beyond = np.isinf(dx) & np.isfinite(terms) & (DX * terms > LARGEST)
        share = np.where((error <= 0) | beyond, 0, error / terms)
    return float(_unless_same(share, dx, exact).max(initial=0.0))


def dweight_error(dweight, exact, dy, x, eps):
    """Return the largest error of dweight beyond its rounding, relative to sum |dy * xhat|."""
    with np.errstate(all="ignore"):
        terms = np.abs(dy.astype(np.float64) * reference.rms_norm(x, eps=eps))
        size = terms.reshape(-1, x.shape[-1]).sum(axis=0)
        rounding = 2.0**-24 * np.abs(exact) + ROUNDING
        error = np.abs(dweight.astype(np.float64) - exact) - rounding
        share = np.where(error <= 0, 0, error / size)
    return float(_unless_same(share, dweight, exact).max(initial=0.0))


def _unless_same(error, result, exact):
    """Return 0 where both are NaN, or round to the same Inf, and infinity where the error is NaN.

    The error is NaN where only one of the two is NaN or Inf, and max() would pass over it.
    """
    with np.errstate(all="ignore"):
        same = np.isinf(result) & (result == exact.astype(np.float32))
    same |= np.isnan(result) & np.isnan(exact)
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))


def run(target=None):
    """Check this machine, print a table of the largest errors, and return 1 if a bound breaks.

    A line shows each instruction set's largest error over all thread counts. `target` is a file for
    the errors of every thread count as JSON, or STDOUT: the table then goes to stderr.
    """
    stream = sys.stderr if target == _arguments.STDOUT else sys.stdout
    say = functools.partial(print, file=stream, flush=True)
    bounds = {name: bound for name, (_, bound, _) in MEASURES.items()}
    # Import np.random before the first line is printed: NumPy imports it on first use, and loses a
    # Ctrl-C in those 10 ms (NumPy 2.4.6: in 18 of 400 tries).
    np.random  # noqa: B018
    say(f"fastrms {fastrms.__version__}: largest error against the float64 reference")
    isas, counts = _core.available_isas(), THREADS if _core.build_info()["pool"] else (1,)
    settings = [*itertools.product(isas, counts)]
    rows = [*_output.progress(_measure(settings), len(settings))]
    say(f"{'':<12}{'bound':>10}" + "".join(f"{isa:>10}" for isa in isas))
    for name, (_, bound, unit) in MEASURES.items():
        errors = [max(row["errors"][name] for row in rows if row["isa"] == isa) for isa in isas]
        figures = "".join(f"{error:>10.3g}" for error in errors)
        say(f"{name:<12}{bound:>10g}{figures}  {unit}")
    broken = sum(not row["errors"][name] <= bounds[name] for row in rows for name in bounds)
    threads = ", ".join(map(str, counts))
    cases = f"{len(SHAPES) * len(SCALES)} cases, each with threads = {threads}"
    say(f"{_output.counted(broken, 'bound')} broken" if broken else f"{cases}; every bound holds")
    if target:
        found = {"version": fastrms.__version__, "bounds": bounds, "rows": rows, "broken": broken}
        _arguments.write_json(found, target)
    return 1 if broken else 0


def _measure(settings):
    """Yield the largest errors of each (instruction set, threads); restore both at the end."""
    before = _core.current(), fastrms.get_num_threads(), _core.set_parallel_from(1)
    try:
        for isa, threads in settings:
            _core.use_isa(isa)
            fastrms.set_num_threads(threads)
            yield {"isa": isa, "threads": threads, "errors": _worst_errors()}
    finally:
        _core.use_isa(before[0])
        fastrms.set_num_threads(before[1])
        _core.set_parallel_from(before[2])


def _worst_errors():
    worst = dict.fromkeys(MEASURES, 0.0)
    for number, (shape, scale) in enumerate(itertools.product(SHAPES, SCALES)):
        case = Case(np.random.default_rng(number), shape, scale)
        for name, (measure, _, _) in MEASURES.items():
            worst[name] = max(worst[name], measure(case))
    return worst


class Case:
    """Arrays of one shape and scale; x has an outlier row and a zero row if there is room."""

    def __init__(self, rng, shape, scale):
        normal = functools.partial(rng.standard_normal, dtype=np.float32)
        self.x = normal(shape) * np.float32(scale)
        self.x[1:2, 0] = 1e4 * scale if scale < 1e30 else scale
        self.x[2:3] = 0
        self.residual, self.dy = normal(shape), normal(shape)
        self.weight = 1 + np.float32(0.3) * normal(shape[1])
        self.eps = 1e-5 if scale == 1 else 0.0 if shape[0] < 3 else 1e-30


def _forward(case, weight, **kwargs):
    y = fastrms.rms_norm(case.x, weight, case.eps, **kwargs)
    return ulps(y, reference.rms_norm(case.x, weight, case.eps, **kwargs))


def _add_forward(case):
    stream, expected = case.residual.copy(), case.residual.copy()
    y = fastrms.add_rms_norm(case.x, stream, case.weight, case.eps)
    exact = reference.add_rms_norm(case.x, expected, case.weight, case.eps)
    return ulps(y, exact) if np.array_equal(stream, expected) else np.inf


def _backward(case):
    arguments = case.dy, case.x, case.weight, case.eps
    return (*fastrms.rms_norm_backward(*arguments), *reference.rms_norm_backward(*arguments))


def _dx(case):
    dx, _, exact, _ = _backward(case)
    return dx_error(dx, exact, case.dy, case.x, case.weight, case.eps)


def _dweight(case):
    _, dweight, _, exact = _backward(case)
    return dweight_error(dweight, exact, case.dy, case.x, case.eps)


def _halves(case):
    """Return both halves of the arrays' columns, and the sums over the whole rows."""
    cuts = slice(0, case.x.shape[1] // 2), slice(case.x.shape[1] // 2, None)
    parts = [(case.dy[:, cut], case.x[:, cut], case.weight[cut]) for cut in cuts]
    squares = sum(fastrms.sum_squares(x) for _, x, _ in parts)
    products = sum(fastrms.sum_products(*part) for part in parts)
    return parts, squares, products


def _rms_scale(case):
    parts, squares, _ = _halves(case)
    size = case.x.shape[1]
    y = [fastrms.rms_scale(x, squares, size, weight, case.eps) for _, x, weight in parts]
    return ulps(np.hstack(y), reference.rms_norm(case.x, case.weight, case.eps))


def _split_dx(case):
    parts, squares, products = _halves(case)
    size = case.x.shape[1]
    dx = [
        fastrms.rms_scale_backward(dy, x, squares, products, size, weight, case.eps)[0]
        for dy, x, weight in parts
    ]
    exact, _ = reference.rms_norm_backward(case.dy, case.x, case.weight, case.eps)
    return dx_error(np.hstack(dx), exact, case.dy, case.x, case.weight, case.eps)


def _residual_add(case):
    stream, expected = case.residual.copy(), case.residual.copy()
    fastrms.residual_add(case.x, stream, 0.5)
    return ulps(stream, reference.residual_add(case.x, expected, 0.5).astype(np.float64))


ULP, OF_TERMS = "ulp", "of its terms"
# name: (measure, its bound, the unit of both)
MEASURES = {
    "rms_norm": (lambda case: _forward(case, case.weight), FORWARD_ULP, ULP),
    "no weight": (lambda case: _forward(case, None), FORWARD_ULP_UNWEIGHTED, ULP),
    "1 + weight": (
        lambda case: _forward(case, case.weight, weight_offset=1.0),
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
