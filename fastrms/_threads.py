"""Set the default number of threads, and register with threadpoolctl, which may change it."""

import math
import os
import sys
from contextlib import suppress
from copy import copy
from importlib.machinery import PathFinder
from pathlib import Path

from . import _core
from ._core import MOST_THREADS
from ._version import __version__


def default(environ=os.environ):
    """Return the default number of threads, and the setting that it comes from."""
    own = environ.get("FASTRMS_NUM_THREADS")
    if own:
        if not 1 <= _number(own) <= MOST_THREADS:
            raise ImportError(f"FASTRMS_NUM_THREADS must be 1 to {MOST_THREADS}, got {own!r}")
        return _number(own), "FASTRMS_NUM_THREADS"
    if not _core.build_info()["pool"]:
        return 1, "a build without threads"
    # Like OpenMP, read "4,2" as 4 threads (of 2 nested ones each), and ignore nonsense.
    openmp = _number(environ.get("OMP_NUM_THREADS", "").partition(",")[0])
    if openmp >= 1:
        return min(openmp, MOST_THREADS), "OMP_NUM_THREADS"
    cpus, quota = _cpus(), cgroup_quota()
    if quota < cpus:
        return math.ceil(quota), f"a cgroup's quota of {quota:g} CPUs"
    return min(cpus, MOST_THREADS), "the CPUs of this process"


def _number(text):
    """Return the integer that `text` spells, or 0; Python's own notation, 1_0, counts as none."""
    try:
        return int(text) if text.isascii() and "_" not in text else 0
    except ValueError:
        return 0


def _cpus():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_quota(root="/sys/fs/cgroup", membership="/proc/self/cgroup"):
    """Return the process's CPU quota under cgroup v2, in CPUs; infinity without a limit.
    The smallest quota counts, of the process's own group and the groups around it."""
    least, root = math.inf, Path(root)
    with suppress(OSError, StopIteration):
        lines = Path(membership).read_text().splitlines()
        group = root / next(line[4:] for line in lines if line.startswith("0::/"))
        for folder in (group, *group.parents):
            # The root has no such file, and a container may not see its own group's.
            with suppress(OSError, ValueError):
                limit, period = (folder / "cpu.max").read_text().split()
                least = min(least, int(limit) / int(period))  # "max" raises: no limit
            if folder == root:
                break
    return least


def register(threadpoolctl):
    """Register fastrms with threadpoolctl; its limits call set_num_threads, for all threads."""

    class Controller(threadpoolctl.LibController):
        user_api = internal_api = "fastrms"
        filename_prefixes = ("_core",)
        check_symbols = ("fastrms_num_threads",)

        def get_num_threads(self):
            return self.dynlib.fastrms_num_threads()

        def set_num_threads(self, num_threads):
            _core.set_num_threads(min(max(num_threads, 1), MOST_THREADS))

        def get_version(self):
            return __version__

    threadpoolctl.register(Controller)


class RegisterLater:
    """Register fastrms as soon as threadpoolctl is imported. To import it here would set
    KMP_DUPLICATE_LIB_OK, which hides an OpenMP error."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name == "threadpoolctl" else None
        if spec is not None:
            spec.loader = copy(spec.loader)  # all modules of a zip share one loader
            execute = spec.loader.exec_module

            def execute_and_register(module):
                execute(module)
                register(module)

            spec.loader.exec_module = execute_and_register
        return spec


COUNT, ORIGIN = default()
_core.set_num_threads(COUNT)
if "threadpoolctl" in sys.modules:
    register(sys.modules["threadpoolctl"])
else:
    sys.meta_path.insert(0, RegisterLater)
