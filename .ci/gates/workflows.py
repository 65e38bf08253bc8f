#!/usr/bin/env python
"""Check .github: zizmor finds no fault (actions pinned to a commit, least permissions)."""

import subprocess
import sys
import tempfile
from pathlib import Path

from supply_chain import run

CHECKOUT = Path(__file__).resolve().parents[2]
WORKFLOWS = CHECKOUT / ".github" / "workflows"


def main():
    with tempfile.TemporaryDirectory() as scratch:
        run(sys.executable, "-m", "venv", scratch)
        tools = Path(scratch) / "bin"
        run(tools / "pip", "install", "--quiet", "zizmor")
        run(tools / "zizmor", "--offline", "--no-progress", WORKFLOWS.parent)
        planted_fault(tools / "zizmor", Path(scratch) / "planted.yml")
    print("zizmor finds no fault but the planted one")


def planted_fault(zizmor, path):
    """Check that zizmor finds an action that is not pinned to a commit."""
    text = (WORKFLOWS / "tests.yml").read_text()
    start = text.index("actions/checkout@") + len("actions/checkout@")
    path.write_text(f"{text[:start]}v5{text[start + 40 :]}")
    done = subprocess.run([zizmor, "--offline", path], capture_output=True, text=True)
    assert "unpinned-uses" in done.stdout, done.stdout + done.stderr


if __name__ == "__main__":
    main()
