"""The C interface from pure Python: ``functions.rms_norm(...)`` and the others of fastrms.h.

They are ctypes functions of the header's types. Pointers are addresses, or None for NULL.
"""

import ctypes
import re
from pathlib import Path

from . import _core, get_include

__all__ = ["declarations", "functions"]


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
    header = Path(get_include(), "fastrms.h").read_text("utf-8")
    found = re.findall(r"(\w+) \(\*(\w+)\)\((.*?)\);", header, re.DOTALL)
    return {
        name: (_TYPES[result], *(_type(argument) for argument in arguments.split(",")))
        for result, name, arguments in found
    }


def _type(argument):
    return ctypes.c_void_p if "*" in argument else _TYPES[argument.split()[0]]


def _functions():
    fields = [("size", ctypes.c_size_t), ("version", ctypes.c_int)]
    fields += [(name, ctypes.CFUNCTYPE(*types)) for name, types in declarations().items()]
    structure = type("fastrms_functions", (ctypes.Structure,), {"_fields_": fields})
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return structure.from_address(address(_core._C_API, b"fastrms._core._C_API"))


#: The struct of the header: its functions by name, `size` and `version`.
functions = _functions()
