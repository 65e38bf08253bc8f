"""fastrms for JAX on the CPU: XLA custom calls with gradients, for jit, vmap, shard_map and export.

Float32 arrays on the CPU go to fastrms' kernels; every other type and platform to the formula in
jax.numpy. It refuses to differentiate a gradient.
"""

from functools import partial
from typing import Any

try:
    import jax
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    wanted = 'python -m pip install "fastrms[jax]"'
    raise ImportError(f"jax is not installed: {wanted}") from None

import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike

from . import _jax

__all__ = ["TARGETS", "add_rms_norm", "rms_norm"]

#: Names of the custom calls, for the checks of ``jax.export``.
TARGETS = tuple(_jax.targets)

for _name, _target in _jax.targets.items():
    jax.ffi.register_ffi_target(_name, _target, platform="cpu")


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
        Of a floating type: float32 on the CPU is computed by fastrms, anything else by jax.numpy,
        in float32 at least.
    weight : array, shape (n,), optional
        Without it the factor is 1.
    eps, weight_offset : float
        Python numbers, compiled in: eps, zero or more, is added to the mean square;
        `weight_offset` to `weight`, 1 for models that store weight - 1 (Gemma).

    Returns
    -------
    A new array of x's shape and type. Gradients flow to `x` and `weight`, once.

    Raises
    ------
    TypeError
        If `x` is not floating, or eps or weight_offset is not a number or is traced.
    ValueError
        If a shape does not fit, or eps is negative or NaN.

    Notes
    -----
    Float32 on the CPU: the bits of `fastrms.rms_norm`, the gradient's those of
    `fastrms.rms_norm_backward`.

    References
    ----------
    Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import jax, fastrms.jax
    >>> jax.jit(fastrms.jax.rms_norm)(jax.numpy.array([[3.0, 4.0]]))
    Array([[0.8485278, 1.1313704]], dtype=float32)
    """
    x, weight, numbers = check(x, weight, eps, weight_offset)
    if all_float32(x, weight):
        return compiled_norm(*alike(x, weight), *numbers)
    return formula(x, weight, *numbers)


def add_rms_norm(
    x: ArrayLike,
    residual: ArrayLike,
    weight: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Return ``rms_norm(residual + x)`` and ``residual + x``.

    ``total = residual + x``, then ``y = rms_norm(total, weight, eps)``, over the last axis. Arrays
    of JAX do not change, so both results are new, where `fastrms.add_rms_norm` writes `residual`.

    Parameters
    ----------
    x : array, shape (..., n)
        A layer's output, of a floating type.
    residual : array, shape of x
        The stream. Where nothing else needs it (under `jax.jit`, computed there or donated) XLA
        lets `total` have its memory: one pass over memory. Else XLA copies it first.
    weight, eps, weight_offset
        As in `rms_norm`.

    Returns
    -------
    y, total
        New arrays of x's shape. Gradients flow to all arrays, once.

    Raises
    ------
    TypeError, ValueError
        As in `rms_norm`, and if `residual` has not the shape of `x`.

    Notes
    -----
    Float32 on the CPU: the bits of `fastrms.add_rms_norm`. The gradient is one call of
    `fastrms.rms_norm_backward`, which adds to the gradient that came through `total`.

    References
    ----------
    Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.

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
    if all_float32(x, residual, weight):
        return compiled_add_norm(*alike(x, residual, weight), *numbers)
    return add_formula(x, residual, weight, *numbers)


def check(x, weight, eps, weight_offset):
    """Return arrays and Python numbers, or raise."""
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
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be of a floating type, got {array.dtype}")
    return array


def number(value, name):
    try:
        return float(value + 0.0)  # which refuses a string
    except jax.errors.ConcretizationTypeError:
        raise TypeError(f"{name} must be a Python number, got a traced value") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}") from None


def all_float32(*arrays):
    return all(array is None or array.dtype == np.float32 for array in arrays)


def alike(*arrays):
    """Under shard_map let all vary over the devices that one varies over, as an operator would: the
    transpose of that adds dweight over them."""
    axes = frozenset().union(*map(varying, arrays))
    return [spread(array, tuple(axes - varying(array))) for array in arrays]


def varying(array):
    """The axes of shard_map over which it varies; jax 0.6 says it another way."""
    if array is None:
        return frozenset()
    return array.aval.mat.varying if hasattr(array.aval, "mat") else array.aval.vma


def spread(array, axes):
    if array is None or not axes:
        return array
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, axes, to="varying")
    return jax.lax.pvary(array, axes)


# ---- the formula: the other types, the other platforms ----------------------------------------


def formula(x, weight, eps, weight_offset):
    """In float32 at least, and the type of x; a float16's square would overflow."""
    wide = x.astype(jnp.promote_types(x.dtype, np.float32))
    y = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    if weight is not None:
        y = y * (weight_offset + weight.astype(y.dtype))
    return y.astype(x.dtype)


