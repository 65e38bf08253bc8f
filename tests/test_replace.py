"""docs/replace.md: each block gives what the formula gives, in float64, and so do its gradients."""

import re
from pathlib import Path

import numpy as np
import pytest

from fastrms import reference

PAGE = (Path(__file__).parent.parent / "docs" / "replace.md").read_text("utf-8")
SETUP = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]


def section(title):
    """Run the set-up and a heading's blocks; return the values, and the inputs as float64."""
    values = {}
    exec(SETUP, values)
    inputs = {key: values[key].astype(np.float64) for key in ("x", "h", "gate", "dy", "w")}
    (text,) = re.findall(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.DOTALL)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, values)
    return values, inputs


def norm(x, w=1.0, eps=1e-5):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w


def silu(x):
    return x / (1 + np.exp(-x))


def groups(x, w):
    return norm(x.reshape(5, 4, 16)).reshape(5, 64) * w


FORMULAS = {  # what each variable of a section's blocks must hold in the end
    "A function": {"y": lambda x, h, w, gate: norm(h + x, w), "h": lambda x, h, w, gate: h + x},
    "A class": {"y": lambda x, h, w, gate: norm(x)},
    "An autograd engine": {"y.data": lambda x, h, w, gate: norm(x, w)},
    "Heads of q and k": {
        name: lambda x, h, w, gate: norm(x.reshape(5, 4, 16), w[:16], 1e-6) for name in "qy"
    },
    "1 + weight": {"y": lambda x, h, w, gate: norm(x, 1 + w, 1e-6)},
    "Sandwich": {"y": lambda x, h, w, gate: norm(h + norm(x, 1 + w, 1e-6), 1 + w, 1e-6)},
    "Post-norm in the branch": {"h": lambda x, h, w, gate: h + norm(x, w)},
    "A scaled branch": {"y": lambda x, h, w, gate: norm(h + 0.22 * x, w)},
    "Gated": {
        "y": lambda x, h, w, gate: norm(x, w, 1e-6) * silu(gate),
        "z": lambda x, h, w, gate: norm(x * silu(gate), w),
        "groups": lambda x, h, w, gate: groups(x * silu(gate), w),
    },
    "An L2 norm": {"y": lambda x, h, w, gate: x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)},
    "Channels first": {"y": lambda x, h, w, gate: norm(x, w).T},
}


@pytest.mark.parametrize("title", FORMULAS)
def test_a_block_computes_its_formula(title):
    values, inputs = section(title)
    del inputs["dy"]
    for name, formula in FORMULAS[title].items():
        got = eval(name, values)
        np.testing.assert_allclose(got, formula(**inputs), rtol=1e-5, atol=1e-6)
        assert got.dtype == np.float32


def gradients(loss, *arrays):
    """Return the gradient of loss() in each of the arrays that it reads, good to 1e-8."""
    found = []
    for array in arrays:
        gradient = np.empty_like(array)
        for i in np.ndindex(array.shape):
            here, ends = array[i], []
            for array[i] in (here + 1e-6, here - 1e-6):
                ends.append(loss())
            array[i] = here
            gradient[i] = (ends[0] - ends[1]) / 2e-6
        found.append(gradient)
    return found


def test_gradients_are_those_of_the_formula():
    values, given = section("A class")
    x, w, dy = given["x"], np.ones(64), given["dy"]
    dx, dweight = gradients(lambda: np.sum(dy * norm(x, w)), x, w)
    np.testing.assert_allclose(values["dx"], dx, atol=1e-5)
    np.testing.assert_allclose(values["layer"].gradient, dweight, atol=1e-5)

    values, given = section("An autograd engine")
    x, w, dy = given["x"], given["w"], given["dy"]
    dx, dweight = gradients(lambda: np.sum(dy * norm(x, w)), x, w)
    np.testing.assert_allclose(values["tensors"][0].grad, dx, atol=1e-5)
    np.testing.assert_allclose(values["tensors"][1].grad, dweight, atol=1e-5)


def test_gradients_of_a_training_loop():
    values, given = section("A training loop")
    h, w = given["h"], given["w"]
    up, down = (values[name].astype(np.float64) for name in ("up", "down"))

    def loss():
        return np.sum(h + np.maximum(norm(h, w) @ up, 0) @ down)

    np.testing.assert_allclose(np.sum(values["out"]), loss(), rtol=1e-5)
    names = "dh", "dw", "ddown", "dup"
    some = h, w, down[:9, :9], up[:9, :9]  # views: enough of the matrices
    for name, gradient in zip(names, gradients(loss, *some), strict=True):
        found = values[name][tuple(map(slice, gradient.shape))]
        twice = 1 if name == "dh" else 2  # summed over two micro-batches
        np.testing.assert_allclose(found, twice * gradient, atol=2e-5)


def test_nothing_becomes_float64():
    values, _ = section("Why an activation became float64")
    assert values["cache"].dtype == np.float32


def test_onnx_reference_evaluator():
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: nothing to plug into")
    evaluator = pytest.importorskip("onnx.reference", reason="onnx has no reference evaluator")
    values, _ = section("ONNX's reference evaluator")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("RMSNormalization", ["x", "w"], ["y"], epsilon=1e-3)],
        "norm",
        [helper.make_tensor_value_info(name, kind, None) for name in "xw"],
        [helper.make_tensor_value_info("y", kind, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    calls, run = [], values["RMSNormalization"]._run
    values["RMSNormalization"]._run = lambda *args, **more: calls.append(1) or run(*args, **more)
    session = evaluator.ReferenceEvaluator(model, new_ops=[values["RMSNormalization"]])
    (y,) = session.run(None, {"x": values["x"], "w": values["w"]})
    np.testing.assert_array_equal(y, values["fastrms"].rms_norm(values["x"], values["w"], 1e-3))
    assert calls


def test_the_reference_is_the_formula():
    values, given = section("1 + weight")
    exact = reference.rms_norm(values["x"], values["w"], 1e-6, weight_offset=1.0)
    np.testing.assert_allclose(exact, norm(given["x"], 1 + given["w"], 1e-6), rtol=1e-12)
