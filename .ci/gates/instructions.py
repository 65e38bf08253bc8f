#!/usr/bin/env python3
"""Instructions a row, counted by callgrind: no clock, so that a loop which became scalar fails on
any machine. Each kernel, by gcc and by clang, for the instruction sets that valgrind knows (no
AVX-512), against instructions.txt.

    .ci/gates/instructions.py            compare with it: at most 10 % more
    .ci/gates/instructions.py --write    write it anew
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from counted_calls import LENGTHS, ROWS

GATES = Path(__file__).resolve().parent
TABLE = GATES / "instructions.txt"
HEAD = (
    "# Instructions a row, by row length. `.ci/gates/instructions.py --write` makes this table.\n"
)
COMPILERS, ISAS = ("gcc", "clang"), ("baseline", "v3")
# Counts are equal from run to run; another release of a compiler may differ a little.
MOST = 1.10


def run(*command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def build(scratch):
    """Compile the package by each compiler, and the counter."""
    run(GATES.parent / "needs", "valgrind")
    run("gcc", "-shared", "-fPIC", GATES / "counter.c", "-o", scratch / "counter.so")
    for compiler in COMPILERS:
        run(GATES.parent / "build_with", compiler, scratch / compiler)


def measure(scratch, compiler, isa):
    """Return {kernel: [instructions a row, by length]}."""
    out = scratch / f"{compiler}.{isa}"
    out.mkdir()
    run(
        *("valgrind", "--tool=callgrind", "--instr-atstart=no"),
        f"--callgrind-out-file={out / 'count'}",
        *(sys.executable, GATES / "counted_calls.py", scratch / "counter.so"),
        PYTHONPATH=str(scratch / compiler),
        PYTHONHASHSEED="0",
        FASTRMS_ISA=isa,
        FASTRMS_NUM_THREADS="1",
    )
    totals = {}
    for path in out.glob("count.*"):
        found = re.search(
            r"Client Request: (.+), (\d+), (\d+)\n.*\ntotals: (\d+)", path.read_text(), re.S
        )
        if found:
            totals[found[1], int(found[2]), int(found[3])] = int(found[4])
    few, many = ROWS
    return {
        kernel: [
            round((totals[kernel, n, many] - totals[kernel, n, few]) / (many - few))
            for n in LENGTHS
        ]
        for kernel in ("forward", "add + norm", "backward", "residual add")
    }


def line(*cells):
    what, counts = cells[:3], cells[3:]
    return "{:<10}{:<10}{:<14}".format(*what) + "".join(f"{count:>8}" for count in counts)


def read():
    """Return {(compiler, isa, kernel): counts}."""
    rows = [re.split(r"  +", text) for text in TABLE.read_text().splitlines()[2:]]
    return {tuple(row[:3]): [int(cell) for cell in row[3:]] for row in rows}


def main():
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        build(scratch)
        found = {
            (compiler, isa, kernel): counts
            for compiler in COMPILERS
            for isa in ISAS
            for kernel, counts in measure(scratch, compiler, isa).items()
        }
    table = [line("compiler", "isa", "kernel", *LENGTHS)]
    table += [line(*key, *counts) for key, counts in found.items()]
    print(*table, sep="\n")
    if sys.argv[1:] == ["--write"]:
        TABLE.write_text(HEAD + "\n".join(table) + "\n")
        return 0
    limits = read()
    worse = [
        f"{', '.join(key)}, rows of {n}: {count} instructions a row, {limit} in {TABLE.name}"
        for key, counts in found.items()
        for n, count, limit in zip(LENGTHS, counts, limits[key], strict=True)
        if count > MOST * limit
    ]
    print(*worse, sep="\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
