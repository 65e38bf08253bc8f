"""Compare transformers models before and after `fastrms.torch.patch`: python bench/torch_models.py

One small model of each family, with random weights. The first table has the distance of logits and
gradients from the same model in float64, and the times; the second the time of one call of the
norm. They are the tables of docs/torch.md.
"""

import argparse
import copy
from statistics import median
from time import process_time

import torch
import transformers

import fastrms
import fastrms.torch


def formula(x, weight):
    """Return the norm as transformers' LlamaRMSNorm computes it."""
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


NORMS = {
    "fastrms.torch": fastrms.torch.rms_norm,
    "F.rms_norm": lambda x, weight: torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-5),
    "formula": formula,
}
CALLS = 200  # of each norm in a turn
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")


def build(family, layers, width):
    """Return a model with random weights, also in the norms, whose own start is one or zero."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        family,
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        head_dim=64,
        vocab_size=512,
        pad_token_id=0,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape)
    return model.eval()


def tokens(count):
    return torch.randint(1, 512, (1, count), generator=torch.Generator().manual_seed(1))


def train(model, count):
    """Return the logits, and the gradients by name of the sum of their squares."""
    model.zero_grad()
    logits = model(tokens(count)).logits
    logits.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return logits.detach(), gradients


def distance(results, exact):
    """Return the error of the logits and that of the worst gradient, each as rms over rms."""
    (logits, gradients), (exact_logits, exact_gradients) = results, exact
    return far(logits, exact_logits), max(
        far(gradients[name], exact_gradients[name]) for name in gradients
    )


def far(values, exact):
    return ((values.double() - exact).norm() / exact.norm()).item()


def parity(model, other, count=32):
    """Return the distances of both models from the float64 one: (logits, gradients) twice."""
    exact = train(copy.deepcopy(model).double(), count)
    return [distance(train(each, count), exact) for each in (model, other)]


def passes(model):
    """Return the timed calls by name: forward passes, one with its backward, the norms alone."""
    one, many = norms(model, 1), norms(model, 256)
    return {
        "1 token": lambda: infer(model, 1),
        "its norms": lambda: [norm(x) for norm, x in one],
        "256 tokens": lambda: infer(model, 256),
        "their norms": lambda: [norm(x) for norm, x in many],
        "256 tokens, trained": lambda: train(model, 256),
    }


@torch.no_grad()
def infer(model, count):
    model(tokens(count))


def norms(model, count):
    """Return the RMSNorm modules in the order of their calls, each with its input."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda norm, given, _: calls.append((norm, given[0])))
        for module in model.modules()
        if "RMSNorm" in type(module).__name__
    ]
    infer(model, count)
    for hook in hooks:
        hook.remove()
    return calls


def cell(before, after, trained, rounds):
    """Return the best CPU times and their ratio; ? if a median round took over 20 % more."""
    seconds = [[], []]
    for turn in range(rounds + 1):
        for i in (0, 1) if turn % 2 else (1, 0):
            start = process_time()
            with torch.set_grad_enabled(trained):
                (before, after)[i]()
            if turn:  # the first round warms up
                seconds[i].append(process_time() - start)
    old, new = map(min, seconds)
    mark = " ?" if any(median(each) > 1.2 * min(each) for each in seconds) else ""
    return f"{old * 1e3:.3g} -> {new * 1e3:.3g} ms, {old / new:.2f}x{mark}"


def call(norm, x, weight, trained):
    """Run the norm, with its backward pass if it is trained."""
    with torch.set_grad_enabled(trained):
        y = norm(x, weight)
    if trained:
        torch.autograd.grad(y, (x, weight), x.detach())


def price(rows, rounds):
    """Return the CPU times of a call on rows of 64, in us: each norm, then each with gradients."""
    best = {(trained, name): float("inf") for trained in (False, True) for name in NORMS}
    for _ in range(rounds):
        for trained, name in best:
            x = torch.randn(rows, 64, requires_grad=trained)
            weight = torch.ones(64, requires_grad=trained)
            start = process_time()
            for _ in range(CALLS):
                call(NORMS[name], x, weight, trained)
            best[trained, name] = min(best[trained, name], process_time() - start)
    return [f"{seconds / CALLS * 1e6:.3g}" for seconds in best.values()]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(arguments)
    # CPU time on one thread does not depend on what else runs on the machine.
    torch.set_num_threads(1)
    fastrms.set_num_threads(1)
    print(
        f"{args.layers} layers of {args.width}, 1 thread, CPU time; torch {torch.__version__}, "
        f"transformers {transformers.__version__}; best of {args.rounds} rounds\n"
    )
    for i, family in enumerate(FAMILIES):
        model = build(family, args.layers, args.width)
        other = copy.deepcopy(model)
        count = fastrms.torch.patch(other)
        distances = [
            f"{old:.1e} -> {new:.1e}" for old, new in zip(*parity(model, other), strict=True)
        ]
        before, after = passes(model), passes(other)
        cells = [cell(before[n], after[n], "trained" in n, args.rounds) for n in before]
        if i == 0:
            row("model", "norms", "logits, before -> after", "gradients", *before)
            row(*["---"] * (4 + len(before)))
        row(family, count, *distances, *cells)
    print(f"\nA call on rows of 64, in us of CPU time, 1 thread; best of {args.rounds} rounds\n")
    row("rows", *NORMS, *(f"{name}, with gradients" for name in NORMS))
    row(*["---"] * (1 + 2 * len(NORMS)))
    for rows in (1, 16, 256, 4096):
        row(rows, *price(rows, args.rounds))


def row(*cells):
    print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
