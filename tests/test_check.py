"""`fastrms check`: every bound holds on this machine, and a result that breaks one is reported."""

import numpy as np
import pytest

import fastrms
from fastrms import _core, check, reference


@pytest.fixture
def report(monkeypatch, capsys):
    """Return a function that runs a small check and returns its exit code and its output."""
    monkeypatch.setattr(check, "SHAPES", ((3, 7), (5, 129)))

    def run():
        return check.run(), capsys.readouterr().out

    return run


def test_every_bound_holds(report):
    before = _core.current(), fastrms.get_num_threads()
    code, text = report()
    assert code == 0
    assert text.endswith("; every bound holds\n")
    measures = [line[:12].rstrip() for line in text.splitlines()[2:-1]]
    assert measures == list(check.MEASURES)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert (_core.current(), fastrms.get_num_threads()) == before


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e-3])
@pytest.mark.parametrize("function", sorted({*vars(reference)} & {*fastrms.__all__}))
def test_one_wrong_element_is_reported(report, monkeypatch, function, wrong):
    real = getattr(fastrms, function)

    def spoilt(*args, **kwargs):
        result = real(*args, **kwargs)
        first = result[0] if isinstance(result, tuple) else result
        first.flat[-1] += wrong * (1 + abs(first.flat[-1]))
        return result

    monkeypatch.setattr(fastrms, function, spoilt)
    code, text = report()
    assert code == 1
    assert text.endswith(" broken\n")
