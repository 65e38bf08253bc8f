"""The command line as a shell sees it: exit codes, what goes to stdout, and never a traceback."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastrms import _core
from fastrms.__main__ import main

TINY = {
    "info": ("info",),
    "check": ("check",),
    "bench": ("bench", "--shape", "1x8", "--op", "forward", "--rounds", "1"),
    "demo": ("demo", "depth", "--layers", "2"),
}
# With a short check, since it runs on every instruction set and thread count.
COMMAND = (
    sys.executable,
    "-c",
    "import sys; from fastrms import check; check.SHAPES = ((3, 7),)\n"
    "from fastrms.__main__ import main; sys.exit(main())",
)
# Buffered, as a user's Python is, so that the last write comes at exit, and may fail there.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
every_command = pytest.mark.parametrize("args", TINY.values(), ids=TINY)
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def name(args):
    """Return the name that begins a command's messages."""
    return " ".join(["fastrms", *(args[:2] if args[0] == "demo" else args[:1])])


def exit_code(*args):
    """Run `fastrms` in this process; return the code that it would end with."""
    try:
        return main(list(args))
    except SystemExit as refused:  # by argparse
        return refused.code


@pytest.fixture
def short_check(monkeypatch):
    from fastrms import check

    monkeypatch.setattr(check, "SHAPES", ((3, 7),))


@every_command
def test_json_goes_to_stdout_alone(short_check, capsys, args):
    for more in (("--json",), ("--json", "-")):
        assert main([*args, *more]) == 0
        json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


@every_command
def test_json_goes_to_a_file_beside_the_text(short_check, capsys, tmp_path, args):
    assert main([*args, "--json", str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr().out.count("\n") > 3
    json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)


def test_the_json_of_check_holds_bounds_and_errors(short_check, capsys):
    main(["check", "--json"])
    found = json.loads(capsys.readouterr().out)
    for row in found["rows"]:
        assert row["errors"].keys() == found["bounds"].keys()
    assert found["broken"] == 0


@every_command
def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys, args):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for where in ("_config.show_config", "check._worst_errors", "bench.options.plan",
                  "demo.depth.measure"):  # fmt: skip
        monkeypatch.setattr(f"fastrms.{where}", interrupted)
    assert main(args) == 130
    assert capsys.readouterr().err == f"{name(args)}: stopped by Ctrl-C\n"


def test_a_signal_ends_check():
    # Restore the handler: if this runs in a shell's background job, its children ignore SIGINT.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from fastrms.__main__ import main; sys.exit(main(['check']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "fastrms check: stopped by Ctrl-C\n")


def test_ctrl_c_while_numpy_is_imported(tmp_path):
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-m", "fastrms", "info"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (130, "fastrms: stopped by Ctrl-C\n")


@every_command
def test_a_pipe_that_nobody_reads_ends_it_without_a_word(args):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, *args], stdout=write, stderr=subprocess.PIPE, env=BUFFERED, timeout=60
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@every_command
def test_a_closed_stdout_changes_nothing(args):
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, *args]
    done = subprocess.run(closed, stderr=subprocess.PIPE, env=BUFFERED, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@needs_full
@pytest.mark.parametrize(
    "args",
    [
        *TINY.values(),
        *((*TINY["check"], *more) for more in (("--json",), ("--json", "/dev/full"))),
    ],
    ids=" ".join,
)
def test_a_full_disk_is_one_line(args):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *args],
            stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert last == f"{name(args)}: [Errno 28] No space left on device"
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@needs_full
@pytest.mark.parametrize("args", ["--help", "--version", "check --help"])
def test_help_on_a_full_disk_is_one_line(args):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fastrms", *args.split()]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED, timeout=60
        )
    assert (done.returncode, done.stderr) == (2, "fastrms: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(("name", "value"), [("ISA", "v9"), ("NUM_THREADS", "many")])
def test_a_wrong_variable_is_one_line(name, value):
    env = os.environ | {f"FASTRMS_{name}": value}
    command = [sys.executable, "-m", "fastrms", "info"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"fastrms: FASTRMS_{name}")
    assert done.stderr.count("\n") == 1
    imported = [sys.executable, "-c", "import fastrms"]
    done = subprocess.run(imported, env=env, capture_output=True, text=True, timeout=60)
    assert f"ImportError: FASTRMS_{name}" in done.stderr


@every_command
def test_an_unknown_argument_is_one_line(capsys, args):
    with pytest.raises(SystemExit) as refused:
        main([*args, "--foo"])
    assert refused.value.code == 2
    assert capsys.readouterr().err == "fastrms: error: unrecognized arguments: --foo\n"


@every_command
def test_a_file_without_a_name_is_refused(capsys, args):
    with pytest.raises(SystemExit):
        main([*args, "--json", ""])
    said = "argument --json: must be the name of a file, got ''"
    assert capsys.readouterr().err == f"{name(args)}: error: {said}\n"


def test_threads_that_a_build_lacks_are_refused(monkeypatch, capsys):
    build = _core.build_info() | {"pool": ""}
    monkeypatch.setattr(_core, "build_info", lambda: build)
    assert main([*TINY["bench"], "--threads", "1,2"]) == 2
    said = "fastrms bench: --threads: this build has no threads, every call is serial\n"
    assert capsys.readouterr() == ("", said)
