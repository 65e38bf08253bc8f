"""Hard rows for tight bounds: each family is a function (rng, rows, n) -> Rows, for any n.

Some are real data at its worst (a few channels that dominate a row, constant features beside an
outlier, a gradient of two values). Others are the hard cases of the proofs: neighbours of a power
of two, subnormal products, sums that cancel.
"""

from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """The arguments of rms_norm_backward; dy and x are (rows, n), weight is (n,) or None."""

    dy: np.ndarray
    x: np.ndarray
    weight: np.ndarray | None
    eps: float


def _rows(rng, x, dy=None, weight=None, eps=1e-5):
    n = x.shape[-1]
    dy = rng.standard_normal(x.shape) if dy is None else dy
    weight = 1 + 0.3 * rng.standard_normal(n) if weight is None else weight
    dy = np.broadcast_to(dy, x.shape)
    return Rows(*(np.ascontiguousarray(part, np.float32) for part in (dy, x, weight)), eps)


def _outliers(count):
    """Return a family in which `count` channels of nearly equal size dominate the row."""

    def make(rng, rows, n):
        x = rng.standard_normal((rows, n))
        size = rng.choice((64, 128, 256, 1024), (rows, 1)) * rng.uniform(1, 1.1, (rows, 1))
        columns = np.array((7, 133, 250, 401))[:count] % n
        x[:, columns] = size * np.array((1, -1, 1, -1))[:count]
        return _rows(rng, x)

    return make


def two_ones(rng, rows, n):
    x = 1e-3 * rng.standard_normal((rows, n))
    x[:, rng.integers(n, size=2)] = 1
    return _rows(rng, x, eps=0.0)


