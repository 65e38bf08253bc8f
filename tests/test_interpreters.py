"""A second interpreter cannot import the extension, and the first one keeps working.

The state of the extension (settings, kernels, threads) is global; NumPy supports one interpreter.
"""

from importlib.util import find_spec

MODULE = "_interpreters" if find_spec("_interpreters") else "_xxsubinterpreters"  # 3.13; before

CODE = f"""
import {MODULE} as interpreters
import numpy as np
import fastrms

x = np.random.default_rng(0).standard_normal((3, 5), dtype=np.float32)
before = fastrms.rms_norm(x)
second = interpreters.create()
interpreters.run_string(second, '''
try:
    import fastrms
except ImportError as error:
    print(error, flush=True)
''')
interpreters.destroy(second)
print(fastrms.rms_norm(x).tobytes() == before.tobytes())
"""


def test_second_interpreter_is_refused(python):
    result = python(CODE)
    assert result.returncode == 0, result.stderr
    refusal, same = result.stdout.strip().splitlines()
    assert "interpreter" in refusal
    assert same == "True"
