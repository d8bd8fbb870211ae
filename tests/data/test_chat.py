"""Chat templates: the loss mask covers the assistant's tokens and nothing else."""

import json

import numpy as np
import pytest

from jaxgeom.data import chat
from jaxgeom.data.character_tokenizer import write_character_tokenizer
from jaxgeom.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    write_character_tokenizer(directory)
    return chat.load_tokenizer(directory)


def test_the_mask_is_the_assistants_text_and_its_end_of_turn(tokenizer):
    messages = [
        {"role": "system", "content": "add"},
        {"role": "user", "content": "1+2"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "4+4"},
        {"role": "assistant", "content": "8 = 8"},
    ]
    demonstration = chat.encode_demonstration(tokenizer, messages)
    assert tokenizer.decode(demonstration.tokens[demonstration.loss_mask]) == "3<|im_end|>8 = 8<|im_end|>"
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    assert tokenizer.decode(demonstration.tokens) == text


def test_the_prompt_is_the_beginning_of_the_demonstration(tokenizer):
    messages = [{"role": "user", "content": "12+30"}, {"role": "assistant", "content": "42"}]
    prompt = chat.encode_prompt(tokenizer, messages[:1])
    demonstration = chat.encode_demonstration(tokenizer, messages)
    np.testing.assert_array_equal(demonstration.tokens[: len(prompt)], prompt)
    assert not demonstration.loss_mask[: len(prompt)].any() and demonstration.loss_mask[len(prompt)]


def test_an_answer_that_begins_within_a_token_is_learned_and_stands_after_the_prompt_as_sampled(tmp_path):
    write_character_tokenizer(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["added_tokens"] += [
        {"id": 200 + place, "content": word, "special": False, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for place, word in enumerate([" yes", ": "])
    ]  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    tokenizer = chat.load_tokenizer(tmp_path)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + '=' + ' ' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant= ' }}{% endif %}"
    )
    asked = [{"role": "user", "content": "a"}]
    answered = [*asked, {"role": "assistant", "content": "yes"}]
    assert len(tokenizer(" yes")["input_ids"]) == 1
    prompt = chat.encode_prompt(tokenizer, asked)
    for messages in (answered, [*answered, *answered]):
        found = chat.encode_demonstration(tokenizer, messages)
        assert tokenizer.decode(found.tokens[found.loss_mask]) == "yes<|im_end|>" * (len(messages) // 2)
        assert found.tokens[: len(prompt)].tolist() == prompt and not found.loss_mask[: len(prompt)].any()
    # A plain text is one piece, and where no token goes over an answer's beginning nothing is tokenized apart.
    assert (
        chat.encode_demonstration(tokenizer, [*asked, {"role": "assistant", "content": "no: yes"}]).tokens.tolist()
        == (tokenizer("user= a<|im_end|>assistant= no: yes<|im_end|>", add_special_tokens=False)["input_ids"])
    )


def test_every_printable_character_survives_a_round_trip(tokenizer):
    text = "".join(map(chr, range(32, 127))) + "\n\\boxed{12} user"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_conversation_without_an_answer_is_refused(tokenizer):
    with pytest.raises(UserError, match="assistant"):
        chat.encode_demonstration(tokenizer, [{"role": "user", "content": "1"}])


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match="tokenizer.json"):
        chat.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        chat.load_tokenizer(tmp_path)


def test_a_config_that_the_tokenizers_reader_stumbles_over_is_named(tmp_path):
    write_character_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "id2label": 5}')
    with pytest.raises(UserError, match=r"config\.json: transformers cannot read it: 'int' object"):
        chat.load_tokenizer(tmp_path)
