#!/usr/bin/env python
"""Check that the sdist is complete and the wheel reproducible, hardened and installable offline.

Needs the packages `build` and `trove-classifiers`; the C tools are binutils'.
"""

import email
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LITTER = (".pyx", ".pxi", ".pxd", ".c", ".h")
MOST_BYTES = 1_500_000
# libc alone: glibc's (before 2.34 libpthread was separate) or musl's.
LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libc.so"}
NOT_DELIVERED = (".ci/", ".github/", ".gitignore")


def main():
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tracked = run("git", "ls-files").splitlines()
        for name in tracked:  # without an earlier build's files, which setuptools would use
            (folder / "clean" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, folder / "clean" / name)
        run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, folder / "clean")
        (sdist,) = folder.glob("*.tar.gz")
        inspect_sdist(sdist, tracked)
        first = build_wheel(sdist, folder / "one")
        again = build_wheel(sdist, folder / "another" / "and deeper")
        digests = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in (first, again)]
        assert digests[0] == digests[1], digests
        print(f"two builds of the wheel in two folders: sha256 {digests[0]}")
        inspect_wheel(first)
        inspect_classifiers(first)
        install_offline(first, folder / "offline")
        refuse_older(first)


def run(*command, **more):
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def inspect_sdist(path, tracked):
    """Check that every tracked file is in it, for the tests and for the wheel."""
    with tarfile.open(path) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {name for name in tracked if not name.startswith(NOT_DELIVERED)}
    assert wanted <= held, f"the sdist lacks {sorted(wanted - held)}"
    print(f"sdist: all {len(wanted)} files")


def build_wheel(sdist, folder):
    """Unpack the sdist into the folder and build the wheel there."""
    folder.mkdir(parents=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    (tree,) = folder.iterdir()
    dated = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, tree, env=dated)
    (wheel,) = folder.glob("*.whl")
    return wheel


def inspect_wheel(path):
    """Check for no sources but the C interface, and for small, hardened extensions."""
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        names = wheel.namelist()
        wheel.extractall(folder)
        extensions = [Path(folder, name) for name in names if name.endswith(".so")]
        size = sum(file.stat().st_size for file in extensions)
        litter = [name for name in names if name.endswith(LITTER)]
        assert litter == ["fastrms/__init__.pxd", "fastrms/include/fastrms.h"], litter
        assert {"fastrms/py.typed", "fastrms/_core.pyi"} <= set(names), names
        assert len(extensions) >= 2, names
        assert size < MOST_BYTES, size
        needed = set().union(*map(inspect_extension, extensions))
    print(f"wheel: {len(names)} files; {len(extensions)} extensions of {size} bytes, hardened;")
    print(f"they need {', '.join(sorted(needed))}")


def inspect_extension(file):
    """Check full RELRO, no executable stack and no start-up code; return the libraries it needs."""
    dynamic = run("readelf", "-dW", file)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert needed <= LIBRARIES, f"{file.name} needs {needed}"
    assert "BIND_NOW" in dynamic, f"{file.name} binds lazily"
    for unwanted in ("TEXTREL", "RPATH", "RUNPATH"):
        assert unwanted not in dynamic, f"{file.name} has {unwanted}"
    segments = run("readelf", "-lW", file)
    assert "GNU_RELRO" in segments, f"{file.name} stays writable"
    assert re.search(r"GNU_STACK .* RW +0", segments), f"{file.name}: executable stack"
    # -ffast-math links code that sets flush-to-zero in the control word as soon as it is loaded.
    if "X86-64" not in run("readelf", "-h", file):
        return needed
    assembly = run("objdump", "-d", file)
    starts = re.search(r"\bor\w*\s+\$0x8040,", assembly)
    assert not starts, f"{file.name} has fast-math's start-up code"
    return needed


def inspect_classifiers(path):
    """Check that an index accepts them."""
    from trove_classifiers import classifiers  # not installed for gates that import this module

    with zipfile.ZipFile(path) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(wheel.read(name)).get_all("Classifier")
    assert set(said) <= classifiers, f"no classifier: {sorted(set(said) - classifiers)}"
    print(f"{len(said)} classifiers")


def install_offline(wheel, folder):
    """Install and import from wheels alone, in an empty network namespace where allowed."""
    run(sys.executable, "-m", "venv", folder)
    python, wheels = folder / "bin" / "python", folder / "wheels"
    run(python, "-m", "pip", "download", "--only-binary", ":all:", "-d", wheels, wheel)
    alone = ("unshare", "--map-root-user", "--net")
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        alone = ()
    pip = ("-m", "pip", "install", "--no-index", "--find-links", wheels, "fastrms")
    run(*alone, python, *pip, cwd=folder)
    run(*alone, python, "-c", "import fastrms", cwd=folder)
    print(f"installed and imported {'without a network' if alone else 'from local wheels alone'}")


def refuse_older(wheel):
    """Check that pip, by the metadata, refuses the wheel on a Python below 3.10."""
    pip = ("-m", "pip", "download", "--no-index", "--no-deps", "--only-binary", ":all:")
    older = ("--python-version", "3.9", "--abi", "none", "--platform", "any")
    named = re.sub("-cp.*", "-py3-none-any.whl", wheel.name)  # else pip refuses its tag
    shutil.copy(wheel, wheel.parent / named)
    command = [sys.executable, *pip, *older, "-d", wheel.parent, wheel.parent / named]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "not in '>=3.10'" in done.stderr, done.stderr
    print(done.stderr.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
