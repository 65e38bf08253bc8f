"""fastrms.numba: the bits of the NumPy calls in nopython code; errors as it compiles and runs."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

REASON = 'not installed: python -m pip install "fastrms[numba]"'
numba = pytest.importorskip("numba", reason=REASON)

import fastrms  # noqa: E402
import fastrms.numba as adapter  # noqa: E402

SHAPES = [(1, 64), (7, 33), (90, 70), (3, 5, 96), (40,), (0, 8), (4, 0)]
# Each function below is compiled once for each of the types that the tests pass.
OPTIONS = {"eps": 1e-6, "weight_offset": 1.0}


@numba.njit
def norm(x, weight, out, accumulate):
    return fastrms.rms_norm(x, weight, 1e-6, weight_offset=1.0, out=out, accumulate=accumulate)


@numba.njit
def add_norm(x, residual, weight, out):
    return fastrms.add_rms_norm(x, residual, weight, 1e-6, weight_offset=1.0, out=out)


@numba.njit
def backward(dy, x, weight, dx, dweight, accumulate):
    return fastrms.rms_norm_backward(
        dy, x, weight, 1e-6, weight_offset=1.0, dx=dx, dweight=dweight, accumulate=accumulate
    )


@numba.njit
def add(x, residual, scale):
    return fastrms.residual_add(x=x, residual=residual, scale=scale)


def same(found, wanted):
    assert type(found) is type(wanted)
    if wanted is not None:
        assert (found.shape, found.tobytes()) == (wanted.shape, wanted.tobytes())


# To compile takes seconds: without a weight only for two axes.
WEIGHTED = pytest.mark.parametrize(
    ("shape", "weighted"), [*((shape, True) for shape in SHAPES), (SHAPES[1], False)]
)


@WEIGHTED
def test_rms_norm(isa, draw, shape, weighted):
    x, out, weight = draw(*shape), draw(*shape), draw(shape[-1]) if weighted else None
    same(norm(x, weight, None, False), fastrms.rms_norm(x, weight, **OPTIONS))
    wanted = fastrms.rms_norm(x, weight, out=out.copy(), accumulate=True, **OPTIONS)
    assert norm(x, weight, out, True).ctypes.data == out.ctypes.data
    same(out, wanted)
    wanted = fastrms.rms_norm(x, weight, **OPTIONS)
    same(norm(x, weight, x, False), wanted)


@WEIGHTED
def test_add_rms_norm(isa, draw, shape, weighted):
    x, residual, weight = draw(*shape), draw(*shape), draw(shape[-1]) if weighted else None
    stream = residual.copy()
    wanted = fastrms.add_rms_norm(x, stream, weight, **OPTIONS)
    same(add_norm(x, residual.copy(), weight, None), wanted)
    same(add_norm(x, residual, weight, x), wanted)
    same(residual, stream)


@WEIGHTED
def test_rms_norm_backward(isa, draw, shape, weighted):
    dy, x, dx = draw(*shape), draw(*shape), draw(*shape)
    weight, dweight = (draw(shape[-1]), draw(shape[-1])) if weighted else (None, None)
    found = backward(dy, x, weight, None, None, False)
    for one, wanted in zip(found, fastrms.rms_norm_backward(dy, x, weight, **OPTIONS), strict=True):
        same(one, wanted)
    outputs = {"dx": dx.copy(), "dweight": None if dweight is None else dweight.copy()}
    wanted = fastrms.rms_norm_backward(dy, x, weight, **outputs, accumulate=True, **OPTIONS)
    for one, other in zip(backward(dy, x, weight, dx, dweight, True), wanted, strict=True):
        same(one, other)
    wanted = fastrms.rms_norm_backward(dy, x, weight, **OPTIONS)[0]
    same(backward(dy, x, weight, dy, None, False)[0], wanted)


@pytest.mark.parametrize("scale", [1, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_residual_add(isa, draw, shape, scale):
    x, residual = draw(*shape), draw(*shape)
    wanted = fastrms.residual_add(x=x, residual=residual.copy(), scale=float(scale))
    assert add(x, residual, scale).ctypes.data == residual.ctypes.data
    same(residual, wanted)


def test_defaults(draw):
    @numba.njit
    def defaults(x, residual, weight):
        y = fastrms.add_rms_norm(x, residual)
        fastrms.residual_add(x=x, residual=residual)
        return y, fastrms.rms_norm(x), fastrms.rms_norm_backward(y, x, weight)

    x, residual, weight = draw(5, 12), draw(5, 12), draw(12)
    stream = residual.copy()
    wanted = fastrms.add_rms_norm(x, stream)
    fastrms.residual_add(x=x, residual=stream)
    y, norm, (dx, dweight) = defaults(x, residual, weight)
    same(y, wanted)
    same(residual, stream)
    same(norm, fastrms.rms_norm(x))
    for found, wanted in zip((dx, dweight), fastrms.rms_norm_backward(y, x, weight), strict=True):
        same(found, wanted)


def test_add_rms_norm_takes_a_scale(draw):
    @numba.njit
    def scaled(x, residual, weight, eps, out):
        return fastrms.add_rms_norm(x, residual, weight, eps, scale=-0.3, out=out)

    x, residual, weight = draw(5, 12), draw(5, 12), draw(12)
    stream = fastrms.residual_add(x, residual.copy(), -0.3)
    with pytest.raises(ValueError, match="eps must be zero or more"):
        scaled(x, before := residual.copy(), weight, -1.0, None)
    same(before, residual)
    same(scaled(x, residual.copy(), weight, 1e-5, None), fastrms.rms_norm(stream, weight))
    same(scaled(x, residual, weight, 1e-5, x), fastrms.rms_norm(stream, weight))
    same(residual, stream)


def test_a_weight_with_axes_of_length_one(draw):
    dy, x, weight, dweight = draw(5, 12), draw(5, 12), draw(1, 1, 12), draw(12)
    same(norm(x, weight, None, False), fastrms.rms_norm(x, weight[0, 0], **OPTIONS))
    wanted = fastrms.rms_norm_backward(dy, x, weight[0, 0], **OPTIONS)[1]
    same(backward(dy, x, weight, None, None, False)[1], wanted.reshape(1, 1, 12))
    same(backward(dy, x, weight, None, dweight, False)[1], wanted)
    with pytest.raises(ValueError, match="weight and dweight must have shape"):
        norm(x, draw(2, 6), None, False)


def test_each_call_of_a_prange_stays_on_its_thread(restore, draw):
    @numba.njit(parallel=True)
    def by_row(x, weight, out):
        for row in numba.prange(len(x)):
            fastrms.rms_norm(x[row], weight, out=out[row])

    fastrms.set_num_threads(3)  # restore lets them share the smallest call
    x, weight, out = draw(200, 96), draw(96), draw(200, 96)
    by_row(x, weight, out)
    same(out, fastrms.rms_norm(x, weight))


def test_what_backward_needs_lives_until_it_is_done(draw):
    """Scratch is passed by its address, which numba's reference counts do not cover."""
    dy, x, weight = draw(300, 2000), draw(300, 2000), draw(2000)

    @numba.njit
    def often(dy, x, weight):
        for _ in range(5):
            result = fastrms.rms_norm_backward(dy.copy(), x.copy(), weight.copy())
        return result

    for found, wanted in zip(
        often(dy, x, weight), fastrms.rms_norm_backward(dy, x, weight), strict=True
    ):
        same(found, wanted)


