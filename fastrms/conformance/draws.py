"""Numbers that look random and are the same on every platform: integer arithmetic makes them.

A release of NumPy may change the bits of its random generators, and a libm those of exp.
"""

import numpy as np


def noise(shape, stream):
    """Return 32 well mixed bits for each element: a hash (lowbias32) of its index and a stream."""
    bits = np.arange(np.prod(shape), dtype=np.uint32) + np.uint32(stream * 0x1000003)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits ^= bits >> np.uint32(shift)
        bits *= np.uint32(factor)
    return (bits ^ (bits >> np.uint32(16))).reshape(shape)


def bell(shape, stream):
    """Return float32 values within (-4, 4) in a bell curve: exact sums of four 21-bit integers."""
    parts = (noise(shape, 4 * stream + part).view(np.int32) >> np.int32(11) for part in range(4))
    return sum(parts).astype(np.float32) * np.float32(2.0**-20)
