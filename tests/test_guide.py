"""docs/guide.md: its blocks run and are right, its table matches the implementations."""

import re
from pathlib import Path

import numpy as np
import pytest

import fastrms
from fastrms import reference

GUIDE = (Path(__file__).parent.parent / "docs" / "guide.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
# Both sides are float32 within 4 ulp of the exact result (torch: 3.5, as measured): 8 units of
# 1.2e-7. Inputs lie near each eps, where a wrong eps changes the result by 1e-1.
FLOAT32 = 1e-6


def section(title):
    """Run the Python block below a heading after its setup; return its values and its inputs."""
    before, after = re.split(rf"^### {title}$", GUIDE, flags=re.MULTILINE)
    above = re.findall(r"```python\n(.*?)```", before, re.DOTALL)
    setup = next(block for block in above if "def f_backward" in block)
    values = {}
    exec(above[0] + setup, values)
    given = {key: np.array(values[key]) for key in ("h", "dout", "weight", "before", "after")}
    exec(re.search(r"```python\n(.*?)```", after, re.DOTALL)[1], values)
    return values, given


def test_every_python_block_runs():
    values = {}
    for block in BLOCKS:
        exec(block, values)
    assert len(BLOCKS) >= 6


FORWARD = {  # the formula above each block, in float64
    "Pre-norm": lambda f, h, w, a, b: h + f(reference.rms_norm(h, w)),
    "Post-norm": lambda f, h, w, a, b: reference.rms_norm(h + f(h), w),
    "Post-norm inside the branch": lambda f, h, w, a, b: h + reference.rms_norm(f(h), w),
    "Sandwich": lambda f, h, w, a, b: (
        h
        + reference.rms_norm(
            f(reference.rms_norm(h, b, 1e-6, weight_offset=1)), a, 1e-6, weight_offset=1
        )
    ),
}


@pytest.mark.parametrize("title", FORWARD)
def test_a_block_computes_its_formula_and_the_gradient_of_it(title):
    values, given = section(title)
    matrix = values["matrix"].astype(np.float64)
    exact = {key: value.astype(np.float64) for key, value in given.items()}
    names = ("h", "weight", "after", "before")

    def forward(**changed):
        arguments = (changed.get(name, exact[name]) for name in names)
        return FORWARD[title](lambda x: x @ matrix, *arguments)

    assert np.abs(values["out"] - forward()).max() < 1e-5 * np.abs(forward()).max()
    np.testing.assert_array_equal(values["h"], given["h"])  # backward needs the stream unchanged
    weights = ["after", "before"] if title == "Sandwich" else ["weight"]
    for name in ["h", *weights]:
        gradient = f"d{name}"
        wanted = np.empty_like(exact[name])
        for i in np.ndindex(wanted.shape):
            step = np.zeros_like(wanted)
            step[i] = 1e-6  # central differences: good to 1e-9 here, float32 to 1e-6
            up, down = forward(**{name: exact[name] + step}), forward(**{name: exact[name] - step})
            wanted[i] = np.sum(exact["dout"] * (up - down)) / 2e-6
        assert np.abs(values[gradient] - wanted).max() < 1e-5 * np.abs(wanted).max(), gradient


def test_qk_norm_is_in_place_and_leaves_v():
    values, _ = section("q/k norm")
    for name in ("q", "k"):
        part = values[name]
        assert np.shares_memory(part, values["qkv"])
        mean_squares = np.mean((part / values[f"{name}_weight"]) ** 2, axis=-1)
        np.testing.assert_allclose(mean_squares, 1, rtol=1e-4)
    assert np.abs(np.mean(values["v"] ** 2, axis=-1) - 1).max() > 0.01


def test_pre_norm_shows_what_the_next_branch_sees():
    values, _ = section("Pre-norm")
    wanted = reference.rms_norm(values["out"], values["after"])
    np.testing.assert_allclose(values["next_y"], wanted, rtol=FLOAT32)


# --- the conventions table ---


def near(eps, shape=(4, 32)):
    """Return rows whose mean square is about eps, and a weight that is not constant."""
    rng = np.random.default_rng(5)
    x = eps**0.5 * rng.standard_normal(shape)
    return x.astype(np.float32), rng.uniform(0.5, 1.5, shape[-1]).astype(np.float32)


def torch_tensor(array):
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    return torch.tensor(array)


def module(path, name):
    """Return a class of a model in transformers, and its default config."""
    pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    reason = "transformers is not installed: nothing to compare with"
    transformers = pytest.importorskip("transformers", reason=reason)
    import importlib

    here = f"transformers.models.{path}.modeling_{path}"
    config = {"gemma3": "Gemma3TextConfig", "gemma3n": "Gemma3nTextConfig"}
    config |= {"gemma4": "Gemma4TextConfig", "olmo2": "Olmo2Config", "gemma2": "Gemma2Config"}
    config |= {"qwen3_next": "Qwen3NextConfig"}
    config_name = config.get(path, f"{path.capitalize()}Config")
    try:
        return getattr(importlib.import_module(here), name), getattr(transformers, config_name)()
    except (ImportError, AttributeError):
        pytest.skip(f"this release of transformers has no {path}")


def run(layer, weight, *inputs):
    """Set the layer's weight, and call it on arrays."""
    import torch

    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        return layer(*map(torch_tensor, inputs)).numpy()


def eps_of(config):
    return getattr(config, "rms_norm_eps", None) or config.layer_norm_epsilon


def silu(gate):
    return gate / (1 + np.exp(-gate))


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=FLOAT32, atol=FLOAT32 * np.abs(wanted).max())


