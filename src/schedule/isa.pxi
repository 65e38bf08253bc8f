# The choice of instruction set: one module of kernels for each, imported only after the CPU and the
# operating system were asked. "v3+v4" is v3, but v4 for backward and for rows of float64.
# FASTRMS_ISA forces a choice.

from importlib import import_module
from importlib.util import find_spec

from cpython.pycapsule cimport PyCapsule_GetPointer

from kernels.job cimport Table
from machine.cpu cimport cpu_halves_v4, cpu_has_v3, cpu_has_v4

cdef dict ISA_MODULES = {"baseline": "_kernels_baseline", "v3": "_kernels_v3", "v4": "_kernels_v4"}
# Other threads may read these while one switches. A call that meets kernels of both sets gets the
# same bits.
cdef const Table* kernels = NULL
cdef Table[2] mixed             # `kernels` points at it if backward has its own instruction set
cdef str isa_in_use = ""


def available_isas():
    """Return the instruction sets that were compiled in and that this CPU runs, slowest first."""
    runs = {"baseline": True, "v3": cpu_has_v3(), "v4": cpu_has_v4()}
    available = tuple(isa for isa, module in ISA_MODULES.items()
                      if runs[isa] and find_spec(f"fastrms.{module}") is not None)
    if not available:
        raise ImportError("fastrms._kernels_baseline, a compiled extension, is missing")
    return available


def preferred_isa():
    """Return the fastest choice for `use_isa`.

    Zen 4 halves a vector of AVX-512, and converts one in four times as long. v4 takes 1.04 to 1.28
    times the time of v3 forward, but of backward, which converts less, 0.89 at 64 x 1024 and 0.95
    at 16 x 4096; and of float64, at 64 x 1024, 0.98 forward and 0.88 backward.
    """
    available = available_isas()
    if available[-1] == "v4" and cpu_halves_v4():
        return f"{available[-2]}+v4"
    return available[-1]


def current():
    """Return the choice in use."""
    return isa_in_use


def use_isa(isa):
    """Switch every later call to other kernels: for tests and measurements.

    isa is an instruction set, or two with a plus between them: "v3+v4" is v3, but v4 for backward
    and for rows of float64. Raises ImportError if one is unknown, was not compiled in, or does not
    run on this CPU.
    """
    global kernels, isa_in_use
    forward, plus, backward = isa.partition("+")
    cdef const Table* tables = tables_of(forward)
    cdef const Table* others
    if plus:
        others = tables_of(backward)
        mixed[0], mixed[1] = tables[0], others[1]
        mixed[0].backward, mixed[0].backward_few = others[0].backward, others[0].backward_few
        tables = mixed
    kernels, isa_in_use = tables, isa


cdef const Table* tables_of(isa) except NULL:
    """Return an instruction set's kernels for rows of float32 and of float64."""
    available = available_isas()
    if isa not in available:
        if isa not in ISA_MODULES:
            why = "is no instruction set of fastrms"
        elif find_spec(f"fastrms.{ISA_MODULES[isa]}") is None:
            why = "was not compiled into this build"
        else:
            why = "does not run on this CPU"
        raise ImportError(f"FASTRMS_ISA: {isa!s} {why}; choose one of: {', '.join(available)}")
    module = import_module(f"fastrms.{ISA_MODULES[isa]}")
    return <const Table*>PyCapsule_GetPointer(module.table, "fastrms.kernels")
