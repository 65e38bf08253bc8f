"""fastrms.torch.patch: which modules it patches, and what these then do."""

import copy

import pytest

torch = pytest.importorskip("torch", reason='torch is not installed: extra "fastrms[torch]"')

from torch.nn import functional as F  # noqa: E402, N812

import fastrms.torch as adapter  # noqa: E402

from .signatures import ROWS, N  # noqa: E402
from .test_torch import assert_close, gradients  # noqa: E402


class Formula(torch.nn.Module):
    """A norm by another name; each subclass changes one thing."""

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


def is_ours(y):
    return y.grad_fn.name().startswith("GeneratedBackwardFor_fastrms")


@pytest.mark.parametrize("kind", [Formula, OnePlus])
def test_finds_what_computes_the_norm(draw, kind):
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
    assert is_ours(got)
    assert_close([got, *gradients(got, [x, weight], dy)], wanted)
    assert hooked == [1]
    assert adapter.patch(module) == 0


class Named(Formula):
    def forward(self, hidden_states):
        return super().forward(hidden_states)


def test_keeps_the_name_of_its_argument(draw):
    module, x = Named(), torch.from_numpy(draw(ROWS, N))
    assert adapter.patch(module) == 1
    y = module(hidden_states=x)
    assert is_ours(y)
    assert torch.equal(y, module(x))
    for wrong in [dict(x=x), dict()]:
        with pytest.raises(TypeError, match=r"forward\(\)"):
            module(**wrong)
    with pytest.raises(TypeError, match=r"forward\(\)"):
        module(x, hidden_states=x)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(hidden_states=x), y)


@pytest.mark.parametrize("eps", [0, 1.0, None])
def test_reads_eps_at_each_call(draw, eps):
    module, x = torch.nn.RMSNorm(N, 1e-5), torch.from_numpy(draw(ROWS, N)) * 1e-3
    assert adapter.patch(module) == 1
    before = module(x)
    module.eps = eps
    assert is_ours(module(x))
    assert_close([module(x)], [F.rms_norm(x, (N,), module.weight, eps)])
    assert not torch.allclose(module(x), before)


def test_eps_that_is_learnt_is_its_own(draw):
    module, x = Formula(), torch.from_numpy(draw(ROWS, N))
    assert adapter.patch(module) == 1
    del module.eps
    module.eps = torch.nn.Parameter(torch.tensor(0.5))
    module(x).sum().backward()
    assert module.eps.grad is not None


def test_inputs_that_were_not_tried_are_its_own(draw):
    module = Formula()
    original = copy.deepcopy(module)
    assert adapter.patch(module) == 1
    for x in (draw(N), draw(2, 1, 2, 1, N), draw(ROWS, 1)):
        y = module(torch.from_numpy(x))
        assert not is_ours(y)
        assert torch.equal(y, original(torch.from_numpy(x)))
    with pytest.raises(RuntimeError, match="size of tensor"):
        module(torch.from_numpy(draw(ROWS, N + 1)))


def test_half_precision_is_its_own(draw):
    module, original = OnePlus().half(), OnePlus().half()
    original.load_state_dict(module.state_dict())
    assert adapter.patch(module.float()) == 1
    x = torch.from_numpy(draw(ROWS, N)).half()
    assert torch.equal(module.half()(x), original(x))
    assert torch.equal(copy.deepcopy(module)(x), original(x))


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_default_dtype_does_not_matter(float64):
    assert adapter.patch(torch.nn.RMSNorm(N, dtype=torch.float32)) == 1


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        adapter.patch(3)
