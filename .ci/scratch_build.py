"""A copy of the checkout whose extensions are compiled one by one with other flags: for the gates
that measure the suite itself. Cython's directives are those of setup.py.
"""

import ast
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

CHECKOUT = Path(__file__).resolve().parents[1]
INCLUDES = ("src", "fastrms/include", sysconfig.get_paths()["include"], np.get_include())
MACROS = ("-DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION",)
# The numbers are the library's at any -O: contraction is all that could change them.
ALWAYS = ("-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-w")
# An editable install would offer the checkout's extensions beside the copy's.
ALONE = """import sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
"""


def copy(scratch):
    """Copy what the tests need to `scratch`, without compiled files; PYTHONPATH selects it."""
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


def to_c(scratch, name):
    """Translate src/NAME.pyx, and return the C file; CalledProcessError if Cython refuses it."""
    target = scratch / f"{name}.c"
    command = [sys.executable, "-m", "cython", *directives(), "--module-name", f"fastrms.{name}"]
    command += ["-I", "src", "-I", ".", "-o", str(target), f"src/{name}.pyx"]
    subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=120)
    return target


def compile_c(scratch, name, flags):
    """Compile NAME.c into the copy's package; CalledProcessError if the compiler refuses it."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    command = ["gcc", *ALWAYS, *flags, *MACROS, *(f"-I{path}" for path in INCLUDES)]
    command += [f"{name}.c", "-o", f"fastrms/{name}{suffix}", "-lm"]
    subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=300)


def reasons(path):
    """Return a list's entries, each with its reason: the indented lines below it."""
    entries, entry = {}, None
    for line in path.read_text().splitlines():
        if line.startswith(" "):
            entries[entry] += f"{line.strip()} "
        elif line and not line.startswith("#"):
            entry, entries[line] = line, ""
    return entries
