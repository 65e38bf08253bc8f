"""fastrms.torch's functions: the core's bits, no copies, opcheck, torch.compile, errors."""

import re
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='torch is not installed: extra "fastrms[torch]"')

import fastrms  # noqa: E402
import fastrms.torch as adapter  # noqa: E402
from fastrms import _torch_kernels as kernels  # noqa: E402
from fastrms._torch_ops import OPERATORS  # noqa: E402

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


def as_array(tensor):
    """Return a copy of a tensor as an array, a bfloat16 one by ml_dtypes."""
    if tensor is None or tensor.dtype is not torch.bfloat16:
        return None if tensor is None else tensor.detach().numpy().copy()
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()


def same_bits(tensors, arrays):
    return [as_array(t).tobytes() for t in tensors] == [a.tobytes() for a in arrays]


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@OPTIONS
@WEIGHTED
def test_same_bits_as_the_numpy_functions(tensors, weighted, weight_offset, dtype):
    x, residual, weight, dy, _ = (t if t is None else t.to(dtype) for t in tensors(weighted))
    arrays = [as_array(t) for t in (x, residual, weight)]
    options = {"eps": EPS, "weight_offset": weight_offset}
    y = fastrms.rms_norm(arrays[0], arrays[2], **options)
    assert same_bits([adapter.rms_norm(x, weight, **options)], [y])
    wanted = fastrms.rms_norm_backward(as_array(dy), arrays[0], arrays[2], **options)
    inputs = [t.clone().requires_grad_() for t in (x, weight) if t is not None]
    grads = gradients(adapter.rms_norm(*inputs, **options), inputs, dy)
    assert same_bits(grads, wanted[: len(inputs)])
    before = residual.clone()
    results = adapter.add_rms_norm(x, residual, weight, **options)
    assert torch.equal(residual, before)
    y = fastrms.add_rms_norm(*arrays, **options)
    assert same_bits(results, [y, arrays[1]])
    y = adapter.add_rms_norm_(x, residual, weight, **options)
    assert same_bits([y, residual], [as_array(results[0]), arrays[1]])


def test_mixed_dtypes_are_those_of_the_core(tensors):
    x, residual, weight, dy, _ = tensors(True)
    half = x.bfloat16()
    assert adapter.rms_norm(half, weight).dtype is torch.bfloat16
    y, total = adapter.add_rms_norm(half, residual, weight)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(total, residual + half)
    assert torch.equal(y, adapter.rms_norm(total, weight).bfloat16())
    inputs = [t.clone().requires_grad_() for t in (half, residual, weight)]
    grads = gradients(adapter.add_rms_norm(*inputs), inputs, [dy.bfloat16(), dy])
    assert [g.dtype for g in grads] == [t.dtype for t in inputs]
    assert torch.equal(adapter.add_rms_norm_(half, residual, weight), y)
    assert torch.equal(residual, total)


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


LAYOUTS = {
    "slice": lambda x: torch.cat([x, x], -1)[..., N:],
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "heads of a fused projection": lambda x: torch.cat([x, x, x], -1)[:, :, None, N : 2 * N],
    "transposed heads": lambda x: torch.stack([torch.cat([x, x], -1)] * 2)[..., N:].transpose(1, 2),
    "expanded": lambda x: x[:1].expand(2, 3, N),
}
COPIED = {"every other element": lambda x: torch.stack([x, x], -1)[..., 0]}


