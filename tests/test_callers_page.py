"""docs/callers.md: its Python blocks run, its C and Cython blocks compile."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fastrms

PAGE = (Path(__file__).parent.parent / "docs" / "callers.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_python_blocks_run_in_order():
    for module in ("numba", "cffi"):
        pytest.importorskip(
            module, reason=f"{module} is not installed: the page's blocks import it"
        )
    values = {}
    for block in blocks("python"):
        exec(compile(block, "callers.md", "exec"), values)
    assert len(blocks("python")) == 4


@pytest.mark.parametrize(("compiler", "language"), [("gcc", "c"), ("g++", "c++")])
def test_the_c_block_compiles(compiler, language):
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}, to compile the page's C")
    (block,) = blocks("c")
    include = [f"-I{sysconfig.get_paths()['include']}", f"-I{fastrms.get_include()}"]
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-fsyntax-only"]
    subprocess.run([*command, *include, f"-x{language}", "-"], input=block, text=True, check=True)


def test_the_cython_block_compiles(tmp_path):
    pytest.importorskip("Cython", reason="Cython is not installed: nothing to compile with")
    (block,) = blocks("cython")
    (tmp_path / "block.pyx").write_text(block)
    package = Path(fastrms.__file__).parents[1]
    command = [sys.executable, "-m", "cython", "-3", "-I", package, tmp_path / "block.pyx"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
