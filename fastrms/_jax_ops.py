"""The operations of fastrms.jax, on checked arguments: XLA custom calls, and their gradients.

Types and platforms without a custom call get the formula in jax.numpy.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from . import _jax

for _name, _target in _jax.targets.items():
    jax.ffi.register_ffi_target(_name, _target, platform="cpu")


# ---- the formula, for other types and platforms -----------------------------------------------


def arithmetic(*arrays):
    """Return float64 if one of the arrays is float64, float32 for any others."""
    return np.float64 if any(array.dtype == np.float64 for array in arrays) else np.float32


def normalise(x, weight, eps, weight_offset):
    """Return y in the dtype of x, which is that of the arithmetic."""
    y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    if weight is not None:
        y = y * ((weight_offset or -0.0) + weight.astype(y.dtype))  # w + -0.0 is w for every w
    return y


def formula(x, weight, *numbers):
    return normalise(x.astype(arithmetic(x)), weight, *numbers).astype(x.dtype)


def add_formula(x, residual, weight, *numbers):
    wide = arithmetic(x, residual)
    total = (residual.astype(wide) + x.astype(wide)).astype(residual.dtype)
    return normalise(total.astype(wide), weight, *numbers).astype(x.dtype), total


def wide_gradient(dy, x, weight, *numbers):
    """Return dx in the dtype of the arithmetic, and dweight in that of weight."""
    wide = arithmetic(dy, x)
    norm_of = partial(normalise, eps=numbers[0], weight_offset=numbers[1])
    return jax.vjp(norm_of, x.astype(wide), weight)[1](dy.astype(wide))


def formula_gradient(dy, x, weight, *numbers):
    dx, dweight = wide_gradient(dy, x, weight, *numbers)
    return dx.astype(x.dtype), dweight


def add_formula_gradient(dy, total, dtotal, weight, *numbers):
    dx, dweight = wide_gradient(dy, total, weight, *numbers)
    return (dx + dtotal.astype(dx.dtype)).astype(total.dtype), dweight


# ---- the custom calls -------------------------------------------------------------------------


def call(target, arrays, weight, eps, weight_offset, *, like, in_place=None, gradient=False):
    """Call `target` on arrays of one shape, (..., n); weight is (n,). Results have the types of the
    arrays numbered in `like`; array `in_place` is the last of them.

    vmap adds one more leading axis to the arrays, to the weight (of length 1 if all share it), and
    to dweight.
    """
    weights = () if weight is None else (weight,)

    @custom_vmap
    def run(*operands):
        x, last = operands[0], operands[-1]
        results = [operands[i] for i in like]
        if gradient and weights:
            rows = tuple(range(last.ndim - 1, x.ndim - 1))
            results.append(jax.eval_shape(lambda x: x.sum(rows).astype(last.dtype), x))
        aliases = None if in_place is None else {in_place: len(like) - 1}
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
    return call("fastrms_rms_norm", [x], weight, *numbers, like=[0])[0]


def add_call(x, residual, weight, *numbers):
    reused = int(x.dtype != residual.dtype)  # for total: x, if it can hold it
    target, arrays = "fastrms_add_rms_norm", [x, residual]
    return call(target, arrays, weight, *numbers, like=[0, 1], in_place=reused)


def norm_gradient_call(dy, x, weight, *numbers):
    target = "fastrms_rms_norm_backward"
    return with_dweight(call(target, [dy, x], weight, *numbers, like=[1], gradient=True))


def add_gradient_call(dy, total, dtotal, weight, *numbers):
    target, arrays = "fastrms_add_rms_norm_backward", [dy, total, dtotal]
    results = call(target, arrays, weight, *numbers, like=[2], in_place=2, gradient=True)
    return with_dweight(results)


def with_dweight(results):
    return results if len(results) == 2 else (*results, None)


# ---- both, with gradients ---------------------------------------------------------------------


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
    return dtotal.astype(dy.dtype), dtotal, dweight  # dy has the dtype of x


norm.defvjp(norm_forward, norm_backward)
add_norm.defvjp(add_norm_forward, add_norm_backward)
# Jitted, because a call outside of jax.jit would dispatch its operations one by one.
compiled_norm = jax.jit(norm, static_argnums=(2, 3))
compiled_add_norm = jax.jit(add_norm, static_argnums=(3, 4))
