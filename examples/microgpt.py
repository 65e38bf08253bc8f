"""Train a character-level GPT in plain NumPy, each backward written out next to its forward.

    pip install ".[examples]"                      # in the checkout
    python examples/microgpt.py                    # minutes: trains, saves model.npz, writes
    python examples/microgpt.py --resume model.npz --steps 4000

The model is Karpathy's microgpt (2026), batched: GPT-2 with RMSNorm for LayerNorm, ReLU for GELU,
no biases, and norms without weights (`--weights` learns them). Its blocks are pre-norm,
`h += attention(rms_norm(h))`, `h += mlp(rms_norm(h))`, and fastrms does every norm and residual.

Letters in the shapes: B sequences of T characters, N = B * T; C channels in H heads of D; V
characters in the alphabet; L layers. `dsomething` is the gradient of the loss in `something`.
"""

import argparse
import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

# The products are small: two workers with a core each take 60 to 90 ms a step, two threads of
# OpenBLAS 150 (Intel Xeon). And with one thread in BLAS the number of cores changes no bit.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import microgpt_tools as tools
import numpy as np

import fastrms

SHARES = 2  # of every batch; not one a worker, so that the number of workers changes no bit


def batch(ids, config, step):
    """Draw B random windows, seeded by the step: inputs (B, T), and targets, one character on."""
    rng = np.random.default_rng((config.seed, step))
    starts = rng.integers(0, len(ids) - config.context, config.batch)
    windows = ids[starts[:, None] + np.arange(config.context + 1)]
    return windows[:, :-1], windows[:, 1:]


@dataclass(frozen=True)
class Config:
    chars: str
    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 128
    batch: int = 12
    norm: bool = True
    residual: bool = True
    weights: bool = False
    seed: int = 0


def shapes(config):
    """Return all parameters' shapes. Norm 2i precedes layer i's attention, norm 2i + 1 its MLP."""
    vocab, c = len(config.chars), config.width
    result = {"characters": (vocab, c), "positions": (config.context, c), "head": (c, vocab)}
    for i in range(config.layers):
        result |= {f"{i}.qkv": (c, 3 * c), f"{i}.proj": (c, c)}
        result |= {f"{i}.up": (c, 4 * c), f"{i}.down": (4 * c, c)}
    if config.weights and config.norm:
        result |= {f"norm.{i}": (c,) for i in range(2 * config.layers + 1)}
    return result


def views(flat, config):
    """Return named views of one long array: Adam updates the array, the model uses the views."""
    result, start = {}, 0
    for name, shape in shapes(config).items():
        size = int(np.prod(shape))
        result[name] = flat[start : start + size].reshape(shape)
        start += size
    return result


def initial(config, dtype=np.float32):
    """Return random parameters, flat. A matrix keeps the rms of its input; those that end the 2L
    branches are smaller by sqrt(2L), as in GPT-2, so that the stream grows to 1 and no more."""
    flat = np.empty(sum(int(np.prod(shape)) for shape in shapes(config).values()), dtype)
    rng = np.random.default_rng(config.seed)
    fixed = {"characters": 0.2, "positions": 0.2, "head": 0.02}
    for name, p in views(flat, config).items():
        last = (2 * config.layers) ** -0.5 if name.endswith(("proj", "down")) else 1
        std = fixed.get(name, last * p.shape[0] ** -0.5)
        p[...] = 1 if name.startswith("norm") else std * rng.standard_normal(p.shape)
    return flat


# x (N, C) -> (N, C); a character attends to itself and its sequence's past
def attention(x, qkv, proj, config, t):
    b, heads, d = len(x) // t, config.heads, config.width // config.heads
    q, k, v = (x @ qkv).reshape(b, t, 3, heads, d).transpose(2, 0, 3, 1, 4)  # (B, H, T, D) each
    a = q @ k.swapaxes(2, 3)  # (B, H, T, T)
    a *= d**-0.5
    a += np.triu(np.full((t, t), -np.inf, a.dtype), 1)  # causal mask
    a -= a.max(axis=3, keepdims=True)
    np.exp(a, out=a)
    a /= a.sum(axis=3, keepdims=True)
    y = (a @ v).swapaxes(1, 2).reshape(x.shape)
    return y @ proj, (x, q, k, v, a, y)


