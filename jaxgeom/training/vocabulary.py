"""Tokens of the tokenizer, rows of the embedding, and those of a teacher: checked together, by name."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jaxgeom.data.chat import load_tokenizer
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3, Qwen3Config


def require_tokens_fit(config: Qwen3Config, tokenizer: Any, source: str | Path) -> None:
    """Refuses a tokenizer that has tokens without a row in the embedding: they would be learned as another's.

    Args:
        config: of the model.
        tokenizer: as `load_tokenizer` returns it.
        source: names the model in the message.

    Raises:
        UserError: naming the first such token.
    """
    token, last = max(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    if last >= config.vocab_size:
        raise UserError(
            f"{source}: its tokenizer has token {last} ({token!r}), its embedding has {config.vocab_size} rows"
            f" (vocab_size): resize the embedding to at least {last + 1}"
        )


def require_same_tokens(tokenizer: Any, directory: Path, source: str | Path) -> None:
    """Refuses a teacher whose tokenizer gives other ids to the tokens that it shares with the model's.

    Args:
        tokenizer: the model's.
        directory: where the teacher's tokenizer is; without one there it is taken to have the model's.
        source: names the teacher in the message.

    Raises:
        UserError: naming a token of two ids.
    """
    if not (directory / "tokenizer.json").is_file():
        return
    ours, theirs = tokenizer.get_vocab(), load_tokenizer(directory).get_vocab()
    odd = [token for token, place in ours.items() if theirs.get(token, place) != place]
    if odd:
        raise UserError(
            f"{source}: another tokenizer than the model's: {len(odd)} tokens have other ids, such as {odd[0]!r}"
            f" ({theirs[odd[0]]}, the model's {ours[odd[0]]})"
        )


def require_vocabulary(teacher: int, student: int, tokenizer: Any, source: str | Path) -> None:
    """Refuses a teacher that has no row for something that the model can sample.

    Args:
        teacher: rows of the teacher's embedding; more than the model's are padding, which is masked.
        student: rows of the model's.
        tokenizer: the model's.
        source: names the teacher in the message.

    Raises:
        UserError: the teacher has fewer rows than the model.
    """
    if teacher < student:
        raise UserError(
            f"{source}: a vocabulary of {teacher}, the model's has {student} (tokenizer: {len(tokenizer)}): the model"
            " can sample tokens that the teacher does not score; pad the teacher's embedding or cut the model's"
        )


def cut_vocabulary(model: Qwen3, params: PyTree, size: int) -> tuple[Qwen3, PyTree]:
    """A model over the first `size` tokens alone: its padding has no probability.

    Args:
        model: the module.
        params: its parameters.
        size: rows of the embedding that are kept.

    Returns:
        Module and parameters.
    """
    config = dataclasses.replace(model.config, vocab_size=size)

    def cut(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [getattr(key, "key", None) for key in path]
        if names == ["embed", "embedding"]:
            return leaf[:size]
        return leaf[:, :size] if names == ["head", "kernel"] else leaf

    return model.clone(config=config), jax.tree_util.tree_map_with_path(cut, params)
