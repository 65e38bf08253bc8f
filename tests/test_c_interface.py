"""The C interface of fastrms.h: an error code for each bad call, which writes nothing; frozen
signatures, the same in header and .pxd; an ImportError for another version.
"""

import ctypes
import importlib.util
import inspect
import re
import shutil
import subprocess
import sysconfig

import numpy as np
import pytest

import fastrms
from fastrms import _core
from fastrms.ctypes import declarations, functions

from .c_api import (
    BAD_EPS,
    BAD_FLAG,
    BAD_POINTER,
    BAD_SCRATCH,
    BAD_SIZE,
    BAD_STRIDE,
    CALLS,
    NAMES,
    OK,
    PACKAGE,
    at,
)

ROWS, N = 4, 10
GOOD = {"rows": ROWS, "n": N, "size": N, "eps": 1e-5, "weight_offset": 0.0, "scale": 2.0}
GOOD |= {"accumulate": 0, "threads": 1}
WRITTEN = ("out", "residual", "dx", "dweight")
SUMS = ("sum_squares", "sum_products", "scratch")
WRONG = [
    ("rows", -1, BAD_SIZE),
    ("n", -1, BAD_SIZE),
    ("n", 1 << 40, BAD_SIZE),
    ("rows", 1 << 60, BAD_SIZE),
    ("size", N - 1, BAD_SIZE),
    ("size", 1 << 40, BAD_SIZE),
    ("eps", -1e-300, BAD_EPS),
    ("eps", float("nan"), BAD_EPS),
    ("threads", 2, BAD_FLAG),
    ("threads", -1, BAD_FLAG),
    ("accumulate", 4, BAD_FLAG),
    ("accumulate", -1, BAD_FLAG),
    ("weight", 1, BAD_POINTER),
    *((f"{name}_stride", N - 1, BAD_STRIDE) for name in ("out", "residual", "dx")),
    *((f"{name}_stride", 1 - N, BAD_STRIDE) for name in ("out", "residual", "dx")),
    *(("out_stride", far, BAD_STRIDE) for far in (1 << 62, (1 << 62) + N, 1 + (1 << 59), -1 << 63)),
    *((name, 1, BAD_POINTER) for name in ("x", "dy", *WRITTEN, *SUMS[:2])),
    *((name, None, BAD_POINTER) for name in ("x", "dy", *WRITTEN, *SUMS[:2])),
    ("scratch", None, BAD_SCRATCH),
    ("scratch", 4, BAD_SCRATCH),
]


def memory_for(draw, function):
    """Return an array for each address that a function takes."""
    memory = {key: draw(ROWS, N) for key in ("x", "dy", "weight", *WRITTEN)}
    memory |= {key: np.ones(300 * N) for key in SUMS}
    if function in ("sum_squares", "sum_products"):
        memory["out"] = np.ones(ROWS)
    return memory


def call(function, memory, changes):
    """Call with valid arguments but for `changes`; the change of an address is added to it."""
    arguments = []
    for name in NAMES[function]:
        value = GOOD.get(name, N if name.endswith("_stride") else None)
        if value is None:
            value = at(memory[name])
            change = changes.get(name, 0)
            value = None if change is None else value + change
        else:
            value = changes.get(name, value)
        arguments.append(value)
    return getattr(functions, function)(*arguments)


@pytest.mark.parametrize(
    ("function", "name", "value", "code"),
    [(function, *wrong) for function in CALLS for wrong in WRONG if wrong[0] in NAMES[function]],
)
def test_refusals(draw, function, name, value, code):
    memory = memory_for(draw, function)
    before = {key: array.tobytes() for key, array in memory.items()}
    assert call(function, memory, {name: value}) == code
    assert {key: array.tobytes() for key, array in memory.items()} == before
    assert call(function, memory, {}) == OK


@pytest.mark.parametrize(
    ("rows", "n", "code"),
    [
        (1 << 61, 1, BAD_POINTER),
        ((1 << 61) + 1, 1, BAD_SIZE),
        (1 << 21, (1 << 40) - 1, BAD_POINTER),
        ((1 << 21) + 1, (1 << 40) - 1, BAD_SIZE),
        (1 << 62, 0, OK),
    ],
)
def test_the_largest_sizes(rows, n, code):
    """Sizes are checked before pointers: with valid sizes, the error is that of NULL."""
    assert functions.residual_add(None, n, None, n, rows, n, 1.0, 1) == code


