"""Recognise the modules that `fastrms.torch.patch` may replace: those that compute an RMSNorm.

A class is read, then tried. Its forward may use only the names below, so it has no side effect, no
randomness, and no state but a weight and an eps. The trial shows the weight's offset and, for each
pair of dtypes, whether x / rms is rounded before it is multiplied by the weight.
"""

import copyreg
import inspect
import warnings
from functools import cache, wraps
from itertools import product
from operator import itemgetter
from types import CodeType, FunctionType, ModuleType

import torch
from torch import Tensor, nn

from . import _torch_kernels as kernels
from ._torch_kernels import takes
from ._torch_ops import rms_norm

EPS_NAMES = ("variance_epsilon", "eps")
NAMES = {
    *EPS_NAMES,
    *("weight", "with_scale", "normalized_shape", "dtype", "float", "to", "type_as"),
    *("float32", "float16", "bfloat16", "pow", "square", "mean", "sqrt", "rsqrt", "rms_norm"),
    *("torch", "nn", "functional", "F"),
}
N = 256  # the length of the rows of a trial
HALVES = (torch.bfloat16, torch.float16)
DTYPES = [  # of x and weight
    *((dtype, dtype) for dtype in (torch.float32, torch.float64, *HALVES)),
    *((half, torch.float32) for half in HALVES),
]


class Patched(type):
    """The type of the classes that `patch` makes, each a subclass of the module's own."""


# A pickled module has its own class again, so that it loads without fastrms.
copyreg.pickle(Patched, lambda cls: (itemgetter(0), ((cls.__base__,),)))


def patch(model: nn.Module) -> int:
    """Let fastrms compute the RMSNorm modules of `model`, in place, and return their number.

    In doubt a module is left alone. Each module stays the same object, with its parameters, hooks
    and names; its class becomes a subclass, until `unpatch`.
    """
    check_model(model)
    count = 0
    for module in model.modules():
        cls = patched(type(module), type(module).forward) if has_weight_and_eps(module) else None
        if cls is not None:
            module.__class__ = cls
            count += 1
    return count


def unpatch(model: nn.Module) -> int:
    """Give the modules that `patch` changed their own class again, and return their number."""
    check_model(model)
    modules = [module for module in model.modules() if is_patched(module)]
    for module in modules:
        module.__class__ = type(module).__base__
    return len(modules)


def check_model(model):
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def is_patched(module):
    """Return whether `patch` made the class of a module, perhaps in an earlier import.

    Other tools, such as fully_shard, give it a subclass of that class: then it is theirs.
    """
    cls = type(module)
    return type(cls).__name__ == "Patched" and "forward" in vars(cls)


def has_weight_and_eps(module):
    """Return whether a module has the state of a norm: one weight, in plain memory, and an eps."""
    weight = getattr(module, "weight", None)
    return (
        type(type(module)) is type
        and "forward" not in vars(module)
        and [name for name, _ in module.named_parameters()] == ["weight"]
        and weight.ndim == 1
        and takes(weight)
        and not list(module.buffers())
        and not list(module.children())
        and any(is_eps(vars(module).get(name, "")) for name in EPS_NAMES)
    )


def is_eps(eps):
    return eps is None or (isinstance(eps, (float, int)) and eps >= 0)


def eps_for(eps, x):
    """Return eps; for None, the value that torch uses for x."""
    if eps is None:
        return torch.finfo(torch.float64 if x.dtype is torch.float64 else torch.float32).eps
    return eps


# ---- recognising a class ----------------------------------------------------------------------


@cache
def patched(cls, forward):
    """Return a subclass of cls whose forward is rms_norm for what was tried; None in doubt."""
    names = names_of(cls, forward)
    eps_names = [name for name in EPS_NAMES if name in names]
    if len(eps_names) != 1 or not names <= NAMES:
        return None
    (eps_name,) = eps_names
    weight_offset, rounded = max(
        ((offset, tried(cls, forward, eps_name, offset)) for offset in (0.0, 1.0)),
        key=lambda found: len(found[1]),
    )
    if not rounded:
        return None
    input_name = forward.__code__.co_varnames[1]

    @wraps(forward)
    def fast_forward(self, *given, **named):
        x = given[0] if given else named.get(input_name)
        weight, eps = self.weight, getattr(self, eps_name)
        if (
            len(given) + len(named) == 1
            and isinstance(x, Tensor)
            and takes(x, weight)
            and (x.dtype, weight.dtype) in rounded
            and x.shape[-1:] == weight.shape
            and is_eps(eps)
        ):
            round_first = rounded[x.dtype, weight.dtype]
            return rms_norm(x, weight, eps_for(eps, x), weight_offset, round_first)
        return cls.forward(self, *given, **named)

    body = {"forward": fast_forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return Patched(cls.__name__, (cls,), body)


def names_of(cls, forward):
    """Return the names that forward(self, x) and the methods it calls use; a dot in doubt."""
    code = getattr(forward, "__code__", None)
    if (
        type(forward) is not FunctionType
        or (code.co_argcount, code.co_kwonlyargcount, code.co_freevars) != (2, 0, ())
        or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
        or any(isinstance(const, CodeType) for const in code.co_consts)
    ):
        return {"."}
    names = set()
    for name in code.co_names:
        method, value = inspect.getattr_static(cls, name, None), forward.__globals__.get(name)
        if method is not inspect.getattr_static(nn.Module, name, None):
            names |= names_of(cls, method)
        elif value is None or is_torch(value):
            names.add(name)
        else:
            names.add(".")
    return names


def is_torch(value):
    return isinstance(value, ModuleType) and value.__name__.split(".")[0] == "torch"


def tried(cls, forward, eps_name, weight_offset):
    """Return the pairs of dtypes in which a class computes the norm, and if it rounds x / rms."""
    return {
        dtypes: round_first
        for dtypes, round_first in product(DTYPES, (True, False))
        if all(
            is_norm(cls, forward, eps_name, weight_offset, *dtypes, round_first, eps, shape)
            for eps, shape in ((0.25, (6, N)), (1e-3, (2, 1, 3, N)))
        )
    }


def is_norm(cls, forward, eps_name, weight_offset, dtype, weight_dtype, round_first, eps, shape):
    """Return whether forward computes rms_norm of random rows: to 16 ulp or, in a half, in 99 % of
    the elements exactly. Rounding in the wrong order changes a quarter of them."""
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float64).to(dtype)
    weight = torch.rand(N, generator=generator, device="cpu", dtype=torch.float64).to(weight_dtype)
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    module.weight = nn.Parameter(weight)
    vars(module).update({eps_name: eps, "normalized_shape": (N,), "with_scale": True})
    before = x.clone()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a weight in float32 beside a half
            got = forward(module, x).detach()
    except Exception:
        return False
    wanted = kernels.norm(before, weight, eps, weight_offset, round_first)
    if got.dtype is not wanted.dtype or got.shape != wanted.shape or not torch.equal(x, before):
        return False
    error, size = (got.double() - wanted.double()).abs(), wanted.double().abs()
    ulps = 0 if got.dtype in HALVES else 16 * torch.finfo(got.dtype).eps
    same = (error <= ulps * size).double().mean()
    return bool(same >= 0.99) and bool((error <= 0.02 * size).all())
