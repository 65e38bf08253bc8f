"""A public module shows its functions to completion, and nothing that it needs itself."""

import importlib

import pytest

import fastrms


@pytest.mark.parametrize("name", ["fastrms", "fastrms.reference", "fastrms.dask", "fastrms.torch"])
def test_completion(name):
    if name.endswith(("dask", "torch")):
        pytest.importorskip(name.removeprefix("fastrms."), reason="nothing to adapt to")
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)
    for shown in module.__all__:
        assert getattr(module, shown) is not None


def test_the_reference_has_every_function_that_computes():
    computing = [name for name in fastrms.__all__ if name in vars(fastrms._core)]
    threads = ["get_num_threads", "set_num_threads"]
    assert sorted(fastrms.reference.__all__ + threads) == computing
