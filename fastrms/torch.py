"""fastrms for PyTorch on the CPU: functions with gradients, a module, `patch` for whole models.

Plain tensors on the CPU, of float16, bfloat16, float32 or float64, go to fastrms without a copy,
every other tensor to torch's own function.
"""

from __future__ import annotations  # the site is built without torch

try:
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    wanted = 'python -m pip install "fastrms[torch]"'
    raise ImportError(f"torch is not installed: {wanted}") from None

from torch.overrides import is_tensor_like

from . import _torch_ops as ops
from ._torch_aten import register, unregister
from ._torch_kernels import takes
from ._torch_patch import eps_for, patch, unpatch

__all__ = [
    "RMSNorm",
    "add_rms_norm",
    "add_rms_norm_",
    "patch",
    "register",
    "rms_norm",
    "unpatch",
    "unregister",
]


def __dir__() -> list[str]:
    return __all__


def rms_norm(
    x: Tensor, weight: Tensor | None = None, eps: float = 1e-5, *, weight_offset: float = 0.0
) -> Tensor:
    """Divide each row of `x` by its root mean square, then scale it: see `fastrms.rms_norm`.

    The result has the dtype of `x`. Gradients of any order flow to `x` and `weight`. Tensors that
    are not plain memory on the CPU go to `torch.nn.functional.rms_norm`.
    """
    if takes(x, weight):
        return ops.rms_norm(x, weight, eps, weight_offset)
    check_tensors(x=x, weight=weight)
    return ops.torch_norm(x, weight, eps, weight_offset)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return ``rms_norm(residual + x)`` and ``residual + x``, both new; gradients flow to all.

    They have the dtypes of `x` and of `residual`.
    """
    if takes(x, residual, weight):
        y, total = ops.OPS.add_rms_norm.default(x, residual, weight, eps, weight_offset)
        return y, total
    check_tensors(x=x, residual=residual, weight=weight)
    total = (residual + x).to(residual.dtype)
    return ops.torch_norm(total, weight, eps, weight_offset).to(x.dtype), total


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
    if takes(x, residual, weight):
        check_no_gradient(x, residual, weight)
        return ops.OPS.add_rms_norm_.default(x, residual, weight, eps, weight_offset)  # type: ignore[no-any-return]
    check_tensors(x=x, residual=residual, weight=weight)
    check_no_gradient(x, residual, weight)
    residual += x
    return ops.torch_norm(residual, weight, eps, weight_offset).to(x.dtype)


def check_tensors(**tensors):
    for name, tensor in tensors.items():
        if tensor is not None and not is_tensor_like(tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")


def check_no_gradient(*tensors):
    if ops.wants_gradient(*tensors):
        raise RuntimeError("add_rms_norm_ has no gradient: use add_rms_norm, or torch.no_grad()")


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` computed by fastrms: same arguments, parameters and state_dict.

    Several normalized axes, and tensors that are not plain memory on the CPU, go to torch.
    """

    def forward(self, x: Tensor) -> Tensor:
        if takes(x, self.weight) and x.shape[-1:] == self.normalized_shape:
            return ops.rms_norm(x, self.weight, eps_for(self.eps, x))
        return super().forward(x)
