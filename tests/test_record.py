"""bench/: what a record is called, and the scripts beside it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastrms.bench import machine

BENCH = Path(__file__).parent.parent / "bench"


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_record_names_its_commit(tmp_path, monkeypatch):
    def git(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a", "-C", str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.commit() is None
    (tmp_path / "file").write_text("one")
    for words in (["init"], ["add", "file"], ["commit", "-m", "one"]):
        git(*words)
    commit = git("rev-parse", "--short", "HEAD")
    assert machine.commit() == commit
    (tmp_path / "file").write_text("two")
    assert machine.commit() == f"{commit}-dirty"
    (tmp_path / "installed").mkdir()
    monkeypatch.setattr(machine, "ROOT", tmp_path / "installed")
    assert machine.commit() is None


def test_a_record_is_named_by_its_instruction_set():
    """Two CPUs that differ in it call themselves AMD EPYC."""
    program = "import record; print(record.default_name())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(BENCH)]),
             "FASTRMS_ISA": "baseline"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip().endswith("-baseline"), done.stderr


def test_beside_other_threads():
    command = [sys.executable, BENCH / "beside.py", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 17
    assert all("512 x 4096" in line for line in lines[-4:])


def test_a_pages_table_is_taken_anew(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- measured: python -c 'print(6 * 7)' -->\nold\n<!-- measured:end -->\nb\n"
        "<!-- measured: python -c 'print(\"| --- |\")' -->\n<!-- measured:end -->\n"
    )
    subprocess.run([sys.executable, BENCH / "measured.py", page], check=True)
    text = page.read_text()
    assert "old" not in text
    assert "```text\n$ python -c 'print(6 * 7)'\n42\n```\n<!-- measured:end -->\nb\n" in text
    assert text.endswith(".\n\n| --- |\n<!-- measured:end -->\n")


def test_record_takes_further_arguments():
    done = subprocess.run(
        [sys.executable, BENCH / "record.py", "x", "--isa", "v9"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--isa v9" in done.stderr
