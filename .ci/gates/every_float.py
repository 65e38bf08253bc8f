#!/usr/bin/env python
"""Check forward at n = 1 without a weight: every float32, eps 0 and 1e-5, every instruction set.

Each result has the sign of the exact one, is within the bound, and is NaN exactly where the formula
gives NaN. One pattern in 61 (a prime, so that every bit varies), or all 2**32 with FULL=1.

The oracle is the float64 reference. x**2 is exact there (48 bits, 2**-298 to 2**256); adding eps,
the root and the division round once each, so its relative error is at most 2.5 * 2**-53, under
2**-27 of an ulp of float32.
"""

import itertools
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import fastrms
from fastrms import _core, check, reference

STEP = 1 if os.environ.get("FULL") == "1" else 61
PATTERNS = 1 << 32
CHUNK = 1 << 18  # patterns in one call: they stay in cache
PART = 1 << 28  # patterns, tested or skipped, that one process takes at a time


def worst_of_part(eps, first):
    """Return the largest error in ulp over patterns [first, first + PART)."""
    fastrms.set_num_threads(1)
    worst = 0.0
    first += -first % STEP
    for start in range(first, first // PART * PART + PART, STEP * CHUNK):
        last = min(start + STEP * CHUNK, first // PART * PART + PART)
        bits = np.arange(start, last, STEP, np.uint64).astype(np.uint32)
        worst = max(worst, worst_of_chunk(bits.view(np.float32).reshape(-1, 1), eps))
    return worst


def worst_of_chunk(x, eps):
    """Return the largest error in ulp, or inf if a sign or an instruction set differs."""
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        exact = reference.rms_norm(x, eps=eps)
    results = [result_of(isa, x, eps) for isa in _core.available_isas()]
    y, nan = results[0], np.isnan(results[0])
    same = np.signbit(y) == np.signbit(exact)
    for other in results[1:]:
        same &= y.view(np.int32) == other.view(np.int32)
    return check.ulps(y, exact) if np.all(same | nan) else np.inf


def result_of(isa, x, eps):
    _core.use_isa(isa)
    return fastrms.rms_norm(x, eps=eps)


def main():
    parts = range(0, PATTERNS, PART)
    broken = 0
    for eps in (0.0, 1e-5):
        with ProcessPoolExecutor() as pool:
            worst = max(pool.map(worst_of_part, itertools.repeat(eps), parts))
        broken += not worst <= check.FORWARD_ULP_UNWEIGHTED
        print(
            f"every float32, one in {STEP}, eps {eps:g}, {', '.join(_core.available_isas())}: "
            f"at most {worst:.4f} ulp, bound {check.FORWARD_ULP_UNWEIGHTED}",
            flush=True,
        )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
