"""Time a call from Python, numba, Cython and C: python bench/callers.py

Needs gcc, numba and Cython, since it compiles a loop of calls with each of them. The callers take
turns, and the best round of each counts. All run on one thread, over one row that stays in cache.
"""

import argparse
import ctypes
import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import numba
import numpy as np

import fastrms
import fastrms.numba
from fastrms.ctypes import functions

SIZES = (64, 4096)
CALLS = {64: 20_000, 4096: 2000}
IN_C = """
#include <fastrms.h>
int calls(const fastrms_functions *api, long count, const float *x, const float *weight, float *out,
          long n) {
    int error = 0;
    while (count--)
        error |= api->rms_norm(x, n, weight, out, n, 1, n, 1e-5, 0.0, 0, 1);
    return error;
}
"""
IN_CYTHON = """
from fastrms cimport fastrms_api, import_fastrms
import_fastrms()
def calls(long count, const float[::1] x, const float[::1] weight, float[::1] out):
    cdef long k
    cdef int error = 0
    with nogil:
        for k in range(count):
            error |= fastrms_api.rms_norm(&x[0], x.shape[0], &weight[0], &out[0], x.shape[0], 1,
                                          x.shape[0], 1e-5, 0.0, 0, 1)
    return error
"""


def in_python(count, x, weight, out):
    norm = fastrms.rms_norm
    for _ in range(count):
        norm(x, weight, out=out)


@numba.njit(nogil=True)
def in_numba(count, x, weight, out):
    for _ in range(count):
        fastrms.rms_norm(x, weight, out=out)


def built(folder):
    """Compile and return the loops in C and in Cython."""
    include = [f"-I{fastrms.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    gcc = ["gcc", "-shared", "-fPIC", "-O2", *include]
    (folder / "in_c.c").write_text(IN_C)
    subprocess.run([*gcc, folder / "in_c.c", "-o", folder / "in_c.so"], check=True)
    (folder / "in_cython.pyx").write_text(IN_CYTHON)
    subprocess.run([sys.executable, "-m", "cython", "-3", folder / "in_cython.pyx"], check=True)
    module = folder / "in_cython.so"
    subprocess.run([*gcc, "-w", folder / "in_cython.c", "-o", module], check=True)
    spec = importlib.util.spec_from_file_location("in_cython", module)
    in_cython = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(in_cython)
    return ctypes.CDLL(str(folder / "in_c.so")).calls, in_cython.calls


def rounds(callers, count, arrays, turns):
    """Return each caller's seconds for one call, in its best round."""
    best = dict.fromkeys(callers, float("inf"))
    for _ in range(turns):
        for name, call in callers.items():
            start = time.perf_counter()
            call(count, *arrays)
            best[name] = min(best[name], (time.perf_counter() - start) / count)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    turns = parser.parse_args().rounds
    fastrms.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        in_c, in_cython = built(Path(folder))
        address = ctypes.byref(functions)

        def c(count, x, weight, out):
            pointers = (ctypes.c_void_p(array.ctypes.data) for array in (x, weight, out))
            in_c(address, ctypes.c_long(count), *pointers, ctypes.c_long(len(x)))

        callers = {"Python": in_python, "numba": in_numba, "Cython": in_cython, "C": c}
        print("| ns a call | " + " | ".join(callers) + " |\n| ---: |" + " ---: |" * len(callers))
        for n in SIZES:
            x, weight = np.random.default_rng(n).standard_normal((2, n), dtype=np.float32)
            arrays = x, weight, np.empty_like(x)
            for call in callers.values():
                call(10, *arrays)
            best = rounds(callers, CALLS[n], arrays, turns)
            print(
                f"| 1 x {n} | " + " | ".join(f"{1e9 * best[name]:.0f}" for name in callers) + " |"
            )


if __name__ == "__main__":
    main()
