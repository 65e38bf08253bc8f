"""fastrms.torch and what is not plain: other tensors, a second import, a pickled model."""

import copy
import pickle
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason='torch is not installed: extra "fastrms[torch]"')

import fastrms.torch as adapter  # noqa: E402

from .test_torch import assert_close  # noqa: E402
from .test_torch_capture import THEIRS, N, patched_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # as in test_torch_capture.py


@pytest.fixture
def inputs():
    return torch.randn(3, N), torch.rand(N), torch.randn(3, N)


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