def attention_backward(dout, saved, qkv, proj, dqkv, dproj):
    x, q, k, v, a, y = saved
    b, heads, t, d = q.shape
    np.matmul(y.T, dout, out=dproj)
    dy = (dout @ proj.T).reshape(b, t, heads, d).swapaxes(1, 2)
    dx_qkv = np.empty((b, t, 3, heads, d), x.dtype)
    dq, dk, dv = dx_qkv.transpose(2, 0, 3, 1, 4)
    dv[...] = a.swapaxes(2, 3) @ dy
    da = dy @ v.swapaxes(2, 3)
    da -= np.einsum("bhij,bhij->bhi", da, a)[..., None]  # softmax: a * (da - sum(da * a))
    da *= a
    da *= d**-0.5
    dq[...] = da @ k
    dk[...] = da.swapaxes(2, 3) @ q
    dx_qkv = dx_qkv.reshape(len(x), -1)
    np.matmul(x.T, dx_qkv, out=dqkv)
    return dx_qkv @ qkv.T


# x (N, C) -> (N, C)
def mlp(x, up, down):
    u = x @ up  # (N, 4C)
    np.maximum(u, 0, out=u)
    return u @ down, (x, u)


def mlp_backward(dout, saved, up, down, dup, ddown):
    x, u = saved
    np.matmul(u.T, dout, out=ddown)
    du = dout @ down.T
    du *= u > 0
    np.matmul(x.T, du, out=dup)
    return du @ up.T


# The stream h and a branch's output, both (N, C) -> the new stream, and its norm i.
# The sum is written into the branch's output, because the backward needs h.
def join(h, out, i, p, config, ops):
    weight = p.get(f"norm.{i}")
    if config.residual and config.norm:
        return out, ops.add_rms_norm(h, out, weight)  # out += h, and its norm, in one pass
    if config.residual:
        ops.residual_add(h, out)
    return out, ops.rms_norm(out, weight) if config.norm else out


# dx, the gradient of the branch, and dh, that of the skip path, both (N, C) -> the gradient in h.
# Here the two paths meet: the norm's backward adds its dx into dh.
def join_backward(dx, dh, h, i, p, g, config, ops):
    weight, dweight = p.get(f"norm.{i}"), g.get(f"norm.{i}")
    if config.residual and config.norm:
        ops.rms_norm_backward(dx, h, weight, dx=dh, dweight=dweight, accumulate=True)
        return dh
    if config.residual:
        return ops.residual_add(dx, dh)
    if config.norm:
        ops.rms_norm_backward(dx, h, weight, dx=dx, dweight=dweight)
    return dx


def forward(p, inputs, config, ops):
    """Return the logits (N, V) of inputs (B, T), and the arrays that the backward needs."""
    t = inputs.shape[1]
    h = (p["characters"][inputs] + p["positions"][:t]).reshape(-1, config.width)
    x = ops.rms_norm(h, p.get("norm.0")) if config.norm else h
    saved = []
    for i in range(config.layers):
        out, kept = attention(x, p[f"{i}.qkv"], p[f"{i}.proj"], config, t)
        saved.append((h, kept))
        h, x = join(h, out, 2 * i + 1, p, config, ops)
        out, kept = mlp(x, p[f"{i}.up"], p[f"{i}.down"])
        saved.append((h, kept))
        h, x = join(h, out, 2 * i + 2, p, config, ops)
    saved.append((h, x))
    return x @ p["head"], saved


def backward(dlogits, saved, p, g, inputs, config, ops):
    """Fill g, the gradients, from dlogits (N, V): the lines of `forward` in reverse order."""
    h, x = saved.pop()
    np.matmul(x.T, dlogits, out=g["head"])
    dx, dh = dlogits @ p["head"].T, np.zeros_like(h)  # nothing bypasses the last norm
    dh = join_backward(dx, dh, h, 2 * config.layers, p, g, config, ops)
    for i in reversed(range(config.layers)):
        up, down, qkv, proj = (f"{i}.{name}" for name in ("up", "down", "qkv", "proj"))
        h, kept = saved.pop()
        dx = mlp_backward(dh, kept, p[up], p[down], g[up], g[down])
        dh = join_backward(dx, dh, h, 2 * i + 1, p, g, config, ops)
        h, kept = saved.pop()
        dx = attention_backward(dh, kept, p[qkv], p[proj], g[qkv], g[proj])
        dh = join_backward(dx, dh, h, 2 * i, p, g, config, ops)
    dh = dh.reshape(*inputs.shape, -1)
    dh.sum(axis=0, out=g["positions"])
    np.add.at(g["characters"], inputs, dh)


