"""Log-probabilities of given tokens from hidden states, without ever holding `[batch, time, vocab]`."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from jaxgeom.float32_products import float32_products

DEFAULT_CHUNK = 128
_NEVER = -1e30
_NORMALIZER = "normalizer"


class ChunkedWeight(NamedTuple):
    """An unembedding as every chunk sees it.

    Attributes:
        value: `[d, vocab]` in the dtype of the product; no gradient flows to it.
        master: `[d, vocab]` float32, which takes the gradient; its numbers are never read, so no device gathers it.
    """

    value: Array
    master: Array


def chunked_weight(unembedding: Float[Array, "d vocab"], dtype: Any) -> ChunkedWeight:
    """`unembedding` cast once for all chunks, while its gradient is summed over them in float32.

    A sharded weight is then gathered in `dtype`: half the traffic of its float32 master where that is bf16.
    """
    return ChunkedWeight(jax.lax.stop_gradient(unembedding).astype(dtype), unembedding.astype(jnp.float32))


def as_chunked(unembedding: Float[Array, "d vocab"] | ChunkedWeight, dtype: Any) -> ChunkedWeight:
    """`chunked_weight` of what is not one yet."""
    return unembedding if isinstance(unembedding, ChunkedWeight) else chunked_weight(unembedding, dtype)


@jax.custom_jvp
def unembed(
    hidden: Float[Array, "*batch d"], value: Float[Array, "d vocab"], master: Float[Array, "d vocab"]
) -> Float[Array, "*batch vocab"]:
    """Logits `hidden @ value`, both in one dtype, accumulated and returned in float32; differentiated by `master`.

    The tangent is formed in hidden's dtype, so that its transpose is two products in that dtype: a bf16 model has bf16
    backward products and no float32 product of this size.
    """
    with float32_products(hidden.dtype):
        return jnp.matmul(hidden, value, preferred_element_type=jnp.float32)


@unembed.defjvp
def _unembed_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    hidden, value, master = primals
    d_hidden, _, d_master = tangents
    with float32_products(hidden.dtype):
        tangent = d_hidden @ value + hidden @ d_master.astype(hidden.dtype)
    return unembed(hidden, value, master), tangent.astype(jnp.float32)


def scaled_logits(
    hidden: Float[Array, "*batch d"], weight: ChunkedWeight, temperature: Any, vocabulary: int | None
) -> Float[Array, "*batch vocab"]:
    """Logits over a temperature, float32; those of padding are so low that they have no probability.

    Args:
        hidden: in the dtype of `weight.value`.
        weight: of the product.
        temperature: a number or a scalar array.
        vocabulary: tokens from here on are padding; None for no padding.
    """
    logits = unembed(hidden, *weight) / jnp.asarray(temperature, jnp.float32)
    return without_padding(logits, vocabulary)


def without_padding(logits: Float[Array, "*batch vocab"], vocabulary: int | None) -> Float[Array, "*batch vocab"]:
    """Logits of which those from `vocabulary` on are so low that a softmax gives them exactly 0.

    Finite: of minus infinity a probability of 0 times a difference of log-probabilities would be NaN.
    """
    if vocabulary is None or vocabulary >= logits.shape[-1]:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < vocabulary, logits, jnp.asarray(_NEVER, logits.dtype))


@jax.custom_jvp
def log_normalizer(logits: Float[Array, "*batch vocab"]) -> Float[Array, "*batch"]:
    """`log Σ_v exp z_v`; its value is kept where the logits are computed again for the gradient.

    The backward pass needs `exp(z_v − log Σ exp z)` alone: with the sum at hand it reads the logits once, and does not
    seek their maximum and sum again first.
    """
    return jax.nn.logsumexp(logits, axis=-1)


@log_normalizer.defjvp
def _log_normalizer_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (logits,), (d_logits,) = primals, tangents
    normalizer = checkpoint_name(jax.nn.logsumexp(logits, axis=-1), _NORMALIZER)
    return normalizer, jnp.sum(jnp.exp(logits - normalizer[..., None]) * d_logits, axis=-1)


def at_targets(values: Float[Array, "*batch vocab"], tokens: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The value of each token, by a masked sum: without a gather it partitions over a sharded vocabulary."""
    is_target = tokens[..., None] == jnp.arange(values.shape[-1], dtype=tokens.dtype)
    return jnp.sum(jnp.where(is_target, values, 0.0), axis=-1)


