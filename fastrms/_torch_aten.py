"""`register`: `torch.nn.functional.rms_norm` and `torch.nn.RMSNorm` on the CPU run on fastrms.

For torch they are the operator aten::rms_norm, which has no kernel for the CPU, only a composite of
other operators. A kernel of ours takes what `takes` accepts, the composite the rest.
"""

from contextlib import ExitStack

import torch

from ._torch_kernels import takes
from ._torch_ops import OPS, rms_norm
from ._torch_patch import eps_for

ATEN = torch.ops.aten.rms_norm.default
# torch.compile caches in ATEN._dispatch_cache which kernels there are. With ours in that cache, but
# no longer registered, a graph has no gradients.

# A library for each call of register, all of them the first one. It survives a second import.
libraries = vars(OPS).setdefault("registered", [])


def register() -> ExitStack:
    """Let torch's own `rms_norm` and `RMSNorm` run on fastrms where `fastrms.torch.rms_norm` does.

    It holds until as many calls of `unregister`, or to the end of a ``with register():``. The
    gradients may be computed later.
    """
    if libraries:
        libraries.append(libraries[0])
    else:
        library = torch.library.Library("aten", "IMPL")
        for key in ("CPU", "AutogradCPU"):
            library.impl("rms_norm", aten_rms_norm, key)
        libraries.append(library)
        ATEN._dispatch_cache.clear()
    stack = ExitStack()
    stack.callback(unregister)
    return stack


def unregister() -> None:
    """Undo one call of `register`."""
    if libraries:
        library = libraries.pop()
        if not libraries:
            library._destroy()
            ATEN._dispatch_cache.clear()


def aten_rms_norm(x, normalized_shape, weight=None, eps=None):
    axes, shape = len(normalized_shape), tuple(normalized_shape)
    fits = axes and x.shape[-axes:] == shape and (weight is None or weight.shape == shape)
    if not fits or not takes(x, weight):
        return ATEN.decompose(x, normalized_shape, weight, eps)
    eps = eps_for(eps, x)
    if axes == 1:
        return rms_norm(x, weight, eps)
    return rms_norm(x.flatten(-axes), None if weight is None else weight.flatten(), eps).view_as(x)
