"""A planted fault: two threads write the same output at once. `race.py ISA`."""

import sys
import threading

import numpy as np

import fastrms
from fastrms import _core

_core.use_isa(sys.argv[1])
x = np.ones((64, 4096), np.float32)
out = np.empty_like(x)
pair = [threading.Thread(target=fastrms.rms_norm, args=(x,), kwargs={"out": out}) for _ in "ab"]
for thread in pair:
    thread.start()
for thread in pair:
    thread.join()
