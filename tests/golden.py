"""Golden bits: digests of what every function writes for one fixed set of inputs, in golden.json.

    python tests/golden.py            compare this build with them: every instruction set, all WAYS
    python tests/golden.py --fast     the same in two of the WAYS, for emulators
    python tests/golden.py --write    write them anew, and say what changed

It needs only NumPy and fastrms, so that any Python and any emulator can run it; digests of bfloat16
arrays are compared if ml_dtypes is installed. Integer arithmetic makes the inputs: a release may
change the bits of random generators and math functions.
"""

import hashlib
import itertools
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import fastrms
from fastrms import _core
from fastrms.conformance.draws import bell, noise

try:
    import ml_dtypes
except ModuleNotFoundError:
    ml_dtypes = None

FILE = Path(__file__).with_suffix(".json")

# n: every remainder of a vector, both sides of 32 lanes and of 128, widths of models, one long row.
# Rows: one block of dweight (32 rows), several, and more than 64 of them.
SHAPES = (
    *((9, n) for n in range(1, 18)),
    (8, 64),
    (67, 65),
    (300, 100),
    (33, 127),
    (199, 128),
    (40, 129),
    (7, 257),
    (35, 576),
    (5, 1000),
    (9, 1025),
    (12, 4096),
    (3, 5120),
    (2500, 7),
    (1, 30001),
)
# Powers of two: subnormal; float32 squares underflow; plain; squares overflow; up to 1.7e38.
SCALES = (-140, -70, 0, 70, 125)
SPECIAL_SHAPES = ((5, 7), (9, 100), (40, 131), (4, 1000))
WAYS = (
    (1, "plain"),
    (1, "gaps"),
    (1, "reversed"),
    (1, "strided"),
    (2, "plain"),
    (3, "gaps"),
)  # threads, layout
FAST = WAYS[0], WAYS[-1]
LARGEST = np.finfo(np.float32).max
# Dtypes of x, dy, residual, weight, dweight, and of `out`: y or dx.
KINDS = {"h": "float16", "b": "bfloat16", "f": "float32", "d": "float64"}
DOUBLE = "dddddd"
MIXES = ("hhhhhh", "bbbbbb", "bbfffb", "hfhddf", "fddhfd", "dhhfhh", "bdbbbd")
DOUBLE_SHAPES = ((9, 1), (9, 7), (9, 17), (67, 65), (40, 129), (5, 1000))
DOUBLE_SCALES = (-1021, -530, 530, 1000)  # partly subnormal; squares underflow; squares overflow
MIXED_SHAPES = ((67, 65), (3, 9001))  # rows staged some at a time, and one at a time


class Case(NamedTuple):
    """Inputs of every function: x, dy, residual (rows, n), weight (n,)."""

    x: np.ndarray
    dy: np.ndarray
    residual: np.ndarray
    weight: np.ndarray
    eps: float
    mix: str = "ffffff"


def plain_case(shape, exponent=0):
    scale = np.float32(2.0**exponent)
    weight = 1 + np.float32(0.25) * bell(shape[1:], 3)
    eps = 1e-5 if exponent == 0 else 0.0
    return Case(bell(shape, 0) * scale, bell(shape, 1), bell(shape, 2) * scale, weight, eps)


def with_rows(value):
    """Return an edit that writes `value` into one row each of x, dy and residual."""

    def edit(case):
        case.x[1, 5] = case.dy[2, 0] = case.residual[3, -1] = value
        return case

    return edit


def with_weight(*values):
    """Return an edit that fills the weight with these values, repeated."""

    def edit(case):
        case.weight[:] = np.resize(np.float32(values), case.weight.shape)
        return case

    return edit


def zeros(case):
    case.x[1], case.x[2], case.residual[2] = 0.0, -0.0, -0.0
    case.dy[3] = 0
    return case._replace(eps=0.0)


def any_bits(case):
    """Draw from all bit patterns: exponents are equally likely, so one in 256 is NaN or Inf."""
    x, dy, residual = (noise(case.x.shape, 20 + i).view(np.float32) for i in range(3))
    return case._replace(x=x, dy=dy, residual=residual)


def any_finite(case):
    """Draw as any_bits does, but finite: a NaN would turn its whole row into NaN."""
    arrays = any_bits(case)[:3]
    clipped = (np.nan_to_num(a, nan=1.0, posinf=LARGEST, neginf=-LARGEST) for a in arrays)
    return Case(*clipped, case.weight, 0.0)


def parallel(case):
    """Set dy along x, so that dx cancels."""
    return case._replace(dy=case.x * np.float32(3), weight=np.ones_like(case.weight))


