"""fastrms.torch under what captures or differentiates it: as torch's own function."""

import contextlib
import io
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason='torch is not installed: extra "fastrms[torch]"')

from torch.autograd import forward_ad  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

import fastrms.torch as adapter  # noqa: E402

from .test_torch import assert_close  # noqa: E402

# torch.jit and its users are deprecated; nested and masked tensors are prototypes.
pytestmark = pytest.mark.filterwarnings("ignore")

N = 8
NORMS = {
    "rms_norm": adapter.rms_norm,
    "add_rms_norm": lambda x, weight: sum(adapter.add_rms_norm(x, x.sin(), weight)),
}
THEIRS = {
    "rms_norm": lambda x, weight: F.rms_norm(x, (N,), weight, 1e-5),
    "add_rms_norm": lambda x, weight: F.rms_norm(x + x.sin(), (N,), weight, 1e-5) + x + x.sin(),
}
BOTH = pytest.mark.parametrize("name", NORMS)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((3, N), (N,), (3, N))]


class Norm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.rand(N)), 1e-5

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


def patched_model(norm=Norm):
    model = torch.nn.Sequential(torch.nn.Linear(N, N), norm())
    assert adapter.patch(model) == 1
    return model


def our_model():
    return torch.nn.Sequential(torch.nn.Linear(N, N), adapter.RMSNorm(N))


MODELS = pytest.mark.parametrize("model", [patched_model, our_model])

# ---- derivatives ------------------------------------------------------------------------------


@BOTH
def test_derivatives_of_any_order(inputs, name):
    """Finite differences in float64 check the first and the second derivatives."""
    x, weight, _ = (t.double().requires_grad_() for t in inputs)
    assert NORMS[name](x, weight).grad_fn is not None
    torch.autograd.gradcheck(NORMS[name], (x, weight))
    torch.autograd.gradgradcheck(NORMS[name], (x, weight))
    torch.autograd.gradgradcheck(lambda x: NORMS[name](x, None), (x,))
    third = []
    for norm in (NORMS[name], THEIRS[name]):
        y = norm(x, weight).pow(3).sum()
        for _ in range(3):
            y = sum(g.pow(2).sum() for g in torch.autograd.grad(y, (x, weight), create_graph=True))
        third.append(y)
    torch.testing.assert_close(*third)


def differential(norm, x, weight, tangent):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(norm(forward_ad.make_dual(x, tangent), weight)).tangent


DERIVATIVES = {
    "a dual number": differential,
    "jvp": lambda f, x, w, t: torch.func.jvp(f, (x, w), (t, w))[1],
    "jvp of a parameter": lambda f, x, w, t: torch.func.jvp(
        partial(f, x.clone().requires_grad_()), (w,), (w,)
    )[1],
    "grad": lambda f, x, w, t: torch.func.grad(lambda x: (f(x, w) * t).sum())(x),
    "grad of weight": lambda f, x, w, t: torch.func.grad(lambda w: (f(x, w) * t).sum())(w),
    "jacrev": lambda f, x, w, t: torch.func.jacrev(f)(x, w),
    "jacfwd": lambda f, x, w, t: torch.func.jacfwd(f)(x, w),
    "hessian": lambda f, x, w, t: torch.func.hessian(lambda x: (f(x, w) * t).sum())(x),
    "grad of each row": lambda f, x, w, t: torch.vmap(
        torch.func.grad(lambda x: f(x[None], w).pow(3).sum())
    )(x),
    "vectorized jacobian": lambda f, x, w, t: torch.autograd.functional.jacobian(
        lambda x: f(x, w), x, vectorize=True
    ),
    "vectorized hessian": lambda f, x, w, t: torch.autograd.functional.hessian(
        lambda x: (f(x, w) * t).sum(), x, vectorize=True
    ),
}


@BOTH
@pytest.mark.parametrize("kind", DERIVATIVES)
def test_derivatives_by_transforms(inputs, name, kind):
    got, wanted = (DERIVATIVES[kind](f, *inputs) for f in (NORMS[name], THEIRS[name]))
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["jvp", "grad", "hessian", "grad of each row"])
def test_compiled_derivatives(inputs, kind):
    f = NORMS["rms_norm"]
    compiled = torch.compile(partial(DERIVATIVES[kind], f), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), DERIVATIVES[kind](f, *inputs))


# ---- graphs -----------------------------------------------------------------------------------


def exported(model, x, strict=False):
    return torch.export.export(model, (x,), strict=strict).module()


CAPTURES = {
    "jit.trace": torch.jit.trace,
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
    "export": exported,
    "strict export": partial(exported, strict=True),
    "make_fx": lambda model, x: make_fx(model)(x),
    "compile": lambda model, x: torch.compile(model, backend="aot_eager", fullgraph=True),
}


@MODELS
@pytest.mark.parametrize("capture", CAPTURES)
def test_captured_without_gradients_then_trained(inputs, model, capture):
    model, x = model(), inputs[0]
    wanted = torch.autograd.grad(model(x).pow(3).sum(), list(model.parameters()))
    with torch.no_grad():
        graph = CAPTURES[capture](model, x)
        assert_close([graph(x)], [model(x)])
    y = graph(x)
    if capture == "make_fx":  # which holds the parameters as constants
        return
    y.pow(3).sum().backward()
    assert_close([p.grad for p in graph.parameters()], wanted)
    if capture != "compile":
        text = str(getattr(graph, "inlined_graph", getattr(graph, "code", "")))
        assert "fastrms::" not in text
        assert "ops.fastrms" not in text


def test_a_captured_function_then_trained(inputs):
    x, weight, residual = inputs
    functions = (
        lambda x, weight: adapter.rms_norm(x, weight),
        lambda x, weight: adapter.add_rms_norm(x, residual, weight)[0],
    )
    for function in functions:
        for capture in (torch.jit.trace, lambda f, given: make_fx(f)(*given)):
            with torch.no_grad():
                graph = capture(function, (x, weight))
            leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
            got, wanted = (
                torch.autograd.grad(f(*leaves).pow(3).sum(), leaves) for f in (graph, function)
            )
            assert_close(got, wanted)


@MODELS
def test_an_ensemble_is_trained(inputs, model):
    models = [model() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)

    def run(parameters, buffers, x):
        return torch.func.functional_call(models[0], (parameters, buffers), (x,))

    torch.vmap(run, in_dims=(0, 0, None))(parameters, buffers, inputs[0]).pow(3).sum().backward()
    for i, each in enumerate(models):
        each(inputs[0]).pow(3).sum().backward()
        assert_close([p.grad[i] for p in parameters.values()], [p.grad for p in each.parameters()])


@pytest.mark.parametrize(
    ("model", "dynamo"), [(patched_model, True), (our_model, True), (patched_model, False)]
)
def test_onnx_exporters(inputs, tmp_path, model, dynamo):
    pytest.importorskip("onnxscript" if dynamo else "onnx", reason="an exporter needs it")
    model = model().eval()
    path = str(tmp_path / "model.onnx")
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (inputs[0],), path, dynamo=dynamo)
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: inputs[0].numpy()})
    assert_close([torch.from_numpy(y)], [model(inputs[0])])