@pytest.mark.parametrize("layout", [*LAYOUTS, *COPIED])
def test_layouts(tensors, monkeypatch, layout):
    """Views have the results of copies, and are copied only if their rows are not contiguous."""
    x, residual, weight, _, _ = tensors(True)
    change = {**LAYOUTS, **COPIED}[layout]
    x, residual = change(x), change(residual)
    dy = x.flip(-2)
    plain = [t.clone().contiguous().requires_grad_() for t in (x, residual, weight)]
    wanted = adapter.add_rms_norm(*plain)
    given = [t.detach().requires_grad_() for t in (x, residual, weight)]
    seen, array = set(), kernels.array
    monkeypatch.setattr(kernels, "array", lambda t, n: (seen.add(t.data_ptr()), array(t, n))[1])
    y = adapter.rms_norm(given[0], given[2])
    dx, dweight = torch.autograd.grad(y, [given[0], given[2]], dy)
    assert (x.data_ptr() in seen) is (layout in LAYOUTS)
    assert y.is_contiguous()
    assert dx.is_contiguous()
    y = adapter.rms_norm(plain[0], plain[2])
    assert torch.equal(adapter.rms_norm(x, weight), y)
    assert_close([dx, dweight], torch.autograd.grad(y, [plain[0], plain[2]], dy))
    if layout != "expanded":
        got = adapter.add_rms_norm_(x, residual, weight)
        assert torch.equal(got, wanted[0])
        assert torch.equal(residual, wanted[1])


def test_reading_does_not_change_a_tensor():
    for dtype in DTYPES:
        x, residual, weight = (torch.randn(3, N, dtype=dtype) for _ in range(3))
        y = adapter.rms_norm(x, weight[0])
        z = adapter.add_rms_norm_(x, residual, weight[0])
        leaf = x.clone().requires_grad_()
        adapter.rms_norm(leaf, weight[0]).sum().backward()
        for t in (x, residual, weight, y, z, leaf.grad):
            assert t.untyped_storage().resizable()


def test_update_in_place_of_what_overlaps():
    memory = torch.randn(3 * N)
    wanted = memory[N : 2 * N] + memory[:N], memory[2 * N :] + memory[N : 2 * N]
    adapter.add_rms_norm_(memory[: 2 * N].view(2, N), memory[N:].view(2, N), memory[-N:])
    assert torch.equal(memory[N:].view(2, N), torch.stack(wanted))
    x = torch.randn(2, N)
    wanted = adapter.add_rms_norm(x, x)
    assert torch.equal(adapter.add_rms_norm_(x, x), wanted[0])
    assert torch.equal(x, wanted[1])


# ---- what torch asks of an operator -----------------------------------------------------------


@WEIGHTED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch 2.14's own check
def test_opcheck(tensors, weighted, dtype):
    weight_offset = float(weighted)
    x, residual, weight, dy, _ = tensors(weighted, requires_grad=True)
    x = x.detach().to(dtype).requires_grad_()
    plain = [t if t is None else t.detach() for t in (x, residual, weight)]
    calls = {
        "rms_norm": (x, weight, EPS, weight_offset, dtype is torch.bfloat16),
        "add_rms_norm": (x, residual, weight, EPS, weight_offset),
        "add_rms_norm_": (*plain, EPS, weight_offset),
        "rms_norm_backward": (dy.requires_grad_(), x, weight, EPS, weight_offset),
    }
    assert set(calls) == set(OPERATORS)
    for name, arguments in calls.items():
        op = getattr(torch.ops.fastrms, name).default
        results = torch.library.opcheck(op, arguments, rtol=2e-2, atol=2e-2)
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
    # To precompile torch's headers, for one small program, takes 20 s.
    options = {"cpp_cache_precompile_headers": False} if backend == "inductor" else None
    compiled = torch.compile(
        block, fullgraph=True, backend=backend, dynamic=dynamic, options=options
    )
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


def test_errors_are_those_of_fastrms(tensors):
    x = tensors(False)[0]
    with pytest.raises(ValueError, match=re.escape(f"weight must have shape ({N},)")):
        adapter.rms_norm(x, torch.ones(N + 1))
    with pytest.raises(ValueError, match="x must have at least one axis"):
        adapter.rms_norm(x[0, 0, 0])
    with pytest.raises(ValueError, match=r"eps must be zero or more, got -1\.0"):
        adapter.rms_norm(x, eps=-1.0)
    for name in ("eps", "weight_offset"):
        with pytest.raises(TypeError, match=f"{name} must be a real number, got str"):
            adapter.rms_norm(x, **{name: "1"})
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
