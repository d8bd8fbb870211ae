"""Functional distance of two models: how far the output distribution moved, on answers of the initial model."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgeom.data.chat import declared_stop_tokens, load_tokenizer, pad_token, stop_tokens
from jaxgeom.data.prepared import Limits
from jaxgeom.data.preparing import prepare_prompts
from jaxgeom.data.row_settings import RowSettings
from jaxgeom.diagnostics.functional import token_forward_kl_k3
from jaxgeom.errors import UserError
from jaxgeom.models.qwen3 import unembedding
from jaxgeom.objectives.divergences import forward_kl
from jaxgeom.rollout import Rollout, SamplingSettings, sample
from jaxgeom.training.checkpointing import load_start, tokenizer_directory
from jaxgeom.training.programs import score
from jaxgeom.training.rollouts import Actor
from jaxgeom.training.scoring import hidden_states
from jaxgeom.training.vocabulary import emitted_tokens

BATCH = 32
NULL = "none; 0 when nothing changed"


class Distance(NamedTuple):
    """Forward KL(π0‖π) on sampled tokens, in nats a token.

    Attributes:
        exact: mean over the tokens of the sum over the vocabulary.
        k3: mean of `r − 1 − log r`, `r = π(y)/π0(y)`, over the same tokens: what log-probabilities alone can tell.
        k3_standard_error: of that mean, answers (not tokens) taken as independent.
        tokens: tokens averaged over.
        answers: answers that they belong to.
    """

    exact: float
    k3: float
    k3_standard_error: float | None
    tokens: int
    answers: int

    def to_json(self) -> dict[str, Any]:
        """An entry of a report's `summary`."""
        return {
            "mean": self.exact, "median": None, "count": self.tokens, "null": None, "excess": None,
            "weights": "tokens", "k3": self.k3, "k3_standard_error": self.k3_standard_error, "answers": self.answers,
        }  # fmt: skip


def functional_distance(
    initial: str | Path,
    final: str | Path,
    prompts: Path,
    *,
    max_new_tokens: int = 128,
    limit: int = 256,
    seed: int = 0,
    base: Path | None = None,
) -> Distance:
    """Samples answers to held-out prompts from the initial model, and scores them with both.

    Args:
        initial: Hugging Face directory with a tokenizer, a run of ours (its last step), or `RUN@STEP`.
        final: Likewise; its tokenizer is not used.
        prompts: JSONL or parquet rows with `prompt` messages, or `messages` (those before the last answer).
        max_new_tokens: Longest answer.
        limit: At most so many rows.
        seed: Of the sampling, at temperature 1.
        base: The model that a LoRA adapter belongs to, where its own configuration does not lead there.

    Returns:
        The exact forward KL and its k3 estimate, in nats a token, and what they were averaged over.

    Raises:
        UserError: a checkpoint that is no loadable model, no tokenizer, other vocabularies, unusable rows.
    """
    directory = tokenizer_directory(initial, base)
    tokenizer = load_tokenizer(directory)
    before, after = (
        Actor(*load_start(start, mesh=None, compute_dtype="float32", base=base)) for start in (initial, final)
    )
    sizes = [actor.model.config.vocab_size for actor in (before, after)]
    if sizes[0] != sizes[1]:
        raise UserError(f"{final}: a vocabulary of {sizes[1]}, that of {initial} has {sizes[0]}")
    config = before.model.config
    limits = Limits(
        vocabulary=config.vocab_size, context=config.max_position_embeddings, new_tokens=max_new_tokens,
        has_options=False, rows=limit,
    )  # fmt: skip
    asked = prepare_prompts(prompts, tokenizer, settings=RowSettings(), limits=limits, truth="unread")
    requests = [asked.row(place).tokens.tolist() for place in range(len(asked))]
    stops = stop_tokens(tokenizer, {*declared_stop_tokens(directory), *config.stop_tokens})
    stops = tuple(stop for stop in stops if stop < config.vocab_size)  # no other can be sampled
    vocabulary = emitted_tokens(tokenizer, config.vocab_size, stops)
    before, after = (
        dataclasses.replace(actor, model=actor.model.clone(vocabulary=vocabulary)) for actor in (before, after)
    )
    settings = SamplingSettings(max_new_tokens=max_new_tokens, stop_tokens=stops)
    seeds = np.random.default_rng([seed, 0]).integers(2**32, size=len(requests))
    found = []
    for start in range(0, len(requests), BATCH):
        part = slice(start, start + BATCH)
        pad = pad_token(tokenizer, config.vocab_size)
        answers = sample(before.model, before.params, requests[part], seeds[part], settings, pad_id=pad)
        found.append(answer_sums(before, after, answers))
    return summed(np.concatenate(found))


def answer_sums(before: Actor, after: Actor, answers: Rollout) -> Float[np.ndarray, "batch 3"]:
    """Per answer: exact forward KL and k3 estimate, each summed over its tokens, and the number of tokens."""
    tokens, valid = jnp.asarray(answers.tokens), jnp.asarray(answers.valid)
    models = (*_predicted(after, tokens, valid), *_predicted(before, tokens, valid))
    exact = np.asarray(_exact(*models, vocabulary=before.model.vocabulary), np.float64)
    mask = answers.response_mask
    first, second = (
        np.where(mask, np.asarray(score(actor.model, actor.params, tokens, valid), np.float64), 0.0)
        for actor in (before, after)
    )
    terms = (np.maximum(exact, 0.0), token_forward_kl_k3(first, second))
    return np.stack([*(np.where(mask, term, 0.0).sum(1) for term in terms), mask.sum(1)], axis=1)


def summed(sums: Float[np.ndarray, "answers 3"]) -> Distance:
    """Means over tokens from sums per answer; the standard error is that of a ratio of means over answers."""
    count, tokens = len(sums), float(sums[:, 2].sum())
    exact, k3 = (float(sums[:, column].sum() / tokens) for column in (0, 1))
    residuals = sums[:, 1] - k3 * sums[:, 2]
    error = math.sqrt(float(residuals @ residuals) * count / max(count - 1, 1)) / tokens if count > 1 else None
    return Distance(exact, k3, error, int(tokens), count)


def _predicted(actor: Actor, tokens: Int[Array, "batch time"], valid: Bool[Array, "batch time"]) -> tuple[Array, Array]:
    """Hidden states and the kernel that turns them into logits; of equal models, by one program, they are equal."""
    return _hidden(actor.model, actor.params, tokens, valid), unembedding(actor.model.config, actor.params)


_hidden = jax.jit(hidden_states, static_argnums=0)


@partial(jax.jit, static_argnames="vocabulary")
def _exact(
    hidden: Array, kernel: Array, hidden_before: Array, kernel_before: Array, *, vocabulary: int | None
) -> Float[Array, "batch time"]:
    """`KL(π0‖π)` of every token's distribution given those before it, nats; rows from `vocabulary` on are padding."""
    return forward_kl(hidden, kernel[:, :vocabulary], hidden_before, kernel_before[:, :vocabulary], remat=False)
