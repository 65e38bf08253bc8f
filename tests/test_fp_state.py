"""The floating-point state of callers and workers: it changes no bit, and no call changes it.

Another library may have set flush-to-zero, another rounding mode, or traps.
"""

import ctypes
import ctypes.util
import gc
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import fastrms
from fastrms import _core

from . import hostile
from .hostile import FLAGS, digests

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="reads glibc's x86-64 fenv_t"
)
MASKED, FLUSH, DENORMALS_ARE_ZERO = 0x1F80, 0x8000, 0x0040
DOWN, UP, TO_ZERO = 0x2000, 0x4000, 0x6000
INVALID, DIVIDE, OVERFLOW = 0x01, 0x04, 0x08
STATES = {
    "default": MASKED,
    "flush to zero": MASKED | FLUSH | DENORMALS_ARE_ZERO,
    "down": MASKED | DOWN,
    "up": MASKED | UP,
    "to zero": MASKED | TO_ZERO,
    "traps": MASKED & ~((INVALID | DIVIDE | OVERFLOW) << 7),
    "flags": MASKED | INVALID | DIVIDE,
    "all of them": (MASKED | FLUSH | DENORMALS_ARE_ZERO | UP | OVERFLOW) & ~(INVALID << 7),
}

libm = ctypes.CDLL(ctypes.util.find_library("m"))
Environment = ctypes.c_uint32 * 8  # fenv_t: MXCSR, the state of SSE and AVX, comes last


@contextmanager
def _state(mxcsr, may_raise=0):
    """Set this thread's MXCSR; assert that the block leaves it as it is, flags included."""
    before = Environment()
    hostile = Environment()
    libm.fegetenv(before)
    hostile[:] = before[:]
    hostile[7] = mxcsr
    gc.disable()  # Hypothesis times collections of garbage, with arithmetic that raises flags
    libm.fesetenv(hostile)
    try:
        yield
        libm.fegetenv(hostile)
    finally:
        libm.fesetenv(before)
        gc.enable()
    assert hex(hostile[7] & ~may_raise) == hex(mxcsr)


@pytest.mark.parametrize("name", STATES)
def test_state_changes_no_bits_and_stays(restore, isa, name):
    """Three threads share each call, this one too."""
    fastrms.set_num_threads(3)
    expected = digests()
    with _state(STATES[name]):
        found = digests()
    assert found == expected


@pytest.mark.parametrize("eps", [-5e-324, float("nan"), -1.0])
def test_refusals_keep_the_state(draw, eps):
    x, sums = draw(2, 3), np.ones(2)
    inexact = 0x20  # raised by Python as it writes eps into the message
    for call, arguments in ((fastrms.rms_norm, (x,)), (fastrms.rms_scale, (x, sums, 3))):
        with _state(STATES["flush to zero"], inexact), pytest.raises(ValueError, match="eps"):
            call(*arguments, None, eps)


def test_threads_of_the_caller_keep_their_own(restore, draw):
    """A thread in the default state stays in it while another thread's state is hostile."""
    x = draw(512, 512)
    seen = []

    def disturb():
        with _state(STATES["all of them"]):
            for _ in range(20):
                fastrms.rms_norm(x)

    other = threading.Thread(target=disturb)
    other.start()
    while other.is_alive():
        fastrms.rms_norm(x)
        seen.append(hostile.control(libm))
    other.join()
    assert set(seen) <= {MASKED}


# Another library's start-up code, and workers that start in a hostile state.


@pytest.fixture(scope="module")
def fast_math_object(tmp_path_factory):
    """Build a shared object that sets flush-to-zero in the thread that loads it."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc, to build with -ffast-math")
    folder = tmp_path_factory.mktemp("fast_math")
    source, built = folder / "empty.c", folder / "libfast.so"
    source.write_text("int nothing;\n")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O2", "-ffast-math", source, "-o", built], check=True
    )
    return built


def test_hostile_caller_and_workers(fast_math_object, isa):
    """The pool's threads start after another library has set the state, so they inherit it."""
    expected = hashlib.sha256("".join(digests()).encode()).hexdigest()
    for rounding in (0, 0xC00):  # to nearest, to zero: glibc's <fenv.h>
        result = subprocess.run(
            [sys.executable, hostile.__file__, fast_math_object, libm._name, str(rounding)],
            env={**os.environ, "FASTRMS_ISA": isa},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        state, found = result.stdout.split()
        if int(state) & ~(3 << 13) == MASKED:
            pytest.skip("this gcc links no start-up code into shared -ffast-math objects")
        assert int(state) == MASKED | FLUSH | DENORMALS_ARE_ZERO | rounding << 3
        assert found == expected


# Our own shared objects.

EXTENSIONS = sorted(Path(_core.__file__).parent.glob("*.so"))


@pytest.mark.parametrize("path", EXTENSIONS, ids=lambda path: path.name.split(".")[0])
def test_loading_changes_nothing(path):
    for name in ("default", "all of them"):
        with _state(STATES[name]):
            ctypes.CDLL(str(path))


IMPORT = f"""
import ctypes, numpy
libm = ctypes.CDLL({libm._name!r})
environment = (ctypes.c_uint32 * 8)()
libm.fegetenv(environment)
environment[7] = {STATES["all of them"]}
libm.fesetenv(environment)
import fastrms
libm.fegetenv(environment)
print(environment[7] & ~{FLAGS})
"""


def test_import_keeps_the_state(python):
    """Ignore the flags: Python's own arithmetic (the times of files) raises some."""
    result = python(IMPORT)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == STATES["all of them"] & ~FLAGS


def _sets_fast_math(path):
    """Return whether the machine code has crtfastmath's `or` of flush-to-zero and DAZ."""
    assembly = subprocess.check_output(["objdump", "-d", path], text=True)
    return re.search(r"\bor.*\$0x8040\b", assembly) is not None


def test_no_fast_math_start_up_code(fast_math_object):
    if not shutil.which("objdump"):
        pytest.skip("needs objdump")
    assert len(EXTENSIONS) >= 2
    assert [path.name for path in EXTENSIONS if _sets_fast_math(path)] == []
    if subprocess.check_output(["gcc", "-dumpversion"], text=True).strip() == "12":
        assert _sets_fast_math(fast_math_object)