# ---- float64 ----------------------------------------------------------------------------------


@numba.njit
def scaled_norm(x, residual, weight, eps):
    return fastrms.add_rms_norm(x, residual, weight, eps, scale=-0.3)


@pytest.mark.parametrize("others", [np.float64, np.float32])
def test_float64_x(isa, draw, others):
    """The bits and the dtypes of the NumPy calls, also if the other arrays are float32."""
    for shape in ((1, 64), (40, 33), (0, 8), (4, 0)):
        x, other, third = (draw(*shape).astype(dtype) for dtype in (np.float64, others, others))
        weight, total = (draw(shape[-1]).astype(others) for _ in range(2))
        same_all(norm(x, weight, None, False), fastrms.rms_norm(x, weight, **OPTIONS))
        wanted = fastrms.rms_norm(x, weight, out=other.copy(), accumulate=True, **OPTIONS)
        same_all(norm(x, weight, other, True), wanted)
        stream, held = other.copy(), other.copy()
        wanted = fastrms.add_rms_norm(x, stream, weight, scale=-0.3)
        same_all((scaled_norm(x, held, weight, 1e-5), held), (wanted, stream))
        fastrms.residual_add(x=x, residual=stream, scale=0.3)
        same_all(add(x, held, 0.3), stream)
        wanted = fastrms.rms_norm_backward(other, x, weight, **OPTIONS)
        same_all(backward(other, x, weight, None, None, False), wanted)
        outputs = {"dx": third.copy(), "dweight": total.copy(), "accumulate": True}
        wanted = fastrms.rms_norm_backward(other, x, weight, **outputs, **OPTIONS)
        same_all(backward(other, x, weight, third, total, True), wanted)


def same_all(found, wanted):
    if not isinstance(wanted, tuple):
        found, wanted = (found,), (wanted,)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        same(one, other)


def test_float64_without_a_weight_in_place(draw):
    x, dy = draw(5, 12).astype(np.float64), draw(5, 12).astype(np.float64)
    wanted = fastrms.rms_norm_backward(dy, x, None, **OPTIONS)
    assert wanted[1] is None
    found = backward(dy, x, None, x, None, False)
    assert found[1] is None
    same_all(found[0], wanted[0])
    wanted = fastrms.rms_norm(dy, None, **OPTIONS)
    same_all(norm(dy, None, dy, False), wanted)


