"""Helpers for the tests of the C interface."""

import re
from pathlib import Path

import numpy as np

import fastrms
from fastrms.ctypes import functions

OK, BAD_SIZE, BAD_STRIDE, BAD_POINTER, BAD_EPS, BAD_FLAG, BAD_SCRATCH, BAD_KIND = range(8)
PACKAGE = Path(fastrms.__file__).parent
NAMES = {  # of each function's arguments, from the header
    name: [re.search(r"\w+$", argument)[0] for argument in arguments.split(",")]
    for name, arguments in re.findall(
        r"\w+ \(\*(\w+)\)\((.*?)\);", (PACKAGE / "include/fastrms.h").read_text(), re.DOTALL
    )
}
CALLS = [name for name, arguments in NAMES.items() if "x" in arguments]  # of float32 alone


def at(array):
    return None if array is None else array.ctypes.data


def stride(array):
    return array.strides[0] // 4


def scratch_of(rows, n, threads):
    """Return scratch followed by a guard, all NaN, and the index where the guard begins."""
    size = functions.scratch_bytes(rows, n, threads) // 8
    return np.full(size + 8, np.nan), size
