"""Record a page's tables again: `python bench/measured.py docs/torch.md`.

A table stands between <!-- measured: COMMAND --> and <!-- measured:end -->. COMMAND runs in the
checkout; its output goes there, below a line that names the CPU, the commit and the date.
"""

import argparse
import datetime
import re
import shlex
import subprocess
import sys
from pathlib import Path

from fastrms import show_config
from fastrms.bench import machine

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(<!-- measured: (.*?) -->\n).*?(<!-- measured:end -->)", re.DOTALL)


def commit():
    """Return the checkout's commit, or None where git cannot say."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def line(cpu, isa, commit, date):
    """Return where, with what and when a table was recorded."""
    return f"{cpu}, {isa}, commit {commit or 'unknown'}, {date}"


def measure(command):
    """Run a table's command; return its line and its output, fenced unless it is Markdown."""
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    run = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    printed = run.stdout.strip("\n")
    if "| --- |" not in printed:
        printed = f"```text\n$ {command}\n{printed}\n```"
    isa = show_config("dicts")["instruction set"]["in use"]
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    where = line(machine.cpu_name(), isa, commit(), today)
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
