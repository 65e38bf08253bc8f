"""The proven bounds of docs/numerics.md, on rows that were built to come near them."""

import numpy as np
import pytest

import fastrms
from fastrms import reference
from fastrms.check import FORWARD_ULP, FORWARD_ULP_UNWEIGHTED, ulps

# A tree of 8 squares whose roundings all go up, 3.9 u in all: found by hill climbing.
TREE = [
    float.fromhex(value)
    for value in (
        "0x1.4145f4p-2",
        "0x1.6c524cp-2",
        "0x1.013ac2p+1",
        "0x1.5a7b88p-2",
        "0x1.6ab8dap+1",
        "0x1.9f8a40p-2",
        "0x1.0023ccp+1",
        "0x1.3e7c54p-2",
    )
]


def _row(blocks, zeros):
    """Return a row whose 16 trees in each block are all that one; zeros set 1 / rms."""
    block = np.repeat(np.float32(TREE), 16)
    return np.concatenate([np.tile(block, blocks), np.zeros(128 * zeros, np.float32)])


@pytest.mark.parametrize(
    ("blocks", "zeros", "weight", "bound"),
    [
        (6, 65, None, FORWARD_ULP_UNWEIGHTED),
        (23, 26, float.fromhex("0x1.f7e54cp+0"), FORWARD_ULP),
    ],
)
def test_a_row_built_against_a_sum_in_float32(isa, blocks, zeros, weight, bound):
    x = _row(blocks, zeros)
    weight = None if weight is None else np.full(x.size, weight, np.float32)
    assert ulps(fastrms.rms_norm(x, weight, 0.0), reference.rms_norm(x, weight, 0.0)) <= bound
