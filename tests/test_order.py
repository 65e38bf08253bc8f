"""Backward's steps and the order of its sums, repeated in NumPy bit by bit (docs/numerics.md)."""

import numpy as np
import pytest

import fastrms

LIFT = np.float32(2.0**40)
LENGTHS = (1, 7, 8, 63, 64, 65, 100, 576, 1000)


def _sum(products):
    """Sum float32 products (rows, n) in blocks of 64, each by trees of eight for 8 lanes."""
    rows, n = products.shape
    padded = np.zeros((rows, -(-n // 64), 8, 8), np.float32)
    padded.reshape(rows, -1)[:, :n] = products
    e = [padded[:, :, k] for k in range(8)]
    blocks = ((e[0] + e[2]) + (e[4] + e[6])) + ((e[1] + e[3]) + (e[5] + e[7]))
    lanes = np.zeros((rows, 8))
    for block in range(blocks.shape[1]):
        lanes += blocks[:, block]
    for half in (4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes


def _phases(dy, x, weight, weight_offset, eps):
    """Return dx (rows, n), and the terms of dweight times LIFT, None without a weight."""
    n = x.shape[-1]
    factor = np.float32(1) if weight is None else weight + np.float32(weight_offset)
    squares, products = _sum(x * x), _sum(dy * factor * x)
    inv_rms = 1 / np.sqrt(squares * (1 / n) + eps)
    mean = products * inv_rms * (1 / n)
    slope = (mean * inv_rms * inv_rms).astype(np.float32)
    if weight is None:
        return dy * inv_rms.astype(np.float32) - x * slope, None
    scaled = dy * (inv_rms * float(LIFT)).astype(np.float32)
    return scaled * (factor / LIFT) - x * slope, scaled * x


def _dweight(terms):
    """Sum terms (rows, n) in float32 over groups of 8 rows, then in float64."""
    total = np.zeros(terms.shape[-1])
    for first in range(0, len(terms), 8):
        group = np.zeros(terms.shape[-1], np.float32)
        for term in terms[first : first + 8]:
            group += term
        total += group.astype(np.float64) / float(LIFT)
    return total.astype(np.float32)


@pytest.mark.parametrize("rows", [1, 5, 8, 9, 30])
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("weight_offset", [None, 0.0, 1.0, 0.5])
def test_backward_takes_these_steps(way, draw, weight_offset, n, rows):
    """Up to 32 rows are one block of dweight."""
    dy, x = draw(rows, n), draw(rows, n)
    weight = None if weight_offset is None else draw(n)
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight, weight_offset=weight_offset or 0.0)
    expected, terms = _phases(dy, x, weight, weight_offset or 0.0, 1e-5)
    assert dx.tobytes() == expected.tobytes()
    if weight is not None:
        assert dweight.tobytes() == _dweight(terms).tobytes()
