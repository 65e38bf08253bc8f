# Settings: the number of threads, and facts about this build.

from importlib import import_module

from cpython.exc cimport PyErr_WarnEx

from machine.compiler cimport COMPILER
from schedule.pool cimport POOL_EXISTS, POOL_MOST, POOL_SYSTEM, relaxed_store, wanted_threads

MOST_THREADS = POOL_MOST


def set_num_threads(n):
    """Set how many threads a call may use.

    Parameters
    ----------
    n : int
        1 to 1024. Small work stays on the calling thread whatever n is. The results have the
        same bits for every n.

    Raises
    ------
    TypeError, ValueError
        If n is not an integer, or out of range.

    Warns
    -----
    RuntimeWarning
        If n is above 1 and this build has no threads.

    Notes
    -----
    The default is ``FASTRMS_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the CPUs that the process
    may use: its affinity, and on Linux its cgroup's quota. `show_config` names the source.
    ``threadpool_limits(n)`` of threadpoolctl is ``set_num_threads(n)`` until it ends. A process
    forked from this one runs on one thread, because threads do not survive a fork.
    """
    cdef Py_ssize_t count = as_integer(n, "n", f"1 to {POOL_MOST} threads")
    if not 1 <= count <= POOL_MOST:
        raise ValueError(f"n must be 1 to {POOL_MOST} threads, got {count}")
    if count > 1 and not POOL_EXISTS:
        PyErr_WarnEx(RuntimeWarning, b"this build has no threads: every call is serial", 1)
    relaxed_store(wanted_threads, <int>count)


def get_num_threads():
    """Return how many threads a large call made now, from this thread, would use."""
    return thread_count()


def build_info():
    """Return facts about this build, as a dict: compiler, flags, vector, instruction sets, pool."""
    module = import_module(f"fastrms.{ISA_MODULES[current().partition('+')[0]]}")
    return {
        "compiler": COMPILER.decode(),
        "flags": module.flags,
        "vector_floats": module.vector_floats,
        "pool": POOL_SYSTEM.decode(),
        "isa": current(),
        "isas": available_isas(),
    }