def loss_and_gradients(p, g, inputs, targets, config, ops):
    """Return the mean cross-entropy in nats per character; fill g, zeros, unless it is None."""
    logits, saved = forward(p, inputs, config, ops)
    rows, targets = np.arange(len(logits)), targets.ravel()
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[rows, targets]
    np.exp(logits, out=logits)
    total = logits.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - chosen, dtype=np.float64))
    if g is not None:
        logits /= total  # the probabilities; minus 1 at the target: the gradient, times N
        logits[rows, targets] -= 1
        logits /= len(logits)
        backward(logits, saved, p, g, inputs, config, ops)
    return loss


@dataclass
class State:
    """The whole state of a run: loaded from a file, training continues bit for bit."""

    config: Config
    params: np.ndarray  # flat, as are Adam's two means
    mean: np.ndarray
    square: np.ndarray
    losses: list

    @classmethod
    def new(cls, config, dtype=np.float32):
        params = initial(config, dtype)
        return cls(config, params, np.zeros_like(params), np.zeros_like(params), [])

    def save(self, path):
        named = views(self.params, self.config) | {"losses": np.array(self.losses)}
        tools.save(path, asdict(self.config), mean=self.mean, square=self.square, **named)

    @classmethod
    def load(cls, path):
        named, config = tools.load(path)
        config = Config(**config)
        params = np.concatenate([named[name].ravel() for name in shapes(config)])
        return cls(config, params, named["mean"], named["square"], named["losses"].tolist())


def gradients(state, inputs, targets, ops=fastrms, run=map):
    """Return a batch's loss and flat gradient; shares are added in order, not as they finish."""
    p = views(state.params, state.config)

    def work(part):
        flat = np.zeros_like(state.params)
        return loss_and_gradients(p, views(flat, state.config), *part, state.config, ops), flat

    parts = zip(np.split(inputs, SHARES), np.split(targets, SHARES), strict=True)
    losses, flats = zip(*run(work, parts), strict=True)
    return sum(losses) / SHARES, sum(flats[1:], start=flats[0]) / SHARES


def adam(state, gradient, rate=3e-3, warmup=100, beta1=0.9, beta2=0.99, eps=1e-8):
    """Step once (Kingma and Ba 2015); the rate rises for `warmup` steps, then falls as 1 / sqrt."""
    step = len(state.losses) + 1
    state.mean += (1 - beta1) * (gradient - state.mean)
    state.square += (1 - beta2) * (gradient * gradient - state.square)
    rate *= min(step / warmup, (warmup / step) ** 0.5)  # has no last step, so that runs can go on
    move = state.mean / (np.sqrt(state.square / (1 - beta2**step)) + eps)
    state.params -= move * (rate / (1 - beta1**step))


def train(state, ids, steps, ops=fastrms, run=map):
    """Train up to `steps` steps in all; yield each step's loss."""
    while len(state.losses) < steps:
        inputs, targets = batch(ids, state.config, len(state.losses))
        loss, gradient = gradients(state, inputs, targets, ops, run)
        adam(state, gradient)
        state.losses.append(loss)
        yield loss


def held_out(state, ids, ops=fastrms, batches=8):
    """Return the mean loss on text that the training never sees."""
    p, config = views(state.params, state.config), state.config
    draws = (batch(ids, config, 10**9 + i) for i in range(batches))
    return sum(loss_and_gradients(p, None, *draw, config, ops) for draw in draws) / batches


