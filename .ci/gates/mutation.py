#!/usr/bin/env python3
"""Change one operator or constant of the kernels or the door: the tests must fail.

Tries 12 mutants, chosen by a hash of their keys; all with FULL=1; with a commit, as in `mutation.py
main`, those on lines changed since. Only the baseline is built, so that no test compares a mutant
with unchanged kernels. A mutant that hangs or crashes is dead. Mutants that change no promised
result are listed in survivors.txt, each with a reason; only FULL=1 tries them, because a survivor
takes every test.
"""

import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import tokenize
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import scratch_build

FULL = os.environ.get("FULL") == "1"
SAMPLE, JOBS, LEAST = 12, 2, 0.95
CPU_SECONDS, SECONDS = 100, 600  # for tests that take 25 s: a busy machine kills no mutant
# The quick tests first; the rest for mutants that survive those.
KERNEL = (
    ("special", "range", "double"),
    ("order", "split", "overlap", "layout", "fuzz", "accuracy", "bits", "dtypes"),
)
DOOR = (
    ("contract", "buffers", "overlap", "dtype_contract", "dtype_weights"),
    ("split", "layout", "segments", "fuzz", "special", "threads", "bits", "c_api", "c_interface",
     "dtype_layout", "dtypes"),
)  # fmt: skip
CALLERS = {"c_api.pxi": (("c_interface",), ("c_api",)), "c_any.pxi": (("c_any",),)}
# Block sizes and the choice of an instruction set affect speed, not results.
LEFT_OUT = ("tuning.pxi", "isa.pxi")
FLAGS = {"_kernels_baseline": ["-O1"], "_core": ["-O1", "-pthread"]}
SURVIVORS = Path(__file__).with_name("survivors.txt")
SWAPS = {
    "+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "//", "+=": "-=", "-=": "+=",
    "*=": "+=", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&": "|",
    "and": "or", "or": "and", "not": "", "True": "False", "False": "True", "min": "max",
    "max": "min",
}  # fmt: skip
TYPES = {
    "const",
    "double",
    "float",
    "int",
    "char",
    "void",
    "Py_ssize_t",
    "size_t",
    "ptrdiff_t",
    "Job",
    "Axis",
    "GradientSums",
    "Kinds",
    "Row",
    "Row64",
    "Stage",
    "RowSums",
    "Lanes",
    "Plan",
    "Bounds",
    "vec",
    "wide",
    "Table",
}
# Lines that affect speed, not results: prefetches and fences; the sizes from which a call streams,
# aligns, uses threads or releases the GIL; the rows of a batch; the pieces between two checks for
# signals; the floats of a loop step. Also an empty tail, and a vector that is overwritten before it
# is read.
SPEED = re.compile(
    r"fetch|ahead|stream_fence|n >= 256|n >= 3 |job.batch|pairs|RELEASE_GIL|parallel_from|"
    r"PIECE|piece|tune\(|BLOCKS_A_THREAD|brief|if i < n:|= splat\(0\)|LANES <= end"
)
# Exactly at the border of a range both ways to compute are right.
BORDER = re.compile(r"SMALL_|LARGE_|_WEIGHT")
NOT_CODE = re.compile(
    r"\s*(cdef (extern|inline|enum|struct)\b.*:|cdef [^=]*$|.*\) except -1|include|c?import|from|"
    r"\w+ = \d+ *#|return 0$|double PyFloat)"
)


class Mutant(NamedTuple):
    file: str
    line: int
    start: int
    end: int
    new: str
    text: str
    key: str  # function: tokens -> tokens

    def changed(self):
        return f"{self.text[: self.start]}{self.new}{self.text[self.end :]}"


@cache
def judges():
    """Return for each source file its module and the tests that judge it."""
    files = scratch_build.sources(scratch_build.CHECKOUT)
    found = {}
    for module, tests in (("_kernels_baseline", KERNEL), ("_core", DOOR)):
        for file in scratch_build.included(files, module):
            if file not in LEFT_OUT:
                found[file] = module, CALLERS.get(file, tests)
    return found


