"""The operators behind `fastrms.torch`, and their gradients.

Whatever a graph can hold has a gradient: rms_norm's is an operator, and that operator's is torch's.
"""

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812, as everywhere

from . import _torch_kernels as kernels
from ._torch_kernels import is_compiling, new, new_gradients, new_norm

OPS: Any = torch.ops.fastrms


def rms_norm(x, weight, eps, weight_offset=0.0, round_first=False):
    """Compute the norm of tensors that `takes` accepted."""
    if is_compiling() or wants_gradient(x, weight):
        return OPS.rms_norm.default(x, weight, eps, weight_offset, round_first)
    # Nothing captures this call, and the dispatcher costs as much as the rest of it.
    return kernels.norm(x, weight, eps, weight_offset, round_first)


def wants_gradient(*tensors):
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def torch_norm(x, weight, eps, weight_offset=0.0):
    """Compute the norm by torch's own function."""
    if weight is not None and weight_offset:
        weight = weight + weight_offset
    return F.rms_norm(x, x.shape[-1:], weight, eps)


# ---- gradients --------------------------------------------------------------------------------


def keep_x(ctx, inputs, output):
    x, weight, ctx.eps, ctx.weight_offset, _ = inputs
    ctx.save_for_backward(x, weight)


def norm_gradient(ctx, dy):
    return *gradients(ctx, dy), None, None, None


def gradients(ctx, dy):
    x, weight = ctx.saved_tensors
    dx, dweight = OPS.rms_norm_backward.default(dy, x, weight, ctx.eps, ctx.weight_offset)
    return dx, None if weight is None else dweight


def keep_total(ctx, inputs, output):
    x, _, weight, ctx.eps, ctx.weight_offset = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(output[1], weight)


def add_gradient(ctx, dy, dtotal):
    dx, dweight = gradients(ctx, dy)
    dx = dx + dtotal
    return dx.to(ctx.dtype), dx, dweight, None, None


def keep_all(ctx, inputs, output):
    dy, x, weight, ctx.eps, ctx.weight_offset = inputs
    ctx.save_for_backward(dy, x, weight)


def second_gradient(ctx, ddx, ddweight):
    """Differentiate the formula in torch's own functions, which have derivatives of any order."""
    dy, x, weight = ctx.saved_tensors
    wide = torch.promote_types(x.dtype, torch.float32)
    arrays, given = (x, weight), (ddx, ddweight)
    if weight is None:
        arrays, given = arrays[:1], given[:1]

    def norm(*arrays):
        x, weight = (*(t.to(wide) for t in arrays), None)[:2]
        return torch_norm(x, weight, ctx.eps, ctx.weight_offset)

    def backward(dy, *arrays):
        return torch.func.vjp(norm, *arrays)[1](dy.to(wide))

    gradients = torch.func.vjp(backward, dy, *arrays)[1](given)
    return *gradients, *[None] * (5 - len(gradients))


# ---- registration -----------------------------------------------------------------------------

REST = "Tensor? weight, float eps, float weight_offset"
OPERATORS = {
    "rms_norm": (
        f"(Tensor x, {REST}, bool round_first) -> Tensor",
        (kernels.norm, new_norm, norm_gradient, keep_x),
    ),
    "add_rms_norm": (
        f"(Tensor x, Tensor residual, {REST}) -> (Tensor, Tensor)",
        (kernels.add, lambda x, residual, *_: (new(x), new(residual)), add_gradient, keep_total),
    ),
    "add_rms_norm_": (
        f"(Tensor x, Tensor(a!) residual, {REST}) -> Tensor",
        (kernels.add_, lambda x, *_: new(x), None, None),
    ),
    "rms_norm_backward": (
        f"(Tensor dy, Tensor x, {REST}) -> (Tensor, Tensor)",
        (kernels.backward, new_gradients, second_gradient, keep_all),
    ),
}


def define_operators():
    """Define each operator once a process, even if this module is imported again."""
    library = vars(OPS).get("library")
    if library is not None:
        if library.complete:
            return
        library._destroy()  # that import was interrupted
    OPS.library = library = torch.library.Library("fastrms", "FRAGMENT")
    library.complete = False
    for name, (schema, functions) in OPERATORS.items():
        kernel, fake, gradient, keep = functions
        library.define(name + schema)
        library.impl(name, kernel, "CPU")
        torch.library.register_fake(f"fastrms::{name}", fake, lib=library)
        if gradient is not None:
            torch.library.register_autograd(
                f"fastrms::{name}", gradient, setup_context=keep, lib=library
            )
    library.complete = True


define_operators()
