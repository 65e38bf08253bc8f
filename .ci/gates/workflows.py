#!/usr/bin/env python
"""Check .github: zizmor finds no fault (actions pinned to a commit, least permissions), and
cibuildwheel would build exactly the promised wheels.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from supply_chain import run

CHECKOUT = Path(__file__).resolve().parents[2]
WORKFLOWS = CHECKOUT / ".github" / "workflows"
PYTHONS = ("cp310", "cp311", "cp312", "cp313", "cp314", "cp314t", "cp315")
UNDER_QEMU = ("ppc64le", "riscv64", "s390x")
PLATFORMS = {  # cibuildwheel's platform and machine, and the identifiers' ends
    ("linux", "x86_64"): ("manylinux_x86_64", "musllinux_x86_64"),
    ("linux", "aarch64"): ("manylinux_aarch64", "musllinux_aarch64"),
    ("linux", "ppc64le"): ("manylinux_ppc64le",),
    ("linux", "riscv64"): ("manylinux_riscv64",),
    ("linux", "s390x"): ("manylinux_s390x",),
    ("macos", "arm64"): ("macosx_arm64",),
    ("macos", "x86_64"): ("macosx_x86_64",),
    ("windows", "AMD64"): ("win_amd64",),
    ("windows", "ARM64"): ("win_arm64",),
}


def main():
    with tempfile.TemporaryDirectory() as scratch:
        run(sys.executable, "-m", "venv", scratch)
        tools = Path(scratch) / "bin"
        version = pinned_cibuildwheel()
        run(tools / "pip", "install", "--quiet", f"cibuildwheel=={version}", "zizmor")
        run(tools / "zizmor", "--offline", "--no-progress", WORKFLOWS.parent)
        planted_fault(tools / "zizmor", Path(scratch) / "planted.yml")
        for (platform, machine), ends in PLATFORMS.items():
            pythons = ("cp314",) if machine in UNDER_QEMU else PYTHONS
            wanted = {f"{python}-{end}" for python in pythons for end in ends}
            wanted.discard("cp310-win_arm64")
            what = ("--print-build-identifiers", "--platform", platform, "--archs", machine)
            found = set(run(tools / "cibuildwheel", *what, CHECKOUT).split())
            assert found == wanted, f"{platform} {machine}: {sorted(found ^ wanted)}"
            print(f"cibuildwheel {version}, {platform} {machine}: {len(found)} wheels")


def pinned_cibuildwheel():
    """Return the version that wheels.yml installs."""
    _, _, rest = (WORKFLOWS / "wheels.yml").read_text().partition("cibuildwheel==")
    return rest.split()[0]


def planted_fault(zizmor, path):
    """Check that zizmor finds an action that is not pinned to a commit."""
    text = (WORKFLOWS / "tests.yml").read_text()
    start = text.index("actions/checkout@") + len("actions/checkout@")
    path.write_text(f"{text[:start]}v5{text[start + 40 :]}")
    done = subprocess.run([zizmor, "--offline", path], capture_output=True, text=True)
    assert "unpinned-uses" in done.stdout, done.stdout + done.stderr


if __name__ == "__main__":
    main()
