"""Completion on a public module lists its public names, and nothing that it imports."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import fastrms

# The modules, except those of the command line.
PUBLIC = [path.stem for path in sorted(Path(fastrms.__file__).parent.glob("[a-z]*.py"))]
PUBLIC.remove("check")
API = Path(__file__).parents[1] / "docs/api.rst"


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


@pytest.mark.parametrize("name", ["__init__", *PUBLIC])
def test_the_api_reference_has_every_public_name(name):
    """Parse the source, so that no adapter has to be importable."""
    source = Path(fastrms.__file__).with_name(f"{name}.py").read_text("utf-8")
    public = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    listed = set(re.findall(r"^   ([\w.]+)$", API.read_text("utf-8"), re.MULTILINE))
    if name == "__init__":
        assert set(public) - listed == {"__version__", "reference"}
    elif name == "numba":  # no names of its own
        assert set(public) <= listed
    else:
        assert {f"{name}.{one}" for one in public} <= listed
