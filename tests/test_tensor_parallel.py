"""examples/tensor_parallel.py on real MPI ranks; the block of docs/tensor_parallel.md runs."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from fastrms import check, reference

EXAMPLE = Path(__file__).parent.parent / "examples" / "tensor_parallel.py"
DOCS = (Path(__file__).parent.parent / "docs" / "tensor_parallel.md").read_text("utf-8")
# In ulp of y, if 1 / rms is rounded to the neighbour of the unsplit row's float32: xhat differs by
# under 2 ulp before and at most 2 after it is rounded, its product with a weight by less than 4.
NEIGHBOUR = 4
# Two results, each within its bound, beside which dweight is rounded: 2 * 2**-24.
DX, DWEIGHT = 2 * check.DX, 2 * check.DWEIGHT + 2**-23
RUN = f"import runpy; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"


@pytest.fixture(scope="module")
def on_ranks():
    """Return a function that runs Python on some MPI ranks, with a timeout that ends them all."""
    pytest.importorskip("mpi4py", reason='mpi4py is not installed: extra "fastrms[mpi]"')
    mpiexec = shutil.which("mpiexec", path=sysconfig.get_path("scripts"))
    if mpiexec is None:
        pytest.skip('no mpiexec beside this Python: extra "fastrms[mpi]"')

    def run(ranks, *arguments):
        return subprocess.run(
            [mpiexec, "-n", str(ranks), sys.executable, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,  # kills mpiexec, and ranks follow it
        )

    return run


def tables(printed):
    """Return the tables of a run: columns of each rank -> result -> differ, of, furthest."""
    found = {}
    for line in printed.splitlines():
        if head := re.fullmatch(r"(\d+) columns: (.*)", line):
            columns = tuple(map(int, head[2].split(" + ")))
            assert sum(columns) == int(head[1])
            found[columns] = {}
        elif cells := re.fullmatch(r"(\w+) +(\d+) +(\d+)  (\S+) (ulp|of .*)", line):
            found[columns][cells[1]] = int(cells[2]), int(cells[3]), float(cells[4])
    return found


def assert_close(found, ranks, rows=512):
    for columns, results in found.items():
        size = sum(columns)
        assert len(columns) == ranks
        assert [results[name][1] for name in ("y", "dx", "dweight")] == [rows * size] * 2 + [size]
        assert results["y"][2] <= NEIGHBOUR
        assert results["dx"][2] <= DX
        assert results["dweight"][2] <= DWEIGHT


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_split_row_is_the_unsplit_row(on_ranks, ranks):
    done = on_ranks(ranks, str(EXAMPLE))
    assert done.returncode == 0, done.stderr
    found = tables(done.stdout)
    assert_close(found, ranks)
    assert {sum(columns) for columns in found} == {4096, 576}
    for columns, results in found.items():
        # Sums may differ in the last of 53 bits; 1 / rms rounds to the same 24 in all 512 rows.
        assert results["y"] == (0, 512 * sum(columns), 0)
        assert results["dx"][0] > 0  # 0 would mean that a result is compared with itself


def test_ranks_without_columns(on_ranks):
    done = on_ranks(4, str(EXAMPLE), "3", "300")
    assert done.returncode == 0, done.stderr
    found = tables(done.stdout)
    assert_close(found, 4)
    assert set(found) == {(0, 1, 1, 1), (75, 75, 75, 75)}


FAILING = """
import fastrms
from mpi4py import MPI
from pathlib import Path

def sum_squares(x):
    Path("reached").touch()
    raise ArithmeticError

if MPI.COMM_WORLD.rank == 1:
    fastrms.sum_squares = sum_squares
"""


def test_one_rank_that_fails_ends_all(on_ranks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = on_ranks(2, "-c", FAILING + RUN)
    # Its stderr is not checked: mpiexec may end before it has passed all on (1 run in 60).
    assert (done.returncode, Path("reached").exists()) == (1, True)


@pytest.mark.parametrize(
    ("argument", "message"),
    [("1", "a size is at least 2, got 1"), ("x", "argument SIZE: invalid int value: 'x'")],
)
def test_a_wrong_size_is_one_line_from_all_ranks(on_ranks, argument, message):
    done = on_ranks(2, str(EXAMPLE), "4096", argument)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tensor_parallel.py: error: {message}\n"


def test_without_mpi4py_it_names_the_extra(python):
    done = python(f"import sys; sys.modules['mpi4py'] = None\n{RUN}")
    assert (done.returncode, done.stdout) == (2, "")
    wanted = '; pip install ".[mpi]" in the checkout\n'
    assert re.fullmatch(rf"tensor_parallel.py: .*{re.escape(wanted)}", done.stderr)


def test_the_block_of_the_page_runs():
    (block,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    values = {}
    exec(block, values)
    dy, x, weight = (values[name] for name in ("dy", "x", "weight"))
    dx, dweight = (
        np.concatenate(parts, axis=-1) for parts in zip(*values["gradients"], strict=True)
    )
    exact_dx, exact_dweight = reference.rms_norm_backward(dy, x, weight)
    assert check.dx_error(dx, exact_dx, dy, x, weight, 1e-5) <= check.DX
    assert check.dweight_error(dweight, exact_dweight, dy, x, 1e-5) <= check.DWEIGHT
