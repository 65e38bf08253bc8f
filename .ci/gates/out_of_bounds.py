"""A planted fault: a call on an array that claims more floats than its memory holds.

`out_of_bounds.py ISA read|write`. No library can detect the wrong shape, so the kernel runs past
the end of the memory; sanitizers and valgrind must report that and name the kernel.
"""

import sys

import numpy as np
from numpy.lib.stride_tricks import as_strided

import fastrms
from fastrms import _core

isa, what = sys.argv[1:]
_core.use_isa(isa)
false = as_strided(np.ones(1000, np.float32), (1, 1008))
if what == "read":
    fastrms.rms_norm(false)
else:
    fastrms.rms_norm(np.ones((1, 1008), np.float32), out=false)
