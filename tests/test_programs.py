"""Short programs of users, whose arrays are not all float32: they run, and agree with reference."""

import json

import numpy as np
import pytest

import fastrms
from fastrms import reference

from .dtypes import dtype_of

WIDTH, HEADS, TOKENS = 64, 4, 10


# ---- a small Llama in NumPy ---------------------------------------------------------------------


def llama(ops, p, tokens):
    """Two layers. `/ np.sqrt(d)` turns float32 scores into float64 ones, with NumPy 2."""
    h = p["embedding"][tokens]
    causal = np.triu(np.full((len(tokens), len(tokens)), -1e9), 1).astype(h.dtype)
    for layer in range(2):
        x = ops.rms_norm(h, p[f"{layer}.norm1"], 1e-6)
        q, k, v = np.split(x @ p[f"{layer}.qkv"], 3, axis=-1)
        q, k, v = (a.reshape(-1, HEADS, WIDTH // HEADS).swapaxes(0, 1) for a in (q, k, v))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(WIDTH // HEADS) + causal
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ v
        added = mixed.swapaxes(0, 1).reshape(h.shape) @ p[f"{layer}.out"]
        h = h.copy()
        x = ops.add_rms_norm(added, h, p[f"{layer}.norm2"], 1e-6)
        h = h + np.maximum(x @ p[f"{layer}.up"], 0) @ p[f"{layer}.down"]
    return ops.rms_norm(h, p["norm"], 1e-6) @ p["embedding"].T


def parameters(rng):
    p = {"embedding": rng.standard_normal((50, WIDTH)), "norm": rng.uniform(0.5, 2, WIDTH)}
    for layer in range(2):
        p |= {f"{layer}.norm{i}": rng.uniform(0.5, 2, WIDTH) for i in (1, 2)}
        for name, shape in (("qkv", (64, 192)), ("out", (64, 64)), ("up", (64, 128))):
            p[f"{layer}.{name}"] = rng.standard_normal(shape) / 8
        p[f"{layer}.down"] = rng.standard_normal((128, 64)) / 12
    return {name: value.astype(np.float32) for name, value in p.items()}


def test_llama_whose_activations_turn_float64(rng):
    p, tokens = parameters(rng), rng.integers(0, 50, TOKENS)
    logits, exact = llama(fastrms, p, tokens), llama(reference, p, tokens)
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        assert logits.dtype == np.float64
    assert np.abs(logits - exact).max() < 1e-4 * np.abs(exact).max()  # some steps are in float32
    assert (logits.argmax(-1) == exact.argmax(-1)).all()


# ---- all of it in float16 -----------------------------------------------------------------------


def test_feed_forward_blocks_in_float16(rng):
    """As a GPU would run them: activations, weights and the residual stream are float16."""
    stream = rng.standard_normal((TOKENS, WIDTH)).astype(np.float16)
    branch = np.zeros_like(stream)
    for _ in range(6):
        weight = rng.uniform(0.5, 2, WIDTH).astype(np.float16)
        up, down = (rng.standard_normal((WIDTH, WIDTH)).astype(np.float16) / 8 for _ in range(2))
        wanted_stream = stream + branch
        y = fastrms.add_rms_norm(branch, stream, weight)
        exact = reference.rms_norm(wanted_stream, weight)
        assert (y.dtype, stream.dtype) == (np.float16, np.float16)
        assert stream.tobytes() == wanted_stream.tobytes()
        assert np.all(np.abs(y - exact) <= 2.0**-11 * 1.001 * np.abs(exact) + 2.0**-25)
        branch = np.maximum(y @ up, 0).astype(np.float16) @ down


# ---- a loader that makes float64 weights --------------------------------------------------------


def test_weights_from_json_are_float64(rng, tmp_path):
    """Python's floats are float64: so are the weights that json, csv or loadtxt give."""
    x, dy = rng.standard_normal((2, TOKENS, WIDTH)).astype(np.float32)
    saved = rng.uniform(0.5, 2, WIDTH).astype(np.float32)
    path = tmp_path / "norm.json"
    path.write_text(json.dumps({"norm.weight": saved.tolist()}))
    weight = np.array(json.loads(path.read_text())["norm.weight"])
    assert weight.dtype == np.float64
    y = fastrms.rms_norm(x, weight)
    dx, dweight = fastrms.rms_norm_backward(dy, x, weight)
    assert (y.dtype, dx.dtype, dweight.dtype) == (np.float32, np.float32, np.float64)
    assert y.tobytes() == fastrms.rms_norm(x, saved).tobytes()
    np.testing.assert_allclose(y, reference.rms_norm(x, weight), rtol=4e-7)
    exact_dx, exact = reference.rms_norm_backward(dy, x, weight)
    np.testing.assert_allclose(dx, exact_dx, rtol=0, atol=1e-5)
    np.testing.assert_allclose(dweight, exact, rtol=0, atol=1e-4)
    weight -= 1e-3 * dweight  # a step of training, in place


# ---- an autograd engine in float64 --------------------------------------------------------------


class Value:
    """An array that remembers how it was made: enough of an engine for a loss."""

    def __init__(self, data, parents=(), backward=lambda grad: ()):
        self.data, self.parents, self.step = np.asarray(data, np.float64), parents, backward
        self.grad = np.zeros_like(self.data)

    def __matmul__(self, other):
        a, b = self.data, other.data
        return Value(a @ b, (self, other), lambda grad: (grad @ b.T, a.T @ grad))

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), lambda grad: (grad, grad))

    def tanh(self):
        y = np.tanh(self.data)
        return Value(y, (self,), lambda grad: (grad * (1 - y * y),))

    def norm(self, weight):
        x, w = self.data, weight.data
        y = fastrms.rms_norm(x, w)
        return Value(y, (self, weight), lambda grad: fastrms.rms_norm_backward(grad, x, w))

    def square_mean(self):
        x = self.data
        return Value((x * x).mean(), (self,), lambda grad: (grad * 2 * x / x.size,))

    def backward(self):
        order, seen = [], set()

        def visit(value):
            if id(value) not in seen:
                seen.add(id(value))
                for parent in value.parents:
                    visit(parent)
                order.append(value)

        visit(self)
        self.grad = np.ones_like(self.data)
        for value in reversed(order):
            for parent, grad in zip(value.parents, value.step(value.grad), strict=True):
                parent.grad = parent.grad + grad


