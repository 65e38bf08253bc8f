"""fastrms._jax, the handlers of XLA's custom calls: layouts as in jaxlib's header; errors."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason='jax is not installed: extra "fastrms[jax]"')

import fastrms.jax as adapter  # noqa: E402

CHECKOUT = Path(__file__).parent.parent
# Each struct of xla_ffi.h: its name in jaxlib's header, and its fields in order, ours:theirs.
STRUCTS = {
    "xla_extension": ("Extension_Base", "size:struct_size type next"),
    "xla_version": (
        "Api_Version",
        "size:struct_size extensions:extension_start major:major_version minor:minor_version",
    ),
    "xla_metadata": ("Metadata", "size:struct_size version:api_version traits"),
    "xla_metadata_extension": ("Metadata_Extension", "base:extension_base metadata"),
    "xla_error_arguments": (
        "Error_Create_Args",
        "size:struct_size extensions:extension_start message code:errc",
    ),
    "xla_api": (
        "Api",
        "size:struct_size extensions:extension_start version:api_version internal:internal_api"
        " create_error:XLA_FFI_Error_Create",
    ),
    "xla_buffer": ("Buffer", "size:struct_size extensions:extension_start dtype data rank dims"),
    "xla_span": ("ByteSpan", "text:ptr length:len"),
    "xla_scalar": ("Scalar", "dtype value"),
    "xla_buffers": (
        "Args",
        "size:struct_size extensions:extension_start count:size types values:args",
    ),
    "xla_attributes": (
        "Attrs",
        "size:struct_size extensions:extension_start count:size types names values:attrs",
    ),
    "xla_frame": (
        "CallFrame",
        "size:struct_size extensions:extension_start api context:ctx stage arguments:args"
        " results:rets attributes:attrs",
    ),
}
CONSTANTS = {
    "XLA_METADATA": "Extension_Metadata",
    "XLA_BUFFER": "ArgType_BUFFER",
    "XLA_SCALAR": "AttrType_SCALAR",
    "XLA_F16": "DataType_F16",
    "XLA_F32": "DataType_F32",
    "XLA_F64": "DataType_F64",
    "XLA_BF16": "DataType_BF16",
    "XLA_EXECUTE": "ExecutionStage_EXECUTE",
    "XLA_INVALID_ARGUMENT": "Error_Code_INVALID_ARGUMENT",
    "XLA_RESOURCE_EXHAUSTED": "Error_Code_RESOURCE_EXHAUSTED",
    "XLA_MAJOR": "API_MAJOR",
}
GROWN = {"xla_metadata", "xla_api", "xla_frame"}  # newer versions append fields


def assertions():
    """Yield a condition for each constant, field and size."""
    for ours, theirs in CONSTANTS.items():
        yield f"(int){ours} == (int)XLA_FFI_{theirs}"
    yield "XLA_MINOR <= XLA_FFI_API_MINOR"
    yield "XLA_FFI_RetType_BUFFER == XLA_BUFFER"
    structs = [*STRUCTS.items(), ("xla_buffers", ("Rets", STRUCTS["xla_buffers"][1]))]
    for ours, (theirs, fields) in structs:
        theirs = f"XLA_FFI_{theirs}"
        if theirs in ("XLA_FFI_Metadata_Extension", "XLA_FFI_Metadata"):
            theirs = f"struct {theirs}"
        for field in fields.split():
            name, _, other = field.partition(":")
            other = other or name
            if theirs == "XLA_FFI_Rets":
                other = other.replace("args", "rets")
            yield f"offsetof({ours}, {name}) == offsetof({theirs}, {other})"
            if other not in ("metadata", "args", "rets", "attrs", "api_version"):
                sizes = (
                    f"sizeof((({kind} *)0)->{f})" for kind, f in ((ours, name), (theirs, other))
                )
                yield " == ".join(sizes)
        yield f"sizeof({ours}) {'<=' if ours in GROWN else '=='} sizeof({theirs})"


def test_layouts_are_those_of_jaxlib(tmp_path):
    if not shutil.which("gcc"):
        pytest.skip("needs gcc, to compare two headers")
    lines = ['#include "xla/ffi/api/c_api.h"', '#include "xla_ffi.h"']
    lines += [f'_Static_assert({condition}, "");' for condition in assertions()]
    (tmp_path / "layouts.c").write_text("\n".join(lines) + "\n")
    includes = [f"-I{CHECKOUT / 'src/jax'}", f"-I{jax.ffi.include_dir()}"]
    command = ["gcc", "-std=c11", "-fsyntax-only", *includes, tmp_path / "layouts.c"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- refusals ---------------------------------------------------------------------------------

EPS = {"eps": np.float64(1e-5), "weight_offset": np.float64(0.0)}
X, W = np.ones((4, 3, 5), np.float32), np.ones(5, np.float32)
NORM, ADD, BACKWARD, ADD_BACKWARD = adapter.TARGETS
WRONG = [
    (NORM, [], [X], EPS, "another number of arrays"),
    (NORM, [X, W, W], [X], EPS, "another number of arrays"),
    (NORM, [X, W], [X, X], EPS, "another number of arrays"),
    (BACKWARD, [X, X, W], [X], EPS, "another number of arrays"),
    (NORM, [X.astype(np.int32)], [X], EPS, "an array that is not float16, bfloat16, float32 or"),
    (NORM, [X, W], [X.astype(np.int8)], EPS, "an array that is not float16, bfloat16, float32 or"),
    (NORM, [X, W[0]], [X], EPS, "an array without axes"),
    (NORM, [X], [X], {"eps": np.float64(1e-5)}, "no float64 eps or weight_offset"),
    (NORM, [X], [X], EPS | {"eps": np.float32(1e-5)}, "no float64 eps or weight_offset"),
    (NORM, [X], [X], EPS | {"eps": "1e-5"}, "no float64 eps or weight_offset"),
    (NORM, [X], [X], EPS | {"eps": np.float64(-1)}, "an eps that is negative or NaN"),
    (NORM, [X], [X[0]], EPS, "arrays of different shapes"),
    (BACKWARD, [X, X[:1]], [X], EPS, "arrays of different shapes"),
    (NORM, [X, W[:4]], [X], EPS, "a weight or dweight that does not fit x"),
    (NORM, [X, np.ones((2, 5), "f")], [X], EPS, "a weight or dweight that does not fit x"),
    (NORM, [W, np.ones((1, 5), "f")], [W], EPS, "a weight with more axes than x"),
    (BACKWARD, [X, X, W], [X, W[:4]], EPS, "a weight or dweight that does not fit x"),
    (BACKWARD, [X, X, W[None]], [X, W[None]], EPS, "a weight or dweight that does not fit x"),
    (BACKWARD, [X, X, W[None]], [X, W], EPS, "a weight or dweight that does not fit x"),
    (ADD, [X, X], [X, X], EPS, "an array that is not aliased to its result"),
    (ADD, [X, X.astype("f2")], [X, X], EPS, "an array that is not aliased to its result"),
    (ADD_BACKWARD, [X, X, X], [X], EPS, "an array that is not aliased to its result"),
]


@pytest.mark.parametrize(
    ("target", "arrays", "results", "attributes", "message"), WRONG, ids=range(len(WRONG))
)
def test_refusals(target, arrays, results, attributes, message):
    kinds = [jax.ShapeDtypeStruct(r.shape, r.dtype) for r in results]
    call = jax.jit(lambda *a: jax.ffi.ffi_call(target, kinds)(*a, **attributes))
    with pytest.raises(Exception, match=f"{target}: got {message}"):
        jax.block_until_ready(call(*arrays))


def test_targets():
    assert adapter.TARGETS == (
        "fastrms_rms_norm",
        "fastrms_add_rms_norm",
        "fastrms_rms_norm_backward",
        "fastrms_add_rms_norm_backward",
    )
