"""fastrms.torch's functions: no copies, torch's gradients, opcheck, torch.compile, errors."""

import re
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='torch is not installed: extra "fastrms[torch]"')

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import fastrms  # noqa: E402
import fastrms.torch as adapter  # noqa: E402

from .signatures import N  # noqa: E402

EPS = 1e-3
# Both sides are float32: fastrms within 4 ulp of the exact y and 1e-6 of the terms of dx, torch
# within about as much on ordinary data.
FLOAT32 = 1e-5
OPTIONS = pytest.mark.parametrize("weight_offset", [0.0, 1.0])
WEIGHTED = pytest.mark.parametrize("weighted", [True, False])


@pytest.fixture
def tensors(draw):
    """Return x, residual, weight and two gradients; weight is None if not weighted."""

    def make(weighted, requires_grad=False):
        shapes = [(2, 3, N), (2, 3, N), (N,) if weighted else None, (2, 3, N), (2, 3, N)]
        made = [None if shape is None else torch.from_numpy(draw(*shape)) for shape in shapes]
        for tensor in made[:3]:
            if tensor is not None:
                tensor.requires_grad_(requires_grad)
        return made

    return make


def torch_norm(x, weight, weight_offset):
    factor = None if weight is None else weight + weight_offset
    return torch.nn.functional.rms_norm(x, x.shape[-1:], factor, EPS)


def gradients(outputs, inputs, given):
    return torch.autograd.grad(outputs, [i for i in inputs if i is not None], given)


def assert_close(results, wanted):
    for result, value in zip(results, wanted, strict=True):
        torch.testing.assert_close(result, value, rtol=FLOAT32, atol=FLOAT32)


# ---- the functions ----------------------------------------------------------------------------


@OPTIONS
@WEIGHTED
def test_same_bits_as_the_numpy_functions(tensors, weighted, weight_offset):
    x, residual, weight, dy, _ = tensors(weighted)
    arrays = [None if t is None else t.numpy().copy() for t in (x, residual, weight)]
    options = {"eps": EPS, "weight_offset": weight_offset}
    y = fastrms.rms_norm(arrays[0], arrays[2], **options)
    assert adapter.rms_norm(x, weight, **options).numpy().tobytes() == y.tobytes()
    dx, dweight = fastrms.rms_norm_backward(dy.numpy(), arrays[0], arrays[2], **options)
    inputs = [t.clone().requires_grad_() for t in (x, weight) if t is not None]
    grads = gradients(adapter.rms_norm(*inputs, **options), inputs, dy)
    wanted = [dx, dweight] if weighted else [dx]
    assert [g.numpy().tobytes() for g in grads] == [w.tobytes() for w in wanted]
    before = residual.clone()
    out, total = adapter.add_rms_norm(x, residual, weight, **options)
    assert torch.equal(residual, before)
    y = fastrms.add_rms_norm(*arrays, **options)
    assert out.numpy().tobytes() == y.tobytes()
    assert total.numpy().tobytes() == arrays[1].tobytes()
    assert adapter.add_rms_norm_(x, residual, weight, **options).numpy().tobytes() == y.tobytes()
    assert residual.numpy().tobytes() == arrays[1].tobytes()


@OPTIONS
@WEIGHTED
def test_gradients_are_those_of_torch(tensors, weighted, weight_offset):
    x, residual, weight, dy, dtotal = tensors(weighted, requires_grad=True)
    y = adapter.rms_norm(x, weight, EPS, weight_offset=weight_offset)
    wanted = torch_norm(x, weight, weight_offset)
    assert_close([y], [wanted])
    assert_close(gradients(y, [x, weight], dy), gradients(wanted, [x, weight], dy))
    got = adapter.add_rms_norm(x, residual, weight, EPS, weight_offset=weight_offset)
    wanted = torch_norm(residual + x, weight, weight_offset), residual + x
    assert_close(got, wanted)
    inputs, given = [x, residual, weight], [dy, dtotal]
    assert_close(gradients(got, inputs, given), gradients(wanted, inputs, given))
    # Only one of the two results used.
    for i in range(2):
        got = adapter.add_rms_norm(x, residual, weight, EPS, weight_offset=weight_offset)
        results = torch.autograd.grad(got[i], [x, residual], given[i])
        wanted = torch_norm(residual + x, weight, weight_offset), residual + x
        assert_close(results, torch.autograd.grad(wanted[i], [x, residual], given[i]))