def write(state, length, ops=fastrms, samples=3, temperature=0.8):
    """Generate `samples` texts from an empty line, one character at a time."""
    p, config, rng = views(state.params, state.config), state.config, np.random.default_rng(0)
    ids = np.full((samples, 1), config.chars.index("\n"))
    for _ in range(length):
        logits, _ = forward(p, ids[:, -config.context :], config, ops)
        logits = logits.reshape(samples, -1, len(config.chars))[:, -1] / temperature
        logits += rng.gumbel(size=logits.shape)  # argmax(logits + Gumbel noise) draws from softmax
        ids = np.append(ids, logits.argmax(axis=1)[:, None], axis=1)
    return ["".join(config.chars[i] for i in row[1:]) for row in ids]


def parse():
    parser = argparse.ArgumentParser(description="Train a small GPT in NumPy, and let it write.")
    parser.add_argument("--text", metavar="FILE", help="default: the docs of Python's own library")
    parser.add_argument(
        "--out", metavar="FILE", default="model.npz", help="default: model.npz; or .safetensors"
    )
    parser.add_argument("--resume", metavar="FILE", help="continue training a saved model")
    parser.add_argument("--steps", type=int, default=2000, help="in all (default: 2000)")
    parser.add_argument("--layers", type=int, default=4, help="default: 4")
    parser.add_argument("--no-norm", action="store_true", help="train without norms")
    parser.add_argument("--no-residual", action="store_true", help="train without residuals")
    parser.add_argument("--weights", action="store_true", help="learn a weight for each norm")
    parser.add_argument("--norm", choices=("fastrms", "numpy"), default="fastrms")
    parser.add_argument("--plot", metavar="FILE", help="draw the loss: .png or .svg")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    args = parser.parse_args()
    for module in ("rich", *["matplotlib"] * bool(args.plot)):
        if importlib.util.find_spec(module) is None:
            wanted = 'pip install ".[examples]" in the checkout'
            parser.exit(2, f"microgpt.py: {module} is not installed: {wanted}\n")
    for path, kinds in ((args.out, (".npz", ".safetensors")), (args.plot, (".png", ".svg"))):
        if path and not (path.endswith(kinds) and Path(path).absolute().parent.is_dir()):
            wanted = f"a file {' or '.join(kinds)} in a folder that exists"
            parser.exit(2, f"microgpt.py: {path}: wanted {wanted}\n")
    if min(args.steps, args.layers) < 1 or args.seed < 0:
        parser.exit(2, "microgpt.py: --steps and --layers start at 1, --seed at 0\n")
    try:
        state = State.load(args.resume) if args.resume else None
        text = Path(args.text).read_text("utf-8") if args.text else tools.standard_library_text()
    except (OSError, ValueError, KeyError) as reason:
        parser.exit(2, f"microgpt.py: {reason}\n")
    if len(text) < 20_000:
        parser.exit(2, "microgpt.py: the text must have at least 20,000 characters\n")
    if state is None:
        what = {"norm": not args.no_norm, "residual": not args.no_residual, "weights": args.weights}
        state = State.new(Config(tools.alphabet(text), args.layers, seed=args.seed, **what))
    return args, state, tools.encode(text, state.config.chars)


def main():
    args, state, ids = parse()
    config, modules = state.config, {"fastrms": fastrms, "numpy": tools.Formula}
    ids, unseen = np.split(ids, [len(ids) * 19 // 20])
    workers = min(SHARES, fastrms.get_num_threads())
    fastrms.set_num_threads(1)  # each worker is a thread already
    print(f"{state.params.size:,} parameters, {ids.size:,} characters to learn from")
    print(f"to be saved in {Path(args.out).absolute()} after the last step, or after Ctrl-C")
    with ThreadPoolExecutor(workers) as pool, np.errstate(all="ignore"):
        training = train(state, ids, args.steps, modules[args.norm], pool.map)
        tools.watch(training, state.losses, args.steps, config.batch * config.context)
        state.save(args.out)
        if np.isfinite(state.losses[-1]):
            print(*write(state, 300), sep="\n---\n")
        print(f"---\n{held_out(state, unseen):.3f} nats per character on text held out; {args.out}")

        def step(ops):
            adam(state, gradients(state, *batch(ids, config, 0), ops, pool.map)[1])

        print(tools.compare(modules, step, workers))
    if args.plot:
        tools.plot(state.losses, args.plot)


if __name__ == "__main__":
    main()
