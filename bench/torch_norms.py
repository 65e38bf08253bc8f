"""Time one norm of a bfloat16 model by fastrms and by torch: python bench/torch_norms.py

Three norms with the same weight, of one thread each: LlamaRMSNorm patched by fastrms.torch, as it
is, and torch's F.rms_norm. They take turns; the results are compared before the clock starts.
"""

import argparse
import copy
from time import process_time

import torch
import transformers
from torch.nn.functional import rms_norm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import fastrms
import fastrms.torch

SHAPES = ((1, 576), (1, 4096), (64, 1024), (256, 1024), (8192, 128))
DTYPES = (torch.bfloat16, torch.float32)


def norms(rows, n, dtype):
    """Return the three norms as functions without arguments, by name."""
    own = LlamaRMSNorm(n, eps=1e-6).to(dtype)
    patched = copy.deepcopy(own)
    assert fastrms.torch.patch(patched) == 1
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(0)).to(dtype)
    return {
        "fastrms, patched": lambda: patched(x),
        "LlamaRMSNorm": lambda: own(x),
        "F.rms_norm": lambda: rms_norm(x, (n,), own.weight, 1e-6),
    }


def seconds(function, calls):
    start = process_time()
    for _ in range(calls):
        function()
    return (process_time() - start) / calls


@torch.no_grad()
def price(rows, n, dtype, rounds):
    """Return the best times in us, in the order of the norms."""
    functions = norms(rows, n, dtype)
    first, *others = (function() for function in functions.values())
    assert all((first != other).double().mean() < 0.01 for other in others) or dtype.itemsize > 2
    best = dict.fromkeys(functions, float("inf"))
    calls = max(1, 20000 // (rows * n))
    for _ in range(rounds):
        for name, function in functions.items():
            best[name] = min(best[name], seconds(function, calls))
    return [f"{each * 1e6:.3g}" for each in best.values()]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    fastrms.set_num_threads(1)
    print(
        f"us of CPU time a call, 1 thread, no gradient; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; best of {args.rounds} rounds\n"
    )
    print("| dtype | rows x n |", " | ".join(norms(1, 8, torch.float32)), "|")
    print("| --- " * 5 + "|")
    for dtype in DTYPES:
        for rows, n in SHAPES:
            cells = price(rows, n, dtype, args.rounds)
            print(f"| {dtype} | {rows} x {n} |".replace("torch.", ""), " | ".join(cells), "|")


if __name__ == "__main__":
    main()