def test_gradients_do_not_share_memory(tensors):
    x, residual, _, _, _ = tensors(False, requires_grad=True)
    y, total = adapter.add_rms_norm(x, residual)
    (y.sum() + total.sum()).backward()
    assert not np.shares_memory(x.grad.numpy(), residual.grad.numpy())


@pytest.fixture
def pointers(monkeypatch):
    """Return a list that records, for each call of fastrms, the addresses of its arrays."""
    seen = []

    def watched(function):
        def call(*arguments, **options):
            arrays = [*arguments, *options.values()]
            seen.append([a.ctypes.data for a in arrays if isinstance(a, np.ndarray)])
            return function(*arguments, **options)

        return call

    for name in ("rms_norm", "add_rms_norm", "rms_norm_backward"):
        monkeypatch.setattr(fastrms, name, watched(getattr(fastrms, name)))
    return seen


@pytest.mark.parametrize("layout", ["contiguous", "slice", "transposed", "expanded"])
def test_no_copy_in_or_out(tensors, pointers, layout):
    x, residual, weight, _, _ = tensors(True)
    if layout == "slice":
        x = torch.cat([x, x], dim=-1)[..., N:]
    elif layout == "transposed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "expanded":
        x = x[:1].expand(2, 3, N)
    x, weight = x.detach().requires_grad_(), weight.requires_grad_()
    y = adapter.rms_norm(x, weight)
    dy = torch.randn(y.shape)
    dx, dweight = torch.autograd.grad(y, [x, weight], dy)
    with torch.no_grad():
        z = adapter.rms_norm(x, weight)
        fused, total = adapter.add_rms_norm(x, residual, weight)
        in_place = adapter.add_rms_norm_(x, residual, weight)
    assert all(t.is_contiguous() for t in (y, dx, z, fused, total, in_place))
    assert pointers == [
        [t.data_ptr() for t in given]
        for given in (
            (x, weight, y),
            (dy, x, weight, dx, dweight),
            (x, weight, z),
            (total, weight, fused),
            (x, residual, weight, in_place),
        )
    ]


# ---- what torch asks of an operator -----------------------------------------------------------


@OPTIONS
@WEIGHTED
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch 2.14's own check
def test_opcheck(tensors, weighted, weight_offset):
    x, residual, weight, dy, _ = tensors(weighted, requires_grad=True)
    plain = [t if t is None else t.detach() for t in (x, residual, weight, dy)]
    calls = {
        "rms_norm": (x, weight),
        "rms_norm_forward": (plain[0], plain[2]),
        "add_rms_norm": (x, residual, weight),
        "add_rms_norm_": plain[:3],
        "rms_norm_backward": (plain[3], plain[0], plain[2]),
    }
    for name, arguments in calls.items():
        op = getattr(torch.ops.fastrms, name).default
        results = torch.library.opcheck(op, (*arguments, EPS, weight_offset))
        assert set(results.values()) == {"SUCCESS"}


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = adapter.RMSNorm(N, EPS), torch.nn.Linear(N, N)

    def forward(self, x, residual):
        y, residual = adapter.add_rms_norm(self.linear(self.norm(x)), residual, self.norm.weight)
        return y + residual


# Inductor imports deprecated parts of torch, and calls a C++ compiler.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_without_a_break(tensors, tmp_path, monkeypatch, backend, dynamic):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch.compile's inductor needs g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, residual, _, dy, _ = tensors(False, requires_grad=True)
    block = Block()
    compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=dynamic)
    inputs = [x, residual, *block.parameters()]
    assert_close(
        gradients(compiled(x, residual), inputs, dy), gradients(block(x, residual), inputs, dy)
    )


@torch.no_grad()
def test_compile_of_the_update_in_place(tensors):
    x, residual, weight, _, _ = tensors(True)

    def step(x, residual):
        return adapter.rms_norm(adapter.add_rms_norm_(x, residual, weight)), residual * 2

    other = residual.clone()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, residual), step(x, other))
    assert torch.equal(residual, other)


