"""`fastrms check --against`: exit codes, one line for each thing that cannot be checked, JSON."""

import json
import re
import sys

import numpy as np
import pytest

from fastrms import conformance
from fastrms.__main__ import main

from .test_terminal import on_terminal

FEW = ("--shapes", "4x16")
SOURCE = """
import numpy as np

def norm(x, weight, eps):
    print("a line of its own")
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + x.dtype.type(eps)) * weight

def outside(x, weight, eps):
    return x / (np.sqrt((x * x).mean(axis=-1, keepdims=True)) + x.dtype.type(eps)) * weight

def backward(dy, x, weight, eps):
    r = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(eps))
    g = dy * weight
    dx = r * (g - x * r * r * (g * x).mean(axis=-1, keepdims=True))
    return dx, (dy * x * r).sum(axis=0)

def add(x, residual, weight, eps):
    return norm(x + residual, weight, eps), x + residual

def residual(x, residual):
    return x + residual

def raises(x, weight, eps):
    raise RuntimeError("no kernel\\nfor this")

def leaves(x, weight, eps):
    raise SystemExit(3)

def stopped(x, weight, eps):
    raise KeyboardInterrupt

def wrong_shape(x, weight, eps):
    return x[:, :1]

def wrong_dtype(x, weight, eps):
    return x.astype(np.float64)

def two(x, weight, eps):
    return x, x

def a_list(x, weight, eps):
    return x.tolist()

def no_empty(x, weight, eps):
    if len(x) == 0:
        raise IndexError("no rows")
    return norm(x, weight, eps)

def residual_of_four(dy, x, weight, eps):
    return x

def by_hand(x, weight, eps):
    rows = [[a / s for a in row] for row in x for s in [root(row, eps)]]
    return np.array(rows, x.dtype).reshape(x.shape) * weight

def root(row, eps):
    mean = float((row * row).mean() + np.float32(eps))
    return 1 / (1 / mean) ** 0.5

number = 3
"""


@pytest.fixture
def mine(tmp_path):
    """Return a function from a function's name to its FILE.py:FUNCTION; a colon is in the path."""
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "mine.py").write_text(SOURCE)
    return lambda name: f"{folder / 'mine.py'}:{name}"


def test_a_good_function_exits_with_0(mine, capsys):
    assert main(["check", "--against", mine("norm"), *FEW]) == 0
    text = capsys.readouterr().out
    assert text.endswith("\nno finding\n")
    assert "a line of its own" not in text
    assert "range: y is 0 from x = 2**6" in text


def test_all_four_functions(mine, capsys):
    roles = ("backward", "add", "residual")
    more = [word for role in roles for word in (f"--{role}", mine(role))]
    assert main(["check", "--against", mine("norm"), *more, *FEW]) == 0
    titles = capsys.readouterr().out.splitlines()[7]
    wanted = ["norm", "dx", "dweight", "add y", "add total", "residual"]
    assert re.split("  +", titles.strip()) == wanted