def test_gradient_check_of_a_float64_engine(rng):
    """Central differences with a step of 1e-5: float32 would be off by 1e-2, not by 1e-8."""
    arrays = [
        rng.standard_normal(shape) for shape in ((5, 8), (8, 8), (8,), (8, 3))
    ]  # x, the first matrix, the norm's weight, the second matrix

    def loss(*values):
        x, first, weight, second = values
        hidden = (x @ first).norm(weight) + x
        return (hidden.tanh() @ second).square_mean()

    values = [Value(array) for array in arrays]
    loss(*values).backward()
    for number, value in enumerate(values):
        for index in np.ndindex(value.data.shape):
            slope = 0.0
            for sign in (1, -1):
                moved = [array.copy() for array in arrays]
                moved[number][index] += sign * 1e-5
                slope += sign * float(loss(*map(Value, moved)).data) / 2e-5
            assert value.grad[index] == pytest.approx(slope, rel=1e-6, abs=1e-9)
    hidden = arrays[0] @ arrays[1]
    exact = reference.rms_norm(hidden, arrays[2])
    assert np.abs(fastrms.rms_norm(hidden, arrays[2]) - exact).max() < 1e-14


# ---- bfloat16 -----------------------------------------------------------------------------------


def test_bfloat16_rows_of_2048(rng):
    """Added up in bfloat16, 1 + 1 + ... stops at 256: such a norm is off by more than 1."""
    bfloat16 = dtype_of("bfloat16")
    x = rng.choice([-1.0, 1.0], (4, 2048)).astype(bfloat16)
    squares = np.zeros((4, 1), bfloat16)
    for column in (x * x).T:
        squares += column[:, None]
    naive = x.astype(np.float32) / np.sqrt(squares.astype(np.float32) / 2048)
    y, exact = fastrms.rms_norm(x), reference.rms_norm(x.astype(np.float32))
    assert np.abs(naive - exact).max() > 1
    assert y.dtype == bfloat16
    assert np.abs(y.astype(np.float32) - exact).max() <= 2.0**-8
    spread = rng.standard_normal((4, 2048)).astype(bfloat16)
    y, exact = fastrms.rms_norm(spread), reference.rms_norm(spread.astype(np.float32))
    assert np.all(np.abs(y.astype(np.float64) - exact) <= 2.0**-8 * 1.001 * np.abs(exact))
