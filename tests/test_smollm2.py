"""examples/smollm2.py against a float64 norm and transformers, on the model that it fetches.

Skipped, with the reason, where gguf and tokenizers (or, for some, the peers) are not installed.
"""

import functools
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrms

REASON = 'the example needs {}: pip install ".[examples]" in the checkout'
gguf = pytest.importorskip("gguf", reason=REASON.format("gguf"))
pytest.importorskip("tokenizers", reason=REASON.format("tokenizers"))

pytestmark = pytest.mark.usefixtures("one_blas_thread")

QUESTION = "What is the capital of France?"

# Logits reach 39, where one float32 ulp is 2**-18. Sums in another order (another BLAS, a prompt
# whole or in steps) moved them by up to 29 ulp through the 30 layers. 128 ulp leave room for other
# BLAS builds, and still catch a norm that is off by 1e-5, which moves the logits by 1.7e-3.
TOLERANCE = 128 * 2.0**-18


def load_example():
    path = Path(__file__).parents[1] / "examples" / "smollm2.py"
    spec = importlib.util.spec_from_file_location("smollm2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


smollm2 = load_example()


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Parse the file once: it takes seconds."""
    read = functools.cache(gguf.GGUFReader)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lambda path: read(os.fspath(path)))
        yield


@pytest.fixture(scope="module")
def path():
    return smollm2.fetch()


@pytest.fixture(scope="module")
def model(path):
    return smollm2.Model(path)


def encode(model, question):
    return model.tokenizer.encode(smollm2.chat(question)).ids


def greedy(model, prompt, norm, limit=8):
    return list(smollm2.generate(model, prompt, norm, smollm2.chooser(), limit))


def logits(model, tokens, norm, steps):
    """Return the logits (T, V) of all T tokens, fed to the cache in pieces of the given sizes."""
    cache, ends = model.new_cache(len(tokens)), np.cumsum(steps)
    pieces = [tokens[end - size : end] for end, size in zip(ends, steps, strict=True)]
    hidden = [model.forward(piece, cache, norm) for piece in pieces]
    return np.concatenate(hidden) @ model.embedding.T


def test_answers_paris(model):
    tokens = greedy(model, encode(model, QUESTION), fastrms)
    assert "Paris" in model.tokenizer.decode(tokens)
    assert tokens[-1] == model.end


def test_greedy_tokens_match_a_float64_norm(model):
    # The two largest logits of this answer differ by 0.02 at least, 40 times the tolerance.
    prompt = encode(model, "Explain in one paragraph why the sky is blue.")
    tokens = greedy(model, prompt, fastrms)
    assert len(tokens) == 8
    assert tokens == greedy(model, prompt, fastrms.reference)


def test_every_norm_and_step_size_gives_the_same_logits(model):
    prompt = encode(model, QUESTION)
    n = len(prompt)
    want = logits(model, prompt, fastrms.reference, [n])
    for norm in (fastrms, smollm2.NumpyNorm):
        for steps in ([n], [1, 5, n - 8, 1, 1]):
            got = logits(model, prompt, norm, steps)
            np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


def test_prompt_logits_match_transformers(model, path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch = pytest.importorskip("torch", reason="the peer is torch, not installed")
    pytest.importorskip("accelerate", reason="transformers needs accelerate, not installed")
    peers = pytest.importorskip("transformers", reason="the peer is transformers, not installed")
    peer = peers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    prompt = encode(model, QUESTION)
    with torch.no_grad():
        want = peer(torch.tensor([prompt])).logits[0].numpy()
    got = logits(model, prompt, fastrms, [len(prompt)])
    print(f"largest difference from transformers: {np.abs(got - want).max():.2e}")
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


def test_chat_is_the_template_of_the_file(path):
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 renders the template, not installed")
    template = gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents()
    messages = [{"role": "user", "content": QUESTION}]
    want = jinja2.Template(template).render(messages=messages, add_generation_prompt=True)
    assert smollm2.chat(QUESTION) == want


def test_a_seed_repeats_the_draw(model):
    prompt = encode(model, "Tell me a joke.")
    draws = [
        list(smollm2.generate(model, prompt, fastrms, smollm2.chooser(1.0, seed), 4))
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_prints_the_answer_then_one_line_of_figures(model, monkeypatch, capsys):
    monkeypatch.setattr(smollm2, "Model", lambda path: model)
    monkeypatch.setattr("sys.argv", ["smollm2.py", QUESTION, "--norm", "numpy"])
    smollm2.main()
    out, err = capsys.readouterr()
    assert out == "The capital of France is Paris.\n"
    assert err.count("\n") == 1
    assert err.index("numpy") < err.index("fastrms")
    assert err.count("of the time in norm and residual") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "q --max-tokens 0",
        "q --temperature nan",
        "q --seed -1",
        "q --norm layer",
        "q --model absent.gguf",
        f"q --model {__file__}",
    ],
)
def test_refusals_are_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["smollm2.py", *arguments.split()])
    with pytest.raises(SystemExit) as refused:
        smollm2.main()
    assert refused.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["gguf", "tokenizers"])
def test_a_missing_package_is_one_line(name, path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("sys.argv", ["smollm2.py", "q", "--model", str(path)])
    with pytest.raises(SystemExit) as refused:
        smollm2.main()
    assert refused.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert 'pip install ".[examples]" in the checkout' in err
