"""Families of rows: the everyday ones, made of integers, so that every platform has the same.

An everyday family is a function (shape, form) -> x, where form is the dtype's Format. FAMILIES has
their names and those of the hard rows, which need a random generator and are made in float32.
"""

import zlib

import numpy as np

from .. import reference
from .draws import bell, noise
from .hard import HARD, Rows
from .measures import FORMATS

EPS = 1e-5


def normal(shape, form):
    return bell(shape, 0).astype(np.float64)


def constant(shape, form):
    return np.broadcast_to(0.7 + 0.1 * np.arange(shape[0])[:, None], shape)


def outliers(shape, form):
    """Return normal rows in which one channel is 100 times the rest."""
    x = normal(shape, form)
    x[:, shape[1] // 3] *= 100
    return x


def log_normal(shape, form):
    """Return numbers of either sign whose logarithm has a bell curve, from 2**-8 to 2**8."""
    exponent, rest = np.divmod(2.0 * bell(shape, 5), 1)
    return np.ldexp(1 + rest, exponent.astype(int)) * np.where(noise(shape, 6) % 2, 1, -1)


def tiny(shape, form):
    """Return rows whose squares are zero in their dtype."""
    return np.ldexp(normal(shape, form), int(0.7 * form.smallest))


def huge(shape, form):
    """Return rows whose squares are beyond the largest number of their dtype."""
    return np.ldexp(normal(shape, form), int(0.8 * (2 - form.bits - form.smallest)))


def subnormal(shape, form):
    return np.ldexp((noise(shape, 7) % 17) - 8.0, form.smallest)


def zeros(shape, form):
    return np.zeros(shape)


def nan_and_inf(shape, form):
    """Return normal rows, a NaN in the second and an Inf in the third."""
    x = normal(shape, form)
    x[1:2, -1] = np.nan
    x[2:3, 0] = np.inf
    return x


EVERYDAY = {
    "normal": normal,
    "constant": constant,
    "outliers": outliers,
    "log-normal": log_normal,
    "odd n": normal,
    "one row": normal,
    "zeros": zeros,
    "NaN and Inf": nan_and_inf,
    "no rows": normal,
    "tiny": tiny,
    "huge": huge,
    "subnormal": subnormal,
}
FAMILIES = (*EVERYDAY, *HARD)
SHAPE = {
    "odd n": lambda rows, n: (rows, n | 1),
    "one row": lambda rows, n: (1, n),
    "no rows": lambda rows, n: (0, n),
}
# At the ends of the range: errors there are reported, as are those of Inf and NaN.
EXTREME = (
    "tiny",
    "huge",
    "subnormal",
    *(name for name in HARD if "subnormal" in name or "tiny" in name),
)


def rows_of(family, shape, dtype, eps=None):
    """Return Rows of a family; without an `eps`, of the family's own: 0 for tiny rows."""
    if family in HARD:
        rng = np.random.default_rng((zlib.crc32(family.encode()), *shape))
        rows = HARD[family](rng, *shape)
    else:
        shape = SHAPE.get(family, lambda *shape: shape)(*shape)
        x = EVERYDAY[family](shape, FORMATS[dtype.name])
        dy = 0.25 + bell(shape, 1).astype(np.float64)
        weight = 1 + 0.25 * bell(shape[1:], 2).astype(np.float64)
        rows = Rows(dy, x, weight, 0.0 if family in ("tiny", "subnormal") else EPS)
    arrays = (rounded(array, dtype) for array in rows[:3])
    return Rows(*arrays, rows.eps if eps is None else eps)


def rounded(values, dtype):
    """Round once to a dtype; numbers beyond its largest become that."""
    values, largest = np.asarray(values, np.float64), FORMATS[dtype.name].largest
    kept = np.where(np.isinf(values), values, np.clip(values, -largest, largest))
    return reference._rounded(kept, dtype)
