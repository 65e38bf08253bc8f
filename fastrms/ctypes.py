"""The C interface from pure Python: ``functions.rms_norm(...)`` and the others of fastrms.h.

They are ctypes functions of the header's types. Pointers are addresses, or None for NULL; a call of
arrays of other kinds is ``functions.rms_norm_any(ctypes.byref(Call(x=Array(...), ...)))``.
"""

import ctypes
import re
from pathlib import Path

from . import _core, get_include

__all__ = ["Array", "Call", "declarations", "functions"]


def __dir__() -> list[str]:
    return __all__


_TYPES = {
    "int": ctypes.c_int,
    "double": ctypes.c_double,
    "size_t": ctypes.c_size_t,
    "ptrdiff_t": ctypes.c_ssize_t,
}


def declarations() -> dict[str, tuple[type, ...]]:
    """Return the type of each function's result, then those of its arguments, in header order."""
    found = re.findall(r"(\w+) \(\*(\w+)\)\((.*?)\);", _header(), re.DOTALL)
    return {
        name: (_TYPES[result], *(_type(argument) for argument in arguments.split(",")))
        for result, name, arguments in found
    }


def _type(argument):
    return ctypes.c_void_p if "*" in argument else _TYPES[argument.split()[0]]


def _header():
    return Path(get_include(), "fastrms.h").read_text("utf-8")


def _structure(name):
    """Return a class with the fields of the header's struct `fastrms_<name>`."""
    body = re.search(rf"struct fastrms_{name} \{{(.*?)\}}", _header(), re.DOTALL)[1]
    members = re.findall(r"(\w+) (\*?[\w, ]+);", re.sub(r"/\*.*?\*/", "", body))
    fields = [
        (field.lstrip("*"), _type(f"{kind} {field}"))
        for kind, fields in members
        for field in fields.split(", ")
    ]
    return type(name.capitalize(), (ctypes.Structure,), {"_fields_": fields})


def _functions():
    fields = [("size", ctypes.c_size_t), ("version", ctypes.c_int)]
    fields += [(name, ctypes.CFUNCTYPE(*types)) for name, types in declarations().items()]
    structure = type("fastrms_functions", (ctypes.Structure,), {"_fields_": fields})
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return structure.from_address(address(_core._C_API, b"fastrms._core._C_API"))


#: The header's fastrms_array: an array's address, its row stride in elements, and its kind.
Array = _TYPES["fastrms_array"] = _structure("array")
#: The header's fastrms_call: the arguments of a function `*_any`, all zero unless set.
Call = _structure("call")
#: The struct of the header: its functions by name, `size` and `version`.
functions = _functions()
