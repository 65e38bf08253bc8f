# The choice of instruction set: one module of kernels for each, imported only after the CPU and the
# operating system were asked. FASTRMS_ISA forces one.

from importlib import import_module
from importlib.util import find_spec

from cpython.pycapsule cimport PyCapsule_GetPointer

from kernels.job cimport Table
from machine.cpu cimport cpu_halves_v4, cpu_has_v3, cpu_has_v4

cdef dict ISA_MODULES = {"baseline": "_kernels_baseline", "v3": "_kernels_v3", "v4": "_kernels_v4"}
# Other threads may read these two while one switches. A call that meets kernels of both sets gets
# the same bits.
cdef const Table* kernels = NULL
cdef int current_isa = 0        # index into ISA_MODULES


def available_isas():
    """Return the instruction sets that were compiled in and that this CPU runs, slowest first."""
    runs = {"baseline": True, "v3": cpu_has_v3(), "v4": cpu_has_v4()}
    available = tuple(isa for isa, module in ISA_MODULES.items()
                      if runs[isa] and find_spec(f"fastrms.{module}") is not None)
    if not available:
        raise ImportError("fastrms._kernels_baseline, a compiled extension, is missing")
    return available


def preferred_isa():
    """Return the fastest available instruction set.

    Zen 4 halves a vector of AVX-512, and its conversions to float64 take four times as long: at
    16 x 4096 v4 takes 1.17 times the time of v3 forward, 1.2 backward.
    """
    available = available_isas()
    if available[-1] == "v4" and cpu_halves_v4():
        return available[-2]
    return available[-1]


def current():
    """Return the name of the instruction set in use."""
    return list(ISA_MODULES)[current_isa]


def use_isa(isa):
    """Switch every later call to the kernels of one instruction set: for tests and measurements.

    Raises ImportError if `isa` is unknown, was not compiled in, or does not run on this CPU.
    """
    global kernels, current_isa
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
    kernels = <const Table*>PyCapsule_GetPointer(module.table, "fastrms.kernels")
    current_isa = list(ISA_MODULES).index(isa)
