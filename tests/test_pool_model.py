"""The model of the pool's protocol: every state is valid, and each planted fault is found."""

import pytest

from .pool_model import CASES, FAULTS, explore


@pytest.mark.parametrize("case", CASES)
def test_protocol(case):
    assert explore(*CASES[case]) > 10_000


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found(fault):
    with pytest.raises(AssertionError):
        explore(*CASES["one worker more than the second call wants"], fault)
