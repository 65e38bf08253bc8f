"""Functions of torch, JAX and MLX: their arrays go in and out, in each dtype they have."""

import numpy as np
import pytest

from fastrms import conformance

from .dtypes import HALVES, dtype_of

FEW = {"shapes": ((4, 32), (3, 129))}


def in_torch(torch):
    def norm(x, weight, eps):
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)

    def backward(dy, x, weight, eps):
        x.requires_grad_()
        weight.requires_grad_()
        return torch.autograd.grad(norm(x, weight, eps), (x, weight), dy)

    return norm, backward


def in_jax(jax):
    # Compiled once a shape; without jit, once a shape and operation.
    @jax.jit
    def norm(x, weight, eps):
        wide = x.astype(jax.numpy.promote_types(x.dtype, "float32"))
        mean = (wide * wide).mean(-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean + eps) * weight).astype(x.dtype)

    @jax.jit
    def backward(dy, x, weight, eps):
        return jax.vjp(lambda x, weight: norm(x, weight, eps), x, weight)[1](dy)

    return norm, backward


def in_mlx(mlx):
    import mlx.core as mx

    def norm(x, weight, eps):
        return mx.fast.rms_norm(x, weight, eps)

    def backward(dy, x, weight, eps):
        return mx.vjp(lambda x, w: norm(x, w, eps), [x, weight], [dy])[1]

    return norm, backward


CASES = [
    *(("torch", in_torch, dtype) for dtype in ("float32", "float64", *HALVES)),
    *(("jax", in_jax, dtype) for dtype in ("float32", "bfloat16")),
    *(("mlx", in_mlx, dtype) for dtype in ("float32", *HALVES)),
]


@pytest.mark.parametrize(("framework", "build", "dtype"), CASES)
def test_a_framework(framework, build, dtype):
    module = pytest.importorskip("mlx.core" if framework == "mlx" else framework)
    dtype_of(dtype)
    norm, backward = build(module)
    options = {"dtype": dtype, "framework": framework} | FEW
    assert not conformance.check(norm, **options).failures
    named = {
        finding.name for finding in conformance.check(norm, weight_offset=1, **options).failures
    }
    assert named == {"weight_offset of 1 seems to be left out"}
    assert not conformance.check(backward=backward, **options).failures


def test_an_array_of_another_framework_is_a_line():
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match="y: wanted an array of torch, got ndarray"):
        conformance.check(lambda x, weight, eps: x.numpy(), framework="torch", **FEW)


def test_torch_changing_an_input_is_a_finding():
    torch = pytest.importorskip("torch")

    def norm(x, weight, eps):
        y = torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
        weight.mul_(2)
        return y

    [found] = conformance.check(norm, framework="torch", **FEW).failures
    assert found.name == "inputs are changed"
    assert np.array_equal(found.shows["after"], 2 * found.arguments["weight"])
