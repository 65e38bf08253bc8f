"""fastrms.torch.patch: which modules it patches, and what these then do."""

import copy
from functools import partial

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
        return hidden_states * self.scale(hidden_states) * self.weight


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


def test_rows_of_any_rank_but_not_of_another_length(draw):
    module = Formula()
    original = copy.deepcopy(module)
    assert adapter.patch(module) == 1
    for x in (draw(N), draw(2, 1, 2, 1, N)):
        y = module(torch.from_numpy(x))
        assert is_ours(y)
        assert_close([y], [original(torch.from_numpy(x))])
    x = torch.from_numpy(draw(ROWS, 1))
    assert torch.equal(module(x), original(x))
    with pytest.raises(RuntimeError, match="size of tensor"):
        module(torch.from_numpy(draw(ROWS, N + 1)))


# ---- half precision ---------------------------------------------------------------------------


class Llama(Formula):
    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        return self.weight * (x * self.scale(x)).to(dtype)


class Olmo(Formula):
    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        return (self.weight * (x * self.scale(x))).to(dtype)


class Gemma(Formula):
    def forward(self, x):
        return (x.float() * self.scale(x.float()) * (1.0 + self.weight.float())).type_as(x)


class T5(Formula):
    def forward(self, x):
        x = x * self.scale(x.to(torch.float32))
        if self.weight.dtype in [torch.float16, torch.bfloat16]:
            x = x.to(self.weight.dtype)
        return self.weight * x


class Torch(torch.nn.RMSNorm):
    def __init__(self):
        super().__init__(N, 1e-5)


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@HALVES
@pytest.mark.parametrize("kind", [Llama, Olmo, Gemma, T5, Torch])
def test_halves_keep_the_order_of_roundings(kind, dtype):
    """In the wrong order 25 % of the elements differ. In the right one float32's own errors decide:
    3e-6 of them in bfloat16, 1e-4 in float16, which has 8 times as many numbers."""
    generator = torch.Generator().manual_seed(0)
    module = kind()
    torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    module = module.to(dtype)
    original = copy.deepcopy(module)
    assert adapter.patch(module) == 1
    x = torch.randn(2000, N, generator=generator).to(dtype).requires_grad_()
    y, wanted = module(x), original(x)
    assert is_ours(y)
    assert y.dtype is wanted.dtype is dtype
    assert (y != wanted).double().mean() <= (1e-4 if dtype is torch.bfloat16 else 1e-3)
    dy = torch.randn(x.shape, generator=generator).to(dtype)
    exact = copy.deepcopy(original).double()
    x64 = x.detach().double().requires_grad_()
    close = gradients(exact(x64), [x64, exact.weight], dy.double())
    for got, value in zip(gradients(y, [x, module.weight], dy), close, strict=True):
        assert got.dtype is dtype
        # float32 may end on the other side of half an ulp; T5 and Llama compute exact in float32.
        assert ((got - value).abs() <= 0.51 * torch.finfo(dtype).eps * value.abs() + 1e-3).all()


@HALVES
def test_a_weight_in_float32(dtype):
    x = torch.randn(64, N).to(dtype)
    for kind, wanted in [(Llama, torch.float32), (Olmo, dtype), (Gemma, dtype)]:
        module = kind()
        original = copy.deepcopy(module)
        assert adapter.patch(module) == 1
        y = module(x)
        assert is_ours(y)
        assert y.dtype is original(x).dtype is wanted
        assert_close([y.float()], [original(x).float()])


# ---- models -----------------------------------------------------------------------------------


def traced():
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        return torch.jit.trace(torch.nn.Linear(N, N), torch.randn(2, N))


def with_forward(forward):
    module = torch.nn.RMSNorm(N)
    module.forward = forward
    return module


class Metaclass(type):
    pass


class OfAnotherType(Formula, metaclass=Metaclass):
    pass


class Lazy(Formula):
    @property
    def eps(self):
        raise RuntimeError("not now")

    @eps.setter
    def eps(self, value):
        pass


ODD = {
    "a built-in": lambda: with_forward(torch.relu),
    "partial": lambda: with_forward(partial(F.rms_norm, normalized_shape=(N,))),
    "traced": traced,
    "a metaclass": OfAnotherType,
    "an eps that raises": Lazy,
    "parametrized": lambda: torch.nn.utils.parametrizations.weight_norm(torch.nn.RMSNorm(N)),
    "lazy": lambda: torch.nn.LazyLinear(N),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_module_is_left_alone(odd):
    try:
        module = ODD[odd]()
    except ValueError:  # of weight_norm
        module = torch.nn.utils.parametrize.register_parametrization(
            torch.nn.RMSNorm(N), "weight", torch.nn.Identity()
        )
    model = torch.nn.Sequential(torch.nn.RMSNorm(N), module, torch.nn.RMSNorm(N))
    kind = type(module)
    assert adapter.patch(model) == 2
    assert type(module) is kind
    assert adapter.unpatch(model) == 2


def test_unpatch_gives_back_what_was():
    model = torch.nn.Sequential(Formula(), torch.nn.Sequential(torch.nn.RMSNorm(N)), Gemma())
    kinds, x = [type(m) for m in model.modules()], torch.randn(4, N)
    wanted = model(x)
    for _ in range(2):
        assert adapter.patch(model) == 3
        assert adapter.patch(model) == 0
        assert [type(m) for m in model.modules()] != kinds
        assert adapter.unpatch(model) == 3
        assert adapter.unpatch(model) == 0
        assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model(x), wanted)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        adapter.unpatch(3)


def test_under_autocast_it_is_the_modules():
    module, x = Llama(), torch.randn(4, N)
    original = copy.deepcopy(module)
    assert adapter.patch(module) == 1
    with torch.autocast("cpu", torch.bfloat16):
        for each in (x, x.bfloat16()):
            assert module(each).dtype is original(each).dtype
            assert_close([module(each).float()], [original(each).float()])


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
