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


def formula(x, weight, eps, weight_offset):
    """Return y in x's type, computed in float32 or wider: the square of a float16 may overflow."""
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

    vmap adds one more leading axis to the arrays, to the weight (of length 1 if all share it), and
    to dweight.
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
    return call("fastrms_add_rms_norm", [x, residual], weight, *numbers, in_place=0)


def norm_gradient_call(dy, x, weight, *numbers):
    target = "fastrms_rms_norm_backward"
    return with_dweight(call(target, [dy, x], weight, *numbers, gradient=True))


def add_gradient_call(dy, total, dtotal, weight, *numbers):
    target, arrays = "fastrms_add_rms_norm_backward", [dy, total, dtotal]
    return with_dweight(call(target, arrays, weight, *numbers, in_place=2, gradient=True))


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
    return dtotal, dtotal, dweight


norm.defvjp(norm_forward, norm_backward)
add_norm.defvjp(add_norm_forward, add_norm_backward)
# Jitted, because a call outside of jax.jit would dispatch its operations one by one.
compiled_norm = jax.jit(norm, static_argnums=(2, 3))
compiled_add_norm = jax.jit(add_norm, static_argnums=(3, 4))
