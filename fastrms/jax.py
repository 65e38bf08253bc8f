"""fastrms for JAX on the CPU: XLA custom calls with gradients, for jit, vmap, shard_map and export.

Float16, bfloat16, float32 and float64 arrays on the CPU go to fastrms' kernels, every other type
and platform to the formula in jax.numpy. Gradients cannot be differentiated again. The norm is that
of Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.
"""

from __future__ import annotations  # the site is built without jax

try:
    import jax
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    wanted = 'python -m pip install "fastrms[jax]"'
    raise ImportError(f"jax is not installed: {wanted}") from None

import jax.numpy as jnp
from jax.typing import ArrayLike

from . import _jax, _jax_ops
from ._arguments import DTYPES

__all__ = ["TARGETS", "add_rms_norm", "rms_norm"]


def __dir__() -> list[str]:
    return __all__


#: Names of the custom calls, for the checks of ``jax.export``.
TARGETS = tuple(_jax.targets)

# ---- the functions ----------------------------------------------------------------------------


def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
) -> jax.Array:
    """Divide each row of `x` by its root mean square, then scale it by `weight`.

    ``y = x / sqrt(mean(x**2) + eps) * (weight_offset + weight)``, over the last axis.

    Parameters
    ----------
    x : array, shape (..., n)
        Of a floating type. On the CPU float16, bfloat16, float32 and float64 are computed by
        fastrms, anything else by jax.numpy; both in float32, or in float64 if `x` is.
    weight : array, shape (n,), optional
        Without it the factor is 1.
    eps, weight_offset : float
        Python numbers, compiled in. eps, zero or more, is added to the mean square, and
        `weight_offset` to `weight`: 1 for models that store weight - 1 (Gemma).

    Returns
    -------
    A new array of x's shape and type, rounded once; differentiable once in `x` and `weight`.

    Raises
    ------
    TypeError
        If `x` or `weight` is not floating, or eps or weight_offset is traced or not a number.
    ValueError
        If a shape does not fit, or eps is negative or NaN.

    Notes
    -----
    On the CPU these are the bits of `fastrms.rms_norm`, and of `fastrms.rms_norm_backward`.

    Examples
    --------
    >>> import jax, fastrms.jax
    >>> jax.jit(fastrms.jax.rms_norm)(jax.numpy.array([[3.0, 4.0]]))
    Array([[0.8485278, 1.1313704]], dtype=float32)
    """
    x, weight, numbers = check(x, weight, eps, weight_offset)
    if have_kernels(x, weight):
        return _jax_ops.compiled_norm(*alike(x, weight), *numbers)
    return _jax_ops.formula(x, weight, *numbers)


def add_rms_norm(
    x: ArrayLike,
    residual: ArrayLike,
    weight: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Return ``rms_norm(residual + x)`` and ``residual + x``.

    ``total = residual + x``, then ``y = rms_norm(total, weight, eps)``, over the last axis. JAX
    arrays are immutable, so both results are new; `fastrms.add_rms_norm` writes to `residual`.

    Parameters
    ----------
    x : array, shape (..., n)
        A layer's output, of a floating type. If the same `jax.jit` computes `x` and uses it nowhere
        else, XLA reuses its memory for `total`: one pass. Otherwise XLA copies `x` first.
    residual : array, shape of x
        The stream; float32 beside bfloat16 `x` keeps small sums.
    weight, eps, weight_offset
        As in `rms_norm`.

    Returns
    -------
    y, total
        New arrays of x's shape, with the types of `x` and `residual`, differentiable once in all
        arguments that are arrays.

    Raises
    ------
    TypeError, ValueError
        As in `rms_norm`, and if `residual` does not have the shape of `x`.

    Notes
    -----
    On the CPU these are the bits of `fastrms.add_rms_norm`. The gradient is one call of
    `fastrms.rms_norm_backward`, which adds to the gradient of `total`.

    Examples
    --------
    >>> import jax.numpy as jnp, fastrms.jax
    >>> fastrms.jax.add_rms_norm(jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 4.0]]))[1]
    Array([[3., 4.]], dtype=float32)
    """
    x, weight, numbers = check(x, weight, eps, weight_offset)
    residual = floating(residual, "residual")
    if residual.shape != x.shape:
        raise ValueError(f"residual must have the shape of x, {x.shape}, got {residual.shape}")
    if have_kernels(x, residual, weight):
        return _jax_ops.compiled_add_norm(*alike(x, residual, weight), *numbers)
    return _jax_ops.add_formula(x, residual, weight, *numbers)


def check(x, weight, eps, weight_offset):
    """Return the checked arguments as arrays and Python numbers."""
    x = floating(x, "x")
    if x.ndim == 0:
        raise ValueError("x must have at least one axis, got a 0-d array")
    if weight is not None:
        weight = floating(weight, "weight")
        if weight.shape != x.shape[-1:]:
            wanted = f"{x.shape[-1:]}, the last axis of x"
            raise ValueError(f"weight must have shape {wanted}, got {weight.shape}")
    numbers = number(eps, "eps"), number(weight_offset, "weight_offset")
    if not numbers[0] >= 0:
        raise ValueError(f"eps must be zero or more, got {numbers[0]}")
    return x, weight, numbers


def floating(value, name):
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):  # JAX's and NumPy's own, of anything that is no array
        got = type(value).__name__
        raise TypeError(f"{name} must be an array of a floating type, got {got}") from None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be of a floating type, got {array.dtype}")
    return array


def number(value, name):
    try:
        return float(value + 0.0)  # the sum raises for a string
    except jax.errors.ConcretizationTypeError:
        raise TypeError(f"{name} must be a Python number, got a traced value") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}") from None


def have_kernels(*arrays):
    return all(array is None or array.dtype.name in DTYPES for array in arrays)


def alike(*arrays):
    """Under shard_map make all arrays vary over the axes that any varies over, as operators do.
    The transpose of this step sums dweight over the devices."""
    axes = frozenset().union(*map(varying, arrays))
    return [spread(array, tuple(axes - varying(array))) for array in arrays]


def varying(array):
    """Return the axes of shard_map over which the array varies; jax 0.6 names them otherwise."""
    if array is None:
        return frozenset()
    return array.aval.mat.varying if hasattr(array.aval, "mat") else array.aval.vma


def spread(array, axes):
    if array is None or not axes:
        return array
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, axes, to="varying")
    return jax.lax.pvary(array, axes)
