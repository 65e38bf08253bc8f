"""A program frozen by PyInstaller finds kernels and header; missing kernels are named."""

import subprocess
import sys
from pathlib import Path

import pytest

import fastrms

PROGRAM = """
import numpy as np, fastrms, fastrms.ctypes
from fastrms import _core
for isa in _core.available_isas():
    _core.use_isa(isa)
    assert fastrms.rms_norm(np.ones((2, 4), np.float32), eps=0.0).all()
print(*_core.available_isas(), fastrms.ctypes.functions.version)
"""


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """Return the folder of PROGRAM, frozen."""
    pytest.importorskip("PyInstaller", reason="PyInstaller is not installed")
    folder = tmp_path_factory.mktemp("frozen")
    (folder / "app.py").write_text(PROGRAM)
    # PyInstaller does not follow an editable install.
    where = Path(fastrms.__file__).parents[1]
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--paths", where, "app.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "dist" / "app"


def run(folder):
    return subprocess.run([folder / "app"], capture_output=True, text=True, timeout=60)


def test_kernels_and_header_are_found(frozen):
    done = run(frozen)
    isas = " ".join(fastrms._core.available_isas())
    assert (done.stdout, done.stderr) == (f"{isas} 1\n", "")


def test_missing_kernels_are_named(frozen):
    for path in frozen.rglob("_kernels_*"):
        path.unlink()
    assert "ImportError: fastrms._kernels_baseline, a compiled" in run(frozen).stderr


def test_missing_kernels_are_named_without_pyinstaller(python):
    hidden = {f"fastrms._kernels_{isa}": None for isa in ("baseline", "v3", "v4")}
    done = python(f"import sys; sys.modules |= {hidden}; import fastrms")
    assert "ImportError: fastrms._kernels_baseline, a compiled extension, is missing" in done.stderr
