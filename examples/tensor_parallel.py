"""Split RMSNorm's last axis over MPI ranks, forward and backward; compare with the unsplit result.

    pip install ".[mpi]"                                        # in the checkout
    mpiexec -n 4 python examples/tensor_parallel.py             # or -n 2, or any other number
    mpiexec -n 4 python examples/tensor_parallel.py 576 11008   # other sizes of the last axis

Each rank holds its own columns of all rows. Forward exchanges one float64 a row, the sum of x**2,
and backward one more, the sum of dy * weight * x. Rank 0 gathers the results only to compare them.
docs/tensor_parallel.md explains the figures.
"""

import argparse
import sys
import traceback

import numpy as np

import fastrms

ROWS = 512
SIZES = [4096, 576]  # of many models, and of one whose quarters end within the 32 lanes of a sum
EPS = 1e-5


def forward(comm, x, weight, size):
    """Return y (rows, n), and the global sums of squares for backward. x (rows, n), weight (n,)."""
    squares = total(comm, fastrms.sum_squares(x))
    return fastrms.rms_scale(x, squares, size, weight, EPS), squares


def backward(comm, dy, x, weight, squares, size):
    """Return dx (rows, n), dweight (n,), which is complete: a rank has all rows of its columns."""
    products = total(comm, fastrms.sum_products(dy, x, weight))
    return fastrms.rms_scale_backward(dy, x, squares, products, size, weight, EPS)


def total(comm, part):
    """Sum a float64 array over all ranks. Every rank gets the same bits."""
    whole = np.empty_like(part)
    comm.Allreduce(part, whole)
    return whole


def draw(size):
    """Draw x, dy (ROWS, size), weight (size,), the same on every rank. Rows from 1e-9 to 1e9."""
    rng = np.random.default_rng(size)
    x, dy = rng.standard_normal((2, ROWS, size), np.float32)
    x = np.ldexp(x, rng.integers(-30, 31, (ROWS, 1)))
    return x, dy + np.float32(0.5), rng.uniform(0.5, 1.5, size).astype(np.float32)


def edges(size, ranks):
    """Return where each rank's columns begin, and where the last rank's end."""
    return [size * rank // ranks for rank in range(ranks + 1)]


def run_split(comm, at, x, dy, weight):
    """Run both passes on this rank's columns; on rank 0 return the whole y, dx and dweight."""
    mine = slice(*at[comm.rank : comm.rank + 2])
    size = len(weight)
    x, dy, weight = (np.ascontiguousarray(array[..., mine]) for array in (x, dy, weight))
    y, squares = forward(comm, x, weight, size)
    dx, dweight = backward(comm, dy, x, weight, squares, size)
    shares = comm.gather((y, dx, dweight, squares.tobytes()))
    if comm.rank:
        return None
    *split, sums = zip(*shares, strict=True)
    if len(set(sums)) > 1:
        raise ArithmeticError("ranks got different sums from one Allreduce")
    return [np.concatenate(parts, axis=-1) for parts in split]


def compare(split, x, dy, weight):
    """Return for y, dx, dweight: name, differing elements, all elements, largest distance, unit."""
    whole = [fastrms.rms_norm(x, weight, EPS), *fastrms.rms_norm_backward(dy, x, weight, EPS)]
    # Both y have one sign, so the distance in ulp is that of the bit patterns.
    ulp = np.abs(split[0].view(np.int32).astype(np.int64) - whole[0].view(np.int32))
    away = [np.abs(one.astype(np.float64) - other) for one, other in zip(split, whole, strict=True)]
    inv_rms = 1 / np.sqrt(np.square(x, dtype=np.float64).mean(axis=-1, keepdims=True) + EPS)
    g, xhat = np.abs(dy * weight), np.abs(x * inv_rms)
    dx_terms = inv_rms * (g + xhat * (g * xhat).mean(axis=-1, keepdims=True))
    dweight_terms = (np.abs(dy) * xhat).sum(axis=0)
    distances = [
        ("y", f"{ulp.max()}", "ulp"),
        ("dx", f"{(away[1] / dx_terms).max():.1e}", "of the sizes of its terms"),
        ("dweight", f"{(away[2] / dweight_terms).max():.1e}", "of the sum of |dy * xhat|"),
    ]
    counts = [(np.count_nonzero(array), array.size) for array in away]
    return [(name, *count, *rest) for (name, *rest), count in zip(distances, counts, strict=True)]


def report(comm, sizes):
    """Print a table for each size, on rank 0."""
    row = "{:<8}{:>10}{:>11}  {} {}".format
    if comm.rank == 0:
        print(f"{comm.size} ranks, {ROWS} rows, beside the unsplit result")
    for size in sizes:
        arrays = draw(size)
        at = edges(size, comm.size)
        split = run_split(comm, at, *arrays)
        if comm.rank == 0:
            print(f"\n{size} columns: {' + '.join(map(str, np.diff(at)))}")
            print(row("result", "differ", "of", "furthest", "apart"))
            for line in compare(split, *arrays):
                print(row(*line), flush=True)


def parse_sizes(rank):
    """Return the sizes on the command line. Rank 0 alone prints an error, on one line."""

    class Parser(argparse.ArgumentParser):
        def _print_message(self, message, file=None):
            if rank == 0:
                super()._print_message(message, file)

    description = "RMSNorm with its last axis split over MPI ranks."
    parser = Parser(description=description, usage=argparse.SUPPRESS)
    parser.add_argument(
        "sizes", nargs="*", type=int, default=SIZES, metavar="SIZE", help="default: 4096 576"
    )
    sizes = parser.parse_args().sizes
    if min(sizes) < 2:  # of a single column dx is 0 but for eps
        parser.error(f"a size is at least 2, got {min(sizes)}")
    return sizes


def main():
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library to load
        reason = " ".join(str(error).split())
        wanted = 'pip install ".[mpi]" in the checkout'
        print(f"tensor_parallel.py: {reason}; {wanted}", file=sys.stderr)
        sys.exit(2)
    comm = MPI.COMM_WORLD
    sizes = parse_sizes(comm.rank)
    try:
        report(comm, sizes)
    except Exception:  # the other ranks would wait for this one for ever
        sys.stderr.write(traceback.format_exc())  # at once: Abort may cut off a second write
        comm.Abort(1)


if __name__ == "__main__":
    main()
