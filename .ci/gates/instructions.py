#!/usr/bin/env python3
"""Count instructions a row and a call with callgrind. Counts need no clock, so a loop that became
scalar or a costly check fails on any machine. Counted are each kernel, by gcc and by clang, on the
instruction sets that valgrind has (no AVX-512), and the door's part of a call of 1 x 64.

    .ci/gates/instructions.py            compare with instructions.txt: 10 % more at most, 3 a call
    .ci/gates/instructions.py --write    write instructions.txt anew
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
    "# Instructions a row, by row length, and those of the door in a call.\n"
    "# `.ci/gates/instructions.py --write` makes this table.\n"
)
COMPILERS, ISAS = ("gcc", "clang"), ("baseline", "v3")
# Counts are equal from run to run; another release of a compiler may differ a little. A call's part
# is small, and grows by a test here and there: that a float32 call does not pay for other dtypes.
MOST = {**dict.fromkeys(LENGTHS, 1.10), "a call": 1.03}


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
    totals, door = {}, {}
    for path in out.glob("count.*"):
        text = path.read_text()
        found = re.search(r"Client Request: (.+), (\d+), (\d+)\n.*\ntotals: (\d+)", text, re.S)
        if found and found[3] == "1":
            door[found[1]] = within(text, "_core.")
        elif found:
            totals[found[1], int(found[2]), int(found[3])] = int(found[4])
    few, many = ROWS
    return {
        kernel: [
            *(
                round((totals[kernel, n, many] - totals[kernel, n, few]) / (many - few))
                for n in LENGTHS
            ),
            door[kernel],
        ]
        for kernel in ("forward", "add + norm", "backward", "residual add")
    }


def within(text, library):
    """Return how many instructions of callgrind's file ran in a library itself, not in callees."""
    names, inside, called, total = {}, False, False, 0
    for line in text.splitlines():
        found = re.match(r"(c?ob)=(\(\d+\))(?: (.+))?", line)
        if found:
            names.setdefault(found[2], found[3])
            if found[1] == "ob":
                inside = library in names[found[2]]
        elif line.startswith("calls="):
            called = True  # the next line has the callee's count
        elif re.match(r"[+*\d-]", line):
            total += int(line.split()[1]) if inside and not called else 0
            called = False
    return total


def line(*cells):
    what, counts = cells[:3], cells[3:]
    return "{:<10}{:<10}{:<14}".format(*what) + "".join(f"{count:>8}" for count in counts)


def read():
    """Return {(compiler, isa, kernel): counts}."""
    rows = [re.split(r"  +", text) for text in TABLE.read_text().splitlines()[3:]]
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
    columns = (*LENGTHS, "a call")
    table = [line("compiler", "isa", "kernel", *columns)]
    table += [line(*key, *counts) for key, counts in found.items()]
    print(*table, sep="\n")
    if sys.argv[1:] == ["--write"]:
        TABLE.write_text(HEAD + "\n".join(table) + "\n")
        return 0
    limits = read()
    worse = [
        f"{', '.join(key)}, {column}: {count} instructions, {limit} in {TABLE.name}"
        for key, counts in found.items()
        for column, count, limit in zip(columns, counts, limits[key], strict=True)
        if count > MOST[column] * limit
    ]
    print(*worse, sep="\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
