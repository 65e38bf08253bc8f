#!/usr/bin/env python3
"""Find lines and branches of the door and the kernels that no test runs and no reason explains.

gcov counts lines of C, built without inlining; Cython's comments map them to the source. A branch
is a condition of the source, not one of the error checks that Cython adds after each call. The gate
fails on a line that uncovered.txt does not explain, and on an entry whose line is gone.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import scratch_build

MODULES = {"_core": ["-pthread", "-fprofile-update=atomic"], "_kernels_baseline": []}
FLAGS = ["-O1", "-fno-inline", "--coverage"]
TESTS = ("contract", "buffers", "protocols", "overlap", "layout", "special", "range", "accuracy")
TESTS += ("bits", "segments", "split", "memory", "threads", "fuzz", "c_api", "c_interface", "c_any")
TESTS += ("dtypes", "dtype_contract", "dtype_layout", "dtype_weights", "double")
REASONS = Path(__file__).with_name("uncovered.txt")
POSITION = re.compile(r'\s*/\* "(?:[^"]*/)?([^"/]+)":(\d+)$')
# The C that Cython writes for a condition of the source.
CONDITION = re.compile(r"\s*(\} else )?if \(\(?!?__pyx_t_\d+\)?\) \{|\s*(while|for) \(")


def positions(c_file):
    """Yield for each line of C its number, its text, and the source file and line it comes from."""
    place, comment = None, False
    for number, text in enumerate(c_file.read_text().splitlines(), 1):
        match = POSITION.match(text)
        if match:
            place, comment = (match[1], int(match[2])), True
        elif comment:
            comment = not text.endswith("*/")
        elif text.startswith("}") or "/* function exit code */" in text:
            place = None
        elif place:
            yield number, text, place


def counts(scratch, module):
    """Return gcov's entries for the lines of a module's C file, by number."""
    data = next(scratch.glob(f"fastrms/{module}.*.gcda"))
    command = ["gcov", "--json-format", "--branch-probabilities", "--stdout", str(data)]
    out = subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True).stdout
    files = {file["file"]: file["lines"] for file in json.loads(out)["files"]}
    return {line["line_number"]: line for line in files[f"{module}.c"]}


def measure(scratch, module):
    """Return how often each source line ran, and how often each way of its branches."""
    seen, lines, branches = counts(scratch, module), defaultdict(int), defaultdict(list)
    texts = source_lines(scratch)
    for number, text, place in positions(scratch / f"{module}.c"):
        if number not in seen or place[0] not in texts:
            continue
        lines[place] = max(lines[place], seen[number]["count"])
        if CONDITION.match(text) and len(seen[number]["branches"]) == 2:
            branches[place].append([way["count"] for way in seen[number]["branches"]])
    for file, line in list(branches):
        if texts[file][line - 1].lstrip().startswith(("def ", "except")):
            del branches[file, line]  # how arguments are parsed, and which exception
    return lines, branches


def source_lines(root):
    """Return the lines of each Cython source, by file name."""
    files = scratch_build.sources(root)
    return {name: path.read_text().splitlines() for name, path in files.items()}


def places(texts):
    """Return the function and the code of each line, by file name and number."""
    found = {}
    for file, lines in texts.items():
        for number, function in enumerate(scratch_build.functions(lines), 1):
            code = re.sub(r"\s\s+# .*", "", lines[number - 1])
            found[file, number] = function, code.strip()
    return found


def uncovered(scratch, lines, branches):
    """Yield `function: what: code` for each line never run and each branch half run."""
    named = places(source_lines(scratch))
    for place, count in sorted(lines.items()):
        ways, (function, code) = branches.get(place, []), named[place]
        if not count:
            what = "never run"
        elif any(0 in pair and sum(pair) for pair in ways):
            what = "one way only"
        else:
            continue
        yield f"{function}: {what}: {code}"


def main():
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        scratch_build.copy(scratch)
        for module, flags in MODULES.items():
            scratch_build.to_c(scratch, module)
            scratch_build.compile_c(scratch, module, [*FLAGS, *flags])
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"tests/test_{name}.py" for name in TESTS]
        environment = {**os.environ, "PYTHONPATH": folder}
        subprocess.run(command, cwd=scratch, env=environment, check=True, stdout=sys.stderr)
        found = []
        for module in MODULES:
            lines, branches = measure(scratch, module)
            found += uncovered(scratch, lines, branches)
            run = sum(count > 0 for count in lines.values())
            ways = [count for pairs in branches.values() for pair in pairs for count in pair]
            taken = sum(count > 0 for count in ways)
            print(
                f"coverage: {module}: {run} of {len(lines)} lines "
                f"({100 * run / len(lines):.1f} %), {taken} of {len(ways)} branches "
                f"({100 * taken / len(ways):.1f} %)"
            )
    return judge(set(found), scratch_build.reasons(REASONS))


def judge(found, known):
    """Print what is wrong with the list; return whether anything is.

    An entry whose line is covered may stay: with torch, or on an older CPU, other lines run.
    """
    wrong = [f"not covered, and no reason in {REASONS.name}: {e}" for e in found - known.keys()]
    named = set(places(source_lines(scratch_build.CHECKOUT)).values())
    for entry, reason in known.items():
        function, _, code = entry.split(": ", 2)
        if (function, code) not in named:
            known_here = function in {name for name, _ in named}
            gone = f"this line of {function}" if known_here else f"the function {function}"
            wrong.append(f"{gone} is gone: change or drop the entry in {REASONS.name}: {entry}")
        if not reason:
            wrong.append(f"{REASONS.name} gives no reason: {entry}")
    for line in sorted(wrong):
        print(f"coverage: {line}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
