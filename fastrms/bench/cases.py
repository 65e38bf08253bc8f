"""What is measured: the ops, their byte models and floors, the arrays, and the check of an answer.

A case is one op on one shape. The clock is in timing.py.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from .. import _arguments, check, reference

EPS = 1e-5
# NumPy aligns its arrays to 16 bytes only; large ones, which come straight from the operating
# system, always start 16 bytes past a page. So users' arrays start 16 bytes past a cache line.
ALIGN = 16
CACHE_LINE = 64
# Relative to the largest exact value, or to 1, the size of the inputs. It catches a wrong formula,
# a wrong array, an unwritten result. MLX, with float32 sums over long rows, comes nearest to it;
# `fastrms check` has the tight bounds.
TOLERANCE = 1e-4
# In a half's rounding units, if that is more: a peer may round each step of its formula.
HALF_TOLERANCE = 16
# The values of x: normal numbers, or normal numbers and one outlier of 100 in each row, as in the
# residual streams of real models.
DATA = ("normal", "outlier")
OUTLIER = 100


@dataclass(frozen=True)
class Op:
    """One operation, as the tables name it."""

    label: str
    reads: tuple
    writes: tuple
    results: tuple
    floor: str
    floor_in_place: str | None

    def bytes_per_element(self, itemsize):
        """Return the bytes that must move: each array read and each array written, once."""
        return itemsize * (len(self.reads) + len(self.writes))

    def pass_over(self, inplace=False, itemsize=4):
        """Return the floor as code."""
        floor = self.floor_in_place if inplace else self.floor
        # int16 is the cheapest: NumPy's arithmetic of halves is slow.
        return f"{floor} as int16" if itemsize == 2 else floor

    def model(self, inplace=False, itemsize=4):
        """Return the byte model as a sentence, with the floor."""
        reads, writes = " + ".join(self.reads), " + ".join(self.writes)
        size, floor = self.bytes_per_element(itemsize), self.pass_over(inplace, itemsize)
        return f"reads {reads}, writes {writes}: {size} B; floor {floor}"


OPS = {
    "forward": Op(
        "forward",
        ("x",),
        ("out",),
        ("out",),
        "np.copyto(out, x)",
        "np.negative(x, out=x)",
    ),
    "fresh": Op(
        "new array",
        ("x",),
        ("out",),
        ("out",),
        "x.copy()",
        None,
    ),
    "offset": Op(
        "1 + weight",
        ("x",),
        ("out",),
        ("out",),
        "np.copyto(out, x)",
        "np.negative(x, out=x)",
    ),
    "add_norm": Op(
        "add + norm",
        ("x", "residual"),
        ("residual", "out"),
        ("out", "residual"),
        "np.add(x, residual, out=out)",
        "np.add(x, residual, out=x)",
    ),
    "backward": Op(
        "backward",
        ("dy", "x"),
        ("dx",),
        ("dx", "dweight"),
        "np.add(x, dy, out=dx)",
        "np.add(x, dy, out=dy)",
    ),
    "add": Op(
        "residual add",
        ("residual", "x"),
        ("residual",),
        ("residual",),
        "np.add(residual, x, out=residual)",
        "np.add(residual, x, out=residual)",
    ),
}


def tolerance(dtype):
    """Return the largest error of a right answer in this dtype, a name."""
    bits = check.FORMATS[dtype].bits
    return HALF_TOLERANCE * 2.0**-bits if bits < 24 else TOLERANCE


class Case:
    """The arrays of one op on one shape and dtype, named as in the function's signature.

    Parameters
    ----------
    op : str
        A key of OPS.
    rows, n : int
        The shape.
    inplace : bool
        The result overwrites an input: `out` is `x`, and `dx` is `dy`.
    align : int
        Every array starts this many bytes past a cache line.
    data : str
        One of DATA.
    dtype : str
        The name of the arrays' dtype.
    threads : int
        How many a rival may use.
    """

    def __init__(
        self, op, rows, n, inplace=False, align=ALIGN, data="normal", dtype="float32", threads=1
    ):
        self.op, self.rows, self.n, self.threads = op, rows, n, threads
        self.dtype = _arguments.dtype(dtype)
        self.inplace, self.align, self.data = inplace, align, data
        self.weight_offset = float(op == "offset")
        self.inputs = {}
        names = {*OPS[op].reads, *OPS[op].writes}
        for seed, name in enumerate(("x", "residual", "dy")):
            if name in names:
                self.inputs[name] = seed
                setattr(self, name, self.empty((rows, n)))
        if op == "backward":
            self.dx = self.dy if inplace else self.empty((rows, n))
            self.dweight = self.empty((n,))
        elif op != "add":
            self.out = self.x if inplace else self.empty((rows, n))
        self.weight = self.make_weight()
        for name in self.inputs:
            self.fill(name)

    def empty(self, shape):
        """Return a new array that starts `align` bytes past a cache line."""
        size = self.dtype.itemsize * int(np.prod(shape))
        memory = np.empty(size + CACHE_LINE, np.uint8)
        start = (self.align - memory.ctypes.data) % CACHE_LINE
        return memory[start : start + size].view(self.dtype).reshape(shape)

    def make_weight(self):
        """Return a weight near 1, offset included; in place 1 or -1, so that no row grows."""
        weight = self.empty((self.n,))
        noise = np.random.default_rng(3).standard_normal(self.n, np.float32)
        values = np.sign(noise) if self.inplace else 1 + np.float32(0.1) * noise
        weight[:] = values - np.float32(self.weight_offset)
        return weight

    def fill(self, name):
        """Fill one input with its values, the same every time."""
        array = getattr(self, name)
        flat, tile, seed = array.reshape(-1), noise_tile(), self.inputs[name]
        first = min(flat.size, seed * 1001)
        flat[:first] = tile[-first:] if first else 0
        for start in range(first, flat.size, tile.size):
            part = flat[start : start + tile.size]
            part[:] = tile[: part.size]
        if name == "x" and self.data == "outlier":
            array[:, self.n // 2] = OUTLIER
        if name == "x" and self.op == "backward" and self.inplace:
            # Each call divides dy by the rms of these rows, so it must be 1.
            for rows in self.blocks():
                reference.rms_norm(array[rows], out=array[rows])

    def refill(self):
        """Restore the inputs that calls overwrite, so that values do not grow from call to call."""
        for name in self.inputs:
            array = getattr(self, name)
            if any(getattr(self, result, None) is array for result in OPS[self.op].results):
                self.fill(name)

    def blocks(self):
        """Yield slices of rows small enough for float64 copies of them to stay in cache."""
        step = max(1, 2**17 // max(self.n, 1))
        for start in range(0, self.rows, step):
            yield slice(start, min(self.rows, start + step))

    @cached_property
    def exact(self):
        """The reference's results for freshly filled inputs, in the order of the op's results."""
        self.refill()
        wide = np.float64 if self.dtype == np.float64 else np.float32
        first, second = np.empty((self.rows, self.n), wide), None
        if self.op == "backward":
            second = np.zeros(self.n)
        elif self.op == "add_norm":
            second = self.residual.copy()
        for rows in self.blocks():
            x = self.x[rows]
            if self.op == "backward":
                dy = self.dy[rows]
                first[rows], part = reference.rms_norm_backward(dy, x, self.weight, EPS)
                second += part
            elif self.op == "add_norm":
                first[rows] = reference.add_rms_norm(x, second[rows], self.weight, EPS)
            elif self.op == "add":
                first[rows] = reference.residual_add(x, self.residual[rows].copy())
            else:
                offset = self.weight_offset
                first[rows] = reference.rms_norm(x, self.weight, EPS, weight_offset=offset)
        return (first,) if second is None else (first, second)

    def error(self, call):
        """Run `call` once and return its largest error, relative to the largest exact value.

        The call returns the arrays that it made, in the op's order; other results are in the case.
        """
        exact = self.exact
        overwritten = {id(getattr(self, name)) for name in self.inputs}
        for name in OPS[self.op].results:
            array = getattr(self, name, None)
            if array is not None and id(array) not in overwritten:
                array.fill(np.nan)  # makes an unwritten result a wrong one
        self.refill()
        made = call()
        made = () if made is None else made if isinstance(made, tuple | list) else (made,)
        rest = [getattr(self, name) for name in OPS[self.op].results[len(made) :]]
        return max(
            largest_error(as_array(got), want)
            for got, want in zip([*made, *rest], exact, strict=True)
        )


@cache
def noise_tile():
    """Return normal noise of prime length, so that rows made of repeats of it still differ."""
    return np.random.default_rng(0).standard_normal(1_048_583, np.float32)


def as_array(result):
    """Return a result as an ndarray; NumPy has no bfloat16 for torch's."""
    halves = str(getattr(result, "dtype", "")) == "torch.bfloat16"
    return np.asarray(result.float() if halves else result)


def largest_error(got, want):
    """Return the largest |got - want| over the largest |want|, or over 1; NaN if any is NaN."""
    got, want = got.reshape(-1), want.reshape(-1)
    if got.shape != want.shape:
        return float("nan")
    error, scale, step = 0.0, 1.0, 2**18
    for start in range(0, want.size, step):
        part = slice(start, start + step)
        error = np.maximum(error, np.abs(got[part] - want[part]).max())
        scale = max(scale, float(np.abs(want[part]).max()))
    return float(error / scale)
