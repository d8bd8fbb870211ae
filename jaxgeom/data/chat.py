"""Messages to tokens: chat templates, and which tokens are the assistant's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgeom.errors import UserError


@dataclass(frozen=True)
class Demonstration:
    """One tokenized conversation.

    Attributes:
        tokens: int32 `[length]`.
        loss_mask: bool `[length]`, true on the assistant's tokens, their end-of-turn token included.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray


def load_tokenizer(directory: str | Path) -> Any:
    """The tokenizer of a Hugging Face directory; nothing is downloaded and no remote code is run.

    Args:
        directory: with `tokenizer.json` and `tokenizer_config.json`.

    Returns:
        A `transformers` tokenizer.

    Raises:
        UserError: the directory has no tokenizer, or its tokenizer has no chat template.
    """
    from transformers import AutoTokenizer

    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    if not (directory / "tokenizer.json").exists():
        raise UserError(f"{directory}: no tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory}: its tokenizer cannot be read: {str(error).splitlines()[0]}") from error
    if not tokenizer.chat_template:
        raise UserError(f"{directory}: its tokenizer has no chat template")
    return tokenizer


def encode_prompt(tokenizer: Any, messages: Sequence[dict]) -> list[int]:
    """Token ids of `messages` followed by the template's generation prompt.

    Args:
        tokenizer: as `load_tokenizer` returns it.
        messages: `{"role", "content"}` each.

    Returns:
        Token ids.
    """
    text = _render(tokenizer, messages, generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_demonstration(tokenizer: Any, messages: Sequence[dict]) -> Demonstration:
    """Token ids of a whole conversation with the mask of the assistant's tokens.

    The assistant's part of turn i is the text between the rendering of the messages before it (with the generation
    prompt) and the rendering up to and with it.

    Args:
        tokenizer: as `load_tokenizer` returns it.
        messages: `{"role", "content"}` each, at least one of them the assistant's.

    Returns:
        The tokens and their loss mask.

    Raises:
        UserError: no assistant message, or a template that rewrites earlier turns, so that the parts cannot be told.
    """
    if not any(message.get("role") == "assistant" for message in messages):
        raise UserError("a demonstration without an assistant message")
    text = _render(tokenizer, messages, generation_prompt=False)
    spans = []
    for index, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        before = _render(tokenizer, messages[:index], generation_prompt=True)
        after = _render(tokenizer, messages[: index + 1], generation_prompt=False)
        if not (text.startswith(before) and text.startswith(after)):
            raise UserError(f"the chat template rewrites turn {index}: the assistant's tokens cannot be told apart")
        # A newline that the template puts between turns is no token that the assistant writes.
        spans.append((len(before), len(after.rstrip("\n"))))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = np.array([start for start, _ in encoded["offset_mapping"]])
    mask = np.zeros(len(starts), bool)
    for begin, end in spans:
        mask |= (starts >= begin) & (starts < end)
    return Demonstration(np.array(encoded["input_ids"], np.int32), mask)


def stop_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's end of sequence, and ChatML's end of turn where it exists."""
    stops = {tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>")}
    return tuple(sorted(token for token in stops if token is not None))


def pad_token(tokenizer: Any) -> int:
    """The padding token, or the end of sequence where there is none (padding is masked, never attended)."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def _render(tokenizer: Any, messages: Sequence[dict], *, generation_prompt: bool) -> str:
    if not messages:
        return ""
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation_prompt)
