"""examples/cython_block, built against the installed package, matches the same block in NumPy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrms

HERE = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cython_block(tmp_path_factory):
    reason = 'not installed: python -m pip install cython "setuptools>=77"'
    pytest.importorskip("Cython", reason=reason)
    pytest.importorskip("setuptools", minversion="77", reason=reason)
    folder = tmp_path_factory.mktemp("cython_block")
    shutil.copytree(HERE / "examples/cython_block", folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    command += ["--no-index", "--target", folder / "built", folder / "source"]
    package = str(Path(fastrms.__file__).parents[1])  # the checkout, if it is not installed
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": package, "CFLAGS": "-O1"},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder / "built"))
    try:
        yield pytest.importorskip("cython_block")
    finally:
        sys.path.remove(str(folder / "built"))


def test_the_block_is_what_numpy_does(cython_block, draw):
    residual, x, weight = draw(7, 96), draw(7, 96), draw(96)
    stream, layer = residual.copy(), x.copy()
    for _ in range(3):
        fastrms.add_rms_norm(layer, stream, weight, out=layer)
        layer = np.tanh(layer.astype(float)).astype(np.float32)
    fastrms.residual_add(x=layer, residual=stream)
    cython_block.run_block(residual, x, weight, 3)
    np.testing.assert_allclose(residual, stream, rtol=1e-6, atol=1e-6)  # tanh may differ


@pytest.mark.parametrize("shape", [(1, 64), (40, 33), (300, 1000)])
def test_norm_and_gradient_have_the_bits_of_the_numpy_calls(cython_block, draw, shape):
    x, dy, weight = draw(*shape), draw(*shape), draw(shape[1])
    wanted = fastrms.rms_norm(x, weight), *fastrms.rms_norm_backward(dy, x, weight)
    for found, expected in zip(cython_block.norm_and_gradient(x, dy, weight), wanted, strict=True):
        assert found.tobytes() == expected.tobytes()


def test_a_shape_that_does_not_fit(cython_block, draw):
    with pytest.raises(ValueError, match="residual must have the shape of x"):
        cython_block.run_block(draw(3, 4), draw(3, 5), draw(5), 1)


@pytest.mark.parametrize(
    ("dy", "n"), [((1, 5), 5), ((3, 4), 5), ((1, 5), 4), ((3, 4), 4), ((3, 5), 4)]
)
def test_gradients_of_a_shape_that_does_not_fit(cython_block, draw, dy, n):
    with pytest.raises(ValueError, match="dy must have the shape of x"):
        cython_block.norm_and_gradient(draw(3, 5), draw(*dy), draw(n))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_gradients_of_nothing(cython_block, draw, shape):
    with pytest.raises(ValueError, match="none be empty"):
        cython_block.norm_and_gradient(draw(*shape), draw(*shape), draw(shape[1]))
