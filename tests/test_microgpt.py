"""examples/microgpt.py: gradients against finite differences and torch, reproducible bits."""

import dataclasses
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastrms
from fastrms import reference

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
import microgpt  # noqa: E402
import microgpt_tools as tools  # noqa: E402

sys.path.remove(str(EXAMPLES))

pytestmark = pytest.mark.usefixtures("one_blas_thread")

TEXT = (EXAMPLES / "microgpt.py").read_text("utf-8") * 2
CHARS = tools.alphabet(TEXT)
IDS = tools.encode(TEXT, CHARS)
TINY = microgpt.Config(CHARS, layers=2, width=16, heads=2, context=8, batch=4)
SMALL = microgpt.Config(CHARS, layers=2, width=32, heads=2, context=32, batch=8)
VARIANTS = [
    dataclasses.replace(TINY, norm=norm, residual=residual, weights=weights)
    for norm, residual, weights in itertools.product((True, False), (True, False), (True, False))
    if norm or not weights
]


def name(config):
    return (
        "-".join(key for key in ("norm", "residual", "weights") if getattr(config, key)) or "bare"
    )


def state_of(config, dtype=np.float32):
    """Return a fresh state with unequal norm weights, so that no wrong dweight passes."""
    state = microgpt.State.new(config, dtype)
    rng = np.random.default_rng(1)
    for key, p in microgpt.views(state.params, config).items():
        if key.startswith("norm"):
            p += 0.3 * rng.standard_normal(p.shape)
    return state


def trained(config, steps, ops=fastrms, run=map):
    state = microgpt.State.new(config)
    for _ in microgpt.train(state, IDS, steps, ops, run):
        pass
    return state


def assert_same_bits(one, other):
    assert one.losses == other.losses
    for key in ("params", "mean", "square"):
        np.testing.assert_array_equal(getattr(one, key), getattr(other, key))


@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_gradients_are_the_finite_differences(config):
    """Compare along 3 random directions and 3 single entries of every parameter, in float64."""
    state = state_of(config, np.float64)
    draw = microgpt.batch(IDS, config, 0)
    _, gradient = microgpt.gradients(state, *draw, reference)
    rng = np.random.default_rng(2)
    step = 1e-6  # central differences: errors of step**2 and 2**-53 / step, 1e-10 of the loss

    def loss(params):
        moved = dataclasses.replace(state, params=params)
        return microgpt.gradients(moved, *draw, reference)[0]

    for key, g in microgpt.views(gradient, config).items():
        for direction in range(6):
            move = np.zeros_like(state.params)
            part = microgpt.views(move, config)[key]
            if direction < 3:
                part[...] = rng.standard_normal(part.shape) / np.sqrt(part.size)
            else:
                part[np.unravel_index(np.argsort(-np.abs(g), axis=None)[direction], g.shape)] = 1
            slope = (loss(state.params + step * move) - loss(state.params - step * move)) / (
                2 * step
            )
            assert np.sum(g * part) == pytest.approx(slope, rel=1e-5, abs=1e-9), key