def add_formula(x, residual, weight, eps, weight_offset):
    total = residual + x
    return formula(total, weight, eps, weight_offset), total


def formula_gradient(dy, x, weight, eps, weight_offset):
    return jax.vjp(lambda x, weight: formula(x, weight, eps, weight_offset), x, weight)[1](dy)


def add_formula_gradient(dy, total, dtotal, weight, eps, weight_offset):
    dx, dweight = formula_gradient(dy, total, weight, eps, weight_offset)
    return dx + dtotal, dweight


# ---- the custom calls -------------------------------------------------------------------------


def call(target, arrays, weight, eps, weight_offset, *, in_place=None, gradient=False):
    """Call `target` on arrays of one shape, (..., n); weight is (n,).

    Rows are rows, so an axis of vmap is one more leading axis of the arrays. It is one of the
    weight too, of length 1 where they share one weight, and of dweight: src/_jax.c.
    """
    outputs = 2 if in_place is not None and not gradient else 1
    weights = () if weight is None else (weight,)

    @custom_vmap
    def run(*operands):
        x, last = operands[0], operands[-1]
        results = [x] * outputs
        if gradient and weights:
            rows = tuple(range(last.ndim - 1, x.ndim - 1))
            results.append(jax.eval_shape(partial(jnp.sum, axis=rows), x))
        aliases = None if in_place is None else {in_place: outputs - 1}
        function = jax.ffi.ffi_call(target, results, input_output_aliases=aliases)
        numbers = {"eps": np.float64(eps), "weight_offset": np.float64(weight_offset)}
        return tuple(function(*operands, **numbers))

    @run.def_vmap
    def batch(size, batched, *operands):
        operands = [
            operand
            if is_batched
            else jnp.broadcast_to(operand, (size if i < len(arrays) else 1, *operand.shape))
            for i, (operand, is_batched) in enumerate(zip(operands, batched, strict=True))
        ]
        results = run(*operands)
        return results, (True,) * len(results)

    return run(*arrays, *weights)


def norm_call(x, weight, *numbers):
    return call("fastrms_rms_norm", [x], weight, *numbers)[0]


def add_call(x, residual, weight, *numbers):
    return call("fastrms_add_rms_norm", [x, residual], weight, *numbers, in_place=1)


def norm_gradient_call(dy, x, weight, *numbers):
    target = "fastrms_rms_norm_backward"
    return with_dweight(call(target, [dy, x], weight, *numbers, gradient=True))


def add_gradient_call(dy, total, dtotal, weight, *numbers):
    target, arrays = "fastrms_add_rms_norm_backward", [dy, total, dtotal]
    return with_dweight(call(target, arrays, weight, *numbers, in_place=2, gradient=True))


def with_dweight(results):
    return results if len(results) == 2 else (*results, None)


# ---- with their gradients ---------------------------------------------------------------------


def on_cpu(kernel, other, arrays, numbers) -> Any:
    return jax.lax.platform_dependent(
        *arrays, cpu=lambda *a: kernel(*a, *numbers), default=lambda *a: other(*a, *numbers)
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def norm(x, weight, *numbers):
    return on_cpu(norm_call, formula, (x, weight), numbers)


def norm_forward(x, weight, *numbers):
    return norm(x, weight, *numbers), (x, weight)


def norm_backward(*given):
    *numbers, (x, weight), dy = given
    return on_cpu(norm_gradient_call, formula_gradient, (dy, x, weight), numbers)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def add_norm(x, residual, weight, *numbers):
    return on_cpu(add_call, add_formula, (x, residual, weight), numbers)


def add_norm_forward(x, residual, weight, *numbers):
    y, total = add_norm(x, residual, weight, *numbers)
    return (y, total), (total, weight)


def add_norm_backward(*given):
    *numbers, (total, weight), (dy, dtotal) = given
    arrays = dy, total, dtotal, weight
    dtotal, dweight = on_cpu(add_gradient_call, add_formula_gradient, arrays, numbers)
    return dtotal, dtotal, dweight


norm.defvjp(norm_forward, norm_backward)
add_norm.defvjp(add_norm_forward, add_norm_backward)
# Without jax.jit around it a call would dispatch its few operations one by one.
compiled_norm = jax.jit(norm, static_argnums=(2, 3))
compiled_add_norm = jax.jit(add_norm, static_argnums=(3, 4))
