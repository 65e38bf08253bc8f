"""This build reproduces the golden digests, and one flipped bit changes a digest."""

import subprocess
import sys

from . import golden


def test_every_digest():
    """Run the command that the gates run, which try more ways to give the same bits."""
    command = [sys.executable, golden.__file__, "--fast"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "golden digests" in result.stdout


def test_one_bit_is_seen():
    case = golden.plain_case((3, 5))
    before = golden.digest([case.x])
    case.x.view("u4")[2, 4] ^= 1
    assert golden.digest([case.x]) != before


def test_differences_name_case_and_function():
    old = {"same": {"norm": "1"}, "a": {"norm": "1", "add": "2"}, "b": {"norm": "1"}}
    new = {"same": {"norm": "1"}, "a": {"norm": "1", "add": "3"}, "c": {"norm": "1"}}
    assert golden.differences(old, old) == []
    assert golden.differences(old, new) == ["changed: a: add", "gone: b: norm", "new: c: norm"]