def test_errors_of_float64_write_nothing(draw):
    x, residual, weight = draw(4, 6), draw(4, 6).astype(np.float64), draw(6)
    before = residual.copy()
    with pytest.raises(ValueError, match="eps must be zero or more"):
        scaled_norm(x, residual, weight, -1.0)
    narrow = residual.view(np.float32)[:2].reshape(4, 6)
    for source in (narrow, residual.reshape(-1)[:6]):  # the same address, but not the same array
        weighted = source if source.ndim == 1 else None
        with pytest.raises(ValueError, match="an output must"):
            norm(x if weighted is not None else source, weighted, residual, False)
    same_all(residual, before)
    with pytest.raises(numba.core.errors.NumbaError):
        norm(x.astype(np.float16), None, None, False)


# ---- refusals ---------------------------------------------------------------------------------

X = np.ones((4, 6), np.float32)
READ_ONLY = np.ones((4, 6), np.float32)
READ_ONLY.flags.writeable = False
UNALIGNED = np.frombuffer(bytearray(97), np.uint8)[1:].view(np.float32).reshape(4, 6)
TYPED = {
    "x must be a float32 or float64 array, got array(int64": lambda: norm(
        X.astype(int), None, None, False
    ),
    "x must be a float32 or float64 array, got int64": lambda: norm(1, None, None, False),
    "x must be a float32 or float64 array, got none": lambda: norm(None, None, None, False),
    "x must be C-contiguous": lambda: norm(X.T, None, None, False),
    "out must have 2 axes, got array": lambda: norm(X, None, X[0], False),
    "out must be writeable, got": lambda: norm(X, None, READ_ONLY, False),
    "accumulate must be True or False, got int64": lambda: norm(X, None, X, 1),
    "residual must be a float32 or float64 array, got none": lambda: add(X, None, 1.0),
    "residual must be writeable, got": lambda: add_norm(X, READ_ONLY, None, None),
    "scale must be a real number, got complex128": lambda: add(X, X.copy(), 1j),
    "dweight needs weight": lambda: backward(X, X, None, None, X[0], False),
    "dy must have 2 axes, got array": lambda: backward(X[0], X, None, None, None, False),
}


@pytest.mark.parametrize("message", TYPED)
def test_typed_refusals(message):
    with pytest.raises(numba.core.errors.TypingError) as error:
        TYPED[message]()
    assert message in str(error.value)


MEMORY = np.ones(40, np.float32)
ONE, OTHER = MEMORY[:24].reshape(4, 6), MEMORY[1:25].reshape(4, 6)
AT_CALL = {
    "weight and dweight must": lambda: norm(X, X[0, :5].copy(), None, False),
    "each array must have the shape of x": lambda: norm(X, None, X[:3].copy(), False),
    "accumulate=True needs out=": lambda: norm(X, None, None, True),
    "accumulate=True needs dx= or": lambda: backward(X, X, X[0].copy(), None, None, True),
    "eps must be zero or more": lambda: negative(X),
    "arrays must be aligned": lambda: norm(UNALIGNED, None, None, False),
    "an output must be the input itself": lambda: norm(ONE, None, OTHER, False),
    "an output must not share memory with the weight": lambda: norm(X, ONE[0], ONE, False),
    "an output must not share memory with": lambda: add_norm(X, ONE, None, ONE),
    "must not share memory with the weight or another": lambda: backward(
        X, X, X[0].copy(), ONE, ONE[0], False
    ),
}


@numba.njit
def negative(x):
    return fastrms.rms_norm(x, eps=-1)


@pytest.mark.parametrize("message", AT_CALL)
def test_refusals_at_a_call(message):
    before = MEMORY.copy()
    with pytest.raises(ValueError, match=message):
        AT_CALL[message]()
    same(MEMORY, before)


# ---- the module -------------------------------------------------------------------------------


def test_the_overloads_have_pythons_signatures():
    for name in adapter.__all__:
        assert getattr(adapter, name) is getattr(fastrms, name)
        overload = getattr(adapter, f"_overload_{name}")
        here, python = (
            [(p.name, p.default) for p in inspect.signature(f).parameters.values()]
            for f in (overload, getattr(fastrms, name))
        )
        assert here == python


CACHED = """
import numba, numpy as np, fastrms, fastrms.numba

@numba.njit(cache=True)
def norm(x):
    return fastrms.rms_norm(x)

for dtype in (np.float32, np.float64):
    x = np.arange(12, dtype=dtype).reshape(3, 4)
    assert (norm(x) == fastrms.rms_norm(x)).all()
print(sum(norm.stats.cache_hits.values()), sum(norm.stats.cache_misses.values()))
"""


def test_cached_code_runs_in_another_process(tmp_path):
    (tmp_path / "cached.py").write_text(CACHED)
    for wanted in ("0 2", "2 0"):
        done = subprocess.run(
            [sys.executable, "cached.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == wanted


def test_without_numba_the_message_names_the_extra(python):
    done = python("import sys; sys.modules['numba'] = None; import fastrms.numba")
    assert "ModuleNotFoundError" in done.stderr or "ImportError" in done.stderr
    assert 'python -m pip install "fastrms[numba]"' in done.stderr
