#!/usr/bin/env python
"""Compare random elements with an oracle of 80 bits or more: the table of docs/numerics.md.

    python bench/measured.py docs/numerics.md      put the table of 1e8 elements there

Forward, add + forward and backward, n = 1 to 16384, six distributions, 2e6 elements of x in all, or
1e8 with FULL=1. Every instruction set must give the same bits, so one table serves all of them.
Exit code 1 if a bound of fastrms.check breaks or an instruction set differs.
"""

import itertools
import os
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import fastrms
from fastrms import _core, check
from fastrms.conformance import measures

ELEMENTS = 100_000_000 if os.environ.get("FULL") == "1" else 2_000_000
BATCH = 1 << 15
LONGEST = 16384
LARGEST = float(np.finfo(np.float32).max)


def outlier(rng, shape):
    x = rng.standard_normal(shape)
    x[:, rng.integers(shape[1])] *= 1e6
    return x


DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "constant": lambda rng, shape: np.full(shape, rng.uniform(1, 2)),
    "uniform": lambda rng, shape: rng.uniform(0, 1, shape),
    "Cauchy": lambda rng, shape: rng.standard_cauchy(shape),
    "one outlier": outlier,
    "any exponent": lambda rng, shape: (
        np.exp2(rng.uniform(-149, 128, shape)) * rng.choice((-1, 1), shape)
    ),
}
# Measure -> its bound.
BOUNDS = {
    "no weight": check.FORWARD_ULP_UNWEIGHTED,
    "weight": check.FORWARD_ULP,
    "1 + weight": check.FORWARD_ULP_OFFSET,
    "add + norm": check.FORWARD_ULP,
    "dx": check.DX,
    "dweight": check.DWEIGHT,
}


def float32(values):
    return np.clip(values, -LARGEST, LARGEST).astype(np.float32)


class Batch:
    """Inputs of one distribution. Half of the batches have eps 0 and a scale from all the range."""

    def __init__(self, seed, distribution):
        rng = np.random.default_rng(seed)
        n = int(LONGEST ** rng.uniform())
        shape = max(1, BATCH // n), n
        scale = 2.0 ** rng.integers(-140, 126) if rng.integers(2) else 1.0
        self.eps = 1e-5 if scale == 1 else 0.0
        self.x = float32(DISTRIBUTIONS[distribution](rng, shape) * scale)
        self.x[:, 0] += (self.x[:, 0] == 0) * np.float32(2.0**-149)  # no row of zeros
        self.dy, self.residual = (float32(rng.standard_normal(shape)) for _ in range(2))
        self.weight = float32(rng.standard_normal(n))

    def results(self, isa):
        """Return everything that the functions write, by measure."""
        _core.use_isa(isa)
        x, weight, eps = self.x, self.weight, self.eps
        dx, dweight = fastrms.rms_norm_backward(self.dy, x, weight, eps)
        return {
            "no weight": fastrms.rms_norm(x, None, eps),
            "weight": fastrms.rms_norm(x, weight, eps),
            "1 + weight": fastrms.rms_norm(x, weight, eps, weight_offset=1.0),
            "add + norm": fastrms.add_rms_norm(x, self.residual.copy(), weight, eps),
            "dx": dx,
            "dweight": dweight,
        }

    def exact(self):
        """Return the exact results, in longdouble."""
        xhat, rms = normalise(self.x, self.eps)
        added, _ = normalise(np.add(self.residual, self.x), self.eps)
        weight = self.weight.astype(np.longdouble)
        g = self.dy * weight
        return {
            "no weight": xhat,
            "weight": xhat * weight,
            "1 + weight": xhat * (1 + weight),
            "add + norm": added * weight,
            "dx": (g - xhat * mean(g * xhat)) / rms,
            "dweight": (self.dy * xhat).sum(axis=0),
        }

    def errors(self):
        """Return measure -> (error to compare with the bound, largest error, sum of the errors)."""
        isas, exact = _core.available_isas(), self.exact()
        result, *others = (self.results(isa) for isa in isas)
        for name, other in itertools.product(BOUNDS, others):
            assert other[name].tobytes() == result[name].tobytes(), f"{name}: {isas} differ"
        dx = check.dx_error(result["dx"], exact["dx"], self.dy, self.x, self.weight, self.eps)
        dweight = check.dweight_error(
            result["dweight"], exact["dweight"], self.dy, self.x, self.eps
        )
        errors = {"dx": (dx, dx, 0.0), "dweight": (dweight, dweight, 0.0)}
        for name in BOUNDS.keys() - errors.keys():
            every = np.abs(measures.ulp_errors(result[name], exact[name]))
            bounded = check.ulps(result[name], exact[name])  # compares Inf and NaN too
            errors[name] = bounded, float(np.nanmax(every)), float(np.nansum(every))
        return errors


def mean(values):
    return values.sum(axis=-1, keepdims=True) / values.shape[-1]


def normalise(x, eps):
    x = x.astype(np.longdouble)
    rms = np.sqrt(mean(x * x) + np.longdouble(eps))
    return x / rms, rms


def measure(distribution):
    """Return a row of the table, how many bounds broke, and the number of elements."""
    fastrms.set_num_threads(1)
    count, errors, seeds = 0, defaultdict(list), itertools.count()
    while count < ELEMENTS / len(DISTRIBUTIONS):
        with np.errstate(all="ignore"):
            batch = Batch(next(seeds), distribution)
            for name, values in batch.errors().items():
                errors[name].append(values)
        count += batch.x.size
    row, broken = [distribution], 0
    for name, bound in BOUNDS.items():
        bounded, largest, total = zip(*errors[name], strict=True)
        broken += not max(bounded) <= bound
        row.append(
            f"{max(largest):.2g}" if bound < 1 else f"{max(largest):.2f}, {sum(total) / count:.2f}"
        )
    return row, broken, count


def table(rows, count):
    """Return the table in Markdown."""
    bounds = [f"{bound:g}" for bound in BOUNDS.values()]
    lines = [
        f"{count:,} elements, n = 1 to {LONGEST}, bit for bit the same on "
        f"{', '.join(_core.available_isas())}.",
        "",
        *("| " + " | ".join(row) + " |" for row in (["", *BOUNDS], ["---"] * (1 + len(BOUNDS)))),
        *("| " + " | ".join(row) + " |" for row in (*rows, ["bound", *bounds])),
    ]
    return "\n".join(lines)


def main():
    with ProcessPoolExecutor() as pool:
        results = list(pool.map(measure, DISTRIBUTIONS))
    rows, broken, counts = zip(*results, strict=True)
    print(table(rows, sum(counts)))
    print(f"{sum(broken) or 'no'} bounds broken", file=sys.stderr)
    return 1 if any(broken) else 0


if __name__ == "__main__":
    sys.exit(main())