def test_export_keeps_the_operator(tensors):
    x = tensors(False)[0]
    module = adapter.RMSNorm(N)
    program = torch.export.export(module, (x,))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert [op.namespace for op in called] == ["fastrms"]
    assert torch.equal(program.module()(x), module(x))


# ---- refusals ---------------------------------------------------------------------------------


def test_in_place_refuses_a_gradient(tensors):
    x, residual, _, _, _ = tensors(False, requires_grad=True)
    for arguments in [(x, residual.detach()), (x.detach(), residual)]:
        before = residual.clone()
        with pytest.raises(RuntimeError, match=r"use add_rms_norm, or torch\.no_grad"):
            adapter.add_rms_norm_(*arguments)
        assert torch.equal(residual, before)


def test_autograd_notices_the_update_in_place(tensors):
    x, residual, weight, _, _ = tensors(True, requires_grad=True)
    stream = residual * 1
    y = adapter.rms_norm(stream, weight)
    with torch.no_grad():
        adapter.add_rms_norm_(x, stream, weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_no_second_gradient(tensors):
    x, _, weight, dy, _ = tensors(True, requires_grad=True)
    (dx,) = torch.autograd.grad(adapter.rms_norm(x, weight), x, dy, create_graph=True)
    with pytest.raises(NotImplementedError, match="no gradient of its own"):
        dx.sum().backward()


def test_errors_are_those_of_fastrms(tensors):
    x = tensors(False)[0]
    with pytest.raises(ValueError, match=re.escape(f"weight must have shape ({N},)")):
        adapter.rms_norm(x, torch.ones(N + 1))
    for function in (adapter.add_rms_norm, adapter.add_rms_norm_):
        for arguments in [(x, torch.ones(N)), (torch.ones(N), x)]:
            with pytest.raises(ValueError, match="residual must have the shape of x"):
                function(*arguments)


@pytest.mark.parametrize("wrong", [1e-6, [1.0], np.ones(N, np.float32)], ids=type)
def test_what_is_no_tensor_is_named(tensors, wrong):
    norm, add, x = adapter.rms_norm, adapter.add_rms_norm, tensors(False)[0]
    calls = {"weight": (norm, x, wrong), "x": (norm, wrong), "residual": (add, x, wrong)}
    for name, (function, *arguments) in calls.items():
        wanted = f"{name} must be a torch.Tensor, got {type(wrong).__name__}"
        with pytest.raises(TypeError, match=wanted):
            function(*arguments)


def test_an_expanded_residual_is_refused(tensors):
    """torch raises, too: an element of memory would be written once for each row."""
    x = tensors(False)[0]
    row = torch.zeros(N)
    with pytest.raises(ValueError, match=r"residual must .* got an expanded tensor"):
        adapter.add_rms_norm_(x, row.expand(x.shape))
    assert not row.any()
    adapter.add_rms_norm_(x[:1, :1], row.as_strided((1, 1, N), (0, 0, 1)))
    assert row.any()


class Seen(TorchDispatchMode):
    """Record the libraries of the operators that run under it."""

    def __init__(self):
        super().__init__()
        self.libraries = set()

    def __torch_dispatch__(self, op, types, arguments=(), options=None):
        self.libraries.add(op.namespace)
        return op(*arguments, **options or {})


@pytest.mark.parametrize("place", [torch.float64, torch.float16, torch.bfloat16, "meta"], ids=str)
def test_the_rest_is_torchs_own(tensors, place):
    x, residual, weight, _, _ = (t.to(place) for t in tensors(True))
    module = adapter.RMSNorm(N, EPS).to(place)
    with Seen() as seen:
        y = adapter.rms_norm(x, weight, EPS, weight_offset=1.0)
        fused, total = adapter.add_rms_norm(x, residual, weight, EPS)
        in_place = adapter.add_rms_norm_(x, residual, weight, EPS)
        results = (y, fused, total, in_place, module(x))
    assert seen.libraries <= {"aten", "prims"}
    assert all(t.dtype == x.dtype and t.device == x.device for t in results)
    if place != "meta":
        assert torch.equal(y, torch_norm(x, weight, 1.0))
        assert torch.equal(fused, torch_norm(total, weight, 0.0))
        assert torch.equal(total, residual)
        assert torch.equal(in_place, fused)
        assert torch.equal(module(x), torch_norm(x, None, 0.0))
