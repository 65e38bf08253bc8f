"""A planted fault: two threads write the same output at once. `race.py ISA`."""

import sys
import threading

import numpy as np

import fastrms
from fastrms import _core

_core.use_isa(sys.argv[1])
fastrms.set_num_threads(1)  # calls that took turns on the pool would be ordered by it
x = np.ones((64, 4096), np.float32)
out = np.empty_like(x)
gate = threading.Barrier(2)


def calls():
    """Call together many times: calls that do not overlap are ordered by the GIL, and no race."""
    for _ in range(20):
        gate.wait()
        fastrms.rms_norm(x, out=out)


pair = [threading.Thread(target=calls) for _ in "ab"]
for thread in pair:
    thread.start()
for thread in pair:
    thread.join()
