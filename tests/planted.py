"""Wrong implementations of RMSNorm, for test_conformance.py: each fault has one here.

FAULTS has (role, function, dtype, what the check has to say).
"""

import numpy as np

from fastrms.conformance.formulas import rounded_to_zero

from .good_norms import backward, blocks_of_32, mean, numpy_formula, rounds_before


def eps_outside(x, weight, eps):
    return x / (np.sqrt(mean(x * x)) + x.dtype.type(eps)) * weight


def eps_ignored(x, weight, eps):
    return numpy_formula(x, weight, 0.0)


def one_added(x, weight, eps):
    return numpy_formula(x, 1 + weight, eps)


def layer_norm(x, weight, eps):
    centred = x - mean(x)
    return numpy_formula(centred, weight, eps)


def mean_subtracted(x, weight, eps):
    return (x - mean(x)) / np.sqrt(mean(x * x) + np.float32(eps)) * weight


def truncates(x, weight, eps):
    wide = x.astype(np.float64)
    return rounded_to_zero(wide / np.sqrt(mean(wide * wide) + eps) * weight, x.dtype)


def truncates_twice(x, weight, eps):
    wide = x.astype(np.float64)
    xhat = rounded_to_zero(wide / np.sqrt(mean(wide * wide) + eps), x.dtype)
    return rounded_to_zero(xhat.astype(np.float64) * weight.astype(np.float64), x.dtype)


def truncating_residual(x, residual):
    return rounded_to_zero(x.astype(np.float64) + residual.astype(np.float64), x.dtype)


def no_mean_term(dy, x, weight, eps):
    return backward(dy, x, weight, eps, term=lambda g, xhat: 0)


def n_twice(dy, x, weight, eps):
    return backward(
        dy, x, weight, eps, term=lambda g, xhat: xhat * mean(g * xhat) / np.float32(x.shape[-1])
    )


def weight_forgotten(dy, x, weight, eps):
    return backward(dy, x, weight, eps, weighted=False)


def layer_norm_term(dy, x, weight, eps):
    return backward(dy, x, weight, eps, term=lambda g, xhat: mean(g) + xhat * mean(g * xhat))


def half_sum(dy, x, weight, eps):
    dx, _ = backward(dy, x, weight, eps)
    wide = x.astype(np.float32)
    terms = dy * (wide / np.sqrt(mean(wide * wide) + np.float32(eps))).astype(x.dtype)
    dweight = np.zeros(x.shape[1], x.dtype)
    for row in terms:
        dweight = dweight + row
    return dx, dweight


def half_sum_upwards(dy, x, weight, eps):
    return backward(dy, x, weight, eps)[0], half_sum(dy[::-1], x[::-1], weight, eps)[1]


def other_sum_for_few_rows(x, weight, eps):
    return (blocks_of_32 if len(x) < 3 else numpy_formula)(x, weight, eps)


def one_scale_for_all(x, weight, eps):
    """Scales by the batch's largest, against overflow: rows beside a large one lose bits."""
    largest = np.nanmax(np.abs(x), initial=1e-30)
    return numpy_formula(x / largest, weight, eps / largest**2)


def zero_times_neighbour(x, weight, eps):
    """Masks by a product, and 0 * Inf is NaN."""
    return numpy_formula(x + 0 * x.sum(axis=0), weight, eps)


def by_alignment(x, weight, eps):
    return (numpy_formula if x.ctypes.data % 16 == 0 else blocks_of_32)(x, weight, eps)


RUNS = iter(range(10**9))


def other_each_time(x, weight, eps):
    return (numpy_formula if next(RUNS) % 2 else blocks_of_32)(x, weight, eps)


def changes_inputs(x, weight, eps):
    y = numpy_formula(x, weight, eps)
    x *= 2
    return y


def add_into_residual(x, residual, weight, eps):
    residual += x
    return numpy_formula(residual, weight, eps), residual


def misreads_stride_0(x, weight, eps):
    """Steps to other numbers, where the next row is the same one."""
    if x.strides[0] == 0 and len(x) > 1:
        x = np.concatenate([x[:1], x[1:] + 1])
    return numpy_formula(x, weight, eps)


def misreads_reversed(x, weight, eps):
    return numpy_formula(x[::-1] if x.strides[0] < 0 else x, weight, eps)


FAULTS = [
    ("norm", eps_outside, "float32", "eps is outside the root"),
    ("norm", eps_outside, "float64", "eps is outside the root"),
    ("norm", eps_ignored, "float32", "eps is ignored"),
    ("norm", one_added, "float32", "weight_offset of 1 seems to be added"),
    ("norm", layer_norm, "float32", "the mean is subtracted"),
    ("norm", mean_subtracted, "float32", "the mean is subtracted"),
    ("norm", truncates, "float32", "truncates instead of rounding"),
    ("norm", truncates, "bfloat16", "truncates instead of rounding"),
    ("norm", truncates_twice, "float16", "truncates instead of rounding"),
    ("residual", truncating_residual, "bfloat16", "truncates instead of rounding"),
    ("norm", rounds_before, "bfloat16", "rounds x / rms before the weight"),
    ("norm", rounds_before, "float16", "rounds x / rms before the weight"),
    ("backward", no_mean_term, "float32", "backward lacks the mean term"),
    ("backward", no_mean_term, "bfloat16", "backward lacks the mean term"),
    ("backward", n_twice, "float32", "backward divides by n twice"),
    ("backward", n_twice, "float16", "backward divides by n twice"),
    ("backward", weight_forgotten, "float32", "backward forgets weight"),
    ("backward", layer_norm_term, "float32", "backward keeps LayerNorm's term"),
    ("backward", half_sum, "bfloat16", "dweight is summed in half precision"),
    ("backward", half_sum, "float16", "dweight is summed in half precision"),
    ("backward", half_sum_upwards, "bfloat16", "dweight is summed in half precision"),
    ("norm", other_sum_for_few_rows, "float32", "a row's bits depend on the batch"),
    ("norm", one_scale_for_all, "float32", "a row's bits depend on its neighbours"),
    ("norm", zero_times_neighbour, "float32", "a row's bits depend on its neighbours"),
    ("norm", by_alignment, "float32", "a row's bits depend on alignment"),
    ("norm", other_each_time, "float32", "two runs differ"),
    ("norm", changes_inputs, "float32", "inputs are changed"),
    ("add", add_into_residual, "float32", "inputs are changed"),
    ("norm", misreads_stride_0, "float32", "stride 0 rows are misread"),
    ("norm", misreads_reversed, "float32", "reversed rows are misread"),
]
FORMULAS = (
    "eps_outside",
    "eps_ignored",
    "one_added",
    "layer_norm",
    "mean_subtracted",
    "no_mean_term",
    "n_twice",
    "weight_forgotten",
    "layer_norm_term",
)
# Those of which only a strict check makes a failure.
LENIENT = (
    "rounds x / rms before the weight",
    "a row's bits depend on the batch",
    "a row's bits depend on alignment",
)