def paper():
    """Compare with the formula in the paper's repository (bzhangGo/rmsnorm), in float64."""
    x, w = near(1e-4)
    rms = np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True) * x.shape[-1] ** -0.5
    published = w * (x / (rms + 1e-8))
    close(fastrms.rms_norm(x, w, eps=0), published * (1 + 1e-8 / rms))
    assert 0 < np.max(1e-8 / rms) < 3e-6


def torch_default():
    x, w = near(1e-7)
    t = torch_tensor(x)
    import torch

    theirs = torch.nn.functional.rms_norm(t, x.shape[-1:], torch.tensor(w)).numpy()
    close(fastrms.rms_norm(x, w, eps=2**-23), theirs)
    close(fastrms.rms_norm(x, w, eps=2**-23), run(torch.nn.RMSNorm(x.shape[-1]), w, x))


def onnx_default():
    reason = "onnx is not installed: nothing to compare with"
    onnx = pytest.importorskip("onnx", reason=reason)
    evaluator = pytest.importorskip("onnx.reference", reason=reason)
    x, w = near(1e-5)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("RMSNormalization", ["x", "w"], ["y"])],
        "norm",
        [helper.make_tensor_value_info(name, kind, None) for name in "xw"],
        [helper.make_tensor_value_info("y", kind, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    close(
        fastrms.rms_norm(x, w), evaluator.ReferenceEvaluator(model).run(None, {"x": x, "w": w})[0]
    )


def mlx_default():
    reason = "MLX is not installed: nothing to compare with"
    nn = pytest.importorskip("mlx.nn", reason=reason)
    mx = pytest.importorskip("mlx.core", reason=reason)
    x, w = near(1e-5)
    layer = nn.RMSNorm(x.shape[-1])
    layer.weight = mx.array(w)
    close(fastrms.rms_norm(x, w), np.array(layer(mx.array(x))))


def plain(path, name, eps, offset=0.0):
    """Return a check of a norm over the last axis, built with its model's default eps."""

    def check():
        kind, config = module(path, name)
        assert eps_of(config) == eps
        x, w = near(eps)
        theirs = run(kind(x.shape[-1], eps=eps_of(config)), w, x)
        close(fastrms.rms_norm(x, w, eps=eps, weight_offset=offset), theirs)

    return check


def gemma():
    for path, name in (
        ("gemma", "GemmaRMSNorm"),
        ("gemma2", "Gemma2RMSNorm"),
        ("gemma3", "Gemma3RMSNorm"),
    ):
        plain(path, name, 1e-6, 1.0)()


def late_gemma():
    plain("gemma3n", "Gemma3nRMSNorm", 1e-6)()
    plain("gemma4", "Gemma4RMSNorm", 1e-6)()


def qwen3_heads():
    """Compare with the norms of the attention module, on q of a fused qkv, a strided view."""
    kind, config = module("qwen3", "Qwen3Attention")
    config = type(config)(hidden_size=64, num_attention_heads=4, num_key_value_heads=4, head_dim=16)
    assert eps_of(config) == 1e-6
    qkv, _ = near(1e-6, (2, 5, 3, 4, 16))
    q = qkv[:, :, 0]
    for layer in (kind(config, 0).q_norm, kind(config, 0).k_norm):
        w = near(1e-6, (1, 16))[1]
        close(fastrms.rms_norm(q, w, 1e-6), run(layer, w, q))


def qwen3_next_gate():
    kind, config = module("qwen3_next", "Qwen3NextRMSNormGated")
    x, w = near(1e-6)
    gate = near(1.0)[0]
    theirs = run(kind(x.shape[-1], eps=eps_of(config)), w, x, gate)
    assert eps_of(config) == 1e-6
    close(fastrms.rms_norm(x, w, 1e-6) * silu(gate), theirs)


def mamba2_gate():
    kind, config = module("mamba2", "MambaRMSNormGated")
    assert eps_of(config) == 1e-5
    x, w = near(1e-5)
    gate = near(1.0)[0][::-1].copy()
    close(fastrms.rms_norm(x * silu(gate), w), run(kind(32, 32, eps=eps_of(config)), w, x, gate))
    groups = fastrms.rms_norm((x * silu(gate)).reshape(4, 4, 8)).reshape(x.shape)
    close(groups * w, run(kind(32, 8, eps=eps_of(config)), w, x, gate))


ROWS = {
    "the paper's reference code": paper,
    "torch `F.rms_norm`, `nn.RMSNorm`": torch_default,
    "ONNX `RMSNormalization` (opset 23)": onnx_default,
    "MLX `nn.RMSNorm`": mlx_default,
    "T5": plain("t5", "T5LayerNorm", 1e-6),
    "Llama": plain("llama", "LlamaRMSNorm", 1e-6),
    "OLMo 2": plain("olmo2", "Olmo2RMSNorm", 1e-5),
    "Gemma, Gemma 2, Gemma 3": gemma,
    "Gemma 3n, Gemma 4": late_gemma,
    "Qwen3 q/k norm": qwen3_heads,
    "Qwen3-Next": plain("qwen3_next", "Qwen3NextRMSNorm", 1e-6, 1.0),
    "Qwen3-Next gate": qwen3_next_gate,
    "Mamba-2 gate": mamba2_gate,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # theirs, on import
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("who", ROWS)
def test_the_row_is_what_the_implementation_does(who):
    ROWS[who]()