SPECIALS = {
    "nan": with_rows(np.nan),
    "inf": with_rows(-np.inf),
    "outlier": with_rows(1e6),
    "far outlier": with_rows(3e38),
    "largest": lambda case: case._replace(x=np.copysign(LARGEST, case.x)),
    "constant": lambda case: case._replace(x=np.full_like(case.x, 0.7)),
    "zeros": zeros,
    "any bits": any_bits,
    "any finite": any_finite,
    "parallel": parallel,
    "large eps": lambda case: case._replace(eps=1e30),
    "small eps": lambda case: case._replace(eps=1e-300),
    "weights above 2": with_weight(5, -1e10, 0.5),
    "weights above 2**44": with_weight(1e30, 1, -1e-30),
    "weights that cancel 1": with_weight(-1, -1 + 2.0**-24, -2),
    "weights inf and nan": with_weight(1, np.inf, 2, 0, np.nan, 3, -0.0),
}


def rounded(values, kind):
    """Return float32 values in another dtype; a float64 gets bits beyond those of a float32."""
    if kind == "d":
        return values.astype(np.float64) + bell(values.shape, 5).astype(np.float64) * 2.0**-30
    return values.astype(KINDS[kind])


def every_exponent(shape, kind, stream):
    """Draw from the bit patterns whose exponent is even: all sizes, but neither Inf nor NaN."""
    fraction, width = {"h": (10, 2), "b": (7, 2), "f": (23, 4), "d": (52, 8)}[kind]
    bits = noise((*shape[:-1], shape[-1] * 2), stream).view(np.uint64)
    bits = bits if sys.byteorder == "little" else bits << np.uint64(32) | bits >> np.uint64(32)
    return (bits & ~(np.uint64(1) << np.uint64(fraction))).astype(f"u{width}").view(KINDS[kind])


def mixed_case(shape, mix):
    """Return a case of other dtypes; `mix` has a letter for each of its arrays."""
    case = plain_case(shape)
    arrays = (rounded(values, kind) for values, kind in zip(case[:4], mix, strict=False))
    return Case(*arrays, case.eps, mix)


def any_size(shape, mix):
    arrays = (every_exponent(shape, kind, 30 + i) for i, kind in enumerate(mix[:3]))
    return Case(*arrays, mixed_case(shape, mix).weight, 0.0, mix)


def scaled(case, exponent):
    scale = 2.0**exponent
    return case._replace(x=case.x * scale, residual=case.residual * scale, eps=0.0)


def mixed_cases():
    """Yield the cases with other dtypes than float32; those with bfloat16 if ml_dtypes is there."""
    for rows, n in DOUBLE_SHAPES:
        yield f"{rows} x {n}, float64", mixed_case((rows, n), DOUBLE)
    for exponent in DOUBLE_SCALES:
        case = scaled(mixed_case((9, 100), DOUBLE), exponent)
        yield f"9 x 100, float64, scale 2**{exponent}", case
    yield "9 x 100, float64, any size", any_size((9, 100), DOUBLE)
    for number, mix in enumerate(MIXES):
        if "b" not in mix or ml_dtypes:
            name = " ".join(KINDS[kind] for kind in mix)
            rows, n = MIXED_SHAPES[number % 4 == 3]
            yield f"{rows} x {n}, {name}", mixed_case((rows, n), mix)
            yield f"9 x 100, {name}, any size", any_size((9, 100), mix)


def cases():
    """Yield the name and the inputs of each case."""
    for (rows, n), exponent in itertools.product(SHAPES, SCALES):
        yield f"{rows} x {n}, scale 2**{exponent}", plain_case((rows, n), exponent)
    yield from mixed_cases()
    for (rows, n), (name, edit) in itertools.product(SPECIAL_SHAPES, SPECIALS.items()):
        with np.errstate(all="ignore"):
            yield f"{rows} x {n}, {name}", edit(plain_case((rows, n)))


# The arrays that each call writes. `out` starts as NaN, `held` (dweight) as a copy of the weight.
FUNCTIONS = {
    "norm": lambda a: [fastrms.rms_norm(a.x, None, a.eps, out=a.out)],
    "norm weight": lambda a: [fastrms.rms_norm(a.x, a.weight, a.eps, out=a.out)],
    "norm offset": lambda a: [fastrms.rms_norm(a.x, a.weight, a.eps, weight_offset=1.0, out=a.out)],
    "norm accumulate": lambda a: [
        fastrms.rms_norm(a.x, a.weight, a.eps, out=a.residual, accumulate=True)
    ],
    "add norm": lambda a: [
        fastrms.add_rms_norm(a.x, a.residual, a.weight, a.eps, out=a.out),
        a.residual,
    ],
    "add": lambda a: [fastrms.residual_add(a.x, a.residual)],
    "add scaled": lambda a: [fastrms.residual_add(a.x, a.residual, 0.3)],
    "backward": lambda a: [fastrms.rms_norm_backward(a.dy, a.x, None, a.eps, dx=a.out)[0]],
    "backward weight": lambda a: fastrms.rms_norm_backward(
        a.dy, a.x, a.weight, a.eps, dx=a.out, dweight=a.held
    ),
    "backward offset": lambda a: fastrms.rms_norm_backward(
        a.dy, a.x, a.weight, a.eps, weight_offset=1.0, dx=a.out, dweight=a.held
    ),
    "backward accumulate": lambda a: fastrms.rms_norm_backward(
        a.dy, a.x, a.weight, a.eps, dx=a.residual, dweight=a.held, accumulate=True
    ),
}


