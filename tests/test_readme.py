"""The README's blocks run, and the docstrings' examples are right."""

import doctest
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrms
from fastrms.check import DX, dx_terms

from .signatures import MATRICES

TESTS = Path(__file__).parent
README = TESTS.parent / "README.md"
PUBLIC = [getattr(fastrms, name) for name in MATRICES]


def test_readme_blocks_run_in_order():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    *before, last = "".join(blocks).splitlines()
    names = {}
    exec("\n".join(before), names)
    # The last line adds dx to the skip path's gradient.
    skip, inputs = names["dout"].copy(), (names["dy"], names["h"], names["weight"])
    exec(last, names)
    dx, _ = fastrms.reference.rms_norm_backward(*inputs)
    bound = DX * dx_terms(*inputs, 1e-5) + np.spacing(np.abs(names["dh"])) / 2
    assert names["dh"] is names["dout"]
    assert np.all(np.abs(names["dh"] - (skip + dx)) <= bound)


def test_a_release_tells_its_address(tmp_path):
    """README links work without a checkout, and the metadata has URLs."""
    script = TESTS.parent / ".github" / "address.py"
    if not script.exists():
        pytest.skip("not in the sdist")
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(TESTS.parent / name, tmp_path)
    address = "https://example.org/a/fastrms"
    subprocess.run([sys.executable, script, address, "v1"], cwd=tmp_path, check=True)
    links = re.compile(r"\[[^]]*\]\(([^)]*)\)")
    before = links.findall(README.read_text("utf-8"))
    after = links.findall((tmp_path / README.name).read_text("utf-8"))
    assert before
    for old, new in zip(before, after, strict=True):
        assert new == (old if old.startswith(("https:", "#")) else f"{address}/blob/v1/{old}")
    metadata = (tmp_path / "pyproject.toml").read_text("utf-8")
    assert f'[project.urls]\nSource = "{address}"\n' in metadata


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_docstring_examples(function):
    runner = doctest.DocTestRunner()
    tests = doctest.DocTestFinder().find(function, function.__name__, module=False)
    for test in tests:
        runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0
