"""fastrms.torch's modules, `patch` on transformers models, and the page docs/torch.md."""

import copy
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='torch is not installed: extra "fastrms[torch]"')

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
    # Small rows, in which eps has its say.
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


# ---- patch ------------------------------------------------------------------------------------


class Formula(torch.nn.Module):
    """A norm by another name, with what the subclasses below change in it."""

    def __init__(self, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.rand(N) + 1)

    def scale(self, x):
        return torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        return x * self.scale(x) * self.weight


class OnePlus(Formula):
    def forward(self, x):
        return x * self.scale(x) * (1 + self.weight)


class TwoPlus(Formula):
    def forward(self, x):
        return x * self.scale(x) * (2 + self.weight)


class EpsOutside(Formula):
    def scale(self, x):
        return 1 / (x.square().mean(-1, keepdim=True).sqrt() + self.eps)


class OtherEps(Formula):
    def scale(self, x):
        return torch.rsqrt(x.square().mean(-1, keepdim=True) + 2 * self.eps)


class OverTheRows(Formula):
    def scale(self, x):
        return torch.rsqrt(x.square().mean() + self.eps)


class SquaredWeight(Formula):
    def forward(self, x):
        return x * self.scale(x) * self.weight.square()


class Clipped(Formula):
    def forward(self, x):
        return super().forward(x).clamp(-2, 2)


class Gated(Formula):
    def forward(self, x, gate=None):
        return super().forward(x) if gate is None else super().forward(x) * gate


class RMSNormInNameAlone(Formula):
    def forward(self, x):
        return x * self.weight


class Buffered(Formula):
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(N))


@pytest.mark.parametrize("kind", [Formula, OnePlus])
def test_patch_finds_what_computes_the_norm(draw, kind):
    module = kind()
    x, dy = (torch.from_numpy(draw(ROWS, N)).requires_grad_() for _ in range(2))
    wanted = module(x), *gradients(module(x), [x, module.weight], dy)
    weight, hooked = module.weight, []
    module.register_forward_hook(lambda *arguments: hooked.append(1))
    assert adapter.patch(module) == 1
    assert hooked == []
    assert module.weight is weight
    assert isinstance(module, kind)
    got = module(x)
    assert got.grad_fn.name().startswith("GeneratedBackwardFor_fastrms")
    assert_close([got, *gradients(got, [x, weight], dy)], wanted)
    assert hooked == [1]
    assert adapter.patch(module) == 0


OTHERS = [EpsOutside, OtherEps, OverTheRows, SquaredWeight, TwoPlus, Clipped, Gated, Buffered]


@pytest.mark.parametrize("kind", [*OTHERS, RMSNormInNameAlone])
def test_patch_leaves_what_computes_something_else(kind):
    # With a weight of ones, as models start, its square would not show.
    module = kind()
    torch.nn.init.ones_(module.weight)
    assert adapter.patch(module) == 0
    assert type(module) is kind


def test_patch_leaves_other_modules_of_torch():
    others = [
        torch.nn.LayerNorm(N, bias=False),
        torch.nn.RMSNorm((3, N)),
        torch.nn.RMSNorm(N, elementwise_affine=False),
        torch.nn.RMSNorm(N, dtype=torch.float64),
        torch.nn.RMSNorm(N, device="meta"),
        torch.nn.PReLU(N),
        adapter.RMSNorm(N),
    ]
    overridden = Formula()
    overridden.forward = lambda x: x
    assert adapter.patch(torch.nn.Sequential(*others, overridden)) == 0
    assert adapter.patch(torch.nn.Sequential(torch.nn.RMSNorm(N), torch.nn.RMSNorm(N, 1e-6))) == 2


def test_patched_module_in_half_precision_is_its_own(draw):
    module, original = OnePlus().half(), OnePlus().half()
    original.load_state_dict(module.state_dict())
    assert adapter.patch(module.float()) == 1
    x = torch.from_numpy(draw(ROWS, N)).half()
    assert torch.equal(module.half()(x), original(x))
    assert torch.equal(copy.deepcopy(module)(x), original(x))


@pytest.fixture(scope="module")
def bench():
    """bench/torch_models.py, which builds the models and measures them."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    spec = importlib.util.spec_from_file_location(
        "torch_models", CHECKOUT / "bench/torch_models.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Norms a layer: Llama has two, Qwen3 one each for queries and keys more, Gemma 2 one each behind
# attention and feed-forward more, Gemma 3 all six. And one at the end.
NORMS = dict(llama=2, mistral=2, qwen2=2, qwen3=4, gemma=2, gemma2=4, gemma3_text=6)


@pytest.mark.parametrize("family", NORMS)
def test_patched_transformers_model(bench, family):
    """Its logits and gradients are as far from the float64 model's as they were before."""
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
    # Float32 matmuls make nearly all of the distance; a wrong eps or offset is 1e-2 and more.
    assert 0 < before[0] < 1e-5
    assert all(new < 2 * old for old, new in zip(before, after, strict=True))


def test_bench_prints_a_row_for_each_family(bench, capsys):
    assert set(bench.FAMILIES) == set(NORMS)
    threads = torch.get_num_threads(), adapter.fastrms.get_num_threads()
    bench.main(["--layers", "1", "--width", "64", "--rounds", "1"])
    torch.set_num_threads(threads[0])
    adapter.fastrms.set_num_threads(threads[1])
    rows = capsys.readouterr().out.splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {family}" for family in bench.FAMILIES]
    assert all(row.count(" ms, ") == 5 for row in rows)


def test_docs_blocks_run():
    pytest.importorskip("transformers", reason="transformers is not installed")
    blocks = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        exec(compile(block, "docs/torch.md", "exec"), names)
