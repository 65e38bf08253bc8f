"""Describe what a record was measured on: CPU, caches, memory (as far as known), and the commit."""

import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
SUFFIX = {"K": 2**10, "M": 2**20, "G": 2**30}


def describe():
    """Return the machine as the dict of the record's schema."""
    return {
        "cpu": cpu_name(),
        "cpus_usable": usable_cpus(),
        "caches": caches(),
        "memory_bytes": memory_bytes("MemTotal"),
        "system": platform.platform(),
    }


def commit():
    """Return the checkout's commit, with -dirty after changes; None if this is no checkout."""
    if not (ROOT / ".git").exists():  # a parent folder may be another project's checkout
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def usable_cpus():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def caches():
    """Return the data caches of the first CPU, the smallest first."""
    found = []
    for index in sorted(CACHES.glob("index*")):
        try:
            kind, level, size = (
                (index / name).read_text().strip() for name in ("type", "level", "size")
            )
            number = int(size[:-1]) * SUFFIX[size[-1]] if size[-1] in SUFFIX else int(size)
        except (OSError, ValueError, IndexError):
            continue
        if kind != "Instruction":
            found.append({"level": int(level), "bytes": number})
    return sorted(found, key=lambda cache: cache["level"])


def last_level_cache():
    return max((cache["bytes"] for cache in caches()), default=32 * 2**20)


def memory_bytes(entry):
    """Return one entry of /proc/meminfo in bytes, or None."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(entry + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
