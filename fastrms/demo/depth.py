"""The depth study: what RMSNorm and the skip path each do to a deep stack, before any training.

It computes and returns arrays; `show` turns them into a table or a picture.

A layer is ``branch(u) = relu(u) @ W``: ReLU and linear, in the order of the pre-activation residual
network (He et al. 2016), so that a branch has mean zero. W is normal with variance
``gain**2 * 2 / width``: at gain 1 ReLU halves the mean square and the 2 gives it back (He et al.
2015). In expectation over W, with h[0] of mean square 1 and the upstream gradient at the top:

| design             | mean square of h[l] | squared gradient at h[l], over the top's     |
|--------------------|---------------------|----------------------------------------------|
| plain              | gain**(2l)          | gain**(2(L-l))                               |
| residual           | (1 + gain**2)**l    | (1 + gain**2)**(L-l)                         |
| RMSNorm            | gain**2             | 1 (the norm divides by the gain: it cancels) |
| RMSNorm + residual | 1 + gain**2 * l     | (1 + gain**2 * L) / (1 + gain**2 * l)        |
| skip overwritten   | 1 + gain**2 * l     | product over k of gain**2 / (1 + gain**2 * k)|
"""

from dataclasses import dataclass

import numpy as np

import fastrms


@dataclass(frozen=True)
class Design:
    """How a layer is joined to the stream."""

    name: str
    norm: bool = False
    skip: bool = False
    overwrite: bool = False  # the classic mistake: the backward stores where it should add


DESIGNS = (
    Design("plain"),
    Design("residual only", skip=True),
    Design("RMSNorm only", norm=True),
    Design("RMSNorm + residual", norm=True, skip=True),
    Design("skip gradient overwritten", norm=True, skip=True, overwrite=True),
)
GAINS = (1.3, 0.7)


@dataclass
class Forward:
    """The activations of a forward pass through L layers, each array (batch, width)."""

    stream: list  # h[0] .. h[L]; h[0] is the input
    seen: list  # the input of each of the L layers: rms_norm(h) with a norm, else h


@dataclass
class Backward:
    """Gradients with respect to the stream, and their two parts, by skip path and by branch."""

    total: list  # L + 1 of them, at h[0] .. h[L]; the last is the upstream gradient
    by_skip: list  # L: the part of total[l] that crossed layer l by the skip path
    by_branch: list  # L: the part that came back through W, ReLU and the norm


def make_weights(layers, width, gain, rng, dtype=np.float32):
    """Return the L matrices of a stack, each (width, width); the gain only scales the draw."""
    std = gain * (2 / width) ** 0.5
    return [std * rng.standard_normal((width, width), dtype) for _ in range(layers)]


def branch(u, weight, relu="first"):
    """Apply ReLU and the linear map: u (batch, width), weight (width, width) -> (batch, width)."""
    return np.maximum(u, 0) @ weight if relu == "first" else np.maximum(u @ weight, 0)


def branch_backward(dout, u, weight, relu="first"):
    """Return the gradient of ``sum(dout * branch(u))`` with respect to u."""
    if relu == "first":
        return (dout @ weight.T) * (u > 0)
    return (dout * (u @ weight > 0)) @ weight.T


def forward(x, weights, design, relu="first", ops=fastrms):
    """Run x (batch, width) up the stack; keep every h for the backward."""
    h, result = x, Forward([x], [])
    for weight in weights:
        u = ops.rms_norm(h) if design.norm else h
        out = branch(u, weight, relu)
        # Add into the branch's own output, because the backward needs the old h.
        h = ops.residual_add(h, out) if design.skip else out
        result.seen.append(u)
        result.stream.append(h)
    return result


def backward(dout, weights, design, passed, relu="first", ops=fastrms):
    """Carry dout (batch, width) back down the stack; `passed` is the result of `forward`."""
    dh = dout.copy()
    result = Backward([dout], [], [])
    for weight, h, u in zip(weights[::-1], passed.stream[-2::-1], passed.seen[::-1], strict=True):
        du = branch_backward(dh, u, weight, relu)
        # Compute the branch's part alone, too, only to measure it.
        by_branch = ops.rms_norm_backward(du, h)[0] if design.norm else du
        by_skip = dh.copy() if design.skip and not design.overwrite else np.zeros_like(dh)
        if not design.norm:
            dh = ops.residual_add(du, dh) if design.skip else du
        else:  # dh holds the skip path's part; the norm's backward adds the branch's to it
            keep = design.skip and not design.overwrite
            ops.rms_norm_backward(du, h, dx=dh, accumulate=keep)
        result.total.insert(0, dh.copy())
        result.by_skip.insert(0, by_skip)
        result.by_branch.insert(0, by_branch)
    return result


def measure(design, gain, layers=128, width=256, batch=64, seed=0, relu="first"):
    """Return the study's numbers for one design at one gain: a dict of lists, one entry a layer.

    rms, seen            root mean square of the stream and of each layer's input
    gradient             norm of the gradient at h[0] .. h[L], over that of the upstream gradient
    by_skip, by_branch   norms of its two parts across each layer, over the same
    skip_share           by_skip**2 / (by_skip**2 + by_branch**2)
    cosine               mean cosine between the activations of different inputs
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, width), np.float32)
    dout = rng.standard_normal((batch, width), np.float32)
    weights = make_weights(layers, width, gain, rng)
    with np.errstate(all="ignore"):  # leaving float32's range is a finding, not an accident
        passed = forward(x, weights, design, relu)
        grads = backward(dout, weights, design, passed, relu)
    top = _norm(dout)
    by_skip = np.array([_norm(g) for g in grads.by_skip]) / top
    by_branch = np.array([_norm(g) for g in grads.by_branch]) / top
    power = by_skip**2 + by_branch**2
    share = np.divide(by_skip**2, power, out=np.zeros(layers), where=power > 0)
    return {
        "design": design.name,
        "gain": gain,
        "rms": [_norm(h) / h.size**0.5 for h in passed.stream],
        "seen": [_norm(u) / u.size**0.5 for u in passed.seen],
        "gradient": [_norm(g) / top for g in grads.total],
        "by_skip": by_skip.tolist(),
        "by_branch": by_branch.tolist(),
        "skip_share": share.tolist(),
        "cosine": [_cosine(h) for h in passed.stream],
    }


def study(gains=GAINS, **options):
    """Yield the results of `measure` for every design at every gain."""
    return (measure(design, gain, **options) for gain in gains for design in DESIGNS)


def _norm(values):
    # In float64: the plain stack at gain 0.7 reaches 1e-20, whose square float32 cannot hold.
    return float(np.linalg.norm(values.astype(np.float64)))


def _cosine(h):
    """Return the mean cosine between different rows of h (batch, width)."""
    h = h.astype(np.float64)
    with np.errstate(all="ignore"):
        unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    rows = len(h)
    return float((np.sum(unit.sum(axis=0) ** 2) - rows) / (rows * (rows - 1)))