def mutants(file):
    """Yield every mutant of a source file, in its order; equal keys are numbered from (2) on."""
    source = scratch_build.sources(scratch_build.CHECKOUT)[file].read_text()
    lines = source.splitlines()
    functions = scratch_build.functions(lines)
    tokens, seen = list(tokenize.generate_tokens(io.StringIO(source).readline)), Counter()
    for k, (before, token, after) in enumerate(zip(tokens, tokens[1:], tokens[2:], strict=False)):
        new = replacement(before, token, after)
        if new is None:
            continue
        row, text = token.start[0] - 1, token.line.rstrip("\n")
        border = token.string in ("<", "<=", ">") and BORDER.search(text)
        if border or SPEED.search(text) or signature(lines, row):
            continue
        key = f"{functions[row]}: {change(tokens, k + 1, new)}"
        seen[key] += 1
        key += f" ({seen[key]})" if seen[key] > 1 else ""
        yield Mutant(file, row + 1, token.start[1], token.end[1], new, text, key)


def change(tokens, k, new):
    """Return `old -> new` for token k, each with the nearest tokens of its statement around it."""
    left, right = nearest(reversed(tokens[:k]), 4)[::-1], nearest(tokens[k + 1 :], 3)
    old = tokens[k]
    return " -> ".join(
        joined([*left, old._replace(string=string), *right]) for string in (old.string, new)
    )


def nearest(tokens, count):
    """Return the first tokens of the same statement, and the rest of a dotted name."""
    found = []
    for token in tokens:
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            break
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        if len(found) >= count and "." not in (token.string, found[-1].string):
            break
        found.append(token)
    return found


def joined(tokens):
    """Return tokens as text, with a space where the source has a space or a new line."""
    text = ""
    for before, token in zip([None, *tokens], tokens, strict=False):
        apart = before is not None and before.end != token.start
        text += f" {token.string}" if apart and not text.endswith(("(", "[")) else token.string
    return " ".join(text.split())


def signature(lines, row):
    """Return whether a line only declares: types and default arguments."""
    if NOT_CODE.match(lines[row]):
        return True
    while row and not lines[row].startswith(("cdef", "def")) and lines[row].startswith(" " * 9):
        row -= 1  # of a signature on several lines
    return bool(re.match(r"(cdef|def) .*\(", lines[row])) and " = " not in lines[row]


def replacement(before, token, after):
    """Return what a token becomes, or None if it stays."""
    if token.type == tokenize.NUMBER:
        if re.fullmatch(r"\d+", token.string):
            return str(int(token.string) + 1)
        return None if token.string == "0.0" else f"(2 * {token.string})"
    if token.string not in SWAPS:
        return None
    if before.string in TYPES or (token.string == ">" and before.string == "*"):
        return None  # of a cast
    if token.string in "<>" and {before.string, after.string} & TYPES:
        return None
    if token.string == "&" and not before.string[-1:].isalnum():
        return None  # an address
    return SWAPS[token.string]


def run(folder, mutant):
    """Return whether a mutant is dead, survives, or does not compile."""
    scratch = Path(folder)
    module, tests = judges()[mutant.file]
    path = scratch_build.sources(scratch)[mutant.file]
    source = path.read_text()
    lines = source.splitlines()
    lines[mutant.line - 1] = mutant.changed()
    path.write_text("\n".join(lines) + "\n")
    try:
        build(scratch, module)
    except subprocess.SubprocessError:
        return "invalid"
    finally:
        path.write_text(source)
    return "dead" if any(fails(scratch, stage) for stage in tests) else "survives"


