"""A public module shows its functions to completion, and nothing that it needs itself."""

import importlib
from pathlib import Path

import pytest

import fastrms

# The modules that are no part of the command line.
PUBLIC = [path.stem for path in sorted(Path(fastrms.__file__).parent.glob("[a-z]*.py"))]
PUBLIC.remove("check")


@pytest.mark.parametrize("name", ["fastrms", *(f"fastrms.{name}" for name in PUBLIC)])
def test_completion(name):
    if name.removeprefix("fastrms.") in ("dask", "jax", "numba", "torch"):
        pytest.importorskip(name.removeprefix("fastrms."), reason="nothing to adapt to")
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)
    for shown in module.__all__:
        assert getattr(module, shown) is not None


def test_the_reference_has_every_function_that_computes():
    computing = [name for name in fastrms.__all__ if name in vars(fastrms._core)]
    threads = ["get_num_threads", "set_num_threads"]
    assert sorted(fastrms.reference.__all__ + threads) == computing