@pytest.mark.parametrize("function", ["rms_scale", "rms_scale_backward"])
def test_the_sums_of_a_single_element_are_checked(draw, function):
    one = {"rows": 1, "n": 1, "size": 1}
    assert call(function, memory_for(draw, function), one) == OK
    assert call(function, memory_for(draw, function), {**one, "sum_squares": None}) == BAD_POINTER


@pytest.mark.parametrize("function", CALLS)
def test_the_address_of_an_empty_array_does_not_matter(draw, function):
    anywhere = {"n": 0, "x": 1, "dy": 1, "weight": 1}
    assert call(function, memory_for(draw, function), anywhere) == OK


@pytest.mark.parametrize(
    ("rows", "stride", "code"),
    [(1, 0, OK), (1, N - 1, OK), (2, N - 1, BAD_STRIDE), (2, 0, BAD_STRIDE), (2, N, OK)],
)
def test_rows_of_an_output_may_touch(draw, rows, stride, code):
    x, residual = draw(rows, N), draw(rows, N)
    assert functions.residual_add(at(x), N, at(residual), stride, rows, N, 1.0, 1) == code


def test_two_outputs_in_one_place(draw):
    x, residual, sums = draw(ROWS, N), draw(ROWS, N), np.ones(300)
    before = residual.tobytes()
    add = (at(x), N, at(residual), N, None, at(residual), N, ROWS, N, 1e-5, 0.0, 1)
    assert functions.add_rms_norm(*add) == BAD_POINTER
    back = (at(x), N, at(x), N, at(x), at(residual), N, at(residual), at(sums))
    assert functions.rms_norm_backward(*back, ROWS, N, 1e-5, 0.0, 0, 1) == BAD_POINTER
    assert residual.tobytes() == before


@pytest.mark.parametrize("given", ["weight", "dweight"])
def test_weight_and_dweight_come_together(draw, given):
    x, vector, dx, room = draw(ROWS, N), draw(N), draw(ROWS, N), np.ones(300)
    weight, dweight = (at(vector), None) if given == "weight" else (None, at(vector))
    code = functions.rms_norm_backward(
        *(at(x), N, at(x), N, weight, at(dx), N, dweight, at(room), ROWS, N, 1e-5, 0.0, 0, 1)
    )
    assert code == BAD_POINTER


@pytest.mark.parametrize("sizes", [(-1, 4, 1), (4, -1, 1), (4, 1 << 40, 0), (4, 4, 2)])
def test_no_scratch_for_bad_sizes(sizes):
    assert functions.scratch_bytes(*sizes) == 0


# ---- the interface ----------------------------------------------------------------------------

# Frozen, the result first: p an address, l ptrdiff_t, d double, i int, z size_t. A change needs a
# new FASTRMS_API_VERSION, a function added at the end does not.
FROZEN = {
    "rms_norm": "iplpplllddii",
    "add_rms_norm": "iplplpplllddi",
    "rms_norm_backward": "iplplpplppllddii",
    "residual_add": "iplpllldi",
    "sum_squares": "iplplli",
    "sum_products": "iplplpplldi",
    "rms_scale": "iplpppllllddi",
    "rms_scale_backward": "iplplpppplpplllddii",
    "scratch_bytes": "zlli",
    "rms_norm_any": "ip",
    "add_rms_norm_any": "ip",
    "rms_norm_backward_any": "ip",
    "residual_add_any": "ip",
    "any_scratch_bytes": "zlli",
}
LETTERS = {
    ctypes.c_void_p: "p",
    ctypes.c_ssize_t: "l",
    ctypes.c_double: "d",
    ctypes.c_int: "i",
    ctypes.c_size_t: "z",
}


def plain(text):
    """Strip comments and insignificant blanks from C or Cython."""
    text = re.sub(r"/\*.*?\*/|#.*", "", text, flags=re.DOTALL if "/*" in text else 0)
    return re.sub(r"\s*([(),*;])\s*", r"\1", re.sub(r"\s+", " ", text))


def test_signatures_are_frozen():
    found = {
        name: "".join(LETTERS[kind] for kind in kinds) for name, kinds in declarations().items()
    }
    assert list(found.items()) == list(FROZEN.items())
    assert (functions.version, functions.size) == (1, ctypes.sizeof(functions))
    assert ctypes.sizeof(functions) == 16 + 8 * len(FROZEN)


