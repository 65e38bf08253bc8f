"""fastrms for PyTorch on the CPU: custom ops with gradients, a module, `patch` for whole models.

Float32 tensors on the CPU go to fastrms without a copy, every other tensor to torch's own
function.
"""

from __future__ import annotations  # the site is built without torch

from functools import cache, wraps
from typing import Any, cast

import fastrms

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    wanted = 'python -m pip install "fastrms[torch]"'
    raise ImportError(f"torch is not installed: {wanted}") from None

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, as everywhere

from . import _torch_probe
from ._torch_probe import default_eps, is_eps

__all__ = ["RMSNorm", "add_rms_norm", "add_rms_norm_", "patch", "rms_norm"]


def __dir__() -> list[str]:
    return __all__


# ---- the functions ----------------------------------------------------------------------------


def rms_norm(
    x: Tensor, weight: Tensor | None = None, eps: float = 1e-5, *, weight_offset: float = 0.0
) -> Tensor:
    """Divide each row of `x` by its root mean square, then scale it: see `fastrms.rms_norm`.

    Gradients flow to `x` and `weight`, but cannot be differentiated again. If a tensor is not
    float32 or not on the CPU, this calls `torch.nn.functional.rms_norm`.
    """
    if takes(x=x, weight=weight):
        op = OPS.rms_norm if wants_gradient(x, weight) else OPS.rms_norm_forward
        return cast(Tensor, op.default(x, weight, eps, weight_offset))
    if weight is not None and weight_offset:
        weight = weight + weight_offset
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return ``rms_norm(residual + x)`` and ``residual + x``, both new; gradients flow to all."""
    if takes(x=x, residual=residual, weight=weight):
        y, total = OPS.add_rms_norm.default(x, residual, weight, eps, weight_offset)
        return y, total
    total = residual + x
    return rms_norm(total, weight, eps, weight_offset=weight_offset), total


def add_rms_norm_(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
) -> Tensor:
    """Add `x` to `residual` in place and return the norm of the sum: one pass, for inference.

    It has no gradient, since it overwrites the `residual` that the backward pass of the norm before
    it needs.
    """
    if wants_gradient(x, residual, weight):
        raise RuntimeError("add_rms_norm_ has no gradient: use add_rms_norm, or torch.no_grad()")
    if takes(x=x, residual=residual, weight=weight):
        return cast(Tensor, OPS.add_rms_norm_.default(x, residual, weight, eps, weight_offset))
    residual += x
    return rms_norm(residual, weight, eps, weight_offset=weight_offset)


def takes(**tensors):
    """Return whether fastrms computes with these, each None or a tensor: float32, on the CPU."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            if not (tensor.dtype is torch.float32 and tensor.is_cpu):
                return False
        elif tensor is not None:
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    return True


def wants_gradient(*tensors):
    if torch.is_grad_enabled():
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                return True
    return False


# ---- the operators ----------------------------------------------------------------------------
# rms_norm_forward is a second operator because autograd in Python costs time even if no gradient is
# wanted: one row of 64 takes 8 us in it and 12 in rms_norm (Intel Xeon, Sapphire Rapids).
# torch.library.custom_op would wrap each once more: 15 us, as long as transformers' own formula.

OPS: Any = torch.ops.fastrms


def define(name, schema, kernel, fake):
    torch.library.define(f"fastrms::{name}", schema)
    torch.library.impl(f"fastrms::{name}", "cpu", kernel)
    torch.library.register_fake(f"fastrms::{name}", fake)


def new(x, *_):
    return x.new_empty(x.shape)


def array(tensor):
    """Return the tensor's own memory as an ndarray."""
    return None if tensor is None else tensor.detach().numpy()


def norm_kernel(x, weight, eps, weight_offset):
    y = new(x)
    fastrms.rms_norm(array(x), array(weight), eps, weight_offset=weight_offset, out=array(y))
    return y


def add_kernel(x, residual, weight, eps, weight_offset):
    if residual.shape != x.shape:  # torch would broadcast
        shapes = f"{tuple(x.shape)}, got {tuple(residual.shape)}"
        raise ValueError(f"residual must have the shape of x, {shapes}")
    # Copying residual for fastrms.add_rms_norm would take one more pass over memory.
    total = torch.add(residual, x, out=new(x))
    return norm_kernel(total, weight, eps, weight_offset), total


def add_in_place_kernel(x, residual, weight, eps, weight_offset):
    if any(residual.stride(axis) == 0 < size - 1 for axis, size in enumerate(residual.shape)):
        raise ValueError("residual must have memory for each element, got an expanded tensor")
    y = new(x)
    arrays = array(x), array(residual), array(weight)
    fastrms.add_rms_norm(*arrays, eps, weight_offset=weight_offset, out=array(y))
    torch.autograd.graph.increment_version(residual)  # tell autograd of the write
    return y