def repeats(rng, rows, n):
    x = rng.standard_normal((rows, -(-n // 16)), dtype=np.float32)
    return _rows(rng, np.repeat(x, 16, axis=1)[:, :n], eps=0.0)


def _periodic(period):
    def make(rng, rows, n):
        x = rng.standard_normal((rows, period), dtype=np.float32)
        return _rows(rng, x[:, np.arange(n) % period], eps=0.0)

    return make


def worst_squares(rng, rows, n):
    """Make rows whose squares, near the midpoint of two float32, are all rounded the same way."""
    pool = rng.uniform(1, 2, 4096).astype(np.float32)
    squares = pool.astype(np.float64) ** 2
    lost = (squares.astype(np.float32) - squares) / squares
    pool = pool[np.argsort(lost)[:16]] if rng.integers(2) else pool[np.argsort(-lost)[:16]]
    block = rng.choice(pool, (rows, 8))
    return _rows(rng, np.repeat(block, 16, axis=1)[:, np.arange(n) % 128], eps=0.0)


def binade_crossings(rng, rows, n):
    """Choose weights that put y, for one row in each column, within 3 ulp of a power of two."""
    x = rng.standard_normal((rows, n), dtype=np.float32)
    owner = np.arange(n) % rows, np.arange(n)
    xhat = x / np.sqrt((x.astype(np.longdouble) ** 2).mean(axis=1, keepdims=True))
    weight = np.exp2(np.round(np.log2(np.abs(xhat[owner]) + 1e-30))) / xhat[owner]
    weight *= 1 + rng.integers(-3, 4, n) * 2.0**-24
    return _rows(rng, x, weight=weight, eps=0.0)


def sparse_crossings(rng, rows, n):
    """Make such crossings with two nonzero elements, as in the shortest counterexamples."""
    x = np.zeros((rows, n))
    x[:, 0], x[:, -1] = rng.uniform(1, 1.2, rows), rng.uniform(0.1, 1, rows)
    x = x.astype(np.float32)
    xhat = x[0] / np.sqrt((x[0].astype(np.longdouble) ** 2).mean())
    weight = np.exp2(rng.integers(-4, 4, n)) * (1 + rng.integers(-3, 4, n) * 2.0**-24)
    weight /= np.where(xhat == 0, 1, xhat)
    return _rows(rng, x, weight=weight, eps=0.0)


def _subnormal(low, high):
    """Return a family of subnormal x / rms beside a normal one, with weights from low to high."""

    def make(rng, rows, n):
        x = 2.0 ** rng.uniform(-149, -124, (rows, n)) * rng.choice((-1, 1), (rows, n))
        x[:, 0] = rng.uniform(0.5, 2, rows)
        return _rows(rng, x, weight=np.exp2(rng.uniform(np.log2(low), np.log2(high), n)), eps=0.0)

    return make


def tiny(rng, rows, n):
    """Make rows so small that rms is sqrt(eps); x / rms is subnormal or close to it."""
    x = rng.standard_normal((rows, n)) * 2.0 ** rng.uniform(-149, -128, (rows, 1))
    return _rows(rng, x, weight=rng.uniform(2, 4, n))


def _two_values(features):
    """Return a family of these features, one outlier near sqrt(n), and dy of tau or tau - 1."""

    def make(rng, rows, n):
        # One factor for the whole row makes the roundings of dy * x alike.
        x = features(rng, rows, n) * rng.uniform(0.5, 2, (rows, 1))
        x[:, rng.integers(n)] = np.sqrt(n) * rng.uniform(0.5, 2, rows)
        tau = rng.uniform(0, 1, (rows, 1))
        dy = np.where(rng.random((rows, n)) < tau, tau - 1, tau)
        return _rows(rng, x, dy, np.ones(n))

    return make


def groups(rng, rows, n):
    """Make x and dy in groups of 16 equal values, period 128, with an outlier in x."""
    x, dy = (np.repeat(rng.standard_normal((rows, 8)), 16, axis=1) for _ in range(2))
    x, dy = (part[:, np.arange(n) % 128].copy() for part in (x, dy))
    x[:, rng.integers(n)] = np.sqrt(n) * rng.uniform(0.5, 2, rows)
    return _rows(rng, x, dy, np.ones(n))


def parallel(rng, rows, n):
    """Set dy to x: dx is eps / rms**2 of its two terms, 1e-11 here; float64 resolves 1e-16."""
    x = 1000 * rng.standard_normal((rows, n))
    return _rows(rng, x, x, np.ones(n), eps=float(rng.choice((1e-12, 1e-7, 9e-6))))


def nearly_parallel(rng, rows, n):
    x = rng.standard_normal((rows, n))
    return _rows(rng, x, x + 2.0 ** rng.uniform(-24, 0, (rows, 1)) * rng.standard_normal(x.shape))


def subnormal_terms(rng, rows, n):
    """Make dy * x / rms subnormal but for column 0; computing x / rms first would round it."""
    x = 2.0**-140 * rng.standard_normal((rows, n))
    x[:, 0] = 1
    return _rows(rng, x, rng.uniform(0.05, 4, x.shape), eps=float(rng.choice((0.0, 1e-5, 1.0))))


def sinks(rng, rows, n):
    """Make an attention sink: three channels in the thousands, the rest small."""
    x = 0.1 * rng.standard_normal((rows, n))
    x[:, rng.integers(n, size=3)] = rng.choice((-1, 1), 3) * rng.uniform(500, 3000, (rows, 3))
    return _rows(rng, x)


def one_channel(rng, rows, n):
    x = rng.standard_normal((rows, n))
    x[:, rng.integers(n)] = 100
    return _rows(rng, x)


def outlier_gradient(rng, rows, n):
    """Make one element of dy, and in every other row one of x too, 1e3 to 1e6 times the rest."""
    x, dy = rng.standard_normal((2, rows, n))
    every = np.arange(rows)
    dy[every, rng.integers(n, size=rows)] *= 10 ** rng.uniform(3, 6, rows)
    x[every[::2], rng.integers(n, size=rows)[::2]] *= 10 ** rng.uniform(3, 6, rows)[::2]
    return _rows(rng, x, dy)


def _log_normal(sigma):
    """Return a family of x, dy and weight of either sign, log-normal with this sigma."""

    def make(rng, rows, n):
        x, dy, weight = (
            rng.lognormal(0, sigma, shape) * rng.choice((-1, 1), shape)
            for shape in ((rows, n), (rows, n), n)
        )
        return _rows(rng, x, dy, weight, eps=float(rng.choice((0.0, 1e-5))))

    return make


def disjoint(rng, rows, n):
    """Make dy zero wherever x is not: mean(g * xhat) is 0, and so is dx where x is not."""
    x, dy = rng.standard_normal((2, rows, n))
    x[:, 1::2] = 0
    dy[:, ::2] = 0
    return _rows(rng, x, dy)


HARD = {
    "outlier pair": _outliers(2),
    "outlier triple": _outliers(3),
    "outlier quadruple": _outliers(4),
    "two ones": two_ones,
    "repeats of 16": repeats,
    "period 128": _periodic(128),
    "period 32": _periodic(32),
    "worst squares": worst_squares,
    "binade crossings": binade_crossings,
    "sparse crossings": sparse_crossings,
    "subnormal weight to 2": _subnormal(0.25, 2),
    "subnormal weight 2 to 4": _subnormal(2, 4),
    "subnormal weight to 2**60": _subnormal(4, 2.0**60),
    "tiny rows": tiny,
    "constant two values": _two_values(lambda rng, rows, n: np.ones((rows, n))),
    "0 or 1 two values": _two_values(lambda rng, rows, n: rng.integers(0, 2, (rows, n))),
    "groups": groups,
    "parallel": parallel,
    "nearly parallel": nearly_parallel,
    "subnormal terms": subnormal_terms,
    "sinks": sinks,
    "one channel": one_channel,
    "outlier gradient": outlier_gradient,
    "log-normal 2 sigma": _log_normal(2),
    "log-normal 4 sigma": _log_normal(4),
    "disjoint": disjoint,
}


def with_offset(rng, rows):
    """Return the rows with weights for an offset of 1, such that their sum is no float32."""
    factor = rows.weight * (1 + 2.0**-24 * rng.uniform(-1, 1, rows.weight.shape))
    return rows._replace(weight=(factor - 1).astype(np.float32))


def exact(rows, weight_offset=0.0):
    """Return xhat (y without a weight), y, dx and dweight in longdouble."""
    dy, x = (part.astype(np.longdouble) for part in rows[:2])
    n = x.shape[-1]
    rms = np.sqrt((x * x).sum(axis=-1, keepdims=True) / n + np.longdouble(rows.eps))
    xhat = x / rms
    factor = np.longdouble(1)
    if rows.weight is not None:
        factor = np.longdouble(weight_offset) + rows.weight.astype(np.longdouble)
    g = dy * factor
    dx = (g - xhat * ((g * xhat).sum(axis=-1, keepdims=True) / n)) / rms
    return xhat, xhat * factor, dx, (dy * xhat).sum(axis=0)
