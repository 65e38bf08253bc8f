"""The README's Python blocks run, and the docstrings' examples are true."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

import fastrms

README = Path(__file__).parents[1] / "README.md"
PUBLIC = [fastrms.rms_norm, fastrms.rms_norm_backward, fastrms.add_rms_norm, fastrms.residual_add]


def test_readme_blocks_run_in_order():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    # The last block is a residual block's backward: the skip gradient of ones, and dx on top.
    dx, _ = fastrms.reference.rms_norm_backward(names["dh"], names["residual"], names["weight"])
    np.testing.assert_allclose(names["dskip"], 1 + dx, rtol=0, atol=2e-6)


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_docstring_examples(function):
    runner = doctest.DocTestRunner()
    tests = doctest.DocTestFinder().find(function, function.__name__, module=False)
    for test in tests:
        runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0
