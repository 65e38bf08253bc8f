"""Measure with every peer: `python bench/peers.py` is `fastrms bench` with more for --peers.

One function for each library, which imports it and uses the case's memory without a copy, except
XLA and MLX, whose arrays are made before the clock starts. Its call returns new results in the op's
order, or leaves them in the case's arrays.
"""

import ctypes
import os
import sys

import numpy as np

from fastrms._arguments import DTYPES
from fastrms.bench import peers
from fastrms.bench.cases import EPS, OPS

# For the peers' processes, which read it when they import their library.
os.environ |= {"JAX_PLATFORMS": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def peer(function, *about, **more):
    return peers.Peer(f"{__file__}:{function}", *about, **more)


BOTH = "forward", "add_norm"
PEERS = {
    "torch": peer("torch", ("torch",), "torch", dtypes=DTYPES),
    "torch-compile": peer("torch_compile", ("torch",), "torch", (*BOTH, "fresh"), DTYPES),
    "onnxruntime": peer("onnxruntime", ("onnxruntime", "onnx"), "onnxruntime", BOTH),
    "jax": peer("jax", ("jax",), "jax", dtypes=DTYPES),
    **peers.PEERS,
    "openvino": peer("openvino", ("openvino",), "openvino", ("forward",)),
    "mlx": peer("mlx", ("mlx.core",), "mlx"),
    "ggml": peer("ggml", ("ggml",), "ggml_python", BOTH),
}


def tensor(array):
    """Return a tensor over the array's memory."""
    import torch

    if array.dtype.name == "bfloat16":  # which is no dtype of NumPy's own
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def torch(case):
    import torch

    torch.set_num_threads(case.threads)
    torch.set_grad_enabled(case.op == "backward")
    view, norm, shape = tensor, torch.nn.functional.rms_norm, (case.n,)
    x, weight = view(case.x), view(case.weight)
    if case.op in ("forward", "fresh"):
        return lambda: norm(x, shape, weight, EPS)
    if case.op == "backward":
        x.requires_grad_()
        weight.requires_grad_()
        y, dy = norm(x, shape, weight, EPS), view(case.dy)
        return lambda: torch.autograd.grad(y, (x, weight), dy, retain_graph=True)
    residual = view(case.residual)
    if case.op == "add":
        return lambda: residual.add_(x)
    return lambda: norm(residual.add_(x), shape, weight, EPS)


def torch_compile(case):
    import torch

    torch.set_num_threads(case.threads)
    torch.set_grad_enabled(False)
    torch._dynamo.reset()
    view, norm, shape = tensor, torch.nn.functional.rms_norm, (case.n,)
    x, weight = view(case.x), view(case.weight)
    if case.op in ("forward", "fresh"):
        compiled = torch.compile(lambda x, w: norm(x, shape, w, EPS), dynamic=False)
        return lambda: compiled(x, weight)
    residual = view(case.residual)
    fused = torch.compile(lambda x, r, w: norm(r.add_(x), shape, w, EPS), dynamic=False)
    return lambda: fused(x, residual, weight)


def onnxruntime(case):
    if case.op == "forward":
        arrays = {"x": case.x, "weight": case.weight}
        node = ("SimplifiedLayerNormalization", "", {"axis": -1})
        return run_node(node, arrays, {"out": case.out}, case.threads)
    total = case.empty(case.x.shape)
    arrays = {"x": case.x, "residual": case.residual, "weight": case.weight}
    node = ("SkipSimplifiedLayerNormalization", "com.microsoft", {})
    run = run_node(node, arrays, {"out": case.out, "": None, " ": None, "sum": total}, case.threads)
    results = case.out, total

    def call():
        run()
        return results

    return call


def run_node(node, inputs, outputs, threads):
    """Return a call that runs one ONNX node with its inputs and outputs bound to our arrays."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    def declare(name, rank):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)

    kind, domain, attributes = node
    names = [name.strip() for name in outputs]
    graph = helper.make_graph(
        [helper.make_node(kind, [*inputs], names, domain=domain, epsilon=EPS, **attributes)],
        kind,
        [declare(name, array.ndim) for name, array in inputs.items()],
        [declare(name, 2) for name in names if name],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name, array in outputs.items():
        if array is not None:
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    return lambda: session.run_with_iobinding(binding)


def jax(case):
    # XLA sizes its pool by the CPU affinity.
    if case.threads == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = flags
    elif hasattr(os, "sched_setaffinity") and case.threads < len(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case.threads])
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", case.dtype == np.float64)

    def norm(x, weight):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS) * weight

    def add_norm(x, residual, weight):
        residual = residual + x
        return norm(residual, weight), residual

    function, names = {
        "forward": (norm, ("x", "weight")),
        "fresh": (norm, ("x", "weight")),
        "add_norm": (add_norm, ("x", "residual", "weight")),
        "backward": (lambda dy, x, w: jax.vjp(norm, x, w)[1](dy), ("dy", "x", "weight")),
        "add": (lambda residual, x: residual + x, ("residual", "x")),
    }[case.op]
    arrays = [jnp.asarray(getattr(case, name)) for name in names]
    compiled, wait = jax.jit(function), jax.block_until_ready
    return lambda: wait(compiled(*arrays))


def openvino(case):
    import openvino as ov
    from openvino import opset13 as op

    x = op.parameter([case.rows, case.n], np.float32)
    weight = op.constant(case.weight.reshape(1, -1))
    mean = op.reduce_mean(
        op.power(x, op.constant(np.float32(2))), op.constant(np.int64([1])), keep_dims=True
    )
    rms = op.sqrt(op.add(mean, op.constant(np.float32(EPS))))
    y = op.multiply(op.multiply(x, op.divide(op.constant(np.float32(1)), rms)), weight)
    settings = {"INFERENCE_NUM_THREADS": case.threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(ov.Model([y], [x]), "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(case.x, shared_memory=True))
    request.set_output_tensor(ov.Tensor(case.out, shared_memory=True))

    def call():
        request.infer(share_inputs=True, share_outputs=True)

    return call


def mlx(case):
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    names = [*OPS[case.op].reads, *([] if case.op == "add" else ["weight"])]
    arrays = {name: mx.array(getattr(case, name)) for name in names}
    mx.eval(*arrays.values())
    x, weight = arrays["x"], arrays.get("weight")

    def norm(x, weight):
        return mx.fast.rms_norm(x, weight, EPS)

    def add_norm():
        residual = arrays["residual"] + x
        return norm(residual, weight), residual

    make = {
        "forward": lambda: (norm(x, weight),),
        "fresh": lambda: (norm(x, weight),),
        "add_norm": add_norm,
        "backward": lambda: mx.vjp(norm, [x, weight], [arrays["dy"]])[1],
        "add": lambda: (arrays["residual"] + x,),
    }[case.op]

    def call():
        results = make()
        mx.eval(results)
        return results

    return call


def ggml(case):
    import ggml

    params = ggml.ggml_init_params(mem_size=1 << 22, mem_buffer=None, no_alloc=True)
    context = ggml.ggml_init(params)
    normed = case.empty(case.x.shape)

    def at(tensor, array):
        tensor.contents.data = array.ctypes.data
        return tensor

    def matrix(array):
        new = ggml.ggml_new_tensor_2d(context, ggml.GGML_TYPE_F32, case.n, case.rows)
        return at(new, array)

    x = matrix(case.x)
    weight = at(ggml.ggml_new_tensor_1d(context, ggml.GGML_TYPE_F32, case.n), case.weight)
    if case.op == "add_norm":
        x = ggml.ggml_add_inplace(context, matrix(case.residual), x)
    norm = at(ggml.ggml_rms_norm(context, x, EPS), normed)
    graph = ggml.ggml_new_graph(context)
    ggml.ggml_build_forward_expand(graph, at(ggml.ggml_mul(context, norm, weight), case.out))
    plan = ggml.ggml_graph_plan(graph, case.threads, None)
    work = (ctypes.c_uint8 * max(1, plan.work_size))()
    plan.work_data = ctypes.cast(work, ctypes.POINTER(ctypes.c_uint8))
    kept = context, normed, work, weight
    pointer = ctypes.byref(plan)

    def call(_kept=kept):
        ggml.ggml_graph_compute(graph, pointer)

    return call


if __name__ == "__main__":
    from fastrms.__main__ import main

    sys.exit(main(["bench", *sys.argv[1:]], PEERS))