def new_gradients(dy, x, weight, *_):
    """Return new dx and dweight; an operator cannot return None, so without weight it is empty."""
    return new(x), x.new_empty(0 if weight is None else weight.shape)


def backward_kernel(dy, x, weight, eps, weight_offset):
    dx, dweight = new_gradients(dy, x, weight)
    out = {"dx": array(dx), "dweight": None if weight is None else array(dweight)}
    arrays = array(dy), array(x), array(weight)
    fastrms.rms_norm_backward(*arrays, eps, weight_offset=weight_offset, **out)
    return dx, dweight


REST = "Tensor? weight, float eps, float weight_offset"
TWO = f"(Tensor x, Tensor residual, {REST}) -> (Tensor, Tensor)"
IN_PLACE = f"(Tensor x, Tensor(a!) residual, {REST}) -> Tensor"
BACKWARD = f"(Tensor dy, Tensor x, {REST}) -> (Tensor, Tensor)"
define("rms_norm", f"(Tensor x, {REST}) -> Tensor", norm_kernel, new)
define("rms_norm_forward", f"(Tensor x, {REST}) -> Tensor", norm_kernel, new)
define("add_rms_norm", TWO, add_kernel, lambda x, *_: (new(x), new(x)))
define("add_rms_norm_", IN_PLACE, add_in_place_kernel, new)
define("rms_norm_backward", BACKWARD, backward_kernel, new_gradients)


# ---- their gradients --------------------------------------------------------------------------


def keep_x(ctx, inputs, output):
    x, weight, ctx.eps, ctx.weight_offset = inputs
    ctx.save_for_backward(x, weight)


def keep_total(ctx, inputs, output):
    _, _, weight, ctx.eps, ctx.weight_offset = inputs
    ctx.save_for_backward(output[1], weight)


def norm_gradient(ctx, dy):
    x, weight = ctx.saved_tensors
    dx, dweight = OPS.rms_norm_backward.default(dy, x, weight, ctx.eps, ctx.weight_offset)
    return dx, None if weight is None else dweight, None, None


def add_gradient(ctx, dy, dtotal):
    dx, *others = norm_gradient(ctx, dy)
    dx += dtotal
    return dx, dx, *others


def no_gradient(ctx, *gradients):
    raise NotImplementedError("fastrms.torch: a gradient has no gradient of its own")


torch.library.register_autograd("fastrms::rms_norm", norm_gradient, setup_context=keep_x)
torch.library.register_autograd("fastrms::add_rms_norm", add_gradient, setup_context=keep_total)
torch.library.register_autograd("fastrms::rms_norm_backward", no_gradient)  # else silently zero


# ---- the modules ------------------------------------------------------------------------------


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` computed by fastrms: same arguments, parameters and state_dict.

    Several normalized axes, and tensors that are not float32 or not on the CPU, go to torch.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1:] == self.normalized_shape and takes(x=x, weight=self.weight):
            return rms_norm(x, self.weight, default_eps(self.eps))
        return super().forward(x)


class Patched(nn.Module):
    """Mark the classes that `patch` makes."""


def patch(model: nn.Module) -> int:
    """Let fastrms compute the RMSNorm modules of `model`, in place, and return their number.

    A module is recognised by its results: those of `rms_norm` with weight or 1 + weight. In doubt
    it is left alone. Each module stays the same object, with its parameters, hooks and names; only
    its class changes, for good, to a subclass.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    count = 0
    for module in model.modules():
        found = None if isinstance(module, (Patched, RMSNorm)) else _torch_probe.find(module)
        if found is not None:
            module.__class__ = patched(type(module), *found)
            count += 1
    return count


@cache
def patched(cls, eps_name, input_name, weight_offset):
    """Return a subclass of cls whose forward is rms_norm for the kinds of input that were tried."""

    @wraps(cls.forward)
    def forward(self, *given, **named):
        x = given[0] if given else named.get(input_name)
        weight, eps = self.weight, getattr(self, eps_name)
        if (
            len(given) + len(named) == 1
            and isinstance(x, Tensor)
            and x.ndim in _torch_probe.RANKS
            and x.shape[-1:] == weight.shape
            and is_eps(eps)
            and takes(x=x, weight=weight)
        ):
            return rms_norm(x, weight, default_eps(eps), weight_offset=weight_offset)
        return cls.forward(self, *given, **named)

    names = {"forward": forward, "__module__": cls.__module__}
    return type(cls.__name__, (Patched, cls), names)