class Arrays:
    """A case's inputs and outputs, fresh, in one layout."""

    def __init__(self, case, layout):
        held, out = (KINDS[kind] for kind in case.mix[4:])
        self.x, self.dy, self.residual, self.weight, self.held, self.out = (
            laid_out(values, layout)
            for values in (*case[:4], case.weight.astype(held), np.full_like(case.x, np.nan, out))
        )
        self.eps = case.eps


def laid_out(values, layout):
    """Return a writeable copy: dense, rows with gaps, rows reversed, or every second element."""
    n = values.shape[-1]
    if layout == "gaps":
        array = np.empty((*values.shape[:-1], n + 5), values.dtype)[..., 2 : n + 2]
    elif layout == "reversed":
        array = np.empty_like(values)[::-1]
    elif layout == "strided":
        array = np.empty((*values.shape[:-1], 2 * n), values.dtype)[..., ::2]
    else:
        array = np.empty_like(values)
    array[...] = values
    return array


def digest(arrays):
    """Return a 32-bit hash as hex. All NaNs count as one: sign and payload are not promised."""
    state = hashlib.blake2b(digest_size=4)
    for array in arrays:
        same = np.where(np.isnan(array), array.dtype.type(np.nan), array)
        state.update(same.view(f"u{same.itemsize}").astype(f"<u{same.itemsize}").tobytes())
    return state.hexdigest()


def compute(layout="plain"):
    """Return {case: {function: digest}} for the kernels and threads in use."""
    return {
        name: {key: digest(call(Arrays(case, layout))) for key, call in FUNCTIONS.items()}
        for name, case in cases()
    }


def read():
    """Return the recorded digests, in the form that compute returns."""
    file = json.loads(FILE.read_text()) if FILE.exists() else {"functions": [], "cases": {}}
    functions = file["functions"]
    return {
        name: dict(zip(functions, row.split(), strict=True)) for name, row in file["cases"].items()
    }


def write(golden):
    """Write one line for each case, so that a diff shows the cases that changed."""
    cases = {name: " ".join(row.values()) for name, row in golden.items()}
    FILE.write_text(json.dumps({"functions": list(FUNCTIONS), "cases": cases}, indent=0) + "\n")


def differences(golden, found):
    """Return a line for each case that is changed, new or gone, with the functions concerned."""
    lines = []
    for name in {**golden, **found}:
        old, new = golden.get(name, {}), found.get(name, {})
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if keys:
            what = "changed" if old and new else "new" if new else "gone"
            lines.append(f"{what}: {name}: {', '.join(keys)}")
    return lines


def read_for_these_dtypes():
    """Return the recorded digests that this NumPy has the dtypes for; say how many are left out."""
    golden = read()
    if ml_dtypes:
        return golden
    kept = {name: row for name, row in golden.items() if "bfloat16" not in name}
    left = sum(map(len, golden.values())) - sum(map(len, kept.values()))
    print(f"ml_dtypes is not installed: {left} digests of bfloat16 arrays are not compared")
    return kept


def rewrite():
    if not ml_dtypes:
        sys.exit("ml_dtypes is not installed: digests of bfloat16 arrays would be lost")
    found = compute()
    lines = differences(read(), found)
    write(found)
    print(*lines, f"{len(found)} cases written, {len(lines)} of them differ", sep="\n")
    return 0


def compare(ways):
    golden, isas, wrong = read_for_these_dtypes(), _core.available_isas(), []
    _core.set_parallel_from(1)
    for isa, (threads, layout) in itertools.product(isas, ways):
        _core.use_isa(isa)
        fastrms.set_num_threads(threads)
        for line in differences(golden, compute(layout)):
            wrong.append(f"{isa}, {threads} threads, {layout}: {line}")
    count = sum(map(len, golden.values()))
    what = f"{count} golden digests on {', '.join(isas)}, {len(ways)} ways each"
    print(*wrong, f"{what}: {len(wrong) or 'none'} differ", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        sys.exit(rewrite())
    sys.exit(compare(FAST if sys.argv[1:] == ["--fast"] else WAYS))
