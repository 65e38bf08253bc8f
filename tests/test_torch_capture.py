"""fastrms.torch under what captures, differentiates or wraps tensors: as torch's own function."""

import contextlib
import copy
import io
import pickle
import subprocess
import sys
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


# ---- other tensors ----------------------------------------------------------------------------


class Subclass(torch.Tensor):
    pass


def masked(x):
    return torch.masked.masked_tensor(x, torch.ones_like(x, dtype=torch.bool))


def negative(x):
    return torch.complex(x, x).conj().imag


OTHERS = {
    "negative": negative,
    "jagged": lambda x: torch.nested.nested_tensor([x, x[:1]], layout=torch.jagged),
    "nested": lambda x: torch.nested.nested_tensor([x, x[:1]]),
    "masked": masked,
    "subclass": lambda x: x.as_subclass(Subclass),
    "zeros": lambda x: torch._efficientzerotensor(x.shape),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "complex": lambda x: torch.complex(x, x),
    "integers": lambda x: x.int(),
}


def outcome(function, *arguments):
    """Return the result, or the type of the error."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_tensors_are_torchs(inputs, kind):
    x, weight, residual = inputs
    x = OTHERS[kind](x)
    theirs, ours = THEIRS["rms_norm"], adapter.rms_norm
    for module in (None, adapter.RMSNorm(N, 1e-5, elementwise_affine=False)):
        got = outcome(ours, x, weight) if module is None else outcome(module, x)
        wanted = outcome(theirs, x, weight if module is None else None)
        assert type(got) is type(wanted)
        if type(wanted) in (torch.Tensor, Subclass) and wanted.device.type != "meta":
            torch.testing.assert_close(got, wanted)
        elif isinstance(wanted, type):
            assert got is wanted
    if kind in ("negative", "subclass"):
        wanted = residual + x
        y = adapter.add_rms_norm_(residual, x, weight)
        torch.testing.assert_close(x, wanted)
        torch.testing.assert_close(y, theirs(wanted, weight))


def test_a_weight_of_another_kind_is_torchs(inputs):
    x, weight, _ = inputs
    assert_close([adapter.rms_norm(x, negative(weight))], [THEIRS["rms_norm"](x, -weight)])


def test_a_fake_tensor_stays_fake(inputs):
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode() as mode:
        x, weight, _ = (mode.from_tensor(t) for t in inputs)
        for y in (adapter.rms_norm(x, weight), *adapter.add_rms_norm(x, x, weight)):
            assert isinstance(y, FakeTensor)


def test_a_tensor_of_a_mesh(inputs, tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    from torch.distributed.tensor import DTensor, Replicate, init_device_mesh

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        mesh = init_device_mesh("cpu", (1,))
        x, weight, _ = (DTensor.from_local(t, mesh, [Replicate()]) for t in inputs)
        y = adapter.rms_norm(x, weight)
        assert isinstance(y, DTensor)
        assert_close([y.to_local()], [THEIRS["rms_norm"](*inputs[:2])])
    finally:
        torch.distributed.destroy_process_group()


# ---- a second import --------------------------------------------------------------------------

AGAIN = """
import importlib, sys
import torch
import fastrms.torch as first

x, w = torch.randn(3, 8, requires_grad=True), torch.rand(8)
wanted = first.rms_norm(x, w)
compiled = torch.compile(first.rms_norm, backend="aot_eager")
model = torch.nn.Sequential(torch.nn.RMSNorm(8))
assert torch.equal(compiled(x, w), wanted) and first.patch(model) == 1
{again}
import fastrms.torch as second
for norm in (first.rms_norm, second.rms_norm, compiled):
    y = norm(x, w)
    assert torch.equal(y, wanted) and y.grad_fn
    y.sum().backward()
assert second.patch(model) == 0 and second.unpatch(model) == 1
assert type(model[0]) is torch.nn.RMSNorm and second.patch(model) == 1
"""
WAYS = {
    "reload": "importlib.reload(first)",
    "reload all": "[importlib.reload(sys.modules[n]) for n in sorted(sys.modules) if '_torch' in n "
    "and n.startswith('fastrms')]; importlib.reload(first)",
    "clear": "[sys.modules.pop(n) for n in list(sys.modules) if 'fastrms' in n and 'torch' in n]",
}


@pytest.mark.parametrize("way", WAYS)
def test_imported_again(way):
    subprocess.run([sys.executable, "-c", AGAIN.format(again=WAYS[way])], check=True)


INTERRUPTED = """
import sys
import torch
real, calls = torch.library.register_autograd, []
def interrupted(*given, **named):
    calls.append(1)
    if len(calls) == 2:
        raise KeyboardInterrupt
    return real(*given, **named)
torch.library.register_autograd = interrupted
try:
    import fastrms.torch
except KeyboardInterrupt as error:
    kept = error  # as an interactive session keeps it, with all that the import made
import fastrms.torch
x = torch.randn(3, 8, requires_grad=True)
fastrms.torch.add_rms_norm(x, x)[0].pow(3).sum().backward()
assert x.grad is not None
"""


def test_imported_again_after_an_interrupt():
    subprocess.run([sys.executable, "-c", INTERRUPTED], check=True)


def test_a_pickled_model_has_its_own_class(tmp_path):
    model = patched_model(lambda: torch.nn.RMSNorm(N))
    torch.save(model, tmp_path / "model.pt")
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    twin = copy.deepcopy(model)
    assert type(twin[1]) is type(model[1])
    code = (
        "import pickle, sys, torch; sys.modules['fastrms'] = None; "
        "a = torch.load(sys.argv[1], weights_only=False); "
        "b = pickle.load(open(sys.argv[2], 'rb')); "
        "assert type(a[1]) is type(b[1]) is torch.nn.RMSNorm; a(torch.ones(2, 8))"
    )
    paths = [str(tmp_path / name) for name in ("model.pt", "model.pickle")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
