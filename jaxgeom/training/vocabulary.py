"""Tokens of the tokenizer, rows of the embedding, and those of a teacher: checked together, by id."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxgeom.data.chat import has_tokenizer, load_tokenizer
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3, Qwen3Config
from jaxgeom.sharding import mesh_of, parameter_shardings


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


def emitted_tokens(tokenizer: Any, rows: int, stops: Sequence[int] = ()) -> int | None:
    """How many ids a tokenizer can emit, where the embedding has more rows: the others are padding.

    Args:
        tokenizer: as `load_tokenizer` returns it.
        rows: of the embedding.
        stops: tokens that end an answer, which the tokenizer need not have.

    Returns:
        `Qwen3.vocabulary`: the ids are those below it. None where every row is a token's.
    """
    emitted = 1 + max(*tokenizer.get_vocab().values(), *(stop for stop in stops if stop < rows))
    return emitted if emitted < rows else None


def shared_vocabulary(tokenizer: Any, rows: int, teacher: Path, teacher_rows: int, source: str | Path) -> int | None:
    """How many ids a model and its teacher have in common, where the embedding of one has more rows of padding.

    Args:
        tokenizer: the model's.
        rows: of the model's embedding.
        teacher: where the teacher's tokenizer is; without one there it is taken to have the model's.
        teacher_rows: of its embedding.
        source: names the teacher in the message.

    Returns:
        The ids that either tokenizer can emit are those below this number, and rows from here on are padding, to be
        masked out of every softmax of both; None where both embeddings have the same rows and nothing is masked.

    Raises:
        UserError: an id that is another token for the teacher, or a token without a row; the first such id is named.
    """
    ours = {place: token for token, place in tokenizer.get_vocab().items()}
    theirs = ours
    if has_tokenizer(teacher):
        theirs = {place: token for token, place in load_tokenizer(teacher).get_vocab().items()}
    odd = [place for place in sorted({*ours, *theirs}) if ours.get(place) != theirs.get(place)]
    if odd:
        said = [repr(one[odd[0]]) if odd[0] in one else "no token" for one in (theirs, ours)]
        more = f" ({len(odd)} ids differ)" if len(odd) > 1 else ""
        raise UserError(
            f"{source}: another tokenizer than the model's: id {odd[0]} is {said[0]}, the model's is {said[1]}{more}"
        )
    emitted = max(ours) + 1
    if teacher_rows < emitted:
        raise UserError(
            f"{source}: its embedding has {teacher_rows} rows, and id {teacher_rows} is a token of both tokenizers: pad"
            f" the embedding to at least {emitted} rows"
        )
    return None if teacher_rows == rows else emitted


def with_rows(model: Qwen3, params: PyTree, size: int) -> tuple[Qwen3, PyTree]:
    """A model whose embedding and head have `size` rows: cut, or padded with rows of zeros.

    Args:
        model: the module.
        params: its parameters, sharded or not.
        size: rows of the embedding.

    Returns:
        Module and parameters.
    """
    model = model.clone(config=dataclasses.replace(model.config, vocab_size=size))
    axes = {"embed/embedding": 0, "head/kernel": 1}

    def fitted(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        axis = axes.get("/".join(str(getattr(key, "key", "")) for key in path))
        if axis is None:
            return leaf
        kept = jax.lax.slice_in_dim(leaf, 0, min(size, leaf.shape[axis]), axis=axis)
        missing = [(0, size - kept.shape[axis]) if place == axis else (0, 0) for place in range(leaf.ndim)]
        return jnp.pad(kept, missing)

    def fit(tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(fitted, tree)

    mesh = mesh_of(params)
    shardings = None if mesh is None else parameter_shardings(jax.eval_shape(fit, params), mesh)
    return model, jax.jit(fit, out_shardings=shardings)(params)
