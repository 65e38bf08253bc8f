"""Print how every installed peer does under `fastrms check --against`: the table of its page.

    python bench/conformance.py [float32 | bfloat16] [PEER ...]

Each peer is checked in a process of its own: this file is the module that has its functions,
FILE:PEER__forward and FILE:PEER__backward. The calls are those of peers.py, on copies of the
arrays; those that it lacks are written here.
"""

import functools
import importlib.metadata
import json
import os
import subprocess
import sys

import numpy as np
from peers import PEERS, tensor

from fastrms.bench import calls, rivals
from fastrms.bench.cases import OPS, Case
from fastrms.conformance.calls import load

HERE = {"fastrms": calls.ours, "numpy": calls.numpy}
NAMES = {
    "fastrms": "fastrms",
    "numpy": "NumPy formula",
    "torch-compile": "torch.compile",
    "llama": "transformers' Llama",
}
PLAIN = ("normal", "outliers", "log-normal", "odd n", "one row")
# Those that take time to compile for each shape have one shape.
SHAPES = {"torch-compile": "16x1000"}


# A call that is compiled for its shape is kept, with its arrays.
KEPT = ("torch-compile", "onnxruntime")


def build(peer, op, shape, dtype, eps):
    """Return a case and the peer's call on its arrays; eps is a constant of the call's module."""
    case = Case(op, *shape, dtype=dtype)
    if peer in PEERS and not PEERS[peer].has(case):
        raise ValueError(f"{peer} has no {op}")
    make = HERE.get(peer) or load(PEERS[peer].spec)
    make.__globals__["EPS"] = eps
    return case, lambda: make(case)


@functools.cache
def kept(*about):
    case, make = build(*about)
    call = make()
    return case, lambda: call


def function(peer, op):
    """Return the peer's op as `fastrms check` calls it."""

    def call(*arguments):
        *arrays, weight, eps = arguments
        about = peer, op, arrays[0].shape, weight.dtype.name, eps
        case, make = kept(*about) if peer in KEPT else build(*about)
        for name, array in zip((*names, "weight"), (*arrays, weight), strict=True):
            getattr(case, name)[...] = array
        made = make()()
        made = () if made is None else made if isinstance(made, tuple | list) else (made,)
        rest = [getattr(case, name) for name in OPS[op].results[len(made) :]]
        found = tuple(taken(one, weight.dtype) for one in (*made, *rest))
        return found[0] if op == "forward" else found

    names = ("x",) if op == "forward" else ("dy", "x")
    return call


def taken(result, dtype):
    if str(getattr(result, "dtype", "")) == "torch.bfloat16":
        result = result.detach().float()
    return np.asarray(result.detach() if hasattr(result, "detach") else result).astype(dtype)


def llama(n, eps):
    """Return transformers' module as a function of tensors."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    module = LlamaRMSNorm(n, eps=eps)
    return lambda x, weight: torch.func.functional_call(module, {"weight": weight}, x)


@functools.cache
def compiled(n, eps):
    import torch

    norm = torch.nn.functional.rms_norm
    return torch.compile(lambda x, weight: norm(x, (n,), weight, eps), dynamic=False)


def differentiated(norm, dy, x, weight):
    """Return the gradients of a function of tensors."""
    dtype = x.dtype
    dy, x, weight = (tensor(np.array(array)) for array in (dy, x, weight))
    norm(x.requires_grad_(), weight.requires_grad_()).backward(dy)
    return taken(x.grad, dtype), taken(weight.grad, dtype)


def llama__forward(x, weight, eps):
    arrays = (tensor(np.array(array)) for array in (x, weight))
    return taken(llama(weight.size, eps)(*arrays), x.dtype)


def llama__backward(dy, x, weight, eps):
    return differentiated(llama(weight.size, eps), dy, x, weight)


def torch_compile__backward(dy, x, weight, eps):
    return differentiated(compiled(weight.size, eps), dy, x, weight)


def __getattr__(name):
    peer, _, op = name.partition("__")
    return function(peer.replace("_", "-"), op)


def checked(peer, op, dtype):
    """Return the peer's report as a dict, or None if it has no such function."""
    name = f"{peer.replace('-', '_')}__{op}"
    option = "--against" if op == "forward" else "--backward"
    families = "normal,constant,outliers,log-normal,odd n,one row,zeros,tiny,huge,subnormal"
    command = [sys.executable, "-m", "fastrms", "check", option, f"{__file__}:{name}", "--json"]
    command += ["--dtype", dtype, "--eps", "1e-5", "--families", families]
    command += ["--shapes", SHAPES.get(peer, "16x64,5x1000,3x4096")]
    environment = os.environ | rivals.environment(1)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 2:
        print(f"{peer} {op}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def largest(report, result):
    """Return the largest error of a result on plain families, and on constant rows."""
    cells = [cell for cell in report["cells"] if cell["result"] == result]
    plain = max(cell["ulp"] for cell in cells if cell["family"] in PLAIN)
    constant = next(cell["ulp"] for cell in cells if cell["family"] == "constant")
    return f"{plain:.3g}", f"{constant:.3g}"


def row(peer, dtype):
    """Return a peer's line of the table, or None if it cannot be checked."""
    forward = checked(peer, "forward", dtype)
    if forward is None:
        return None
    backward = checked(peer, "backward", dtype)
    normal = next(cell for cell in forward["cells"] if cell["family"] == "normal")
    names = [one["name"] for one in forward["findings"]]
    ends = [
        one.removeprefix("range: y is ").replace(" from x =", " from")
        for one in names
        if one.startswith("range")
    ]
    batch = "no" if "a row's bits depend on the batch" in names else "yes"
    one_or_more = "one" if float(largest(forward, "y")[0]) < 0.6 else "each step"
    roundings = "two" if "rounds x / rms before the weight" in names else one_or_more
    gradients = (
        [largest(backward, result)[0] for result in ("dx", "dweight")] if backward else ["", ""]
    )
    cells = [NAMES.get(peer, peer), *largest(forward, "y"), f"{normal['bias']:+.2f}", *gradients]
    cells += ["; ".join(ends) or "whole", batch]
    return cells + ([roundings] if dtype == "bfloat16" else [])


def installed(dtype):
    """Yield the peers that are installed and have the dtype."""
    yield from HERE
    yield from rivals.versions(PEERS, dtype)[0]
    if rivals.is_installed("transformers") and rivals.is_installed("torch"):
        yield "llama"


def table(dtype, chosen):
    titles = ["", "y", "constant rows", "bias", "dx", "dweight", "range of y ends", "any batch"]
    titles += ["roundings"] if dtype == "bfloat16" else []
    yield f"**{dtype}**\n"
    yield f"| {' | '.join(titles)} |"
    yield f"|{' --- |' * len(titles)}"
    for peer in chosen or installed(dtype):
        if cells := row(peer, dtype):
            yield f"| {' | '.join(cells)} |"


def versions():
    names = ("numpy", "numba", "torch", "transformers", "jax", "mlx", "onnxruntime", "openvino")
    for name in (*names, "ggml_python"):
        if rivals.is_installed(name.removesuffix("_python")):
            yield f"{name} {importlib.metadata.version(name)}"


if __name__ == "__main__":
    wanted = [one for one in sys.argv[1:] if one in ("float32", "bfloat16")]
    chosen = [one for one in sys.argv[1:] if one not in wanted]
    print(f"{', '.join(versions())}.\n", flush=True)
    for dtype in wanted or ("float32", "bfloat16"):
        for text in table(dtype, chosen):
            print(text, flush=True)
        print()
