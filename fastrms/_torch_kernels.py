"""The tensors that `fastrms.torch` computes with, and the kernels that compute with them.

A kernel gets a tensor's address and strides, never `Tensor.numpy()`: NumPy has no bfloat16, and
`numpy()` marks a tensor's storage as one that cannot be resized.
"""

import struct
import threading
from numbers import Real

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.utils._device import DeviceContext

from . import get_num_threads as num_threads
from .ctypes import functions

# The numbers of fastrms.h.
KINDS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
BAD_POINTER, ROUND_FIRST = 3, 4


# ---- which tensors ----------------------------------------------------------------------------


def keys(*names):
    """Return a set of the dispatcher's keys as a number."""
    first, *others = (getattr(torch._C.DispatchKey, name) for name in names)
    found = torch._C.DispatchKeySet(first)
    for key in others:
        found = found.add(key)
    return found.raw_repr()


# The keys of a plain tensor, with autograd or made in inference mode, and those of a thread in
# which nothing captures. A negative view, a transform of torch.func, a trace or a mode adds a key.
PLAIN = {keys("CPU", "AutocastCPU"), keys("CPU", "AutocastCPU", "AutogradCPU", "ADInplaceOrView")}
QUIET = {keys("BackendSelect"), keys("BackendSelect", "ADInplaceOrView")}
tensor_keys, thread_keys = torch._C._dispatch_keys, torch._C._dispatch_tls_local_include_set
function_mode_count = torch._C._len_torch_function_stack
is_compiling = torch.compiler.is_dynamo_compiling
is_exporting = getattr(torch.compiler, "is_exporting", bool)  # torch 2.4 does not have it


def takes(*tensors):
    """Return whether fastrms computes with these: plain memory on the CPU, which nothing captures.

    torch.compile captures the operators. Every other capture gets torch's own functions, which
    more tools can read.
    """
    if forward_ad._current_level >= 0:
        return False
    if is_compiling():
        captured_otherwise = is_exporting() or torch._C._are_functorch_transforms_active()
        return not captured_otherwise and all(t is None or is_plain_fake(t) for t in tensors)
    if thread_keys().raw_repr() not in QUIET or (function_mode_count() and is_watched()):
        return False
    for t in tensors:
        if t is not None and not (
            (type(t) is Tensor or type(t) is nn.Parameter)
            and t.dtype in KINDS
            and tensor_keys(t).raw_repr() in PLAIN
        ):
            return False
    return True


def is_watched():
    """Return whether a mode follows torch's functions, as some quantisers do to find the graph.

    The mode of torch.set_default_device only chooses where new tensors are made.
    """
    return any(type(mode) is not DeviceContext for mode in function_modes())


def is_plain_fake(t):
    """Return the same for a tensor under torch.compile, which does not show its keys.

    The dispatcher resolves a negative view before an operator gets it.
    """
    return (
        (type(t) is Tensor or type(t) is nn.Parameter)
        and t.dtype in KINDS
        and t.is_cpu
        and t.layout is torch.strided
    )


# ---- one call ---------------------------------------------------------------------------------

# struct fastrms_call. Packing it takes 1.2 us, ctypes' own structures 4.6 (Zen 3).
ARRAY, REST = "Pni", "nn3d2iPN"
CALL = struct.Struct(7 * ARRAY + REST)
NORM = struct.Struct(f"{ARRAY} 24x {ARRAY} 48x {ARRAY} 24x {REST}")  # x, out and weight alone
NONE = (0, 0, 0)


class Scratch(threading.local):
    """The kernels' scratch: a buffer for each thread, which grows."""

    wanted, place = None, (0, 0, None)


scratch = Scratch()


def take_scratch(rows, n):
    """Return the address of scratch for a call, its size, and the buffer, to be held until the call
    is done: a signal's handler may take more."""
    wanted = rows, n, num_threads()
    if scratch.wanted != wanted:
        size = functions.any_scratch_bytes(rows, n, 0)
        if size > scratch.place[1]:
            buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
            scratch.place = buffer.data_ptr(), size, buffer
        scratch.wanted = wanted
    return scratch.place


