"""Tokenizer, embedding and teacher: tokens without a row, and padding that a teacher has and the model does not."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.data.chat import load_tokenizer
from jaxgeom.errors import UserError
from jaxgeom.models import load_model
from jaxgeom.optimizers.adamw import AdamWSettings
from jaxgeom.training import OPDSettings, RunInputs, SFTSettings, train
from jaxgeom.training.programs import score
from jaxgeom.training.vocabulary import cut_vocabulary, require_same_tokens, require_tokens_fit, require_vocabulary
from tests.tiny import tiny_config, write_tiny_model

ADAMW = AdamWSettings(learning_rate=1e-4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    write_tiny_model(folder / "model")
    for tied in (True, False):
        write_tiny_model(folder / f"padded-{tied}", seed=1, vocab_size=130, tie_word_embeddings=tied)
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_padding_of_a_teacher_has_no_probability(models, tied):
    """Log-probabilities over the first 112 tokens, from the logits over all 130, by NumPy in float64."""
    model, params = load_model(models / f"padded-{tied}")
    tokens = np.random.default_rng(0).integers(0, 112, (2, 9)).astype(np.int32)
    logits = np.asarray(model.apply({"params": params}, jnp.asarray(tokens)), np.float64)[..., :112]
    logits -= logits.max(-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = np.take_along_axis(logs[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    cut, cut_params = cut_vocabulary(model, params, 112)
    assert cut.config.vocab_size == 112
    got = score(cut, cut_params, jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
    np.testing.assert_allclose(np.asarray(got)[:, 1:], want, atol=1e-5)


def test_a_token_without_a_row_is_named(models):
    tokenizer = load_tokenizer(models / "model")
    last = max(tokenizer.get_vocab().values())
    require_tokens_fit(tiny_config(vocab_size=last + 1), tokenizer, "here")
    with pytest.raises(UserError, match=rf"here: its tokenizer has token {last} .*, its embedding has {last} rows"):
        require_tokens_fit(tiny_config(vocab_size=last), tokenizer, "here")


def test_a_teacher_that_lacks_tokens_is_refused(models):
    tokenizer = load_tokenizer(models / "model")
    require_vocabulary(130, 112, tokenizer, "teacher")
    with pytest.raises(UserError, match="teacher: a vocabulary of 100, the model's has 112"):
        require_vocabulary(100, 112, tokenizer, "teacher")


def test_another_tokenizer_is_refused_by_a_token(models, tmp_path):
    tokenizer = load_tokenizer(models / "model")
    require_same_tokens(tokenizer, models / "padded-True", "teacher")
    require_same_tokens(tokenizer, tmp_path, "teacher")  # without one it has the model's
    shutil.copytree(models / "model", tmp_path / "teacher")
    held = json.loads((tmp_path / "teacher" / "tokenizer.json").read_text())
    vocabulary = held["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "teacher" / "tokenizer.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match="teacher: another tokenizer than the model's: 2 tokens have other ids"):
        require_same_tokens(tokenizer, tmp_path / "teacher", "teacher")


def prompts(file):
    row = {"prompt": [{"role": "user", "content": "1+2="}], "reward_model": {"ground_truth": "3"}}
    file.write_text((json.dumps(row) + "\n") * 8)
    return file


def test_a_padded_teacher_teaches(models, tmp_path):
    """On-policy distillation runs, and says what it masks."""
    from jaxgeom.progress import Reporter

    class Heard(Reporter):
        def say(self, text):
            heard.append(text)

    heard: list[str] = []
    settings = OPDSettings(
        steps=1, batch_size=8, samples_per_prompt=1, max_new_tokens=4, save_every=1, seed=0, optimizer=ADAMW
    )
    inputs = RunInputs(model=models / "model", data=prompts(tmp_path / "p.jsonl"), teacher=models / "padded-True")
    train(settings, inputs, tmp_path / "run", reporter=Heard(quiet=True))
    assert any("its last 18 tokens, which the model does not have, are masked" in text for text in heard)


def test_a_weight_that_bfloat16_cannot_hold_is_refused_before_the_run(models, tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(models / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = 3.4e38
    save_file(tensors, file)
    data = tmp_path / "d.jsonl"
    turns = [{"role": "user", "content": "1+2="}, {"role": "assistant", "content": "3"}]
    data.write_text((json.dumps({"messages": turns}) + "\n") * 8)
    settings = SFTSettings(steps=1, batch_size=8, save_every=1, seed=0, optimizer=ADAMW, compute_dtype="bfloat16")
    inputs = RunInputs(model=tmp_path / "model", data=data)
    with pytest.raises(
        UserError, match=r"model\.norm\.weight.* has 1 of 32 entries that are NaN or infinite as bfloat16"
    ):
        train(settings, inputs, tmp_path / "run")
    assert not (tmp_path / "run").exists()