def test_header_and_pxd_say_the_same():
    header = (PACKAGE / "include/fastrms.h").read_text()
    pxd = (PACKAGE / "__init__.pxd").read_text()
    for name in ("array", "call", "functions"):
        struct = re.search(rf"struct fastrms_{name} \{{(.*?)\}} fastrms_{name};", header, re.DOTALL)
        declared = re.search(rf"struct fastrms_{name}:\n(.*?)\n\n", pxd, re.DOTALL)[1] + "\n"
        declared = declared.replace(") noexcept nogil", ");")
        members = re.sub(r"(\w)\n", r"\1;", declared)
        assert plain(struct[1]).strip() == plain(members).strip()
    for name in ("error", "kind", "accumulate"):
        in_c = re.search(rf"enum fastrms_{name} \{{(.*?)\}}", header, re.DOTALL)[1]
        in_cython = re.search(rf"enum fastrms_{name}:\n(.*?)\n\n", pxd, re.DOTALL)[1]
        assert re.findall(r"FASTRMS_\w+", in_c) == in_cython.split()


def test_arguments_have_the_names_of_python():
    """C and Python use the same names; C alone has sizes, strides, scratch and threads."""
    for function in CALLS:
        here = [name for name in NAMES[function] if not name.endswith("_stride")]
        here = [name for name in here if name not in ("rows", "n", "scratch", "threads")]
        python = list(inspect.signature(getattr(fastrms, function)).parameters)
        alone = {"out", "scale"} if function == "add_rms_norm" else {"out"}  # the call has a scale
        assert sorted(set(here) - alone) == sorted(set(python) - alone)


def test_the_floating_point_state_is_left_alone():
    """A call neither uses nor changes the caller's state; test_fp_state.py defines the states."""
    from .test_fp_state import STATES, _state

    x, out = np.full((2, 8), 1e-42, np.float32), np.empty((2, 8), np.float32)
    expected = fastrms.rms_norm(x, eps=0.0)
    for state in STATES.values():
        with _state(state):
            functions.rms_norm(at(x), 8, None, at(out), 8, 2, 8, 0.0, 0.0, 0, 1)
        assert out.tobytes() == expected.tobytes()


# ---- import_fastrms ---------------------------------------------------------------------------

MODULE = """
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <fastrms.h>
static PyObject *norm(PyObject *self, PyObject *arguments) {
    float x[2] = {3, 4};
    if (import_fastrms() < 0) return NULL;
    if (fastrms_api->rms_norm(x, 2, NULL, x, 2, 1, 2, 1e-5, 0.0, 0, 1)) return NULL;
    return Py_BuildValue("ff", x[0], x[1]);
}
static PyMethodDef methods[] = {{"norm", norm, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "c_module", .m_size = -1, .m_methods = methods};
PyMODINIT_FUNC PyInit_c_module(void) {
    PyObject *made = PyModule_Create(&module);
#ifdef Py_GIL_DISABLED /* or the import turns the GIL on for all later tests */
    if (made) PyUnstable_Module_SetGIL(made, Py_MOD_GIL_NOT_USED);
#endif
    return made;
}
"""


@pytest.fixture(scope="module")
def c_module(tmp_path_factory):
    """Compile a C module against the header, and import it."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc, to compile a module in C")
    folder = tmp_path_factory.mktemp("c_module")
    (folder / "c_module.c").write_text(MODULE)
    built = folder / f"c_module{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [f"-I{sysconfig.get_paths()['include']}", f"-I{fastrms.get_include()}"]
    command = ["gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    subprocess.run([*command, *includes, folder / "c_module.c", "-o", built], check=True)
    spec = importlib.util.spec_from_file_location("c_module", built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_from_c(c_module):
    assert list(c_module.norm()) == fastrms.rms_norm(np.array([3, 4], np.float32)).tolist()


@pytest.mark.parametrize(("field", "change"), [("version", 1), ("version", -1), ("size", -8)])
def test_another_version_is_an_import_error(c_module, monkeypatch, field, change):
    other = type(functions).from_buffer_copy(functions)
    setattr(other, field, getattr(other, field) + change)
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype = ctypes.py_object
    capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    name = b"fastrms._core._C_API"
    monkeypatch.setattr(_core, "_C_API", capsule(ctypes.addressof(other), name, None))
    with pytest.raises(ImportError, match=f"version 1 of .*version {other.version}, of"):
        c_module.norm()


def test_a_larger_struct_serves(c_module, monkeypatch):
    """A later release may add functions at the end of the struct."""
    monkeypatch.setattr(functions, "size", functions.size + 8)
    c_module.norm()
