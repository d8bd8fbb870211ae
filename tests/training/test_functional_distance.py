"""Forward KL of two small models on sampled answers, against float64 NumPy on their logits."""

import functools
import json

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxgeom.commands.compare import compare
from jaxgeom.comparison import CompareSettings
from jaxgeom.data.chat import encode_prompt, load_tokenizer, pad_token
from jaxgeom.data.rows import write_jsonl
from jaxgeom.errors import UserError
from jaxgeom.models import load_model, save_model
from jaxgeom.rollout import SamplingSettings, sample
from jaxgeom.training import functional_distance
from jaxgeom.training.model_distance import answer_sums, summed
from jaxgeom.training.rollouts import Actor
from tests.comparison import disk
from tests.tiny import write_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model, the same a little moved, and prompts of both kinds."""
    folder = tmp_path_factory.mktemp("models")
    first = write_tiny_model(folder / "first")
    model, params = load_model(first, dtype="float32")
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.02 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    save_model(folder / "second", model.config, jax.tree.unflatten(tree, moved), dtype="float32")
    asked = [[{"role": "user", "content": f"{i}+{i + 1}"}] for i in range(20)]
    rows = [{"prompt": messages} for messages in asked[:10]]
    rows += [{"messages": [*messages, {"role": "assistant", "content": "no"}]} for messages in asked[10:]]
    write_jsonl(folder / "prompts.jsonl", rows)
    return first, folder / "second", folder / "prompts.jsonl", asked


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens):
    return model.apply({"params": params}, tokens)


@pytest.mark.parametrize("vocabulary", [None, 90], ids=["whole", "rows of padding"])
def test_sums_per_answer_equal_the_oracle_on_logits(models, vocabulary):
    first, second, _, asked = models
    loaded = [load_model(path, dtype="float32") for path in (first, second)]
    actors = [Actor(model.clone(vocabulary=vocabulary), params) for model, params in loaded]
    tokenizer = load_tokenizer(first)
    requests = [encode_prompt(tokenizer, messages) for messages in asked[:6]]
    answers = sample(
        actors[0].model, actors[0].params, requests, range(6), SamplingSettings(max_new_tokens=12),
        pad_id=pad_token(tokenizer),
    )  # fmt: skip
    sums = answer_sums(*actors, answers)
    # Whatever stands behind an answer changes nothing before it: one program serves all lengths, without a mask.
    whole = np.zeros((6, max(map(len, requests)) + 12), np.int32)
    for row, request in enumerate(requests):
        both = request + answers.responses()[row]
        whole[row, : len(both)] = both
    table = [np.asarray(forward(*side, whole), np.float64)[..., :vocabulary] for side in loaded]
    for row, request in enumerate(requests):
        tokens = whole[row, : len(request) + 12]
        logits = [side[row, : len(tokens)] for side in table]
        log0, log1 = (log_softmax(side[len(request) - 1 : -1], axis=-1) for side in logits)
        kl = (np.exp(log0) * (log0 - log1)).sum(-1)
        taken = tokens[len(request) :, None]
        ratio = (np.take_along_axis(log1, taken, 1) - np.take_along_axis(log0, taken, 1))[:, 0]
        assert sums[row, 2] == 12
        assert sums[row, 0] == pytest.approx(kl.sum(), rel=2e-3)
        assert sums[row, 1] == pytest.approx((np.exp(ratio) - 1 - ratio).sum(), rel=2e-3, abs=1e-5)


def test_k3_estimates_the_exact_one_and_no_change_is_zero(models):
    first, second, prompts, _ = models
    found = functional_distance(first, second, prompts, max_new_tokens=32)
    assert found.answers == 20 and 20 <= found.tokens <= 20 * 32 and found.exact > 1e-3
    assert found.k3_standard_error is not None and abs(found.k3 - found.exact) < 5 * found.k3_standard_error
    assert found == functional_distance(first, second, prompts, max_new_tokens=32)
    assert found != functional_distance(first, second, prompts, max_new_tokens=32, seed=1)
    same = functional_distance(first, first, prompts, max_new_tokens=8, limit=4)
    assert same.exact == same.k3 == same.k3_standard_error == 0 and same.answers == 4


def test_the_standard_error_is_that_of_answers():
    """Tokens of one answer that all say the same carry one answer's worth of evidence."""
    rng = np.random.default_rng(0)
    values, lengths = rng.exponential(size=400), np.full(400, 10.0)
    found = summed(np.stack([values * lengths, values * lengths, lengths], 1))
    assert found.k3 == pytest.approx(values.mean()) and found.tokens == 4000
    assert found.k3_standard_error == pytest.approx(values.std(ddof=1) / 20, rel=1e-9)


def test_what_cannot_be_scored_is_said(models, tmp_path):
    first, second, prompts, _ = models
    llama = disk.write(tmp_path / "llama", disk.weights())
    with pytest.raises(UserError, match="tokenizer"):
        functional_distance(second, first, prompts)
    with pytest.raises(UserError, match="llama"):
        functional_distance(first, llama, prompts)
    write_jsonl(tmp_path / "odd.jsonl", [{"text": "no messages"}])
    with pytest.raises(UserError, match="row 0 .line 1.: has no 'prompt'"):
        functional_distance(first, second, tmp_path / "odd.jsonl")
    small = write_tiny_model(tmp_path / "small", vocab_size=120)
    with pytest.raises(UserError, match="a vocabulary of 120"):
        functional_distance(first, small, prompts)
    for answer, said in ((250, "a prompt of at most 6 would"), (300, "no prompt does")):  # and no option of `train`'s
        with pytest.raises(UserError, match=f"context of 256; {said}; [^-]*$"):
            functional_distance(first, second, prompts, max_new_tokens=answer)


@pytest.mark.slow
def test_compare_puts_it_beside_the_matrices(models, tmp_path, monkeypatch):
    first, second, prompts, _ = models
    out = tmp_path / "out"
    settings = CompareSettings(suite="fast", mask_rank=4)
    compare(str(first), str(second), settings, out, prompts=prompts)("jaxgeom compare …")
    report = json.loads((out / "report.json").read_text())
    entry = report["summary"]["functional_distance"]
    assert entry["mean"] > 1e-3 and entry["null"] is None and entry["k3_standard_error"] > 0
    assert entry["count"] >= 20 and report["settings"]["prompts"] == str(prompts)
    assert report["settings"]["null_forms"]["functional_distance"].startswith("none")
    assert "functional_distance" not in report["matrices"][0] and len(report["matrices"]) == 14
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "nats a token away" in page and "forward KL" in page

    # The same comparison without prompts goes on having what was measured; of other prompts or weights it is no part.
    compare(str(first), str(second), settings, out)("jaxgeom compare …")
    assert json.loads((out / "report.json").read_text()) == report
    with pytest.raises(UserError, match="holds the functional distance on .*prompts.jsonl"):
        compare(str(first), str(second), settings, out, prompts=second / "others.jsonl")("jaxgeom compare …")
    with monkeypatch.context() as patch:  # refused before any model answers
        patch.setattr("jaxgeom.training.functional_distance", None)
        with pytest.raises(UserError, match="another comparison .mask_rank: 4 there, 5 asked for"):
            other = CompareSettings(suite="fast", mask_rank=5)
            compare(str(first), str(second), other, out, prompts=prompts)("jaxgeom compare …")
    assert json.loads((out / "report.json").read_text()) == report
    compare(str(first), str(first), settings, out, force=True)("jaxgeom compare …")
    left = json.loads((out / "report.json").read_text())
    assert "functional_distance" not in left["summary"] and "prompts" not in left["settings"]
