"""Call every kernel on every path, in fresh arrays that end where their last row ends.

For memcheck, under which the suite would take an hour, and for ASan: results are not compared.
"""

import itertools

import numpy as np

import fastrms
from fastrms import _core

# Every vector remainder, then the lengths at which a kernel takes another path.
LENGTHS = [*range(1, 36), 63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 272, 511, 513, 1024, 4099]
ROWS = (1, 8, 9, 70)  # for backward: up to 8 rows have no block, then one block, then several
# scale, weight, weight_offset: every path of the weight, then every range of the sum.
CASES = [(1.0, weight, 0.0) for weight in (None, 1.0, 1e10, 1e20)]
CASES += [(1.0, 1.0, 1.0), (1e-42, 1.0, 0.0), (1e38, 1.0, 0.0), (np.nan, 1.0, 0.0)]
CASES = [("ffff", *case) for case in CASES]
# Dtypes of x, of dy and residual, of outputs and of weight: float64, and rows that are staged.
CASES += [("dddd", scale, 1.0, 1.0) for scale in (1.0, 1e-200)]
CASES += [("eefd", 1.0, 1.0, 0.0), ("fede", 1.0, 1.0, 0.0)]
CALLS = 10
# Level 1, bytes from which a call streams, software prefetch: every use of the caches.
CACHES = ((1 << 15, 1 << 40, False), (0, 1 << 40, True), (1 << 15, 0, True))


def call_all(rows, n, dtypes, scale, weight, offset):
    """Call every function, with new outputs and adding into given ones."""

    def x(dtype=dtypes[0]):
        return np.full((rows, n), scale, dtype)

    def dy():
        return x(dtypes[1])

    def out():
        return x(dtypes[2])

    norm = {"weight_offset": offset}
    factor = None if weight is None else np.full(n, weight, dtypes[3])
    fastrms.rms_norm(x(), factor, **norm)
    fastrms.rms_norm(x(), factor, 0.0, out=out(), accumulate=True, **norm)
    fastrms.add_rms_norm(x(), dy(), factor, **norm)
    fastrms.residual_add(x(), dy(), 1.0 + offset)
    fastrms.rms_norm_backward(dy(), x(), factor, **norm)
    fastrms.rms_norm_backward(dy(), x(), factor, dx=out(), accumulate=True, **norm)
    sums = fastrms.sum_squares(x()), fastrms.sum_products(dy(), x(), factor, **norm)
    fastrms.rms_scale(x(), sums[0], n, factor, **norm)
    fastrms.rms_scale_backward(dy(), x(), *sums, n, factor, **norm)


def main():
    count = 0
    for isa in _core.available_isas():
        _core.use_isa(isa)
        for n, rows, case in itertools.product(LENGTHS, ROWS, CASES):
            _core.set_parallel_from(1 if rows == 70 else 1 << 21)
            _core.set_caches(*CACHES[count // CALLS % len(CACHES)])
            call_all(rows, n, *case)
            count += CALLS
    print(f"{count} calls on {', '.join(_core.available_isas())}")


if __name__ == "__main__":
    main()