def test_a_fault_exits_with_1_and_shows_numbers_that_give_it(mine, capsys):
    assert main(["check", "--against", mine("outside"), *FEW]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("- eps is outside the root")
    x, weight, eps, y, exact = map(
        float, re.findall(r"= \[?([-+.e\d]+)", " ".join(lines[at + 1 : at + 3]))
    )
    assert abs(x / (abs(x) + eps) * weight - y) < 1e-6 < 1e-2 < abs(y - exact)
    assert lines[-1] == "1 finding"


def test_ctrl_c_is_one_line_and_130(mine, capsys):
    assert main(["check", "--against", mine("stopped"), *FEW]) == 130
    assert capsys.readouterr() == ("", "fastrms check: stopped by Ctrl-C\n")


def test_the_page_fits_a_screen(mine, capsys):
    main(["check", "--against", mine("outside"), "--backward", mine("backward"), *FEW])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert all(len(line) <= 100 for line in lines)


def test_json_has_all_of_it(mine, capsys):
    assert main(["check", "--against", mine("outside"), "--json", *FEW]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["failures"] == 1
    assert [cell["family"] for cell in found["cells"]] == list(conformance.FAMILIES[:12])
    named = [one for one in found["findings"] if one["failure"]]
    assert [one["name"] for one in named] == ["eps is outside the root"]
    assert named[0]["arguments"].keys() == {"x", "weight", "eps"}
    assert named[0]["shows"].keys() == {"y", "exact"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "has no function 'missing'"),
        ("number", "has no function 'number'"),
        ("raises", "raised RuntimeError: no kernel for this (x (4, 16), weight (16,))"),
        ("leaves", "raised SystemExit: 3"),
        ("wrong_shape", "y must have shape (4, 16) and dtype float32, got (4, 1) and float32"),
        ("wrong_dtype", "y must have shape (4, 16) and dtype float32, got (4, 16) and float64"),
        ("two", "y: wanted an array of numpy, got tuple"),
        ("a_list", "y: wanted an array of numpy, got list"),
        ("residual", "raised TypeError: residual() takes 2 positional arguments but 3 were given"),
    ],
)
def test_what_cannot_be_checked_is_one_line(mine, capsys, name, said):
    assert main(["check", "--against", mine(name), *FEW]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("fastrms check: ")
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--against", "norm"], "'norm' is neither MODULE:FUNCTION nor FILE.py:FUNCTION"),
        (["--against", "nosuchmodule:f"], "cannot import nosuchmodule: ModuleNotFoundError"),
        (["--against", "nosuch.py:f"], "there is no file nosuch.py"),
        (["--eps", "1"], "--eps needs --against, --backward, --add, --residual or --export"),
        (["--strict"], "--strict needs --against"),
        (["--against", "math:sqrt", "--framework", "torch"], '"fastrms[torch]"'),
        (["--against", "math:sqrt", "--framework", "jax"], '"fastrms[jax]"'),
        (["--against", "math:sqrt", "--framework", "mlx"], "python -m pip install mlx"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line(monkeypatch, capsys, args, said):
    for framework in ("torch", "jax", "mlx", "mlx.core"):
        monkeypatch.setitem(sys.modules, framework, None)
    assert main(["check", *args]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize(
    "args", [["--families", "nosuch"], ["--shapes", "0x4"], ["--ulp", "0"], ["--export", "a.txt"]]
)
def test_a_wrong_argument_is_one_line(capsys, args):
    with pytest.raises(SystemExit) as refused:
        main(["check", "--against", "math:sqrt", *args])
    assert refused.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_that_does_not_import_is_one_line(tmp_path, capsys):
    for number, source in enumerate(("def f(:", "import sys; sys.exit(4)", "1 / 0")):
        path = tmp_path / f"broken{number}.py"
        path.write_text(source)
        assert main(["check", "--against", f"{path}:f"]) == 2
        error = capsys.readouterr().err
        assert f"cannot import {path}: " in error
        assert error.count("\n") == 1


def test_rows_that_it_refuses_are_a_note(mine, capsys):
    assert main(["check", "--against", mine("no_empty"), *FEW]) == 0
    assert re.search(
        r"^no rows +raises  IndexError: no rows$", capsys.readouterr().out, re.MULTILINE
    )


def test_an_exception_at_the_end_of_the_range_is_a_note(mine, capsys):
    assert main(["check", "--against", mine("by_hand"), *FEW]) == 0
    text = capsys.readouterr().out
    assert re.search(
        r"^tiny +raises  ZeroDivisionError: (float )?division by zero$", text, re.MULTILINE
    )
    assert "- range: y is an exception from x = 2**-7" in text


def test_ulp_and_strict(mine, capsys):
    args = ["check", "--against", mine("norm"), "--families", "normal", *FEW]
    assert main([*args, "--ulp", "0.1"]) == 1
    assert "- y is off by" in capsys.readouterr().out
    assert main([*args, "--strict"]) == 1
    assert "findings:\n- range: y is 0" in capsys.readouterr().out


def test_harder_families_by_name(mine, capsys):
    args = [
        "check",
        "--against",
        mine("norm"),
        "--families",
        "two ones,sinks",
        "--families",
        "huge",
    ]
    assert main([*args, *FEW]) == 0
    names = [line[:12].strip() for line in capsys.readouterr().out.splitlines()[5:8]]
    assert names == ["two ones", "sinks", "huge"]


def test_a_module_in_the_working_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "norms_of_mine.py").write_text(SOURCE)
    before = [*sys.path]
    assert main(["check", "--against", "norms_of_mine:norm", *FEW]) == 0
    assert sys.path == before


def test_backward_must_return_two_arrays(mine, capsys):
    assert main(["check", "--backward", mine("residual_of_four"), *FEW]) == 2
    assert "must return dx and dweight, got (4, 16)" in capsys.readouterr().err


def test_a_progress_bar_is_on_a_terminal_alone(mine):
    args = [sys.executable, "-m", "fastrms", "check", "--against", mine("norm"), *FEW]
    shown, piped = on_terminal(80, args, stdout=-1, stderr="tty")
    assert any(re.search(r" \d+/\d+ ", line) for line in shown)
    assert piped.endswith("no finding\n")
    assert np.char.find(piped, "━") < 0
