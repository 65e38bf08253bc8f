"""fastrms.torch under other people's tools: OpenVINO, quantisers, FSDP2, parametrizations."""

import copy
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason='torch is not installed: extra "fastrms[torch]"')

from torch.nn.utils import parametrize, prune  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

import fastrms.torch as adapter  # noqa: E402
from fastrms import _torch_kernels as kernels  # noqa: E402

from .test_torch import assert_close  # noqa: E402
from .test_torch_capture import MODELS, N, patched_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # as in test_torch_capture.py


@pytest.fixture
def x():
    return torch.randn(4, N, generator=torch.Generator().manual_seed(0))


def plain_twin(model):
    """Return the model with torch's own norms and the same parameters."""
    twin = copy.deepcopy(model)
    if not adapter.unpatch(twin):
        twin[1] = torch.nn.RMSNorm(N)
        twin.load_state_dict(model.state_dict())
    return twin


# ---- what captures ----------------------------------------------------------------------------


class Watch(TorchFunctionMode):
    """Record the functions of torch that a model calls, as NNCF does."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, arguments=(), named=None):
        self.names.append(function.__name__)
        return function(*arguments, **(named or {}))


@MODELS
def test_a_mode_sees_the_functions_of_torch(x, model):
    model = model()
    names = []
    for each in (model, plain_twin(model)):
        with Watch() as watch:
            each(x)
        names.append([name for name in watch.names if name in ("square", "rsqrt", "rms_norm")])
    assert names[0] == names[1] != []
    assert_close([model(x)], [plain_twin(model)(x)])


def test_a_default_device_is_no_capture(x, monkeypatch):
    seen, take = [], kernels.take_scratch
    monkeypatch.setattr(kernels, "take_scratch", lambda *a: (seen.append(a), take(*a))[1])
    with torch.device("cpu"), torch.no_grad():
        patched_model()(x)
    assert len(seen) == 1


@MODELS
def test_openvino(x, model):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    model = model().eval()
    converted = openvino.convert_model(model, example_input=x)
    # A CPU with products in bfloat16 would use them.
    float32 = {"INFERENCE_PRECISION_HINT": "f32"}
    (y,) = openvino.compile_model(converted, "CPU", float32)(x.numpy()).values()
    assert_close([torch.from_numpy(y)], [plain_twin(model)(x)])


# ---- quantisers -------------------------------------------------------------------------------


def dynamic(model, x):
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def fx_graph(model, x):
    quantize_fx = pytest.importorskip(
        "torch.ao.quantization.quantize_fx", reason="this torch has none"
    )
    mapping = torch.ao.quantization.get_default_qconfig_mapping("x86")
    prepared = quantize_fx.prepare_fx(model, mapping, (x,))
    prepared(x)
    return quantize_fx.convert_fx(prepared)


def pt2e(model, x):
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config()
    quantizer = x86.X86InductorQuantizer().set_global(config)
    prepared = quantize_pt2e.prepare_pt2e(torch.export.export(model, (x,)).module(), quantizer)
    prepared(x)
    return quantize_pt2e.convert_pt2e(prepared)


def weights_only(model, x):
    torchao = pytest.importorskip("torchao", reason="torchao is not installed")
    torchao.quantize_(model, torchao.quantization.Int8WeightOnlyConfig())
    return model


@MODELS
@pytest.mark.parametrize("quantise", [dynamic, fx_graph, pt2e, weights_only])
@torch.no_grad()
def test_quantisers(x, model, quantise):
    model = model().eval()
    twin = plain_twin(model)
    assert_close([quantise(model, x)(x)], [quantise(twin, x)(x)])


# ---- what changes a module or its class -------------------------------------------------------


class Double(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_pruned_and_a_parametrized_weight(x):
    for change in (
        lambda norm: prune.l1_unstructured(norm, "weight", 0.5),
        lambda norm: parametrize.register_parametrization(norm, "weight", Double()),
    ):
        model = patched_model()
        twin = plain_twin(model)
        change(model[1])
        change(twin[1])
        got, wanted = model(x), twin(x)
        assert got.grad_fn.name().startswith("GeneratedBackwardFor_fastrms")
        assert_close([got], [wanted])
        for each in (got, wanted):
            each.pow(3).sum().backward()
        assert_close([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])


def test_unpatch_leaves_a_class_that_another_tool_made():
    model = patched_model()
    parametrize.register_parametrization(model[1], "weight", Double())
    assert adapter.unpatch(model) == 0
    assert torch.equal(model[1].weight, 2 * model[1].parametrizations.weight.original)
    parametrize.remove_parametrizations(model[1], "weight")
    assert adapter.unpatch(model) == 1


SHARDED = """
import sys, torch, fastrms.torch
from fastrms import _torch_kernels as kernels
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

rank, size, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
store = torch.distributed.FileStore(path, size)
torch.distributed.init_process_group("gloo", rank=rank, world_size=size, store=store)
mesh = init_device_mesh("cpu", (size,))
calls, take = [], kernels.take_scratch
kernels.take_scratch = lambda *given: (calls.append(1), take(*given))[1]

def model(patched):
    torch.manual_seed(0)
    layers = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.RMSNorm(8)) for _ in range(2)]
    model = torch.nn.Sequential(*layers, torch.nn.RMSNorm(8))
    assert not patched or fastrms.torch.patch(model) == 3
    for module in (*layers, model[2], model):
        fully_shard(module, mesh=mesh)
    return model

def train(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        y = model(torch.randn(4, 8))
        y.pow(3).mean().backward()
        gradients = [p.grad.to_local() for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    return [y, *gradients, *(p.to_local() for p in model.parameters())]

plain, patched = model(False), model(True)
calls.clear()  # those of patch
wanted = train(plain)
torch.testing.assert_close(train(patched), wanted, rtol=1e-4, atol=1e-5)
assert len(calls) == 3 * 6  # forward and backward of three norms in three steps
assert fastrms.torch.unpatch(patched) == 2  # the last norm has a class of fully_shard's
torch.testing.assert_close(train(patched), train(plain), rtol=1e-4, atol=1e-5)
assert fastrms.torch.patch(plain) == 0
torch.distributed.destroy_process_group()
"""


def test_fsdp2_of_two_processes(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    fsdp = pytest.importorskip("torch.distributed.fsdp", reason="this torch has no FSDP")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no FSDP2")
    ranks = [
        subprocess.Popen([sys.executable, "-c", SHARDED, str(rank), "2", str(tmp_path / "store")])
        for rank in range(2)
    ]
    try:
        assert [rank.wait(120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:  # one that waits for the other's end
            rank.kill()
