"""fastrms.torch.register: torch's own rms_norm on fastrms, and only while it is registered."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason='torch is not installed: extra "fastrms[torch]"')

from torch.nn import functional as F  # noqa: E402, N812

import fastrms.torch as adapter  # noqa: E402
from fastrms import _torch_kernels as kernels  # noqa: E402

from .test_torch import DTYPES, assert_close  # noqa: E402
from .test_torch_capture import CAPTURES, DERIVATIVES, THEIRS, N  # noqa: E402
from .test_torch_others import OTHERS, outcome  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # as in test_torch_capture.py


@pytest.fixture
def calls(monkeypatch):
    """Return a list of the calls of our kernels."""
    seen, take = [], kernels.take_scratch
    monkeypatch.setattr(kernels, "take_scratch", lambda *a: (seen.append(a), take(*a))[1])
    return seen


@pytest.fixture
def inputs():
    return torch.randn(3, N, requires_grad=True), torch.rand(N, requires_grad=True)


def test_holds_until_it_is_undone(calls, inputs):
    def counted():
        calls.clear()
        F.rms_norm(inputs[0], (N,))
        return len(calls)

    assert counted() == 0
    with adapter.register():
        assert counted() == 1
        with adapter.register():
            assert counted() == 1
        assert counted() == 1
    assert counted() == 0
    adapter.register()
    assert counted() == 1
    adapter.unregister()
    assert counted() == 0
    adapter.unregister()
    with pytest.raises(ZeroDivisionError), adapter.register():
        raise ZeroDivisionError
    assert counted() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_dtype", [None, torch.float32, "the same"], ids=str)
def test_has_the_bits_of_fastrms(calls, inputs, dtype, weight_dtype):
    x, weight = (t.detach() for t in inputs)
    x = x.to(dtype).requires_grad_()
    given = [x]
    if weight_dtype is not None:
        given.append(weight.to(dtype if weight_dtype == "the same" else weight_dtype))
        given[1].requires_grad_()
    with adapter.register():
        for eps in (1e-5, None):
            y = F.rms_norm(x, (N,), *given[1:], eps=eps)
            wide = torch.float64 if dtype is torch.float64 else torch.float32
            wanted = adapter.rms_norm(*given, eps=torch.finfo(wide).eps if eps is None else eps)
            assert torch.equal(y, wanted)
    got, wanted = (torch.autograd.grad(each.pow(2).sum(), given) for each in (y, wanted))
    assert all(map(torch.equal, got, wanted))
    with torch.inference_mode(), adapter.register():
        calls.clear()
        torch.nn.RMSNorm(N, dtype=dtype)(x)
        assert len(calls) == 1


def test_a_backward_pass_comes_later(inputs):
    with adapter.register():
        y = F.rms_norm(inputs[0], (N,), inputs[1])
    first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
    assert_close(
        first, torch.autograd.grad(F.rms_norm(inputs[0], (N,), inputs[1]).pow(3).sum(), inputs)
    )
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs)
    assert all(g.abs().max() > 0 for g in second)


def test_several_axes(calls):
    x, weight = torch.randn(2, 3, N, requires_grad=True), torch.rand(3, N, requires_grad=True)
    wanted = F.rms_norm(x, (3, N), weight)
    assert not calls
    with adapter.register():
        y = F.rms_norm(x, (3, N), weight)
    assert calls
    assert_close([y], [wanted])
    got, wanted = (torch.autograd.grad(each.pow(3).sum(), (x, weight)) for each in (y, wanted))
    assert_close(got, wanted)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_tensors_are_torchs(calls, inputs, kind):
    x, weight = (t.detach() for t in inputs)
    x = OTHERS[kind](x)
    wanted = outcome(THEIRS["rms_norm"], x, weight)
    with adapter.register():
        got = outcome(THEIRS["rms_norm"], x, weight)
    assert type(got) is type(wanted)
    assert isinstance(wanted, torch.Tensor) or got is wanted
    for shape in ((), (N + 1,), (2, 3, N)):
        wanted = outcome(F.rms_norm, x, shape)
        with adapter.register():
            assert outcome(F.rms_norm, x, shape) is wanted


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_derivatives(inputs, kind):
    x, weight = (t.detach() for t in inputs)
    arguments = THEIRS["rms_norm"], x, weight, torch.randn(3, N)
    wanted = DERIVATIVES[kind](*arguments)
    with adapter.register():
        torch.testing.assert_close(DERIVATIVES[kind](*arguments), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("capture", CAPTURES)
def test_captures(inputs, capture):
    model, x = torch.nn.RMSNorm(N), inputs[0].detach()
    with adapter.register(), torch.no_grad():
        graph = CAPTURES[capture](model, x)
        assert_close([graph(x)], [model(x)])
    assert_close([graph(x)], [model(x)])
    if capture == "compile":
        torch._dynamo.reset()
    if capture != "make_fx":
        graph(x).pow(3).sum().backward()
        assert all(p.grad.abs().min() > 0 for p in graph.parameters())


def test_a_second_import_can_undo_it():
    code = """
import sys, torch
import fastrms.torch
fastrms.torch.register()
for name in [name for name in sys.modules if "fastrms" in name and "torch" in name]:
    del sys.modules[name]
import fastrms.torch
fastrms.torch.unregister()
has = torch._C._dispatch_has_kernel_for_dispatch_key
assert not has("aten::rms_norm", "CPU") and not has("aten::rms_norm", "AutogradCPU")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
