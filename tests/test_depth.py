"""The depth study: gradients against finite differences, its claims measured, its command."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fastrms import reference
from fastrms.demo import depth, show

from .test_command import exit_code

pytestmark = pytest.mark.usefixtures("one_blas_thread")

BY_NAME = {design.name: design for design in depth.DESIGNS}
# Central differences in float64 are off by h**2 and by 2**-53 / h: 1e-10 and 1e-11 with h = 1e-5.
# A stack of 4 layers costs three more digits, ReLU kinks cost none at this step.
STEP, FINITE_DIFFERENCE = 1e-5, 1e-6
# dx is within 1e-6 of its terms, of which dx is nearly the whole here, and a product with a 16-wide
# float32 matrix within 2e-6 of its largest element; four layers of both stay within 1e-5.
FLOAT32_STACK = 1e-5


def tiny(design, relu, layers=4, width=16, batch=3, gain=1.3):
    """Run a small float64 stack forward and backward with the reference."""
    rng = np.random.default_rng(3)
    x, dout = rng.standard_normal((2, batch, width))
    weights = depth.make_weights(layers, width, gain, rng, np.float64)
    passed = depth.forward(x, weights, design, relu, reference)
    return dout, weights, passed, depth.backward(dout, weights, design, passed, relu, reference)


def central(loss, at):
    """Return the central differences of loss at an array, one entry at a time."""
    gradient = np.empty_like(at)
    for i in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[i] = STEP
        gradient[i] = (loss(at + step) - loss(at - step)) / (2 * STEP)
    return gradient


def assert_close(got, wanted, bound):
    assert np.abs(got - wanted).max() <= bound * np.abs(wanted).max()


@pytest.mark.parametrize("relu", ["first", "last"])
@pytest.mark.parametrize("name", [d.name for d in depth.DESIGNS if not d.overwrite])
def test_every_gradient_is_the_finite_difference(name, relu):
    design = BY_NAME[name]
    dout, weights, passed, grads = tiny(design, relu)

    def rest(h, layer):  # the stack from `layer` on
        return np.sum(dout * depth.forward(h, weights[layer:], design, relu, reference).stream[-1])

    for layer, h in enumerate(passed.stream):
        wanted = central(lambda value, layer=layer: rest(value, layer), h)
        assert_close(grads.total[layer], wanted, FINITE_DIFFERENCE)


@pytest.mark.parametrize("relu", ["first", "last"])
@pytest.mark.parametrize("name", ["residual only", "RMSNorm + residual"])
def test_each_route_is_the_finite_difference_with_the_other_held(name, relu):
    design = BY_NAME[name]
    dout, weights, passed, grads = tiny(design, relu)
    for layer, weight in enumerate(weights):
        h = passed.stream[layer]

        def out(skip, through, layer=layer, weight=weight):
            u = reference.rms_norm(through) if design.norm else through
            h = skip + depth.branch(u, weight, relu)
            above = depth.forward(h, weights[layer + 1 :], design, relu, reference)
            return np.sum(dout * above.stream[-1])

        by_skip = central(lambda value, h=h, out=out: out(value, h), h)
        by_branch = central(lambda value, h=h, out=out: out(h, value), h)
        assert_close(grads.by_skip[layer], by_skip, FINITE_DIFFERENCE)
        assert_close(grads.by_branch[layer], by_branch, FINITE_DIFFERENCE)
        assert_close(grads.total[layer], by_skip + by_branch, FINITE_DIFFERENCE)


@pytest.mark.parametrize("relu", ["first", "last"])
@pytest.mark.parametrize("name", BY_NAME)
def test_the_library_gives_what_the_reference_gives(name, relu):
    dout, weights, passed, exact = tiny(BY_NAME[name], relu)
    weights32 = [weight.astype(np.float32) for weight in weights]
    up = depth.forward(passed.stream[0].astype(np.float32), weights32, BY_NAME[name], relu)
    down = depth.backward(dout.astype(np.float32), weights32, BY_NAME[name], up, relu)
    for got, wanted in (
        (up.stream, passed.stream),
        *zip(vars(down).values(), vars(exact).values(), strict=True),
    ):
        for g, w in zip(got, wanted, strict=True):
            assert g.dtype == np.float32
            assert_close(g, w, FLOAT32_STACK)


def test_the_overwritten_skip_is_the_branch_alone():
    _, _, _, grads = tiny(BY_NAME["skip gradient overwritten"], "first")
    for total, by_branch in zip(grads.total, grads.by_branch, strict=False):
        np.testing.assert_array_equal(total, by_branch)


@pytest.fixture(scope="module")
def at():
    """Run the study at its full size: {(design, gain): figures}."""
    return {(r["design"], r["gain"]): r for r in depth.study()}


def rate(series):
    """Return the mean growth per layer."""
    return (series[-1] / series[0]) ** (1 / (len(series) - 1))


@pytest.mark.parametrize("gain", depth.GAINS)
def test_plain_drifts_as_gain_to_the_power_of_the_depth(at, gain):
    r = at["plain", gain]
    far = r["rms"][-1]
    assert far > 1e6 if gain > 1 else far < 1e-6
    # A layer's log mean square varies by about sqrt(5 / width) = 0.14 around log gain**2 (He et
    # al.'s factor holds in the mean). Over 128 layers that is 0.8 in the log of the RMS, 0.6 % a
    # layer; its mean is lower by 5 / (4 width) = 0.5 % a layer. 3 % covers both.
    assert rate(r["rms"]) == pytest.approx(gain, rel=0.03)
    assert rate(r["gradient"][::-1]) == pytest.approx(gain, rel=0.03)


@pytest.mark.parametrize("gain", depth.GAINS)
def test_residual_alone_grows_exponentially_at_both_gains(at, gain):
    r = at["residual only", gain]
    assert rate(r["rms"]) == pytest.approx((1 + gain**2) ** 0.5, rel=0.03)
    assert rate(r["gradient"][::-1]) == pytest.approx((1 + gain**2) ** 0.5, rel=0.03)
    assert np.mean(r["skip_share"]) == pytest.approx(1 / (1 + gain**2), rel=0.03)


@pytest.mark.parametrize("gain", depth.GAINS)
@pytest.mark.parametrize("name", [d.name for d in depth.DESIGNS if d.norm])
def test_behind_a_norm_every_layer_sees_the_same_size(at, name, gain):
    assert 0.5 < min(at[name, gain]["seen"]) <= max(at[name, gain]["seen"]) < 2


@pytest.mark.parametrize("gain", depth.GAINS)
def test_the_norm_alone_keeps_sizes_and_loses_the_inputs(at, gain):
    r = at["RMSNorm only", gain]
    # No drift, unlike plain; the same variation, 0.8 in the log, is a factor of 2.2.
    assert 1 / 5 < min(r["gradient"]) <= max(r["gradient"]) < 5
    assert r["cosine"][-1] > 0.99
    # The norm changes only the size of each row: the directions are those of plain.
    assert r["cosine"][-1] == pytest.approx(at["plain", gain]["cosine"][-1], abs=1e-3)
    assert at["RMSNorm + residual", gain]["cosine"][-1] < 0.8


@pytest.mark.parametrize("gain", depth.GAINS)
def test_the_prenorm_stream_and_its_gradient_grow_with_the_root_of_the_depth(at, gain):
    r = at["RMSNorm + residual", gain]
    stream = (1 + gain**2 * np.arange(129)) ** 0.5
    np.testing.assert_allclose(r["rms"], stream, rtol=0.15)
    np.testing.assert_allclose(r["gradient"], stream[-1] / stream, rtol=0.15)
    share = 1 - gain**2 / (1 + gain**2 * np.arange(1, 129))
    assert np.mean(r["skip_share"]) == pytest.approx(share.mean(), abs=0.02)


def test_the_skip_path_brings_the_gradient_down(at):
    assert at["RMSNorm + residual", 0.7]["gradient"][0] > 1e3 * at["plain", 0.7]["gradient"][0]


@pytest.mark.parametrize("gain", depth.GAINS)
def test_overwriting_the_skip_gradient_loses_it(at, gain):
    r = at["skip gradient overwritten", gain]
    assert r["rms"] == at["RMSNorm + residual", gain]["rms"]  # the forward shows no mistake
    factor = gain / (1 + gain**2 * np.arange(128)) ** 0.5
    assert r["gradient"][118] == pytest.approx(np.prod(factor[118:]), rel=0.3)
    assert r["gradient"][0] == 0  # theory: 1e-104 and less


def test_with_relu_last_the_prenorm_stream_grows_with_the_depth_itself():
    """A branch that ends in ReLU has a positive mean, 0.56 of its RMS, which adds up by layer."""
    gain = 1.3
    r = depth.measure(BY_NAME["RMSNorm + residual"], gain, relu="last")
    per_layer = (r["rms"][128] - r["rms"][64]) / 64
    assert per_layer == pytest.approx(gain / np.pi**0.5, rel=0.1)  # mean of ReLU: gain / sqrt(pi)
    assert r["cosine"][-1] > 0.99


def command(*args):
    return subprocess.run(
        [sys.executable, "-m", "fastrms", "demo", "depth", *args], capture_output=True, text=True
    )


def test_the_command_prints_a_table_and_a_sentence():
    run = command("--layers", "6")
    assert run.returncode == 0
    assert not run.stderr
    assert all(run.stdout.count(name) >= 2 for name in BY_NAME)
    assert "\n\nAt gain 1.3 / 0.7, after 6 layers" in run.stdout
    assert all(len(line) <= 80 for line in run.stdout.splitlines())


def test_the_widest_figures_fit_80_columns():
    far = [-1e-20]
    series = dict.fromkeys(("rms", "seen", "gradient", "by_skip", "by_branch"), far)
    result = {"design": max(BY_NAME, key=len), "gain": 1.25, "skip_share": [1], "cosine": [-0.01]}
    for line in show.table([series | result]).splitlines():
        assert len(line) <= 80
    assert line.split()[-7:] == [*5 * ["-1e-20"], "100%", "-0.010"]


def test_one_layer_is_one_layer():
    run = command("--layers", "1")
    assert "after 1 layer, plain" in run.stdout


def test_the_command_prints_every_layer_as_json():
    run = command("--layers", "6", "--gain", "1,2", "--gain", "3", "--json")
    results = json.loads(run.stdout)
    assert [r["design"] for r in results] == list(BY_NAME) * 3
    assert list(dict.fromkeys(r["gain"] for r in results)) == [1, 2, 3]
    assert all(len(r["rms"]) == len(r["gradient"]) == 7 for r in results)


def test_what_overflows_is_null_in_json(tmp_path):
    run = command("--layers", "60", "--gain", "10", "--json", str(tmp_path / "a.json"))
    assert "At gain 10, after 60 layers" in run.stdout
    results = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert results[1]["rms"][-1] is None


@pytest.mark.parametrize("gain", [0.7, 1.3])
def test_the_picture_shows_every_design_in_both_panels(monkeypatch, gain):
    figures = pytest.importorskip("matplotlib.figure", reason="the extra [bench]")
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    show.plot([depth.measure(d, gain, layers=4, width=16, batch=2) for d in depth.DESIGNS], "x")
    for panel in drawn[0].axes:
        assert [line.get_color() for line in panel.lines] == list(show.COLOURS.values())
    # Two designs have the same forward: the upper line is dotted, so that both are visible.
    assert [line.get_marker() for line in drawn[0].axes[0].lines] == ["None"] * 4 + ["o"]


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="the picture needs the extra [bench]")
    run = command("--layers", "6", "--plot", str(tmp_path / "depth.png"))
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--layers", "0"], "'0' is not a whole number from 1 to 1000"),
        (["--layers", "99999999"], "'99999999' is not a whole number from 1 to 1000"),
        (["--seed", "-1"], "'-1' is not a whole number of 0 or more"),
        (["--gain", "-1"], "'-1' is not a number from 0.1 to 10"),
        (["--gain", "nan"], "'nan' is not a number from 0.1 to 10"),
        (["--gain", "1e30"], "'1e30' is not a number from 0.1 to 10"),
        (["--relu", "never"], "invalid choice"),
        (["--layers", "2", "--plot", "no/such/folder/a.png"], "cannot write"),
        (["--layers", "2", "--plot", "tests"], "must end in .png or .svg"),
        (["--layers", "2", "--json", "."], "cannot write '.': Is a directory"),
    ],
)
def test_a_refusal_is_one_line(capsys, args, reason):
    assert exit_code("demo", "depth", *args) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert reason in error


def test_a_missing_extra_is_named():
    code = (
        "import sys; sys.modules['matplotlib'] = None; import fastrms.__main__ as m;"
        "sys.exit(m.main(['demo', 'depth', '--plot', 'a.png']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 2
    assert 'pip install "fastrms[bench]"' in run.stderr
    assert run.stderr.count("\n") == 1
