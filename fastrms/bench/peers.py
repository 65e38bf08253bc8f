"""The other libraries: one function for each peer, which imports it and uses the case's memory.

A peer takes a case and a thread count and returns a call, or None for an op that it lacks. It
works on the case's arrays without a copy, except XLA and MLX, whose arrays are made before the
clock starts. A call returns new results in the op's order, or leaves them in the case's arrays.
"""

import ctypes
import os

import numpy as np

from .._arguments import DTYPES
from .cases import EPS, OPS

FLOAT32 = ("float32",)
# name: (modules that must be there, distributions, dtypes)
PEERS = {
    "torch": (("torch",), ("torch",), DTYPES),
    "torch-compile": (("torch",), ("torch",), DTYPES),
    "onnxruntime": (("onnxruntime", "onnx"), ("onnxruntime",), FLOAT32),
    "jax": (("jax",), ("jax",), DTYPES),
    "numba": (("numba",), ("numba",), ("float32", "float64")),
    "openvino": (("openvino",), ("openvino",), FLOAT32),
    "mlx": (("mlx.core",), ("mlx",), FLOAT32),
    "ggml": (("ggml",), ("ggml_python",), FLOAT32),
}
# Of the peers only numba, whose loop is written here, can overwrite its input.
IN_PLACE = ("numba",)


def environment(threads):
    """Return the environment variables that limit every peer's thread pool to `threads`."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    variables = {f"{name}_NUM_THREADS": str(threads) for name in names}
    variables["JAX_PLATFORMS"] = "cpu"
    variables["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if threads == 1:
        variables["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return variables


def build(name, case, threads):
    """Return one peer's call for a case, or None if it lacks the op; none has a weight_offset."""
    if case.op == "offset":
        return None
    if case.inplace and case.op != "add" and name not in IN_PLACE:
        return None
    return globals()["peer_" + name.replace("-", "_")](case, threads)


def tensor(array):
    """Return a tensor over the array's memory."""
    import torch

    if array.dtype.name == "bfloat16":  # which is no dtype of NumPy's own
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def peer_torch(case, threads):
    import torch

    torch.set_num_threads(threads)
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


def peer_torch_compile(case, threads):
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch._dynamo.reset()
    view, norm, shape = tensor, torch.nn.functional.rms_norm, (case.n,)
    x, weight = view(case.x), view(case.weight)
    if case.op in ("forward", "fresh"):
        compiled = torch.compile(lambda x, w: norm(x, shape, w, EPS), dynamic=False)
        return lambda: compiled(x, weight)
    if case.op != "add_norm":
        return None
    residual = view(case.residual)
    fused = torch.compile(lambda x, r, w: norm(r.add_(x), shape, w, EPS), dynamic=False)
    return lambda: fused(x, residual, weight)


def peer_onnxruntime(case, threads):
    if case.op == "forward":
        arrays = {"x": case.x, "weight": case.weight}
        node = ("SimplifiedLayerNormalization", "", {"axis": -1})
        return run_node(node, arrays, {"out": case.out}, threads)
    if case.op != "add_norm":
        return None
    total = case.empty(case.x.shape)
    arrays = {"x": case.x, "residual": case.residual, "weight": case.weight}
    node = ("SkipSimplifiedLayerNormalization", "com.microsoft", {})
    run = run_node(node, arrays, {"out": case.out, "": None, " ": None, "sum": total}, threads)
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


def peer_jax(case, threads):
    # XLA sizes its pool by the CPU affinity.
    if hasattr(os, "sched_setaffinity") and 1 < threads < len(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
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


def peer_numba(case, threads):
    import numba

    from . import numba_kernels

    numba.set_num_threads(threads)
    eps, parallel = case.dtype.type(EPS), threads > 1
    x, weight = case.x, case.weight
    if case.op == "fresh":
        return numba_fresh(numba_kernels.norm(parallel), x, weight, eps)
    if case.op == "forward":
        norm, out = numba_kernels.norm(parallel), case.out
        return lambda: norm(x, weight, out, eps)
    if case.op == "backward":
        backward, dy, dx, dweight = numba_kernels.backward(parallel), case.dy, case.dx, case.dweight
        parts = np.empty((min(threads, case.rows), case.n), case.dtype)
        return lambda: backward(dy, x, weight, dx, dweight, parts, eps)
    residual = case.residual
    if case.op == "add":
        add = numba_kernels.add(parallel)
        return lambda: add(residual, x)
    add_norm, out = numba_kernels.add_norm(parallel), case.out
    return lambda: add_norm(x, residual, weight, out, eps)


def numba_fresh(kernel, x, weight, eps):
    def fresh():
        out = np.empty_like(x)
        kernel(x, weight, out, eps)
        return out

    return fresh


def peer_openvino(case, threads):
    if case.op != "forward":
        return None
    import openvino as ov
    from openvino import opset13 as op

    x = op.parameter([case.rows, case.n], np.float32)
    weight = op.constant(case.weight.reshape(1, -1))
    mean = op.reduce_mean(
        op.power(x, op.constant(np.float32(2))), op.constant(np.int64([1])), keep_dims=True
    )
    rms = op.sqrt(op.add(mean, op.constant(np.float32(EPS))))
    y = op.multiply(op.multiply(x, op.divide(op.constant(np.float32(1)), rms)), weight)
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(ov.Model([y], [x]), "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(case.x, shared_memory=True))
    request.set_output_tensor(ov.Tensor(case.out, shared_memory=True))

    def call():
        request.infer(share_inputs=True, share_outputs=True)

    return call


def peer_mlx(case, threads):
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


def peer_ggml(case, threads):
    if case.op not in ("forward", "add_norm"):
        return None
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
    plan = ggml.ggml_graph_plan(graph, threads, None)
    work = (ctypes.c_uint8 * max(1, plan.work_size))()
    plan.work_data = ctypes.cast(work, ctypes.POINTER(ctypes.c_uint8))
    kept = context, normed, work, weight
    pointer = ctypes.byref(plan)

    def call(_kept=kept):
        ggml.ggml_graph_compute(graph, pointer)

    return call
