"""The tokenizer of the embedded models: one token a character, a few words, ChatML's marks."""

import string
from pathlib import Path

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_WORDS = ("system", "user", "assistant", "\\boxed{")
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def write_character_tokenizer(directory: str | Path) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and the chat template, as `transformers` reads them.

    Every printable ASCII character and the newline is one token; anything else becomes the end-of-text token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    characters = ["\n", *(c for c in string.printable if c.isprintable())]
    vocabulary = {token: index for index, token in enumerate([END_OF_TEXT, TURN_START, TURN_END, *_WORDS, *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=END_OF_TEXT))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (END_OF_TEXT, TURN_START, TURN_END)])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in _WORDS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _CHAT_TEMPLATE
    fast.save_pretrained(str(directory))
