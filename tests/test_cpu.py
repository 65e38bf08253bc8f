"""The CPU features that cpuid reports, against those that Linux lists in /proc/cpuinfo."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from fastrms import _core

CPUINFO = Path("/proc/cpuinfo")
V3 = ["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm", "popcnt"]
V4 = [*V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]


@pytest.fixture(scope="module")
def cpu():
    """Return /proc/cpuinfo of an x86-64 CPU, in which Linux lists only flags that it supports."""
    entries = {}
    if CPUINFO.exists():
        for line in CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            entries.setdefault(name.strip(), value.strip())
    if "flags" not in entries:
        pytest.skip("only Linux on x86-64 lists CPU flags in /proc/cpuinfo")
    return entries


@pytest.mark.parametrize(("isa", "needs"), [("v3", V3), ("v4", V4)])
def test_available(cpu, isa, needs):
    if find_spec(f"fastrms._kernels_{isa}") is None:
        pytest.skip(f"this build has no kernels for {isa}")
    runs = set(needs) <= set(cpu["flags"].split())
    assert (isa in _core.available_isas()) == runs


def test_zen_4_takes_v4_for_backward_alone(cpu):
    if "v4" not in _core.available_isas():
        pytest.skip("this CPU has no AVX-512, or this build no kernels for it")
    zen4 = cpu["vendor_id"] == "AuthenticAMD" and cpu["cpu family"] == str(0x19)
    assert _core.preferred_isa() == ("v3+v4" if zen4 else "v4")


def test_fetches_on_intel(cpu):
    before = _core.set_caches(1, 1, False)
    _core.set_caches(*before)
    assert before[2] == (cpu["vendor_id"] == "GenuineIntel")
