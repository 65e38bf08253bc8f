#!/usr/bin/env python
"""Search for rows that break the bounds of fastrms.check, by hill climbing.

    .ci/gates/search.py [SECONDS]    default: 60, or half an hour with FULL=1

Each round takes the worst case so far of one measure, or a fresh one of conformance/hard.py, and
mutates it (mantissas, repeats, amplitudes, weights, eps, gradient values) 16 ways; it keeps the
worst. The oracle has 80 bits. Prints the largest share of each bound with its case in hex, to be
copied into a test; exit code 1 if a bound breaks. The offset is 1 where a measure has one.
"""

import os
import sys
import time

import numpy as np

import fastrms
from fastrms import check
from fastrms.conformance.hard import HARD, Rows, exact, with_offset

SECONDS = 1800 if os.environ.get("FULL") == "1" else 60
LENGTHS = (3, 5, 17, 33, 64, 128, 576, 2048)
PATIENCE = 40  # rounds without a gain before a fresh start


def no_weight(case):
    return check.ulps(fastrms.rms_norm(case.x, None, case.eps), exact(case)[0])


def weight(case):
    return check.ulps(fastrms.rms_norm(case.x, case.weight, case.eps), exact(case)[1])


def offset(case):
    y = fastrms.rms_norm(case.x, case.weight, case.eps, weight_offset=1.0)
    return check.ulps(y, exact(case, 1.0)[1])


def dx(case):
    result, _ = fastrms.rms_norm_backward(*case)
    return check.dx_error(result, exact(case)[2], *case)


def dx_offset(case):
    result, _ = fastrms.rms_norm_backward(*case, weight_offset=1.0)
    return check.dx_error(result, exact(case, 1.0)[2], *case, 1.0)


def dweight(case):
    _, result = fastrms.rms_norm_backward(*case)
    return check.dweight_error(result, exact(case)[3], case.dy, case.x, case.eps)


MEASURES = {
    no_weight: check.FORWARD_ULP_UNWEIGHTED,
    weight: check.FORWARD_ULP,
    offset: check.FORWARD_ULP_OFFSET,
    dx: check.DX,
    dx_offset: check.DX,
    dweight: check.DWEIGHT,
}


def fresh(rng, measure):
    rows = 32 if measure is dweight else 1
    family = HARD[rng.choice(list(HARD))]
    case = family(rng, rows, int(rng.choice(LENGTHS)))
    return with_offset(rng, case) if measure in (offset, dx_offset) else case


def mutate(rng, case):
    """Return the case with one of its arrays, or eps, changed in one way."""
    if not rng.integers(8):
        return case._replace(eps=float(rng.choice((0.0, 1e-12, 1e-5, 10 ** rng.uniform(-12, 2)))))
    name = rng.choice(("x", "x", "weight", "dy"))
    values = getattr(case, name).copy()
    columns = rng.integers(values.shape[-1], size=rng.integers(1, 5))
    kind = rng.integers(5)
    if kind == 0:  # the last bits of a few mantissas
        values[..., columns] *= 1 + np.float32(2.0**-23) * rng.integers(-8, 9)
    elif kind == 1:  # the amplitude of a few
        values[..., columns] *= np.float32(2.0 ** rng.uniform(-2, 2))
    elif kind == 2:  # one value repeated
        values[..., columns] = values[..., columns[:1]]
    elif kind == 3:  # one block repeated
        period = int(rng.choice((2, 16, 32, 128)))
        values = values[..., np.arange(values.shape[-1]) % min(period, values.shape[-1])]
    else:  # all of them, within a binade
        values *= np.float32(rng.uniform(0.7, 1.4))
    if not np.isfinite(values).all() or (name == "x" and not values.any(axis=-1).all()):
        return case
    return case._replace(**{name: np.ascontiguousarray(values)})


def climb(rng, measure, seconds):
    """Return the largest error that this measure reaches within this time, and its case."""
    best, found = -1.0, None
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        top, case, idle = -1.0, fresh(rng, measure), 0
        while idle < PATIENCE and time.monotonic() < end:
            cases = [mutate(rng, case) for _ in range(16)]
            errors = [measure(each) for each in cases]
            idle += 1
            if max(errors) > top:
                top, case, idle = max(errors), cases[int(np.argmax(errors))], 0
        if top > best:
            best, found = top, case
    return best, found


def in_hex(case):
    """Return the case as text, the first 64 values of each array in hex."""
    texts = [f"eps={case.eps!r}"]
    for name, values in zip(Rows._fields[:3], case[:3], strict=True):
        shown = " ".join(float(value).hex() for value in values.reshape(-1)[:64])
        texts.append(f"{name}{list(values.shape)}={shown}")
    return "\n    ".join(texts)


def main(arguments):
    seconds = float(arguments[0]) if arguments else SECONDS
    fastrms.set_num_threads(1)
    rng, broken = np.random.default_rng(20191016), 0
    with np.errstate(all="ignore"):
        for measure, bound in MEASURES.items():
            error, case = climb(rng, measure, seconds / len(MEASURES))
            broken += not error <= bound
            print(f"{measure.__name__}: {error:.6g}, {error / bound:.3f} of the bound {bound:g}")
            print(f"    {in_hex(case)}", flush=True)
    print(f"{broken or 'no'} bounds broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