def fails(scratch, tests):
    """Return whether any of these test files fails, crashes or hangs."""
    command = ["bash", "-c", f'ulimit -t {CPU_SECONDS}; exec "$@"', "tests"]
    command += [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["--hypothesis-profile=mutants", *(f"tests/test_{name}.py" for name in tests)]
    environment = {**os.environ, "PYTHONPATH": str(scratch)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        done = subprocess.run(command, cwd=scratch, env=environment, timeout=SECONDS, **quiet)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def control():
    """Exit unless the tests pass on the unchanged source."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        scratch_build.copy(scratch)
        for module in FLAGS:
            build(scratch, module)
        kernel, door = ({name for stage in stages for name in stage} for stages in (KERNEL, DOOR))
        if any(fails(scratch, tests) for tests in (kernel, door - kernel)):
            sys.exit("mutation: the tests fail on the unchanged source")


def work(share):
    """Return the outcomes of a share of the mutants, in one scratch copy."""
    outcomes, built = [], ""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        scratch_build.copy(scratch)
        for mutant in share:
            module, _ = judges()[mutant.file]
            for name in FLAGS if built != module else ():  # undo the last mutant
                build(scratch, name)
            built = module
            outcomes.append((mutant, run(scratch, mutant)))
            print(f"{outcomes[-1][1]:9}{mutant.key}", file=sys.stderr, flush=True)
    return outcomes


def build(scratch, module):
    scratch_build.to_c(scratch, module)
    scratch_build.compile_c(scratch, module, FLAGS[module])


def chosen(known):
    """Return all mutants, and those to run: all with FULL=1, else those not in survivors.txt, on
    changed lines or, without a commit, with the smallest hashes.

    Hashes keep the sample as it is where a change of the source leaves its keys alone.
    """
    files = judges()
    every = [mutant for file in files for mutant in mutants(file)]
    if stale := gone(known, every):
        sys.exit("\n".join(f"mutation: {line}" for line in stale))
    if FULL:
        return every, every
    keys = {mutant.key: mutant for mutant in every}
    digests = {hashlib.sha256(key.encode()).digest(): keys[key] for key in keys.keys() - known}
    sample = [digests[digest] for digest in sorted(digests)]
    if sys.argv[1:]:
        lines = changed_lines(sys.argv[1])
        sample = [mutant for mutant in sample if (mutant.file, mutant.line) in lines]
        if others := sorted({file for file, _ in lines} - files.keys()):
            print(f"mutation: no mutants of {', '.join(others)}", file=sys.stderr)
    else:
        sample = sample[:SAMPLE]
    return every, sorted(sample, key=lambda mutant: files[mutant.file][0])


def gone(known, every):
    """Return a line for each survivor, and each part of SPEED and BORDER, that fits no source."""
    keys = {mutant.key for mutant in every}
    lines = [
        f"no mutant has the key of this entry of {SURVIVORS.name}: {key}"
        for key in sorted(known - keys)
    ]
    files = scratch_build.sources(scratch_build.CHECKOUT)
    text = "\n".join(files[file].read_text() for file in judges())
    for name, pattern in (("SPEED", SPEED), ("BORDER", BORDER)):
        parts = [part for part in pattern.pattern.split("|") if not re.search(part, text)]
        lines += [f"no source has a line for this part of {name}: {part}" for part in parts]
    return lines


def changed_lines(commit):
    """Return the file and number of each line of src/ that is not in a commit."""
    command = ["git", "diff", "--unified=0", "--no-prefix", "--find-renames", "--relative=src"]
    diff = subprocess.run(
        [*command, commit],
        cwd=scratch_build.CHECKOUT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    lines, file = set(), ""
    for line in diff.splitlines():
        if match := re.match(r"\+\+\+ (.*)", line):
            file = Path(match[1]).name
        elif match := re.match(r"@@ .* \+(\d+),?(\d*) @@", line):
            first, count = int(match[1]), int(match[2] or 1)
            lines |= {(file, number) for number in range(first, first + count)}
    return lines


def main():
    start = time.monotonic()
    known = scratch_build.reasons(SURVIVORS)
    every, share = chosen(known.keys())
    control()
    with ThreadPoolExecutor(JOBS) as pool:
        parts = pool.map(work, [share[job::JOBS] for job in range(JOBS)])
        outcomes = [pair for part in parts for pair in part]
    keys = {
        kind: [mutant.key for mutant, outcome in outcomes if outcome == kind]
        for kind in ("dead", "survives", "invalid")
    }
    dead, explained = len(keys["dead"]), known.keys() & set(keys["survives"])
    for key in sorted(set(keys["survives"]) - explained):
        print(f"mutation: survives: {key}")
    for key in sorted(known.keys() & set(keys["dead"])):
        print(f"mutation: dead, though in {SURVIVORS.name}: {key}")
    judged = dead + len(set(keys["survives"]) - explained)
    print(
        f"mutation: {dead} of {judged} killed ({100 * dead / max(1, judged):.1f} %), and "
        f"{len(explained)} listed as changing no result; {len(share)} of {len(every)} tried, "
        f"{len(keys['invalid'])} do not compile ({time.monotonic() - start:.0f} s)"
    )
    return dead < LEAST * judged


if __name__ == "__main__":
    sys.exit(main())
