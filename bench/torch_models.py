"""Compare models before and after `fastrms.torch.patch`: python bench/torch_models.py

Three tables, those of docs/torch.md: the time of one call of a norm; how far small models of
several families are from float64; the time of two published shapes in bfloat16. All weights are
random. Calls that are compared take turns, and their results are compared before the clock starts.
"""

import argparse
import copy
from functools import partial
from itertools import product
from statistics import median
from time import process_time

import torch
import transformers
from torch.nn.functional import rms_norm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import fastrms
import fastrms.torch

SHAPES = ((1, 576), (1, 4096), (64, 1024), (256, 1024), (8192, 128))
DTYPES = (torch.bfloat16, torch.float32)
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
LAYERS, WIDTH = 4, 1024  # of the families' models
PROMPT = 64  # tokens
MODELS = {  # as published, all layers
    "SmolLM2-135M": dict(
        family="llama",
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "Qwen3-0.6B": dict(
        family="qwen3",
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
}


def times(functions, rounds, calls=1):
    """Return the CPU times of each function, in interleaved rounds after one that warms up."""
    seconds = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name in functions if turn % 2 else reversed(functions):
            start = process_time()
            for _ in range(calls):
                functions[name]()
            if turn:
                seconds[name].append((process_time() - start) / calls)
    return seconds


def patched_twin(model):
    """Return a patched copy of a model, with the same parameters."""
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    assert fastrms.torch.patch(twin)
    return twin


# ---- one call ---------------------------------------------------------------------------------


def price(rows, n, dtype, rounds):
    """Return the best times in us by name: the norms without gradients, then with."""
    own = LlamaRMSNorm(n, eps=1e-6).to(dtype)
    patched = patched_twin(own)
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(0)).to(dtype)
    norms = {
        "fastrms.torch.rms_norm": lambda x: fastrms.torch.rms_norm(x, own.weight, 1e-6),
        "fastrms, patched": patched,
        "LlamaRMSNorm": own,
        "F.rms_norm": lambda x: rms_norm(x, (n,), own.weight, 1e-6),
    }
    with torch.no_grad():
        ours, *others = (norm(x) for norm in norms.values())
    assert all(torch.allclose(ours, other, rtol=2 * torch.finfo(dtype).eps) for other in others)

    given = x.clone().requires_grad_(), own.weight

    def train(norm):
        torch.autograd.grad(norm(given[0]), given, x)

    calls = max(1, 20000 // (rows * n))
    trained = {f"{name}, with gradients": partial(train, norm) for name, norm in norms.items()}
    with torch.no_grad():
        found = times({name: partial(norm, x) for name, norm in norms.items()}, rounds, calls)
    found |= times(trained, rounds, calls)
    return {name: digits(min(seconds) * 1e6) for name, seconds in found.items()}


# ---- families ---------------------------------------------------------------------------------


def build(family, layers, width):
    """Return a small model of a family, in float32."""
    return make(
        family,
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        head_dim=64,
        vocab_size=512,
    )


def make(family, dtype=torch.float32, **config):
    """Return a model with random weights, also in the norms, whose own start is one or zero."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, pad_token_id=0, **config)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
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


# ---- end to end -------------------------------------------------------------------------------


def norms(model, count):
    """Return the RMSNorm modules in the order of their calls, each with its input."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda norm, given, _: calls.append((norm, given[0])))
        for module in model.modules()
        if "RMSNorm" in type(module).__name__
    ]
    with torch.no_grad():
        model(tokens(count))
    for hook in hooks:
        hook.remove()
    return calls


def passes(model):
    """Return the timed calls of a pass by its name: the model, and its norms alone."""
    cache = transformers.DynamicCache(config=model.config)
    model(tokens(PROMPT), cache=cache)

    def prefill():
        new = transformers.DynamicCache(config=model.config)
        return model(tokens(PROMPT), cache=new, logits_to_keep=1).logits

    def decode():
        logits = model(tokens(1), cache=cache).logits
        cache.crop(-1)
        return logits

    many, one = norms(model, PROMPT), norms(model, 1)
    return {
        f"{PROMPT} tokens": (prefill, lambda: [norm(x) for norm, x in many]),
        "1 token": (decode, lambda: [norm(x) for norm, x in one]),
    }


@torch.no_grad()
def end_to_end(model, rounds):
    """Return a list of cells for each pass: its name, the times of the model and of its norms."""
    before, after, rows = passes(model), passes(patched_twin(model)), []
    for name in before:
        (old, old_norms), (new, new_norms) = before[name], after[name]
        assert far(new(), old().double()) < 0.02
        turns = 5 * rounds if name == "1 token" else rounds  # a token is soon over
        functions = old, old_norms, new, new_norms
        old, old_norms, new, new_norms = times(dict(enumerate(functions)), turns).values()
        shares = f"{min(old_norms) / min(old):.1%} -> {min(new_norms) / min(new):.1%}"
        rows.append([name, cell(old, new), cell(old_norms, new_norms), shares])
    return rows


def cell(before, after):
    """Return the best times and their ratio; ? if a median round took over 20 % more."""
    old, new = min(before), min(after)
    mark = " ?" if any(median(each) > 1.2 * min(each) for each in (before, after)) else ""
    return f"{digits(old * 1e3)} -> {digits(new * 1e3)} ms, {old / new:.2f}x{mark}"


# ---- the tables -------------------------------------------------------------------------------


def table(title, *columns):
    print(f"\n{title}\n")
    row(*columns)
    row(*["---"] * len(columns))


def row(*cells):
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def digits(number):
    return f"{number:,.0f}" if number > 100 else f"{number:.3g}"


def arrows(pair):
    """Return the cells of two models' distances."""
    return [f"{old:.1e} -> {new:.1e}" for old, new in zip(*pair, strict=True)]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="for a call, 20 times as many")
    rounds = parser.parse_args(arguments).rounds
    # CPU time on one thread does not depend on what else runs on the machine.
    torch.set_num_threads(1)
    fastrms.set_num_threads(1)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"CPU time, 1 thread, best of {rounds} rounds, {20 * rounds} for calls; {versions}")
    for i, (dtype, (rows, n)) in enumerate(product(DTYPES, SHAPES)):
        best = price(rows, n, dtype, 20 * rounds)
        if i == 0:
            table("A call, us", "dtype", "rows x n", *best)
        row(str(dtype).removeprefix("torch."), f"{rows} x {n}", *best.values())
    halves = "logits in bfloat16", "gradients in bfloat16"
    table(
        f"Distances from float64, {LAYERS} layers of {WIDTH}",
        *("model", "norms", "logits in float32", "gradients in float32", *halves),
    )
    for family in FAMILIES:
        model = build(family, LAYERS, WIDTH)
        other = copy.deepcopy(model)
        count = fastrms.torch.patch(other)
        cells = arrows(parity(model, other))
        row(family, count, *cells, *arrows(parity(model.bfloat16(), other.bfloat16())))
    columns = "model", "norms", "pass", "the model", "its norms", "their share"
    table("End to end in bfloat16", *columns)
    for name, config in MODELS.items():
        model = make(dtype=torch.bfloat16, **config)
        for cells in end_to_end(model, rounds):
            row(name, len(norms(model, 1)), *cells)


if __name__ == "__main__":
    main()
