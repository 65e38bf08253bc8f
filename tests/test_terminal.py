"""`fastrms bench` on a terminal: its table fits, and a progress bar disturbs no output."""

import os
import re
import struct
import subprocess
import sys

import pytest

from fastrms.bench import options, report

from .test_command import COMMAND, TINY

fcntl = pytest.importorskip("fcntl", reason="no pseudo-terminals here")
pytest.importorskip("rich", reason="the progress bar needs the extra [bench]")
import termios  # noqa: E402

BENCH = (sys.executable, "-m", "fastrms", "bench", "--op", "all", "--rounds", "1")
WIDEST = "10000x100"


def on_terminal(columns, args, **streams):
    """Run a command, "tty" streams on a terminal; return its lines there, and its piped text."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    env = os.environ | {"TERM": "xterm"}
    env.pop("COLUMNS", None)
    streams = {name: theirs if to == "tty" else to for name, to in streams.items()}
    with subprocess.Popen(args, env=env, text=True, **streams) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
        out, error = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, error
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r", "\n")
    return text.splitlines(), out


def test_all_that_is_widest_fits_80_columns(capsys):
    plan = options.Plan(ops=tuple(report.OPS), shapes=((16384, 4096),), threads=(1, 16))
    screen = report.Screen()
    screen.width = 80
    row = screen.columns(report.TITLES, report.widest(plan))
    row(next(report.widest(plan)))
    titles, line = capsys.readouterr().out.splitlines()
    assert titles.split("  ")[-1].strip() == report.TITLES[-1]
    assert len(titles) == len(line) == 80


@pytest.mark.parametrize("stderr", ["tty", subprocess.DEVNULL])
def test_80_columns_show_every_cell(stderr):
    args = [*BENCH, "--shape", WIDEST, "--data", "outlier"]
    shown, _ = on_terminal(80, args, stdout="tty", stderr=stderr)
    rows = [line for line in shown if f" {WIDEST} " in line]
    assert len(rows) == len(report.OPS)
    for line in rows:
        assert len(line) <= 80
        assert re.search(r"[\d.]+ [? ]  +\d+\.\d\d  +[\d.]+ [num]s  +[\d.]+  +\d+%$", line), line
    assert not any("too few" in line for line in shown)


def test_fewer_columns_leave_the_last_ones_out_and_say_so():
    shown, _ = on_terminal(60, [*BENCH, "--shape", "3x33"], stdout="tty", stderr=subprocess.PIPE)
    assert "left out on this terminal of 60 columns: best, GB/s, spread" in shown
    rows = [line for line in shown if " 3x33 " in line]
    assert len(rows) == len(report.OPS)
    assert all(len(line) <= 60 and re.search(r" \d+\.\d\d$", line) for line in rows)


@pytest.mark.parametrize("args", [TINY["check"], TINY["demo"]], ids=["check", "demo"])
def test_progress_is_beside_a_redirected_stdout(args):
    shown, piped = on_terminal(80, [*COMMAND, *args], stdout=subprocess.PIPE, stderr="tty")
    assert any(re.search(r" \d+/\d+ ", line) for line in shown)
    assert not re.search(r" \d+/\d+ ", piped)


def test_a_redirected_stdout_gets_its_rows_beside_a_progress_bar():
    args = [*BENCH, "--shape", "3x33"]
    shown, piped = on_terminal(80, args, stdout=subprocess.PIPE, stderr="tty")
    assert piped.count(" 3x33 ") == len(report.OPS)
    assert not any("3x33" in line for line in shown)
