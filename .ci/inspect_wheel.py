"""Look into a wheel: no sources, a small size, no fast-math start-up code, hardened extensions."""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LITTER = (".pyx", ".pxi", ".pxd", ".c", ".h")
MOST_BYTES = 1_500_000
LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libgomp.so.1", "ld-linux-x86-64.so.2"}


def main(path):
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        names = wheel.namelist()
        wheel.extractall(folder)
        extensions = [Path(folder, name) for name in names if name.endswith(".so")]
        size = sum(file.stat().st_size for file in extensions)
        print(f"{len(names)} files, {len(extensions)} extensions of {size} bytes")
        assert not [name for name in names if name.endswith(LITTER)], names
        assert "fastrms/py.typed" in names
        assert "fastrms/_core.pyi" in names
        assert len(extensions) >= 2
        assert size < MOST_BYTES
        for file in extensions:
            inspect(file)


def inspect(file):
    """No flush-to-zero start-up object, no surprising library, relocations read-only."""
    dynamic = subprocess.check_output(["readelf", "-dW", file], text=True)
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert needed <= LIBRARIES, needed
    assert "TEXTREL" not in dynamic
    assert "BIND_NOW" in dynamic or "NOW" in dynamic
    assembly = subprocess.check_output(["objdump", "-d", file], text=True)
    # crtfastmath's `or` of flush-to-zero and denormals-are-zero: the door's ldmxcsr has none.
    assert not re.search(r"\bor.*\$0x8040\b", assembly), f"{file.name} flushes to zero"
    if not file.name.startswith("_core"):
        assert "ldmxcsr" not in assembly, f"{file.name} changes the floating-point state"


if __name__ == "__main__":
    main(sys.argv[1])
