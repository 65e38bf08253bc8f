#!/usr/bin/env python3
"""Build and test on Linux the pool over condition variables, which a Mac uses: the tests of pool,
threads and forks, and under ThreadSanitizer those that call from several threads.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import scratch_build

FLAGS = ["-O2", "-pthread", "-DFASTRMS_CONDITION"]
TESTS = ("pool", "threads", "processes", "memory", "interrupt")
UNDER_TSAN = ("threads",)


def build(scratch, *flags):
    for module in ("_core", "_kernels_baseline"):
        scratch_build.to_c(scratch, module)
        scratch_build.compile_c(scratch, module, [*FLAGS, *flags])


def run(scratch, tests, prefix=(), **environment):
    """Run test files; return pytest's last line, or exit with its output."""
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/test_{name}.py" for name in tests]
    environment = {**os.environ, "PYTHONPATH": str(scratch), **environment}
    done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
    reports = "".join(path.read_text() for path in scratch.glob("report.*"))
    if done.returncode or reports:
        sys.exit(f"{done.stdout}{done.stderr}{reports}")
    return done.stdout.splitlines()[-1]


def main():
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        scratch_build.copy(scratch)
        build(scratch)
        code = "import fastrms; print(fastrms.show_config('dicts')['threads']['pool'])"
        command = [sys.executable, "-c", code]
        environment = {**os.environ, "PYTHONPATH": folder}
        pool = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
        assert pool.stdout == "condition variable\n", pool
        print(f"conditions: {run(scratch, TESTS)}")
        build(scratch, "-g1", "-fsanitize=thread")
        libraries = [find("libtsan.so"), find("libstdc++.so")]  # see sanitizers
        result = run(
            scratch,
            UNDER_TSAN,
            ("setarch", "-R", "env", f"LD_PRELOAD={' '.join(libraries)}"),
            PYTHONMALLOC="malloc",
            TSAN_OPTIONS=f"log_path={scratch / 'report'}",
            PYTEST_ADDOPTS="-k 'not (caches or pieces or long_rows)'",
        )
        print(f"conditions, under TSan: {result}")


def find(library):
    command = ["gcc", f"-print-file-name={library}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
