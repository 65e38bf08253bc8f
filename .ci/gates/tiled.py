"""Large arrays in little memory: one small memfd, mapped many times side by side."""

import ctypes
import mmap
import os

import numpy as np

PAGE = mmap.PAGESIZE
MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _map(address, size, protection, flags, file=-1):
    found = libc.mmap(address, size, protection, flags, file, 0)
    if found == ctypes.c_void_p(-1).value or address not in (None, found):
        raise OSError(ctypes.get_errno(), f"mmap of {size} bytes")
    return found


class Region:
    """Address space that has memory only where `tile` and `place` map memfds."""

    def __init__(self, size):
        self.size = -(-size // PAGE) * PAGE
        self.address = _map(None, self.size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANON | MAP_NORESERVE)

    def place(self, offset, size, file=None):
        """Map whole pages [offset, offset + size) to the start of a memfd, by default a new one."""
        own = os.memfd_create("tile") if file is None else file
        os.ftruncate(own, max(size, os.fstat(own).st_size))
        access = mmap.PROT_READ | mmap.PROT_WRITE
        _map(self.address + offset, size, access, mmap.MAP_SHARED | MAP_FIXED, own)
        if file is None:
            os.close(own)

    def tile(self, size):
        """Fill the region with repeated mappings of one memfd of this size."""
        file = os.memfd_create("tile")
        os.ftruncate(file, size)
        for offset in range(0, self.size, size):
            self.place(offset, min(size, self.size - offset), file)
        os.close(file)
        return self

    def floats(self):
        return np.frombuffer((ctypes.c_char * self.size).from_address(self.address), np.float32)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        libc.munmap(self.address, self.size)


def memory():
    """Return this process's share of the machine's memory, page tables included, in bytes.

    RSS would count a page of a memfd as often as it is mapped.
    """
    with open("/proc/self/smaps_rollup") as file:
        pss = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    with open("/proc/self/status") as file:
        tables = next(int(line.split()[1]) for line in file if line.startswith("VmPTE:"))
    return (pss + tables) << 10
