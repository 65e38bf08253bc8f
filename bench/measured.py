"""Take a page's recorded tables anew: `python bench/measured.py docs/torch.md`.

A table stands between <!-- measured: COMMAND --> and <!-- measured:end -->. Its command runs in the
checkout, and what it prints goes there, below a line that says on what CPU, at what commit and
with which kernels. tests/test_measured.py fails where those are not the present ones, unless the
line says so: "since changed".
"""

import argparse
import hashlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

from fastrms import show_config
from fastrms.bench import machine

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(<!-- measured: (.*?) -->\n).*?(<!-- measured:end -->)", re.DOTALL)
DOCSTRINGS, COMMENTS = r'""".*?"""', r"#.*"
IN_C = r"/\*.*?\*/", r"//.*"


def kernels(read):
    """Return a digest of the arithmetic's code, comments aside: its name in a table's line.

    `read` gives the text of a file of src/.
    """
    top = read("kernels.pxi")
    names = ["kernels.pxi", *re.findall(r'^include "(.*)"', top, re.MULTILINE), "simd.h"]
    text = "\n".join(code(name, read(name)) for name in names)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def code(name, text):
    """Return the lines of a source that are neither comment nor blank."""
    blocks, lines = IN_C if name.endswith(".h") else (DOCSTRINGS, COMMENTS)
    text = re.sub(lines, "", re.sub(blocks, "", text, flags=re.DOTALL))
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def present():
    """Return the digest of the checkout's kernels."""
    return kernels(lambda name: (ROOT / "src" / name).read_text("utf-8"))


def git(*words):
    """Return what git says of the checkout, or nothing."""
    command = ["git", "-C", str(ROOT), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def at(commit):
    """Return the digest of a commit's kernels, or "unknown" where git cannot say."""
    commit = (commit or "").removesuffix("-dirty")

    def read(name):
        return git("show", f"{commit}:src/{name}")

    return kernels(read) if commit and read("kernels.pxi") else "unknown"


def line(cpu, isa, commit, digest):
    """Return what a table says of where it comes from."""
    changed = "" if digest == present() else ", since changed"
    return f"{cpu}, {isa}, commit {commit or 'unknown'}, kernels {digest}{changed}"


def measure(command):
    """Run a table's command; return its line and what it printed, fenced unless it is Markdown."""
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    run = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    printed = run.stdout.strip("\n")
    if "| --- |" not in printed:
        printed = f"```text\n$ {command}\n{printed}\n```"
    isa = show_config("dicts")["instruction set"]["in use"]
    where = line(machine.cpu_name(), isa, git("rev-parse", "--short", "HEAD"), present())
    return f"`{command}`: {where}.\n\n{printed}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE.md")
    for page in parser.parse_args().pages:
        text = page.read_text("utf-8")
        if not TABLE.search(text):
            parser.error(f"{page} has no <!-- measured: COMMAND -->")
        page.write_text(TABLE.sub(lambda m: f"{m[1]}{measure(m[2])}\n{m[3]}", text), "utf-8")


if __name__ == "__main__":
    main()
