"""From logits to a token and its log-probability under the distribution that it was drawn from."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Below it the scaled logits leave the range of float32.
_COLDEST = 1e-6


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: longest answer, the stop token included.
        temperature: logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches it; 1 keeps all.
        greedy: take the most likely token; its log-probability is that of the whole softmax at temperature 1.
        stop_tokens: tokens that end an answer.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    stop_tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        # Settings are static arguments of the sampler's programs: a list could not be hashed.
        object.__setattr__(self, "stop_tokens", tuple(int(token) for token in self.stop_tokens))
        if not (math.isfinite(self.temperature) and self.temperature >= _COLDEST):
            raise ValueError(
                f"temperature={self.temperature} must be at least {_COLDEST} and finite; "
                "use greedy=True for the limit 0"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (all tokens) or positive")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]")


def choose_tokens(
    logits: Float[Array, "batch vocab"], uniforms: Float[Array, " batch"], settings: SamplingSettings
) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """Draw one token per row by inverting its cumulative distribution.

    `token = min{v : Σ_{u≤v} p_u > uniform}` over the tokens that are kept, in order of their index, or of their rank
    where the distribution is truncated.

    Args:
        logits: float32.
        uniforms: one number in [0, 1) per row.
        settings: temperature and truncation.
    Returns:
        Token ids, int32, and their log-probabilities in nats under the distribution sampled from.
    """
    vocab = logits.shape[-1]
    if settings.greedy:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return tokens, _at(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)
    logits = logits / settings.temperature
    kept = min(settings.top_k, vocab) if settings.top_k else vocab
    if kept == vocab and settings.top_p == 1.0:
        return _invert(logits, uniforms)
    # Ranked, so that ties at the edge of the kept set are broken by index and the set has exactly the size asked for.
    ranked, ids = jax.lax.top_k(logits, kept)
    if settings.top_p < 1.0:
        probabilities = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The first is always kept: its sum "before" is 0 up to rounding.
        inside = (before < settings.top_p).at[:, 0].set(True)
        ranked = jnp.where(inside, ranked, -jnp.inf)
    choice, log_probs = _invert(ranked, uniforms)
    return _at(ids, choice).astype(jnp.int32), log_probs


def _invert(
    logits: Float[Array, "batch vocab"], uniforms: Float[Array, " batch"]
) -> tuple[Int[Array, " batch"], Float[Array, " batch"]]:
    """Inversion in two levels: first the block of about √vocab tokens, then the token within it."""
    rows, vocab = logits.shape
    size = 1 << ((vocab - 1).bit_length() + 1) // 2
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.pad(jnp.exp(logits - top), ((0, 0), (0, -vocab % size))).reshape(rows, -1, size)
    block_weights = jnp.sum(weights, axis=-1)
    cumulative = _cumulative_sum(block_weights)
    total = cumulative[:, -1]
    target = uniforms * total
    block = _first_beyond(cumulative, target, block_weights)
    inside = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
    before = _at(cumulative, block) - _at(block_weights, block)
    tokens = block * size + _first_beyond(_cumulative_sum(inside), target - before, inside)
    return tokens, _at(logits, tokens) - top[:, 0] - jnp.log(total)


def _first_beyond(
    cumulative: Float[Array, "batch n"], target: Float[Array, " batch"], weights: Float[Array, "batch n"]
) -> Int[Array, " batch"]:
    """The first index whose cumulative weight exceeds the target; the heaviest where rounding leaves none."""
    # A parallel sum need not be monotone to the last bit; asking for a positive weight keeps excluded tokens out.
    beyond = (cumulative > target[:, None]) & (weights > 0)
    return jnp.where(jnp.any(beyond, axis=-1), jnp.argmax(beyond, axis=-1), jnp.argmax(weights, axis=-1)).astype(
        jnp.int32
    )


def _cumulative_sum(x: Float[Array, "batch n"]) -> Float[Array, "batch n"]:
    """As a product with a triangle of ones: a few hundred columns that no device has to walk along."""
    count = x.shape[-1]
    return jnp.matmul(x, jnp.triu(jnp.ones((count, count), x.dtype)), precision=jax.lax.Precision.HIGHEST)


def _at(values: Array, index: Array) -> Array:
    """`values[row, index[row]]`."""
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
