"""Recognise the modules that `fastrms.torch.patch` may replace: those that compute an RMSNorm.

A trial compares results and gradients with torch's own norm in float64, for inputs of 2 to 4 axes,
in eval and in train mode, with the module's eps and another one. A module that holds more than a
weight and an eps, or accepts rows of another length, is not recognised.
"""

import copy
import inspect
from functools import partial
from itertools import cycle, product

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, as everywhere

RANKS = (2, 3, 4)


def find(module):
    """Return the names of the module's eps and input, and its weight_offset; None if no RMSNorm."""
    names = [name for name in ("variance_epsilon", "eps") if hasattr(module, name)]
    inputs = list(inspect.signature(module.forward).parameters.values())
    if (
        len(names) == len(inputs) == 1
        and inputs[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        and "forward" not in vars(module)
        and only_weight_and_eps(module, names[0])
    ):
        for weight_offset in (0.0, 1.0):
            if is_norm(module, names[0], weight_offset):
                return names[0], inputs[0].name, weight_offset
    return None


def only_weight_and_eps(module, eps_name):
    """Return whether no other number, parameter, buffer or module could change later results."""
    weight = getattr(module, "weight", None)
    others = [value for name, value in vars(module).items() if name != eps_name]
    return (
        is_eps(getattr(module, eps_name))
        and [name for name, _ in module.named_parameters()] == ["weight"]
        and weight.ndim == 1
        and weight.dtype is torch.float32
        and weight.is_cpu
        and not list(module.buffers())
        and not list(module.children())
        and not any(isinstance(value, (float, Tensor)) for value in others)
    )


def is_eps(eps):
    return eps is None or (isinstance(eps, (float, int)) and eps >= 0)


def default_eps(eps):
    """Return eps; for None, the value that torch uses in float32."""
    return torch.finfo(torch.float32).eps if eps is None else eps


@torch.random.fork_rng(devices=[])
@torch.inference_mode(False)
def is_norm(module, eps_name, weight_offset):
    """Return whether the module's class computes an RMSNorm of random rows, with no side effect."""
    generator = torch.Generator("cpu").manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float32, device="cpu")
    weight = nn.Parameter(draw(module.weight.shape))
    x, dy = draw(2, 2, 3, len(weight)), draw(2, 2, 3, len(weight))
    trial = copy.copy(module)  # only its forward is called, so that no hook runs
    trial._parameters = {"weight": weight}
    forward, rng_state = partial(type(module).forward, trial), torch.get_rng_state()
    two_eps = cycle((getattr(module, eps_name), 0.25))  # each mode and each rank meets both
    for eps, (training, rank) in zip(two_eps, product((False, True), RANKS), strict=False):
        vars(trial).update({eps_name: eps, "training": training})
        state = dict(vars(trial))
        rows, dys = (each[(0,) * (4 - rank)] for each in (x * sizes(eps), dy))
        try:
            wanted = results(partial(norm, weight, eps, weight_offset), rows, weight, dys)
            got = results(forward, rows, weight, dys)
            if not all(map(close, got, wanted)) or vars(trial) != state:
                return False
        except Exception:  # rejects this input, writes to it, or has no gradient
            return False
        if not refuses(forward, torch.cat([rows, rows], -1)):
            return False
    return torch.equal(rng_state, torch.get_rng_state())


def sizes(eps):
    """Return factors for an ordinary row, a row that shows eps and its place, and a large row."""
    small = max(default_eps(eps) ** 0.5, 1e-8)
    return torch.tensor([[1.0], [small], [1e6]], dtype=torch.float32, device="cpu")


def norm(weight, eps, weight_offset, x):
    weight = weight.double() + weight_offset
    return F.rms_norm(x.double(), weight.shape, weight, default_eps(eps)).float()


def results(function, x, weight, dy):
    """Return y and the gradients to x and weight; a function that writes to x raises."""
    x = x.clone().requires_grad_()
    y = function(x)
    return y, *torch.autograd.grad(y, [x, weight], dy)


def close(got, wanted):
    """Return whether shape and dtype agree, and values to 1e-5 of the row's largest element."""
    tolerance = 1e-5 * wanted.abs().amax(-1, keepdim=True)
    same_kind = got.shape == wanted.shape and got.dtype is wanted.dtype
    return same_kind and bool(((got - wanted).abs() <= tolerance).all())


def refuses(forward, x):
    """Return whether forward raises for x; norms of heads, and weights of one number, accept it."""
    try:
        forward(x)
    except Exception:
        return True
    return False
