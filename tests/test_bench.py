"""Tiny runs of `fastrms bench` and of the scripts in bench/: output, files and errors.

No test asserts a time. Tests share one run where they can, because every run starts processes.
"""

import argparse
import copy
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from fastrms.__main__ import main
from fastrms.bench import calls, cases, options, peers, rivals, schema

from .dtypes import KINDS, dtype_of
from .test_command import exit_code

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

BENCH = Path(__file__).parent.parent / "bench"
TINY = ("--shape", "3x33", "--rounds", "1")


def bench(*args, command=("-m", "fastrms", "bench"), **more):
    command = [sys.executable, *command, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Run every op once, and write a record and a picture."""
    folder = tmp_path_factory.mktemp("bench")
    done = bench(
        *TINY, "--op", "all", "--threads", "1", "--threads", "2",
        "--peers", "ggml,numba", "--peers", "ggml",
        "--json", folder / "new.json", "--plot", folder / "new.svg",
        command=[BENCH / "peers.py"],
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout, json.loads((folder / "new.json").read_text())


def test_the_record_fits_its_schema_and_holds_every_row(tiny):
    _, _, record = tiny
    assert schema.problems(record) == []
    assert record["complete"]
    keys = {(r["op"], r["rows"], r["n"], r["threads"]) for r in record["rows"]}
    assert len(keys) == len(record["rows"]) == len(cases.OPS) * 2
    for row in record["rows"]:
        assert {"floor", "numpy", "fastrms"} <= row["rivals"].keys()
        assert row["rivals"]["floor"]["of_floor"] == 1
        assert len(row["rivals"]["fastrms"]["processes_s"]) == 3


def test_piped_output_is_plain_and_prints_rows_and_floors(tiny):
    _, text, record = tiny
    assert text.isascii()
    tables = 2 if record["peers"] else 1  # the second one is for the installed peers
    assert text.count("  3x33  ") == len(cases.OPS) * 2 * tables
    for op in cases.OPS.values():
        assert op.pass_over() in text
    for name in record["left_out"]:
        assert f"left out: {name} (not installed)" in text


def test_the_picture_is_drawn(tiny):
    folder, _, _ = tiny
    picture = (folder / "new.svg").read_text()
    assert "residual add" in picture
    assert "fastrms, 2 threads" in picture


def test_one_shape_shows_the_floor_and_no_cache_is_clipped(tiny, tmp_path, monkeypatch):
    from fastrms.bench import plot

    figures = []
    monkeypatch.setattr(plot.plt, "close", figures.append)
    record = copy.deepcopy(tiny[2])
    record["rows"] = [row for row in record["rows"] if row["op"] == "forward"]
    record["rows"][0]["data"] = "outlier"  # a picture is of one kind of data, here of this row
    (size,) = {row["working_set_bytes"] for row in record["rows"]}
    # One line at the left edge, where its name does not fit on its left, and one at the right edge.
    sides = [{"level": level, "bytes": int(size * x)} for level, x in ((1, 0.96), (2, 1.04))]
    record["machine"]["caches"] = sides
    plot.draw(record, tmp_path / "one.png")
    (panel,) = figures[0].axes
    lines = {line.get_label(): line for line in panel.lines}
    assert lines.keys() >= {"fastrms", "NumPy formula"}
    assert lines["floor (the cheapest NumPy pass)"].get_marker() == "."
    assert list(panel.get_xticks()) == [size]
    box = panel.get_window_extent()
    names = {text.get_text(): text.get_window_extent() for text in panel.texts}
    assert names.keys() == {"L1", "L2"}
    for extent in names.values():
        assert box.x0 < extent.x0 < extent.x1 < box.x1
    plot.plt.figure(figures[0])


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"schema": 99}, "record.schema must be 1, got 99"),
        ({"complete": 1}, "record.complete must be bool, got int"),
        ({"more": 1}, "record has an unknown more"),
        ({"rows": [{}]}, "record.rows[0] lacks op"),
    ],
)
def test_the_schema_refuses(tiny, broken, problem):
    assert problem in schema.problems(tiny[2] | broken)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--op", "softmax"), "'softmax' is none of: all, forward"),
        (("--shape", "0x4"), "'0x4' is not ROWSxN"),
        (("--threads", "1,0"), "'0' is not a whole number from 1 to 1024"),
        (("--rounds", "0"), "'0' is not a whole number of 1 or more"),
        (("--fail-below", "nan"), "'nan' is not a positive, finite number"),
        (("--fail-below", "-1"), "'-1' is not a positive, finite number"),
        (("--peers", "cupy"), "'cupy' is none of"),
        (("--isa", "v9"), "--isa v9: here it is one of"),
        (("--plot", "x.jpg"), "must end in .png or .svg"),
        (("--json", "no/such/folder.json"), "cannot write"),
        (("--json", "/proc/bench.json"), "cannot write '/proc/bench.json'"),
        (("--plot", "/proc/bench.png"), "cannot write '/proc/bench.png'"),
        (("--data", "cauchy"), "'cauchy' is none of: all, normal, outlier"),
        (("--inplace", "--op", "fresh"), "--inplace makes no new array"),
        (("--dtype", "int8"), "invalid choice: 'int8'"),
        (("--dtype", "float64", "--align", "4"), "float64 arrays start at a multiple of 8"),
    ],
)
def test_refusals_are_one_line_and_exit_2(capsys, args, said):
    assert exit_code("bench", *args) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert said in error


def test_a_list_may_have_blanks():
    parser = argparse.ArgumentParser()
    options.add_arguments(parser, {})
    args = parser.parse_args(["--shape", "64x64, 3x4", "--op", "add, forward", "--threads", "1, 2"])
    plan = options.plan(args, {})
    assert plan.shapes == ((64, 64), (3, 4))
    assert (plan.ops, plan.threads) == (("add", "forward"), (1, 2))


def test_a_pipe_needs_no_rich_and_a_missing_extra_is_named(tmp_path):
    for module in ("rich", "matplotlib"):
        (tmp_path / f"{module}.py").write_text("raise ImportError")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    assert bench(*TINY, env=env).returncode == 0
    without = "import sys; sys.modules['matplotlib'] = None; from fastrms.__main__ import main; "
    command = [sys.executable, "-c", without + "sys.exit(main(['bench', '--plot', 'a.png']))"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        'fastrms bench: --plot needs matplotlib: python -m pip install "fastrms[bench]"\n'
    )


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    shapes = [part for n in range(1, 400) for part in ("--shape", f"1x{n}")]
    # Restore the handler: if this runs in a shell's background job, its children ignore SIGINT.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from fastrms.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "bench", *shapes, "--rounds", "1"]
    command += ["--json", tmp_path / "part.json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        lines = [p.stdout.readline()]
        while " 1x1 " not in lines[-1]:  # the legend, the titles, and the first row
            lines.append(p.stdout.readline())
        lines.append(p.stdout.readline())
        p.send_signal(signal.SIGINT)
        _, error = p.communicate(timeout=60)
    assert p.returncode == 130
    assert " 1x1 " in lines[-1]
    assert len({*map(len, lines[-3:])}) == 1
    assert error == "fastrms bench: stopped by Ctrl-C: the rows above are all there are\n"
    record = json.loads((tmp_path / "part.json").read_text())
    assert schema.problems(record) == []
    assert not record["complete"]
    assert len(record["rows"]) >= 2


def test_ctrl_c_before_the_first_row(monkeypatch, capsys):
    def interrupted(plan, record):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastrms.bench.measure.rows", interrupted)
    assert main(["bench"]) == 130
    assert capsys.readouterr().err == "fastrms bench: stopped by Ctrl-C: no row was finished\n"


def test_in_place_and_isa(tmp_path):
    done = bench(*TINY, "--inplace", "--isa", "baseline", "--json", tmp_path / "a.json")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["protocol"]["inplace"]
    assert record["config"]["instruction set"]["in use"] == "baseline"


@pytest.mark.parametrize("op", cases.OPS)
def test_the_check_catches_a_wrong_answer(op):
    case = cases.Case(op, 5, 40)
    assert case.error(lambda: tuple(a.astype(np.float32) for a in case.exact)) < 1e-6
    wrong = [a + np.float32(1e-3) * np.abs(a).max() for a in case.exact]
    assert case.error(lambda: wrong) > cases.TOLERANCE
    assert not case.error(lambda: None) <= cases.TOLERANCE  # nothing was written


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("op", cases.OPS)
@pytest.mark.parametrize("dtype", KINDS)
def test_every_dtype_has_a_floor_and_a_formula(dtype, op, inplace):
    if inplace and op == "fresh":
        pytest.skip("nothing is fresh in place")
    case = cases.Case(op, 5, 40, inplace, dtype=dtype_of(dtype).name)
    calls.floor(case)()
    assert case.error(calls.numpy(case)) < cases.tolerance(dtype) / 4
    assert case.error(calls.ours(case)) < cases.tolerance(dtype) / 4


@pytest.mark.parametrize("inplace", [False, True])
def test_an_outlier_row_and_an_offset_weight(inplace):
    case = cases.Case("offset", 7, 64, inplace, data="outlier")
    assert (case.x == cases.OUTLIER).sum(axis=1).tolist() == [1] * 7
    assert np.abs(case.weight).max() == 2 if inplace else np.abs(case.weight).max() < 0.5
    for call in (calls.ours(case), calls.numpy(case)):
        assert case.error(call) < 1e-6
    without = cases.Case("forward", 7, 64, inplace, data="outlier")
    assert np.abs(case.exact[0] - without.exact[0]).max() < 1e-5  # its weight includes the 1


def test_arrays_start_where_the_case_says():
    for align in (0, 16, 4):
        case = cases.Case("backward", 3, 5, align=align)
        for array in (case.x, case.dy, case.dx, case.weight, case.dweight):
            assert array.ctypes.data % cases.CACHE_LINE == align


def test_a_peer_in_its_own_process_answers():
    """Speak the worker's protocol, with a NumPy call in place of a peer."""
    requests = [{"case": ["forward", 2, 8, False, 16], "seconds": 1e-4}, {}]
    answers = io.StringIO()
    rivals.serve(calls.numpy, map(json.dumps, requests), answers)
    prepared, timed = map(json.loads, answers.getvalue().splitlines())
    assert prepared["error"] < 1e-6
    assert prepared["calls"] >= 1
    assert timed["seconds"] > 0


def test_a_peer_whose_process_dies_is_left_out():
    peer = rivals.Apart("a peer", "no_such:peer", 1)
    try:
        with pytest.raises(rivals.UnfitError, match="cannot import no_such"):
            peer.prepare(cases.Case("forward", 1, 8), 1e-4)
    finally:
        peer.close()


@pytest.fixture
def numba(monkeypatch):
    """Provide numba, or where it is not installed stubs that run its loops as plain Python."""
    try:
        import numba
    except ImportError:
        numba = types.ModuleType("numba")
        numba.njit = lambda **options: lambda function: function
        numba.prange, numba.set_num_threads = range, lambda count: None
        monkeypatch.setitem(sys.modules, "numba", numba)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("op", [op for op in cases.OPS if op != "offset"])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float64", 1e-14)])
def test_numba_has_every_op_but_the_offset(numba, op, threads, inplace, dtype, error):
    if inplace and op == "fresh":
        pytest.skip("nothing is fresh in place")
    for rows in (1, 5):  # fewer rows than threads, and more
        case = cases.Case(op, rows, 40, inplace, dtype=dtype, threads=threads)
        assert peers.PEERS["numba"].has(case)
        assert case.error(peers.numba(case)) < error


def test_the_pages_are_made_from_a_record(tiny, tmp_path):
    folder, _, record = tiny
    shutil.copy(folder / "new.json", tmp_path)
    (tmp_path / "other.json").write_text(json.dumps(record | {"commit": "0123abc"}))
    folder = tmp_path
    page, readme = folder / "benchmarks.md", folder / "README.md"
    for file in (page, readme):
        file.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    command = [sys.executable, BENCH / "pages.py", folder / "new.json"]
    command += ["--page", page, "--readme", readme]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    for text in (page.read_text(), readme.read_text()):
        assert text.startswith("before\n<!-- bench:begin -->\n")
        assert text.endswith("\n<!-- bench:end -->\nafter\n")
        assert "old" not in text.splitlines()
        assert record["machine"]["cpu"] in text
    assert ", in the median, on one thread: " in text
    text = page.read_text()
    for line in ("| 1 thread | forward |", "| 2 threads | forward |"):
        assert text.count(line) == 2  # of each record
    assert text.count("| 3 x 33 | ") == 4
    assert text.count("\n- forward, 2 threads: ") == 2
    assert f"commit {record['commit'] or 'unknown'}, " in text
    assert "commit 0123abc, " in text
    assert "](other.png)" in text
    for name in ("new.png", "other.png"):
        assert (folder / name).stat().st_size > 10_000
