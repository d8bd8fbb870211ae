"""Tokenizer, embedding and teacher: tokens without a row, padding that only one has, ids that are other tokens."""

import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxgeom.data.chat import load_tokenizer
from jaxgeom.errors import UserError
from jaxgeom.models import load_model
from jaxgeom.optimizers.adam import AdamWSettings
from jaxgeom.progress import Reporter
from jaxgeom.rollout import SamplingSettings, sample
from jaxgeom.training import OPDSettings, RLVRSettings, RunInputs, SFTSettings, train
from jaxgeom.training.programs import score
from jaxgeom.training.ready import make_ready
from jaxgeom.training.vocabulary import emitted_tokens, require_tokens_fit, shared_vocabulary, with_rows
from tests.tiny import tiny_config, write_tiny_model

ADAMW = AdamWSettings(learning_rate=1e-4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    write_tiny_model(folder / "model")
    for tied in (True, False):
        write_tiny_model(folder / f"padded-{tied}", seed=1, vocab_size=130, tie_word_embeddings=tied)
    return folder


@pytest.mark.parametrize(("tied", "rows"), [(True, 112), (False, 112), (False, 150)])
def test_an_embedding_is_cut_or_padded_and_padding_has_no_probability(models, tied, rows):
    """Log-probabilities over the first 103 tokens, from the logits over all 130, by NumPy in float64."""
    model, params = load_model(models / f"padded-{tied}")
    tokens = np.random.default_rng(0).integers(0, 103, (2, 9)).astype(np.int32)
    logits = np.asarray(model.apply({"params": params}, jnp.asarray(tokens)), np.float64)[..., :103]
    logits -= logits.max(-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = np.take_along_axis(logs[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    fitted, fitted_params = with_rows(model, params, rows)
    fitted = fitted.clone(vocabulary=103)
    assert fitted.config.vocab_size == rows
    got = score(fitted, fitted_params, jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
    np.testing.assert_allclose(np.asarray(got)[:, 1:], want, atol=1e-5)
    of_module = jax.nn.softmax(fitted.apply({"params": fitted_params}, jnp.asarray(tokens)))
    np.testing.assert_array_equal(of_module[..., 103:], 0.0)


def test_a_sampler_never_draws_padding(models):
    """Of a model whose padding would be all that is drawn."""
    model, params = load_model(models / "padded-False")
    head = params["head"]["kernel"].at[:, 103:].mul(100.0)
    model = model.clone(vocabulary=103)
    params = params | {"head": {"kernel": head}}
    drawn = sample(model, params, [[5, 6, 7]] * 16, range(16), SamplingSettings(6), pad_id=0)
    assert drawn.tokens.max() < 103
    on_tokens = score(model, params, jnp.asarray(drawn.tokens), jnp.asarray(drawn.valid))
    mask = drawn.response_mask
    np.testing.assert_allclose(np.asarray(on_tokens)[mask], drawn.log_probs[mask], atol=2e-5)


def test_a_token_without_a_row_is_named(models):
    tokenizer = load_tokenizer(models / "model")
    last = max(tokenizer.get_vocab().values())
    require_tokens_fit(tiny_config(vocab_size=last + 1), tokenizer, "here")
    with pytest.raises(UserError, match=rf"here: its tokenizer has token {last} .*, its embedding has {last} rows"):
        require_tokens_fit(tiny_config(vocab_size=last), tokenizer, "here")


def changed_tokenizer(models, directory, change):
    """The teacher's directory with another vocabulary in its tokenizer."""
    shutil.copytree(models / "model", directory)
    held = json.loads((directory / "tokenizer.json").read_text())
    change(held["model"]["vocab"])
    (directory / "tokenizer.json").write_text(json.dumps(held))
    return directory


def swapped(vocabulary):
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def test_tokens_that_both_can_emit_are_the_same_or_the_first_id_is_named(models, tmp_path):
    tokenizer = load_tokenizer(models / "model")
    place = min(tokenizer.get_vocab()[letter] for letter in "ab")
    assert shared_vocabulary(tokenizer, 112, models / "padded-True", 112, "teacher") is None  # nothing is masked
    assert shared_vocabulary(tokenizer, 112, models / "padded-True", 130, "teacher") == 103
    assert shared_vocabulary(tokenizer, 130, tmp_path, 112, "teacher") == 103  # without one it has the model's
    other = changed_tokenizer(models, tmp_path / "swapped", swapped)
    with pytest.raises(UserError, match=rf"teacher: another tokenizer than the model's: id {place} is '[ab]', .*2 ids"):
        shared_vocabulary(tokenizer, 112, other, 112, "teacher")
    (tmp_path / "old").mkdir()  # in the files that tokenizers had before tokenizer.json
    (tmp_path / "old" / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "<|endoftext|>": 2}))
    (tmp_path / "old" / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "old" / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(UserError, match="teacher: another tokenizer than the model's: id 0 is 'a'"):
        shared_vocabulary(tokenizer, 112, tmp_path / "old", 112, "teacher")
    more = changed_tokenizer(models, tmp_path / "more", lambda vocabulary: vocabulary.update({"€": 103}))
    with pytest.raises(UserError, match="id 103 is '€', the model's is no token"):
        shared_vocabulary(tokenizer, 112, more, 112, "teacher")
    with pytest.raises(UserError, match="teacher: its embedding has 100 rows, and id 100 is a token of both .* 103"):
        shared_vocabulary(tokenizer, 112, tmp_path, 100, "teacher")


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


def test_what_no_tokenizer_has_is_padding_for_every_objective_that_samples(models, tmp_path):
    """The model has 112 rows, its tokenizer 103 ids: with a teacher of as many rows, and without any."""
    rows = [{"prompt": [{"role": "user", "content": f"{n}+1="}], "answer": str(n + 1)} for n in range(8)]
    turns = [row["prompt"] + [{"role": "assistant", "content": row["answer"]}] for row in rows]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    common = dict(steps=1, batch_size=8, max_new_tokens=2, optimizer=ADAMW)
    told = dict(model=models / "model", eval_data=tmp_path / "p.jsonl")
    for settings, more in (
        (RLVRSettings(**common), dict(data=tmp_path / "p.jsonl")),
        (OPDSettings(**common), dict(data=tmp_path / "p.jsonl", teacher=models / "model")),
        (SFTSettings(**common), dict(data=tmp_path / "d.jsonl")),
    ):
        said = io.StringIO()
        inputs = RunInputs(**told | more)
        ready = make_ready(
            settings,
            inputs,
            tmp_path / "run",
            Reporter(Console(file=said, soft_wrap=True)),
            force=False,
            kept_rows=None,
        )
        assert ready.model.vocabulary == 103  # of evaluation
        wanted = None if settings.objective == "sft" else 103
        assert {module.vocabulary for module in (ready.objective.student, *ready.objective.teachers)} == {wanted}
        assert said.getvalue().count("rows from 103 on have no probability") == 1


def test_an_embedding_without_padding_is_left_alone(models):
    tokenizer = load_tokenizer(models / "model")
    assert [emitted_tokens(tokenizer, rows) for rows in (103, 104, 112)] == [None, 103, 103]
    assert emitted_tokens(tokenizer, 112, [107]) == 108  # a stop token that the model alone declares