def run(function, n, x, weight, eps, weight_offset, flags=0, *,
        residual=None, out=None, dy=None, dx=None, dweight=None):  # fmt: skip
    """Call a function of fastrms.h with tensors whose rows, of n, lie at one distance each."""
    rows = x.numel() // n if n else 0
    address, size, _buffer = take_scratch(rows, n)
    call = CALL.pack(
        *array(x, n),
        *(NONE if residual is None else array(residual, n)),
        *(NONE if out is None else array(out, n)),
        *(NONE if dy is None else array(dy, n)),
        *(NONE if dx is None else array(dx, n)),
        *(NONE if weight is None else array(weight, n)),
        *(NONE if dweight is None else array(dweight, n)),
        rows, n, eps, weight_offset, 1.0, flags, 0, address, size
    )  # fmt: skip
    error = function(call)
    if error:
        refuse(error)


def refuse(error):
    if error == BAD_POINTER:
        raise ValueError("a tensor must be aligned to the size of its elements")
    raise RuntimeError(f"fastrms.torch: a kernel returned the error {error} of fastrms.h")


def array(t, n):
    """Return the struct fastrms_array of a tensor."""
    return t.data_ptr(), n if t.is_contiguous() else row_distance(t), KINDS[t.dtype]


def row_distance(t):
    """Return the distance of a tensor's rows in elements; None if they have no single one."""
    first = end = None
    for size, stride in zip(reversed(t.shape[:-1]), reversed(t.stride()[:-1]), strict=True):
        if size > 1:
            if end not in (None, stride):
                return None
            first, end = stride if first is None else first, size * stride
    return t.shape[-1] if first is None else first


def whole(t):
    """Return the tensor, or a copy of it if its rows are not contiguous."""
    if t is None or t.is_contiguous() or t.stride(-1) == 1 or t.shape[-1] == 1:
        return t
    return t.contiguous()


def parts(*tensors):
    """Return the tensors in parts, views whose rows lie at one distance each."""
    for t in tensors:
        if not t.is_contiguous() and row_distance(t) is None:
            break
    else:
        return (tensors,)
    shape = tensors[0].shape[:-1]
    axis = min((size, axis) for axis, size in enumerate(shape) if size > 1)[1]
    split = zip(*(t.unbind(axis) for t in tensors), strict=True)
    return [part for views in split for part in parts(*views)]


# ---- checks -----------------------------------------------------------------------------------


def check(x, weight, eps, weight_offset):
    """Return the length of a row."""
    if type(eps) is not float:
        check_number("eps", eps)
    if type(weight_offset) is not float:
        check_number("weight_offset", weight_offset)
    if not eps >= 0:
        raise ValueError(f"eps must be zero or more, got {eps}")
    shape = x.shape
    if not shape:
        raise ValueError("x must have at least one axis, got a 0-d tensor")
    n = shape[-1]
    if weight is not None and weight.shape != (n,):
        wanted = f"({n},), the last axis of x"
        raise ValueError(f"weight must have shape {wanted}, got {tuple(weight.shape)}")
    return n


def check_number(name, number):
    if not isinstance(number, Real):
        raise TypeError(f"{name} must be a real number, got {type(number).__name__}")


def check_shape(name, t, x):
    if t.shape != x.shape:  # torch would broadcast
        shapes = f"{tuple(x.shape)}, got {tuple(t.shape)}"
        raise ValueError(f"{name} must have the shape of x, {shapes}")


# ---- the kernels ------------------------------------------------------------------------------


def new(x, dtype=None):
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def new_norm(x, weight, eps, weight_offset, round_first):
    """Return a new y. With round_first it has the dtype of x times weight, as such models write."""
    if round_first and weight is not None:
        return new(x, torch.promote_types(x.dtype, weight.dtype))
    return new(x)


