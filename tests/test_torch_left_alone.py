"""fastrms.torch.patch: the modules that it leaves alone, each wrong or doubtful in one way."""

import pytest

torch = pytest.importorskip("torch", reason='torch is not installed: extra "fastrms[torch]"')

from torch.nn import functional as F  # noqa: E402, N812

import fastrms.torch as adapter  # noqa: E402

from .signatures import N  # noqa: E402
from .test_torch_patch import Formula  # noqa: E402

# ---- other numbers ----------------------------------------------------------------------------


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


class Biased(Formula):
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(N))


OTHERS = [
    *(TwoPlus, EpsOutside, OtherEps, OverTheRows, SquaredWeight, Clipped, Gated),
    *(RMSNormInNameAlone, Biased),
]


# ---- what one matrix in eval mode does not show -----------------------------------------------


class PerHead(Formula):
    def forward(self, x):
        return super().forward(x.unflatten(-1, (-1, N))).flatten(-2)


class ChannelsFirst(Formula):
    def forward(self, x):
        scale = torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps)
        return x * scale * self.weight.view(-1, *[1] * (x.ndim - 2))


class ImagesOnly(Formula):
    """Normalise a 4-d input over its last two axes."""

    def scale(self, x):
        axes = (-2, -1) if x.ndim == 4 else -1
        return torch.rsqrt(x.square().mean(axes, keepdim=True) + self.eps)


class Dropout(Formula):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.1, self.training)


class DropoutInside(Formula):
    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.0)  # whose p may change

    def forward(self, x):
        return self.dropout(super().forward(x))


class SeldomSkipped(Formula):
    def forward(self, x):
        return x if self.training and torch.rand(()) < 1e-6 else super().forward(x)


class Detached(Formula):
    def scale(self, x):
        return super().scale(x.detach())


class DetachedWeight(Formula):
    def forward(self, x):
        return x * self.scale(x) * self.weight.detach()


class InPlace(Formula):
    def forward(self, x):
        return x.mul_(self.scale(x)).mul_(self.weight)


class Float64(Formula):
    def forward(self, x):
        return super().forward(x.double())


class Constant(Formula):
    """Do not read eps."""

    def scale(self, x):
        return torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


class Buffered(Formula):
    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x):
        return super().forward(x) * self.gain


class Gain(Formula):
    def __init__(self):
        super().__init__()
        self.gain = 1.0

    def forward(self, x):
        return super().forward(x) * self.gain


class Recorded(Formula):
    def forward(self, x):
        self.last = self.scale(x)
        return x * self.last * self.weight


DOUBTFUL = [
    *(PerHead, ChannelsFirst, ImagesOnly, Dropout, DropoutInside, SeldomSkipped),
    *(Detached, DetachedWeight, InPlace, Float64, Constant, Buffered, Gain, Recorded),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [*OTHERS, *DOUBTFUL])
def test_leaves_what_computes_something_else(kind, training):
    module = kind().train(training)
    # Models start with a weight of ones, which equals its square.
    torch.nn.init.ones_(module.weight)
    names = set(vars(module))
    assert adapter.patch(module) == 0
    assert type(module) is kind
    assert set(vars(module)) == names
    assert module.training is training


def test_leaves_other_modules_of_torch():
    others = [
        torch.nn.LayerNorm(N, bias=False),
        torch.nn.RMSNorm((3, N)),
        torch.nn.RMSNorm(N, elementwise_affine=False),
        torch.nn.RMSNorm(N, device="meta"),
        torch.nn.PReLU(N),
        adapter.RMSNorm(N),
    ]
    overridden = Formula()
    overridden.forward = lambda x: x
    assert adapter.patch(torch.nn.Sequential(*others, overridden)) == 0
    assert adapter.patch(torch.nn.Sequential(torch.nn.RMSNorm(N), torch.nn.RMSNorm(N, 1e-6))) == 2


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.device("meta")],
    ids=["no_grad", "inference_mode", "meta"],
)
def test_takes_and_leaves_the_same_anywhere(context):
    good, bad, chance = Formula(), [Detached(), Dropout()], torch.get_rng_state()
    with context():
        assert adapter.patch(torch.nn.Sequential(good, *bad)) == 1
    assert torch.equal(torch.get_rng_state(), chance)