def torch_loss(p, inputs, targets, config):
    """Return the loss of the same model, written in torch."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    def norm(h, branch):
        if not config.norm:
            return h
        return F.rms_norm(h, (config.width,), p.get(f"norm.{branch}"), eps=1e-5)

    b, t = inputs.shape
    h = p["characters"][inputs] + p["positions"][:t]
    for i in range(config.layers):
        qkv = norm(h, 2 * i) @ p[f"{i}.qkv"]
        q, k, v = (
            part.view(b, t, config.heads, -1).transpose(1, 2) for part in qkv.split(config.width, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        out = y.reshape(b, t, -1) @ p[f"{i}.proj"]
        h = h + out if config.residual else out
        out = torch.relu(norm(h, 2 * i + 1) @ p[f"{i}.up"]) @ p[f"{i}.down"]
        h = h + out if config.residual else out
    logits = norm(h, 2 * config.layers) @ p["head"]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("config", VARIANTS, ids=name)
def test_a_training_step_is_torchs(config):
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    config = dataclasses.replace(config, width=64, heads=4, context=32)
    state = state_of(config)
    inputs, targets = microgpt.batch(IDS, config, 0)
    loss, gradient = microgpt.gradients(state, inputs, targets)
    p = {
        key: torch.tensor(value, requires_grad=True)
        for key, value in microgpt.views(state.params.copy(), config).items()
    }
    wanted = torch_loss(
        p, torch.tensor(inputs.astype(int)), torch.tensor(targets.astype(int)), config
    )
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-6)
    for key, g in microgpt.views(gradient, config).items():
        exact = p[key].grad.numpy()
        assert np.linalg.norm(g - exact) <= 1e-4 * np.linalg.norm(exact), key

    # Compare with torch's Adam, at the first step's rate and eps, from the same gradients.
    for key, g in microgpt.views(gradient, config).items():
        p[key].grad.copy_(torch.tensor(g))
    torch.optim.Adam(p.values(), lr=3e-3 / 100, betas=(0.9, 0.99), eps=1e-8).step()
    microgpt.adam(state, gradient)
    for key, value in microgpt.views(state.params, config).items():
        np.testing.assert_allclose(value, p[key].detach().numpy(), rtol=0, atol=1e-6)


def test_thirty_steps_lower_the_loss():
    losses = trained(SMALL, 30).losses
    assert losses[0] == pytest.approx(np.log(len(CHARS)), abs=0.1)  # that of a uniform guess
    assert losses[-1] < losses[0] - 0.3  # 4.45 to 4.02, with the rate still rising


def test_the_formula_in_numpy_gives_the_same_losses():
    ours, formulas = trained(SMALL, 10).losses, trained(SMALL, 10, tools.Formula).losses
    # The norms differ by a few 1e-7 in single entries, the mean over 256 characters by 3e-9; ten
    # steps do not raise that.
    np.testing.assert_allclose(ours, formulas, rtol=1e-6)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path, ending):
    if ending == "safetensors":
        pytest.importorskip("safetensors", reason="needs the extra [examples]")
    path = str(tmp_path / f"model.{ending}")
    config = dataclasses.replace(SMALL, weights=True)
    trained(config, 5).save(path)
    resumed = microgpt.State.load(path)
    assert resumed.config == config
    list(microgpt.train(resumed, IDS, 9))
    assert_same_bits(resumed, trained(config, 9))
    assert os.listdir(tmp_path) == [f"model.{ending}"]


def test_one_seed_gives_one_run_whatever_the_threads():
    """Neither the threads of fastrms nor the workers that share a batch change a bit."""
    one = trained(SMALL, 5)
    before = fastrms.get_num_threads()
    try:
        for threads, workers in ((1, 1), (2, 1), (1, 2), (2, 2)):
            fastrms.set_num_threads(threads)
            with ThreadPoolExecutor(workers) as pool:
                assert_same_bits(trained(SMALL, 5, run=pool.map), one)
    finally:
        fastrms.set_num_threads(before)
    other = trained(dataclasses.replace(SMALL, seed=1), 5)
    assert other.losses != one.losses


def command(*args, **env):
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "microgpt.py"), *args],
        capture_output=True,
        text=True,
        env=os.environ | env,
    )


def test_the_command_with_one_and_two_threads(tmp_path):
    """Run the command in fresh processes, where it sets OpenBLAS to one thread itself."""
    pytest.importorskip("rich", reason="the examples need the extra [examples]")
    text = tmp_path / "text.txt"
    text.write_text(TEXT, "utf-8")
    saved = []
    for threads in "12":
        out = str(tmp_path / f"{threads}.npz")
        run = command("--text", str(text), "--steps=3", "--layers=1", "--out", out,
                      FASTRMS_NUM_THREADS=threads)  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert "nats per character on text held out" in run.stdout
        assert "of it norm and residual" in run.stdout.splitlines()[-1]
        saved.append(microgpt.State.load(out))
    assert_same_bits(*saved)
    out = str(tmp_path / "more.npz")
    run = command(
        "--resume", str(tmp_path / "1.npz"), "--text", str(text), "--steps=4", "--out", out
    )
    assert run.returncode == 0, run.stderr
    more = microgpt.State.load(out)
    assert more.losses[:3] == saved[0].losses
    assert len(more.losses) == 4


def test_it_says_where_the_model_goes_before_it_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text(TEXT, "utf-8")
    monkeypatch.setattr(sys, "argv", ["microgpt.py", "--text", str(text)])

    def watch(*_):
        assert f"saved in {tmp_path / 'model.npz'}" in capsys.readouterr().out
        raise KeyboardInterrupt  # nothing was trained, nor written

    monkeypatch.setattr(tools, "watch", watch)
    before = fastrms.get_num_threads()
    try:
        with pytest.raises(KeyboardInterrupt):
            microgpt.main()
    finally:
        fastrms.set_num_threads(before)
    assert os.listdir(tmp_path) == ["text.txt"]


@pytest.mark.parametrize(("module", "args"), [("rich", []), ("matplotlib", ["--plot", "x.png"])])
def test_without_an_extra_it_is_one_line(module, args, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys, "argv", ["microgpt.py", *args])
    with pytest.raises(SystemExit) as refused:
        microgpt.main()
    assert refused.value.code == 2
    wanted = f'{module} is not installed: pip install ".[examples]" in the checkout'
    assert capsys.readouterr().err == f"microgpt.py: {wanted}\n"


@pytest.mark.parametrize(
    "args", [["--text", "no/such/file"], ["--resume", "no/such/model.npz"], ["--norm", "layer"]]
)
def test_a_refusal_is_an_exit_code(args):
    run = command(*args)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("option", ["--out", "--plot"])
@pytest.mark.parametrize("file", ["no/such/folder/a{}", "a.txt"])
def test_a_file_that_cannot_be_written_is_refused_before_the_first_step(option, file):
    run = command(option, file.format({"--out": ".npz", "--plot": ".png"}[option]))
    assert run.returncode == 2
    assert run.stdout == ""
    assert "in a folder that exists" in run.stderr
    assert run.stderr.count("\n") == 1


def test_the_text_is_there_on_every_machine():
    text = tools.standard_library_text()
    assert len(text) > 1_000_000
    assert "Return" in text
    assert 60 < len(tools.alphabet(text)) < 130
