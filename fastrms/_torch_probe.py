"""Which modules `fastrms.torch.patch` takes: those that are an RMSNorm wherever they are tried.

Tried are results and gradients for inputs of 2 to 4 axes, in eval and in train mode, with the
module's eps and another one, against torch's own norm in float64. It refuses what it doubts: a
module that holds more than a weight and an eps, or that takes rows of another length.
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
    """Return the name of the module's eps, that of its input, and its weight_offset, or None."""
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
    """Whether no other number, parameter, buffer or module could change what it computes later."""
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
    """Return what torch takes for eps=None in float32."""
    return torch.finfo(torch.float32).eps if eps is None else eps


@torch.random.fork_rng(devices=[])
@torch.inference_mode(False)
def is_norm(module, eps_name, weight_offset):
    """Whether the module's class does to random rows what an RMSNorm does, and nothing else."""
    generator = torch.Generator("cpu").manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float32, device="cpu")
    weight = nn.Parameter(draw(module.weight.shape))
    x, dy = draw(2, 2, 3, len(weight)), draw(2, 2, 3, len(weight))
    trial = copy.copy(module)  # without the hooks' effects: its forward is called, not itself
    trial._parameters = {"weight": weight}
    forward, chance = partial(type(module).forward, trial), torch.get_rng_state()
    two_eps = cycle((getattr(module, eps_name), 0.25))  # so both in each mode, both for each rank
    for eps, (training, rank) in zip(two_eps, product((False, True), RANKS), strict=False):
        vars(trial).update({eps_name: eps, "training": training})
        state = dict(vars(trial))
        rows, dys = (each[(0,) * (4 - rank)] for each in (x * sizes(eps), dy))
        try:
            wanted = results(partial(norm, weight, eps, weight_offset), rows, weight, dys)
            got = results(forward, rows, weight, dys)
            if not all(map(close, got, wanted)) or vars(trial) != state:
                return False
        except Exception:  # it does not take this input, or changes it, or has no gradient
            return False
        if not refuses(forward, torch.cat([rows, rows], -1)):
            return False
    return torch.equal(chance, torch.get_rng_state())


def sizes(eps):
    """Beside an ordinary row, one as small as eps, where its value and place show, and a large."""
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
    """Whether both are within float32 roundings of the exact value, as a part of the row's size."""
    tolerance = 1e-5 * wanted.abs().amax(-1, keepdim=True)
    same_kind = got.shape == wanted.shape and got.dtype is wanted.dtype
    return same_kind and bool(((got - wanted).abs() <= tolerance).all())


def refuses(forward, x):
    """Whether it takes no rows of another length: norms of heads do, and weights of one number."""
    try:
        forward(x)
    except Exception:
        return True
    return False
