"""Helpers of microgpt.py: text, files, a progress bar, a picture, NumPy's norm, and a clock."""

import ast
import json
import os
import random
import signal
import sysconfig
import time
from pathlib import Path

import numpy as np


def standard_library_text():
    """Return the docstrings and comments of Python's own library: 2.6 MB of English."""
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings"}
    files = [f for f in sorted(root.rglob("*.py")) if not skip & set(f.relative_to(root).parts)]
    random.Random(0).shuffle(files)  # so that the held-out tail is no single package
    parts, documented = [], (ast.Module, ast.ClassDef, ast.FunctionDef)
    statements = (ast.stmt, ast.excepthandler, ast.match_case)  # expressions hold no docstring
    for file in files:
        source = file.read_text("utf-8", "ignore")
        nodes = [ast.parse(source)]
        for node in nodes:  # grows on the way
            nodes += [part for part in ast.iter_child_nodes(node) if isinstance(part, statements)]
        nodes = [node for node in nodes if isinstance(node, documented)]
        parts += filter(None, map(ast.get_docstring, nodes))
        lines = (line.strip() for line in source.splitlines())
        parts.append("\n".join(line for line in lines if line.startswith("#")))
    return "\n\n".join(parts)


def alphabet(text):
    """Return in order the commonest 256 characters, each at least one in a million of the text."""
    counts = {char: text.count(char) for char in set(text) if char.isprintable()}
    often = [char for char, count in counts.items() if count * 1_000_000 >= len(text)]
    often.sort(key=lambda char: (-counts[char], char))
    return "".join(sorted(["\n", *often[:255]]))


def encode(text, chars):
    """Return each character's index in `chars`; drop characters that are not in it."""
    place = {char: i for i, char in enumerate(chars)}
    return np.array([place[char] for char in text if char in place], np.uint8)


def save(path, config, **tensors):
    """Write arrays and a dict, atomically: a reader sees the old file or the whole new one."""
    tensors["config"] = np.frombuffer(json.dumps(config).encode(), np.uint8)
    with open(f"{path}.part", "wb") as file:
        if path.endswith(".safetensors"):
            from safetensors.numpy import save as to_bytes

            file.write(to_bytes(tensors))
        else:
            np.savez(file, **tensors)
    os.replace(f"{path}.part", path)


def load(path):
    """Return the arrays and the dict that `save` wrote."""
    if path.endswith(".safetensors"):
        from safetensors.numpy import load_file

        tensors = load_file(path)
    else:
        with np.load(path) as file:
            tensors = dict(file)
    return tensors, json.loads(tensors.pop("config").tobytes())


def watch(training, losses, steps, tokens):
    """Run a training that appends to `losses`, with `tokens` a step, and show a progress bar.

    Ctrl-C, or a loss that is NaN or Inf, stops it after a whole step.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    stop, done, start = [], len(losses), time.perf_counter()
    before = signal.signal(signal.SIGINT, lambda *_: stop.append("stopped, to be resumed"))
    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as bar:
        task = bar.add_task("", total=steps, completed=done)
        for loss in training:
            step, mean = len(losses), np.mean(losses[-50:])
            rate = (step - done) * tokens / (time.perf_counter() - start)
            shown = f"loss {mean:.3f}  {rate:,.0f} tokens/s"
            bar.update(task, completed=step, description=shown)
            if step == 1 or step % max(1, steps // 10) == 0:
                bar.print(f"step {step:5d}  {mean:.3f} nats per character")
            if not np.isfinite(loss):
                stop.append("the training diverged")
            if stop:
                bar.print(f"loss {loss:.3f} at step {step}: {stop[0]}")
                break
    signal.signal(signal.SIGINT, before)


def plot(losses, path):
    """Draw the loss by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, window = figure.subplots(), min(50, len(losses))
    axes.plot(losses, color="#bbbbbb", lw=0.7, label="each step")
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    axes.plot(np.arange(window - 1, len(losses)), smooth, lw=2, label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="loss, nats per character", xlim=(0, len(losses)))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


class Formula:
    """The four functions of fastrms that microgpt uses, as usually written in NumPy."""

    @staticmethod
    def rms_norm(x, weight=None):
        y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)
        return y if weight is None else y * weight

    @staticmethod
    def add_rms_norm(x, residual, weight=None):
        residual += x
        return Formula.rms_norm(residual, weight)

    @staticmethod
    def rms_norm_backward(dy, x, weight=None, *, dx, dweight=None, accumulate=False):
        inv = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)
        xhat, g = x * inv, dy if weight is None else dy * weight
        if dweight is not None:
            dweight += (dy * xhat).sum(axis=0)
        value = inv * (g - xhat * (g * xhat).mean(axis=-1, keepdims=True))
        dx[...] = dx + value if accumulate else value

    @staticmethod
    def residual_add(x, residual):
        residual += x
        return residual


class Timed:
    """A module of norms with a clock on every call; calls may come from several threads."""

    def __init__(self, module, clock=time.perf_counter):
        self.module, self.clock, self.seconds = module, clock, []

    def __getattr__(self, name):
        function = getattr(self.module, name)

        def call(*args, **kwargs):
            start = self.clock()
            result = function(*args, **kwargs)
            self.seconds.append(self.clock() - start)
            return result

        return call


def compare(modules, step, workers, rounds=10):
    """Run `step(module)` in turns; return each median time, and the share of the norms in it."""
    times = {name: [] for name in modules}
    shares = {name: [] for name in modules}
    for _ in range(rounds):
        for name, module in modules.items():
            timed, start = Timed(module), time.perf_counter()
            step(timed)
            times[name].append(time.perf_counter() - start)
            shares[name].append(sum(timed.seconds) / workers / times[name][-1])
    return "; ".join(
        f"{name} {1e3 * np.median(times[name]):.1f} ms a step,"
        f" {np.median(shares[name]):.1%} of it norm and residual"
        for name in modules
    )
