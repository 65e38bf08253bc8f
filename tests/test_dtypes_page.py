"""docs/dtypes.md: its blocks run, and the calls of its table give the dtypes that it states."""

import re
from pathlib import Path

import numpy as np
import pytest

import fastrms

from .dtypes import dtype_of

PAGE = (Path(__file__).parent.parent / "docs" / "dtypes.md").read_text("utf-8")
ROWS = re.findall(r"^\| (`\w+\(.*?) \| float\d+ \| (.*?) \|$", PAGE, re.MULTILINE)
NAMES = {"bf16": "bfloat16", "16": "float16", "32": "float32", "64": "float64"}


def test_blocks_run():
    dtype_of("bfloat16")  # skips where it is missing
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "dtypes.md", "exec"), names)


@pytest.mark.parametrize(("calls", "stated"), ROWS, ids=[row[0] for row in ROWS])
def test_the_table(calls, stated):
    for call in re.findall("`(.*?)`", calls):
        arrays = {
            name: np.ones(8 if "w" in name else (3, 8), dtype_of(NAMES[bits]))
            for name, bits in re.findall(r"\b([a-z]*?(bf16|16|32|64))\b", call)
        }
        found = eval(call, vars(fastrms) | arrays)
        found = found if isinstance(found, tuple) else (found,)
        wanted = re.findall(r"(?:float|bfloat)\d+", stated)
        names = [array.dtype.name for array in found]
        names += [array.dtype.name for name, array in arrays.items() if "residual" in name]
        assert names == wanted


def test_the_table_is_found():
    assert len(ROWS) == 12
