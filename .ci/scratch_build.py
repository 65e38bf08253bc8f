"""Compile the extensions of a copy of the checkout, one by one, with other flags: for gates that
measure the suite itself. Cython's directives are those of setup.py.
"""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

CHECKOUT = Path(__file__).resolve().parents[1]
INCLUDES = ("src", "fastrms/include", sysconfig.get_paths()["include"], np.get_include())
MACROS = ("-DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION",)
# Results are the library's at any -O: only contraction could change them.
ALWAYS = ("-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-w")
# Without this an editable install would import the checkout's extensions, not the copy's.
ALONE = """import sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
"""


def copy(scratch):
    """Copy what the tests need to `scratch`, without compiled files; PYTHONPATH=scratch uses it."""
    (scratch / "sitecustomize.py").write_text(ALONE)
    for name in ("fastrms", "src", "tests"):
        litter = shutil.ignore_patterns("__pycache__", "*.so", ".hypothesis")
        shutil.copytree(CHECKOUT / name, scratch / name, ignore=litter)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(CHECKOUT / name, scratch)


def directives():
    """Return setup.py's Cython directives as command line options."""
    tree = ast.parse((CHECKOUT / "setup.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "DIRECTIVES":
            return [f"-X{name}={value}" for name, value in ast.literal_eval(node.value).items()]
    raise LookupError("setup.py has no DIRECTIVES")


def sources(root):
    """Return the Cython sources in src/ by file name, whatever folder they are in."""
    found = {}
    for path in sorted((root / "src").rglob("*.p*")):
        if path.suffix in (".pyx", ".pxi"):
            if path.name in found:
                raise LookupError(f"two sources have the same name: {found[path.name]}, {path}")
            found[path.name] = path
    return found


def included(files, module):
    """Return the names of MODULE.pyx and of every source that it includes."""
    names = [f"{module}.pyx"]
    for name in names:  # grows on the way
        inner = re.findall(r'^include "(?:[^"]*/)?([^"/]+)"', files[name].read_text(), re.MULTILINE)
        names += [other for other in inner if other not in names]
    return names


def functions(lines):
    """Return for each line of a source the function it belongs to, or "(module)"."""
    found, name = [], "(module)"
    for line in lines:
        if match := re.match(r"(?:c?def|cpdef)\b[^=(]*?(\w+)\(", line):
            name = match[1]
        elif line and not line.startswith((" ", ")")):
            name = "(module)"
        found.append(name)
    return found


def to_c(scratch, name):
    """Translate NAME.pyx and return the C file; raise CalledProcessError if Cython fails."""
    target = scratch / f"{name}.c"
    source = sources(scratch)[f"{name}.pyx"].relative_to(scratch)
    command = [sys.executable, "-m", "cython", *directives(), "--module-name", f"fastrms.{name}"]
    command += ["-I", "src", "-I", ".", "-o", str(target), str(source)]
    subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=120)
    return target


def compile_c(scratch, name, flags):
    """Compile NAME.c into the copy's package; raise CalledProcessError if the compiler fails."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    command = ["gcc", *ALWAYS, *flags, *MACROS, *(f"-I{path}" for path in INCLUDES)]
    command += [f"{name}.c", "-o", f"fastrms/{name}{suffix}", "-lm"]
    subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=300)


def reasons(path):
    """Return {entry: reason} of a list; the reason is the indented lines below the entry."""
    entries, entry = {}, None
    for line in path.read_text().splitlines():
        if line.startswith(" "):
            entries[entry] += f"{line.strip()} "
        elif line and not line.startswith("#"):
            entry, entries[line] = line, ""
    return entries