def map_time_chunks(body: Callable[..., Any], arrays: Any, weights: Any, *, chunk: int, remat: bool) -> Any:
    """`body(arrays, weights)` evaluated over chunks of the time axis, one chunk in memory at a time.

    Args:
        body: takes `arrays` with `[batch, chunk, ...]` leaves and `weights`, returns a tree of `[batch, chunk]`.
        arrays: tree of `[batch, time, ...]` leaves, cut along time; a last short chunk is padded with zeros.
        weights: tree of arrays that every chunk sees whole. A gradient is summed over chunks in its weight's dtype:
            see `chunked_weight`.
        chunk: time steps a chunk.
        remat: recompute a chunk in the backward pass in place of keeping what it held (where there are several).

    Returns:
        body's tree with `[batch, time]` leaves.
    """
    time = jax.tree.leaves(arrays)[0].shape[1]
    if time <= chunk:
        return body(arrays, weights)  # the backward pass starts here: recomputing would save nothing at the peak
    kept = jax.checkpoint_policies.save_only_these_names(_NORMALIZER)
    # A scan keeps its steps apart by itself.
    step = jax.checkpoint(body, prevent_cse=False, policy=kept) if remat else body
    count = -(-time // chunk)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, count * chunk - time)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], count * chunk)[:, :time]

    _, out = jax.lax.scan(lambda carry, xs: (carry, step(xs, weights)), None, jax.tree.map(cut, arrays))
    return jax.tree.map(join, out)


def shift_to_tokens(per_position: Float[Array, "batch time"]) -> Float[Array, "batch time"]:
    """Moves what position t says of token t+1 to index t+1; index 0, which nothing predicts, becomes 0."""
    return jnp.pad(per_position[:, :-1], ((0, 0), (1, 0)))


def check_hidden(name: str, hidden: Array, unembedding: Array | ChunkedWeight, chunk: int) -> None:
    """Raises ValueError unless hidden is `[batch, time, d]`, unembedding `[d, vocab]` and chunk at least 1."""
    unembedding = unembedding.value if isinstance(unembedding, ChunkedWeight) else unembedding
    if hidden.ndim != 3:
        raise ValueError(f"{name}: hidden states have shape {hidden.shape}; [batch, time, d] is needed")
    if unembedding.ndim != 2 or unembedding.shape[0] != hidden.shape[-1]:
        raise ValueError(
            f"{name}: unembedding has shape {unembedding.shape}; [d, vocab] with d = {hidden.shape[-1]} is needed "
            "(an embedding [vocab, d] is passed transposed)"
        )
    if chunk < 1:
        raise ValueError(f"{name}: chunk is {chunk}; at least 1 time step is needed")


@overload
def token_log_probs(
    hidden: Float[Array, "batch time d"],
    unembedding: Float[Array, "d vocab"] | ChunkedWeight,
    targets: Int[Array, "batch time"],
    *,
    chunk: int = ...,
    temperature: float | Float[Array, ""] = ...,
    vocabulary: int | None = ...,
    return_entropy: Literal[False] = ...,
    remat: bool = ...,
) -> Float[Array, "batch time"]: ...


@overload
def token_log_probs(
    hidden: Float[Array, "batch time d"],
    unembedding: Float[Array, "d vocab"] | ChunkedWeight,
    targets: Int[Array, "batch time"],
    *,
    chunk: int = ...,
    temperature: float | Float[Array, ""] = ...,
    vocabulary: int | None = ...,
    return_entropy: Literal[True],
    remat: bool = ...,
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]: ...


def token_log_probs(
    hidden: Float[Array, "batch time d"],
    unembedding: Float[Array, "d vocab"] | ChunkedWeight,
    targets: Int[Array, "batch time"],
    *,
    chunk: int = DEFAULT_CHUNK,
    temperature: float | Float[Array, ""] = 1.0,
    vocabulary: int | None = None,
    return_entropy: bool = False,
    remat: bool = True,
) -> Float[Array, "batch time"] | tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
    """Log-probability of every token given those before it, in nats.

        log p(y_t | y_{<t}) = z[t − 1, y_t] − log Σ_v exp z[t − 1, v],  z = h W / τ

    Computed chunk by chunk along time, each chunk recomputed in the backward pass: the largest intermediate is
    `[batch, chunk, vocab]` in float32, forward and backward. The product is taken in hidden's dtype and accumulated
    in float32; the target's logit is picked by a masked sum, which needs no gather and partitions over a sharded
    vocabulary.

    Args:
        hidden: final, normed hidden states `[batch, time, d]`, float32 or bfloat16.
        unembedding: `[d, vocab]`; a tied embedding is passed transposed. A float32 master is cast to hidden's dtype
            once, and its gradient is summed over chunks in float32. Or a `chunked_weight` of it, for who lays out
            its two parts over devices.
        targets: the tokens themselves, `[batch, time]`, not shifted.
        chunk: time steps at a time.
        temperature: the logits are divided by it; 1 scores the model's own distribution.
        vocabulary: tokens from here on are padding, without probability; None for no padding.
        return_entropy: also return the entropy of the distribution that each token was drawn from.
        remat: False keeps every chunk's logits for the backward pass: faster where they fit.

    Returns:
        float32 `[batch, time]`: at index t the log-probability of `targets[:, t]` given `targets[:, :t]`; 0 at t = 0.
        With `return_entropy`, a pair: the same and the entropy in nats under the same alignment.

    Raises:
        ValueError: shapes that do not fit, or a chunk below 1.
    """
    check_hidden("token_log_probs", hidden, unembedding, chunk)
    if targets.shape != hidden.shape[:2]:
        raise ValueError(f"token_log_probs: targets have shape {targets.shape}; {hidden.shape[:2]} is needed")
    following = jnp.roll(targets, -1, axis=1)

    def body(arrays: tuple[Array, Array], weight: ChunkedWeight) -> tuple[Array, ...]:
        states, tokens = arrays
        logits = scaled_logits(states, weight, temperature, vocabulary)
        normalizer = log_normalizer(logits)
        log_probs = at_targets(logits, tokens) - normalizer
        if not return_entropy:
            return (log_probs,)
        return log_probs, normalizer - jnp.sum(jnp.exp(logits - normalizer[..., None]) * logits, axis=-1)

    weight = as_chunked(unembedding, hidden.dtype)
    out = map_time_chunks(body, (hidden, following), weight, chunk=chunk, remat=remat)
    if return_entropy:
        return shift_to_tokens(out[0]), shift_to_tokens(out[1])
    return shift_to_tokens(out[0])
