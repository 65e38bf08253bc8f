"""transformers models before and after `fastrms.torch.patch`: python bench/torch_models.py

Small models with random weights, one a family. Printed are the distance of logits and gradients
from the same model in float64, before and after, and the times: the table of docs/torch.md.
"""

import argparse
import copy
from statistics import median
from timeit import default_timer

import torch
import transformers

import fastrms
import fastrms.torch

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
# What is timed: the tokens of one forward pass, and whether the backward pass follows.
CASES = {"1 token": (1, False), "256 tokens": (256, False), "256 tokens, trained": (256, True)}


def build(family, layers, width):
    """Return a model of random weights; norm weights too, which start at one, or at zero."""
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
    """Return logits and gradients, by name, of the sum of all logits' squares."""
    model.zero_grad()
    logits = model(tokens(count)).logits
    logits.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return logits.detach(), gradients


def distance(results, exact):
    """Return how far logits are from exact ones, and the farthest gradient: rms over rms."""
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


def times(models, count, trained, rounds):
    """Return the seconds of each model in each round; every round starts with another one."""
    seconds = [[] for _ in models]
    for turn in range(rounds + 1):
        for i in range(len(models)):
            i = (i + turn) % len(models)
            start = default_timer()
            if trained:
                train(models[i], count)
            else:
                with torch.no_grad():
                    models[i](tokens(count))
            if turn:  # the first round warms up
                seconds[i].append(default_timer() - start)
    return seconds


def cell(before, after):
    """Return the best rounds and their ratio, with a ? if half of the rounds took 20 % longer."""
    best, new_best = min(before), min(after)
    mark = "" if median(before) <= 1.2 * best and median(after) <= 1.2 * new_best else " ?"
    return f"{best * 1e3:.3g} -> {new_best * 1e3:.3g} ms, {best / new_best:.2f}x{mark}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of torch and of fastrms")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    fastrms.set_num_threads(args.threads)
    print(
        f"{args.layers} layers of {args.width}, {args.threads} thread(s); torch "
        f"{torch.__version__}, transformers {transformers.__version__}; {args.rounds} rounds\n"
    )
    row("model", "norms", "logits, before -> after", "gradients", *CASES)
    row(*["---"] * (4 + len(CASES)))
    for family in FAMILIES:
        model = build(family, args.layers, args.width)
        other = copy.deepcopy(model)
        norms = fastrms.torch.patch(other)
        (logits, gradients), (new_logits, new_gradients) = parity(model, other)
        cells = [cell(*times((model, other), *case, args.rounds)) for case in CASES.values()]
        row(
            family,
            norms,
            f"{logits:.1e} -> {new_logits:.1e}",
            f"{gradients:.1e} -> {new_gradients:.1e}",
            *cells,
        )


def row(*cells):
    print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