def norm(x, weight, eps, weight_offset, round_first):
    n = check(x, weight, eps, weight_offset)
    flags = ROUND_FIRST if round_first else 0
    if x.is_contiguous() and (
        weight is None or (weight.dtype is x.dtype and weight.is_contiguous())
    ):  # as below, in 0.7 of the time for one row
        y = torch.empty_like(x)
        kind, rows = KINDS[x.dtype], x.numel() // n if n else 0
        vector = 0 if weight is None else weight.data_ptr()
        address, size, _buffer = take_scratch(rows, n)
        error = functions.rms_norm_any(NORM.pack(
            x.data_ptr(), n, kind, y.data_ptr(), n, kind, vector, n, kind,
            rows, n, eps, weight_offset, 1.0, flags, 0, address, size
        ))  # fmt: skip
        if error:
            refuse(error)
        return y
    y = new_norm(x, weight, eps, weight_offset, round_first)
    weight = whole(weight)
    for part, out in parts(whole(x), y):
        run(functions.rms_norm_any, n, part, weight, eps, weight_offset, flags, out=out)
    return y


def add(x, residual, weight, eps, weight_offset):
    check_shape("residual", residual, x)
    # Copying residual for add_ would take one more pass over memory.
    total = torch.add(residual, x, out=new(residual))
    y = new(x)
    n = check(x, weight, eps, weight_offset)
    weight = whole(weight)
    for part, out in parts(total, y):
        run(functions.rms_norm_any, n, part, weight, eps, weight_offset, out=out)
    return y, total


def add_(x, residual, weight, eps, weight_offset):
    n = check(x, weight, eps, weight_offset)
    check_shape("residual", residual, x)
    if any(residual.stride(axis) == 0 < size - 1 for axis, size in enumerate(residual.shape)):
        raise ValueError("residual must have memory for each element, got an expanded tensor")
    y, stream = new(x), whole(residual)
    x, weight = apart(whole(x), stream), apart(whole(weight), stream)
    for part, total, out in parts(x, stream, y):
        run(functions.add_rms_norm_any, n, part, weight, eps, weight_offset,
            residual=total, out=out)  # fmt: skip
    if stream is not residual:
        residual.copy_(stream)
    torch.autograd.graph.increment_version(residual)  # tell autograd of the write
    return y


def apart(t, written):
    """Return the tensor, or a copy of it if a write to the other tensor would change it midway."""
    if t is None or (t.data_ptr(), t.stride(), t.dtype) == (
        written.data_ptr(), written.stride(), written.dtype
    ):  # fmt: skip
        return t
    (start, end), (other, other_end) = span(t), span(written)
    return t.clone() if start < other_end and other < end else t


def span(t):
    """Return the addresses of a tensor's first byte and of the first byte after its last."""
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.itemsize


def new_gradients(dy, x, weight, *_):
    """Return new dx and dweight; an operator cannot return None, so without weight it is empty."""
    return new(x), x.new_empty(0) if weight is None else new(weight)


def backward(dy, x, weight, eps, weight_offset):
    """Return dx and dweight; the sums of several parts are added in float64."""
    n = check(x, weight, eps, weight_offset)
    check_shape("dy", dy, x)
    dx, dweight = new_gradients(dy, x, weight)
    split = parts(whole(dy), whole(x), dx)
    sums = [None if weight is None else dweight] * len(split)
    if len(split) > 1 and weight is not None:
        sums = [new(weight, torch.promote_types(x.dtype, torch.float32)) for _ in split]
    function, numbers = functions.rms_norm_backward_any, (whole(weight), eps, weight_offset)
    for (dy, x, out), part in zip(split, sums, strict=True):
        run(function, n, x, *numbers, dy=dy, dx=out, dweight=part)
    if weight is not None and sums[0] is not dweight:
        dweight.copy_(torch.stack(sums).sum(0, dtype=torch.float64))
    return dx, dweight
