"""Compare callers with the NumPy calls: callers.py FILE, the output of caller.c."""

import sys

import cython_block
import numba
import numpy as np

import fastrms
import fastrms.numba

ROWS, N = 37, 576


def same(what, found, wanted):
    if found.tobytes() != wanted.tobytes():
        sys.exit(f"callers: {what} differs from the NumPy call")


@numba.njit
def by_row(x, dy, weight):
    y, dx, dweight = np.empty_like(x), np.empty_like(x), np.zeros_like(weight)
    for row in range(len(x)):
        fastrms.rms_norm(x[row], weight, out=y[row])
    fastrms.rms_norm_backward(dy, x, weight, dx=dx, dweight=dweight)
    return y, dx, dweight


def from_c(path):
    values = np.fromfile(path, np.float32)
    x, dy = values[: 2 * ROWS * N].reshape(2, ROWS, N)
    weight, rest = np.split(values[2 * ROWS * N :], [N])
    return (x, dy, weight), (*rest[: 2 * ROWS * N].reshape(2, ROWS, N), rest[2 * ROWS * N :])


def main():
    arrays, found = from_c(sys.argv[1])
    wanted = (fastrms.rms_norm(arrays[0], arrays[2]), *gradients(*arrays))
    for caller, results in (
        ("C", found),
        ("numba", by_row(*arrays)),
        ("Cython", cython_block.norm_and_gradient(*arrays)),
    ):
        for name, result, expected in zip(("y", "dx", "dweight"), results, wanted, strict=True):
            same(f"{caller}: {name}", result, expected)
    print(
        f"C, numba {numba.__version__}, Cython: y, dx and dweight have the bits of the NumPy calls"
    )


def gradients(x, dy, weight):
    return fastrms.rms_norm_backward(dy, x, weight)


if __name__ == "__main__":
    main()
