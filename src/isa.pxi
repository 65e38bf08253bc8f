# The door's choice of kernels: one module per instruction set, imported only after the CPU (and
# what the operating system enables) has been asked. FASTRMS_ISA forces one.

cdef extern from "cpu.h":
    bint cpu_has_v3()
    bint cpu_has_v4()
    bint cpu_halves_v4()

cdef dict ISA_MODULES = {"baseline": "_kernels_baseline", "v3": "_kernels_v3", "v4": "_kernels_v4"}
# Two words, which other threads may read while one switches. A call that meets kernels of both sets
# gets the same bits.
cdef const Table* kernels = NULL
cdef int current_isa = 0        # its place in ISA_MODULES


def available_isas():
    """Return the instruction sets that were compiled in and that this CPU runs, slowest first."""
    runs = {"baseline": True, "v3": cpu_has_v3(), "v4": cpu_has_v4()}
    return tuple(isa for isa, module in ISA_MODULES.items()
                 if runs[isa] and find_spec(f"fastrms.{module}") is not None)


def preferred_isa():
    """Return the fastest of them. Zen 4 does a vector of AVX-512 in two halves, and its conversions
    to float64 in four times the time: forward takes 1.17 times as long on v4 as on v3, backward 1.2
    (16 x 4096)."""
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
            why = "is no instruction set that fastrms knows"
        elif find_spec(f"fastrms.{ISA_MODULES[isa]}") is None:
            why = "was not compiled into this build"
        else:
            why = "does not run on this CPU"
        raise ImportError(f"FASTRMS_ISA: {isa!s} {why}; choose one of: {', '.join(available)}")
    module = import_module(f"fastrms.{ISA_MODULES[isa]}")
    kernels = <const Table*>PyCapsule_GetPointer(module.table, "fastrms.kernels")
    current_isa = list(ISA_MODULES).index(isa)
