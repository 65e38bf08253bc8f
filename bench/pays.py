"""Print the share of the norms in NumPy programs, and what fastrms saves: python bench/pays.py

A decoder of Llama's shape with random weights, for one token and for a prompt; and a training step
of examples/microgpt.py. All on one thread, BLAS too. The times are CPU time, the least of
interleaved rounds; shares are of the program with the formula. What is saved is the difference of
the norms, since the rest of the program is the same.
"""

import os
import sys
import time
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import microgpt
import numpy as np
from microgpt_tools import Formula, Timed

import fastrms

HEAD, PAST = 64, 128  # numbers a head; tokens in the cache of one that is decoded
MODELS = {  # width, hidden numbers of the MLP, layers
    "4 layers, 64 wide": (64, 256, 4),
    "4 layers, 256 wide": (256, 1024, 4),
    "4 layers of SmolLM2-135M, 576 wide": (576, 1536, 4),
    "2 layers of TinyLlama-1.1B, 2048 wide": (2048, 5632, 2),
}
NORMS = {"NumPy": Formula, "fastrms": fastrms}


def decoder(width, hidden, layers, tokens, dtype):
    """Return a step of a pre-norm decoder without RoPE: a function of the module of norms."""
    rng = np.random.default_rng(0)

    def matrix(*shape):
        return rng.standard_normal(shape, np.float32).astype(dtype) / dtype(shape[0] ** 0.5)

    sizes = {"qkv": (width, 3 * width), "proj": (width, width)}
    sizes |= {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    weights = [{name: matrix(*size) for name, size in sizes.items()} for _ in range(layers)]
    heads, past = width // HEAD, PAST if tokens == 1 else 0
    cache = np.zeros((2, heads, past + tokens, HEAD), dtype)
    mask = np.triu(np.full((tokens, past + tokens), -np.inf, dtype), past + 1)
    norm, stream = np.ones(width, dtype), matrix(tokens, width)

    def attention(x, w):
        q, k, v = (x @ w["qkv"]).reshape(tokens, 3, heads, HEAD).transpose(1, 2, 0, 3)
        cache[0, :, past:], cache[1, :, past:] = k, v
        scores = q @ cache[0].swapaxes(1, 2) * HEAD**-0.5 + mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ cache[1]
        return mixed.swapaxes(0, 1).reshape(tokens, width) @ w["proj"]

    def mlp(x, w):
        gate = x @ w["gate"]
        return gate / (1 + np.exp(-gate)) * (x @ w["up"]) @ w["down"]

    def step(norms):
        h = stream.copy()
        x = norms.rms_norm(h, norm)
        for w in weights:
            x = norms.add_rms_norm(attention(x, w), h, norm)
            x = norms.add_rms_norm(mlp(x, w), h, norm)

    return step


def training():
    """Return a training step of microgpt in one worker."""
    config = microgpt.Config("".join(map(chr, range(32, 127))))
    state = microgpt.State.new(config)
    ids = np.random.default_rng(0).integers(0, len(config.chars), 10_000)
    windows = microgpt.batch(ids, config, 0)

    def step(norms):
        microgpt.adam(state, microgpt.gradients(state, *windows, norms)[1])

    return step


def measure(step, rounds, limit=3.0):
    """Return {module: (seconds of CPU time a step, those of its norms)}."""
    found, start = {name: [] for name in NORMS}, time.perf_counter()
    for turn in range(rounds):
        if turn > 4 and time.perf_counter() - start > limit:
            break
        for name, module in NORMS.items():
            step(module)  # untimed: the memory that the other's step freed is this one's
            timed, begin = Timed(module, time.process_time), time.process_time()
            step(timed)
            found[name].append((time.process_time() - begin, sum(timed.seconds)))
    return {name: list(map(min, zip(*rows, strict=True))) for name, rows in found.items()}


def line(name, dtype, step):
    found = measure(step, 100)
    (seconds, numpy), (_, ours) = found["NumPy"], found["fastrms"]
    shares = (f"{part / seconds:.1%}" for part in (numpy, ours, numpy - ours))
    step_ms = f"{1e3 * seconds:,.0f}" if seconds > 0.1 else f"{1e3 * seconds:.3g}"
    print("|", " | ".join([name, dtype, "1", step_ms, *shares]), "|", flush=True)


if __name__ == "__main__":
    fastrms.set_num_threads(1)
    print("| program | dtype | threads | ms a step | norms by formula | by fastrms | saved |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    measure(training(), 10)  # a CPU that was idle is slow at first: untimed
    for name, sizes in MODELS.items():
        for tokens in (1, 256):
            what = f"{name}, {tokens} token{'s' * (tokens > 1)}"
            for dtype in (np.float32, np.float64):
                line(what, dtype.__name__, decoder(*sizes, tokens, dtype))
    line("microgpt, 128 wide, a training step", "float32", training())
