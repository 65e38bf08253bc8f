"""Good implementations of RMSNorm and its companions, in many styles, for test_conformance.py."""

import numpy as np

import fastrms
from fastrms import reference


def mean(values):
    return values.mean(axis=-1, keepdims=True)


def rounded(values, like):
    return reference._rounded(np.asarray(values, np.float64), like.dtype)


def numpy_formula(x, weight, eps):
    return x / np.sqrt(mean(x * x) + x.dtype.type(eps)) * weight


def reciprocal(x, weight, eps):
    inv_rms = 1 / np.sqrt(mean(np.square(x)) + np.float32(eps))
    return weight * (x * inv_rms)


def sequential_sum(x, weight, eps):
    """One float32 sum from left to right: off by 114 ulp in constant rows of 1024."""
    squares = np.cumsum(x * x, axis=-1, dtype=np.float32)[..., -1:]
    return x / np.sqrt(squares / np.float32(x.shape[-1]) + np.float32(eps)) * weight


def blocks_of_32(x, weight, eps):
    """Float32 sums from left to right in blocks of 32, and then of the blocks."""
    squares = np.float32(0)
    for start in range(0, x.shape[-1], 32):
        block = x[:, start : start + 32]
        squares = squares + np.cumsum(block * block, axis=-1, dtype=np.float32)[:, -1:]
    return x / np.sqrt(squares / np.float32(x.shape[-1]) + np.float32(eps)) * weight


def reversed_sum(x, weight, eps):
    return blocks_of_32(x[:, ::-1], weight[::-1], eps)[:, ::-1]


def lanes(x, weight, eps):
    """Eight float32 lanes, as in a vectorised loop."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[-1] % 8)))
    sums = (padded * padded).reshape(len(x), -1, 8).sum(axis=1)
    mean_square = sums.sum(axis=-1, keepdims=True) / np.float32(x.shape[-1])
    return x * (1 / np.sqrt(mean_square + np.float32(eps))) * weight


def fused(x, weight, eps):
    """As with FMA in 16 lanes: each square is added unrounded."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, -x.shape[-1] % 16)))
    sums = np.zeros((len(x), 16), np.float32)
    for part in padded.reshape(len(x), -1, 16).transpose(1, 0, 2):
        sums = (sums + part * part).astype(np.float32)
    mean_square = sums.sum(axis=-1, keepdims=True) / np.float32(x.shape[-1])
    return x / np.sqrt(mean_square + np.float32(eps)) * weight


def einsum(x, weight, eps):
    squares = np.einsum("ij,ij->i", x, x)[:, None]
    return x * np.float32(1) / np.sqrt(squares / np.float32(x.shape[-1]) + np.float32(eps)) * weight


def in_float64(x, weight, eps):
    wide = x.astype(np.float64)
    return rounded(wide / np.sqrt(mean(wide * wide) + eps) * weight.astype(np.float64), x)


def in_float32(x, weight, eps):
    """The usual way for halves: float32 arithmetic, rounded once."""
    return numpy_formula(x.astype(np.float32), weight.astype(np.float32), eps).astype(x.dtype)


def rounds_before(x, weight, eps):
    """Llama's way in half: x / rms is rounded, and then the product."""
    wide = x.astype(np.float32)
    return (wide / np.sqrt(mean(wide * wide) + np.float32(eps))).astype(x.dtype) * weight


def two_norms(x, weight, eps):
    """By the Euclidean norm: ||x|| / sqrt(n)."""
    size = np.linalg.norm(x, axis=-1, keepdims=True).astype(np.float32)
    root = np.sqrt(np.float32(x.shape[-1]))
    return x / np.hypot(size / root, np.sqrt(np.float32(eps))) * weight


RIGHT = {
    "fastrms": (fastrms.rms_norm, "float32"),
    "numpy_formula": (numpy_formula, "float32"),
    "numpy_formula in float64": (numpy_formula, "float64"),
    "reciprocal": (reciprocal, "float32"),
    "sequential_sum": (sequential_sum, "float32"),
    "blocks_of_32": (blocks_of_32, "float32"),
    "reversed_sum": (reversed_sum, "float32"),
    "lanes": (lanes, "float32"),
    "fused": (fused, "float32"),
    "einsum": (einsum, "float32"),
    "in_float64": (in_float64, "float32"),
    "two_norms": (two_norms, "float32"),
    "in_float32, float16": (in_float32, "float16"),
    "in_float32, bfloat16": (in_float32, "bfloat16"),
    "rounds_before, float16": (rounds_before, "float16"),
    "rounds_before, bfloat16": (rounds_before, "bfloat16"),
    "in_float64, bfloat16": (in_float64, "bfloat16"),
}


def backward(dy, x, weight, eps, *, term=lambda g, xhat: xhat * mean(g * xhat), weighted=True):
    """Right, in float32; `term` and `weighted` make it wrong."""
    dy, wide, factor = (array.astype(np.float32) for array in (dy, x, weight))
    rms = np.sqrt(mean(wide * wide) + np.float32(eps))
    xhat = wide / rms
    g = dy * factor if weighted else dy
    dx = (g - term(g, xhat)) / rms
    return dx.astype(x.dtype), (dy * xhat).sum(axis=0).astype(x.dtype)


def backward_64(dy, x, weight, eps):
    dx, dweight = reference.rms_norm_backward(dy, x, weight, eps)
    return rounded(dx, x), rounded(dweight, x)


def backward_in_three_sums(dy, x, weight, eps):
    """The textbook's other form: inv * (g - x * inv**2 * mean(g * x))."""
    inv = 1 / np.sqrt(mean(x * x) + x.dtype.type(eps))
    g = dy * weight
    dweight = np.zeros(x.shape[1], x.dtype)
    for row in dy * (x * inv):
        dweight += row
    return inv * g - x * (inv * inv * inv * mean(g * x)), dweight


def add(x, residual, weight, eps):
    total = x + residual
    return in_float32(total, weight, eps), total


def add_unrounded(x, residual, weight, eps):
    """The norm reads the float32 sum, and total is that sum rounded."""
    total = x.astype(np.float32) + residual.astype(np.float32)
    y = numpy_formula(total, weight.astype(np.float32), eps)
    return y.astype(x.dtype), total.astype(x.dtype)


def residual(x, residual):
    return x + residual


RIGHT_COMPANIONS = [
    ("backward", backward, "float32"),
    ("backward", backward, "bfloat16"),
    ("backward", backward_64, "float16"),
    ("backward", backward_in_three_sums, "float32"),
    ("backward", fastrms.rms_norm_backward, "float32"),
    ("add", add, "float32"),
    ("add", add, "bfloat16"),
    ("add", add_unrounded, "float16"),
    ("add", add_unrounded, "bfloat16"),
    ("residual", residual, "float32"),
    ("residual", residual, "bfloat16"),
]
