"""fastrms.torch's module, `patch` on transformers models, and the page docs/torch.md."""

import copy
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='torch is not installed: extra "fastrms[torch]"')

import fastrms  # noqa: E402
import fastrms.torch as adapter  # noqa: E402
from fastrms import reference  # noqa: E402

from .signatures import ROWS, N  # noqa: E402
from .test_torch import FLOAT32, assert_close, gradients  # noqa: E402

CHECKOUT = Path(__file__).parent.parent
DOCS = (CHECKOUT / "docs" / "torch.md").read_text("utf-8")


@pytest.mark.parametrize("eps", [None, 1e-6])
@pytest.mark.parametrize("affine", [True, False])
def test_module_is_nn_rms_norm(draw, eps, affine):
    ours, theirs = (kind(N, eps, affine) for kind in (adapter.RMSNorm, torch.nn.RMSNorm))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.from_numpy(draw(N)))
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    # Small rows, in which eps matters.
    x = torch.from_numpy(draw(ROWS, N) * np.float32(1e-3)).requires_grad_()
    weight = ours.weight.detach().numpy() if affine else None
    value = torch.finfo(torch.float32).eps if eps is None else eps
    exact = reference.rms_norm(x.detach().numpy(), weight, value)
    np.testing.assert_allclose(ours(x).detach().numpy(), exact, rtol=FLOAT32)
    assert_close([ours(x)], [theirs(x)])
    dy = torch.from_numpy(draw(ROWS, N))
    assert_close(
        gradients(ours(x), [x, ours.weight], dy), gradients(theirs(x), [x, theirs.weight], dy)
    )


def test_module_of_two_axes_and_of_a_wrong_one(draw):
    x = torch.from_numpy(draw(2, 3, N))
    assert torch.equal(adapter.RMSNorm((3, N))(x), torch.nn.RMSNorm((3, N))(x))
    with pytest.raises(RuntimeError, match="normalized_shape"):
        adapter.RMSNorm(N + 1, elementwise_affine=False)(x)


def test_copies_of_modules_are_independent(draw):
    module = adapter.RMSNorm(N)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.weight *= 2
    x = torch.from_numpy(draw(ROWS, N))
    assert torch.equal(twin(x), 2 * module(x))


# ---- patch on transformers --------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench():
    """Import bench/torch_models.py, which builds and measures the models."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    spec = importlib.util.spec_from_file_location(
        "torch_models", CHECKOUT / "bench/torch_models.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread():
    """Use one thread: with two, small steps wait for a busy machine."""
    threads = torch.get_num_threads(), fastrms.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads[0])
    fastrms.set_num_threads(threads[1])


# Norms a layer: Llama has two, Qwen3 adds one each for queries and keys, Gemma 2 one each behind
# attention and feed-forward, Gemma 3 has all six. Each model has one more at the end.
NORMS = dict(llama=2, mistral=2, qwen2=2, qwen3=4, gemma=2, gemma2=4, gemma3_text=6)


@pytest.mark.parametrize("family", NORMS)
def test_patched_transformers_model(bench, family):
    """A patched model's logits and gradients stay as close to the float64 model's as before."""
    model = bench.build(family, layers=2, width=128)
    other = copy.deepcopy(model)
    parameters = dict(other.named_parameters())
    assert adapter.patch(other) == 2 * NORMS[family] + 1
    assert {name: id(p) for name, p in other.named_parameters()} == {
        name: id(p) for name, p in parameters.items()
    }
    assert list(other.state_dict()) == list(model.state_dict())
    other.load_state_dict(model.state_dict())
    before, after = bench.parity(model, other)
    # Float32 matmuls cause nearly all of the error; a wrong eps or offset causes 1e-2 and more.
    assert 0 < before[0] < 1e-5
    assert all(new < 2 * old for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("family", NORMS)
@torch.no_grad()
def test_patched_bfloat16_model(bench, family):
    """Each norm gives its module's output but for 1e-4 of it, and the logits are as exact."""
    exact = bench.build(family, layers=2, width=128).bfloat16()
    model, other = copy.deepcopy(exact), copy.deepcopy(exact)
    exact = exact.float()
    assert adapter.patch(other) == 2 * NORMS[family] + 1
    twins = dict(zip(model.modules(), other.modules(), strict=True))
    differ = count = 0
    for norm, x in bench.norms(model, 64):
        y, wanted = twins[norm](x), norm(x)
        assert y.dtype is wanted.dtype
        differ, count = differ + (y != wanted).sum().item(), count + y.numel()
    assert differ <= 1e-4 * count
    tokens = bench.tokens(64)
    wanted = exact(tokens).logits
    before, after = (bench.far(each(tokens).logits, wanted) for each in (model, other))
    assert 0 < before < 2e-2
    assert after < 1.1 * before


@pytest.mark.parametrize("family", NORMS)
@torch.no_grad()
def test_greedy_tokens_of_a_bfloat16_model(bench, one_thread, family):
    """They are the same wherever the two best logits differ by 2 ulp or more."""
    transformers = pytest.importorskip("transformers")
    model = bench.build(family, layers=2, width=128).bfloat16()
    other = copy.deepcopy(model)
    assert adapter.patch(other) == 2 * NORMS[family] + 1
    caches = {each: transformers.DynamicCache(config=each.config) for each in (model, other)}
    tokens, sure = bench.tokens(64), 0
    for _ in range(16):  # the prompt, then a token at a time
        logits, others = (m(tokens, cache=cache).logits.float() for m, cache in caches.items())
        best, second = logits.topk(2).values.unbind(-1)
        apart = best - second >= 2 * torch.finfo(torch.bfloat16).eps * 2 ** best.log2().floor()
        assert torch.equal(logits.argmax(-1)[apart], others.argmax(-1)[apart])
        sure += apart.sum().item()
        tokens = logits[:, -1:].argmax(-1)
    assert sure > 60  # of 79


def test_bench_prints_its_tables(bench, one_thread, capsys, monkeypatch):
    assert set(bench.FAMILIES) == set(NORMS)
    tiny = dict(num_hidden_layers=1, hidden_size=144, intermediate_size=64, vocab_size=512)
    monkeypatch.setattr(bench, "LAYERS", 1)
    monkeypatch.setattr(bench, "WIDTH", 64)
    monkeypatch.setattr(bench, "SHAPES", ((1, 4096), (64, 512)))
    monkeypatch.setattr(
        bench, "MODELS", {name: config | tiny for name, config in bench.MODELS.items()}
    )
    bench.main(["--rounds", "1"])
    calls, distances, whole = (
        [line.strip("| ").split(" | ") for line in part.splitlines()[4:] if line]
        for part in re.split("A call|Distances|End to end", capsys.readouterr().out)[1:]
    )
    assert [cells[:2] for cells in calls] == [
        [dtype, shape] for dtype in ("bfloat16", "float32") for shape in ("1 x 4096", "64 x 512")
    ]
    assert all(float(us.replace(",", "")) > 0 for _, _, *times in calls for us in times)
    assert [cells[:2] for cells in distances] == [[f, str(NORMS[f] + 1)] for f in bench.FAMILIES]
    assert [cells[0] for cells in whole] == [name for name in bench.MODELS for _ in range(2)]
    assert all(len(cells) == 6 and cells[-1].count("%") == 2 for cells in whole)


def test_docs_blocks_run():
    pytest.importorskip("transformers", reason="transformers is not installed")
    blocks = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        exec(compile(block, "docs/torch.md", "exec"), names)
