"""Functional distance: how far the output distribution moved, on tokens of held-out prompts."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ._namespace import namespace
from .precision import widen, widen_pair


def _masked_mean(values: jax.Array, mask: ArrayLike | None) -> jax.Array:
    if mask is None:
        return jnp.mean(values)
    mask = jnp.asarray(mask)
    total = jnp.sum(mask).astype(values.dtype)
    kept = jnp.sum(jnp.where(mask, values, jnp.zeros_like(values)))
    return jnp.where(total > 0, kept / jnp.maximum(total, 1.0), jnp.nan)


def kl_of_log_probs(
    log_probs: Float[Array, "*batch outcomes"], others: Float[Array, "*batch outcomes"]
) -> Float[Array, "*batch"]:
    """`KL(p‖q) = Σ_y p(y)·(log p(y) − log q(y))` of two distributions: the one sum behind every exact KL here.

    Args:
      log_probs: log p `[..., outcomes]`, nats, normalised; −∞ where an outcome cannot be.
      others: log q, same shape and dtype.

    Returns:
      Nats `[...]`, of that dtype; outcomes of no mass under p add nothing, to the gradient neither. Differentiable in
      both.
    """
    mass = jnp.exp(log_probs)
    return jnp.sum(mass * jnp.where(mass > 0, log_probs - others, jnp.zeros_like(mass)), axis=-1)


def token_forward_kl(
    initial_logits: Float[ArrayLike, "*batch vocab"], logits: Float[ArrayLike, "*batch vocab"]
) -> Float[Array, "*batch"]:
    """Exact forward KL at each position, `Σ_y π0(y)·(log π0(y) − log π(y))`.

    Args:
      initial_logits: logits of the initial model `[..., vocab]`.
      logits: logits of the trained model, same shape.

    Returns:
      KL in nats `[...]`, float32 or float64.
    """
    reference, trained = widen_pair(initial_logits, logits, ("initial_logits", "logits"))
    return jnp.maximum(kl_of_log_probs(jax.nn.log_softmax(reference), jax.nn.log_softmax(trained)), 0.0)


def forward_kl(
    initial_logits: Float[ArrayLike, "*batch vocab"],
    logits: Float[ArrayLike, "*batch vocab"],
    mask: Bool[ArrayLike, "*batch"] | None = None,
) -> Float[Array, ""]:
    """Mean exact forward KL `KL(π0‖π)` over tokens: the best known predictor of forgetting.

    Args:
      initial_logits: logits of the initial model `[..., vocab]`.
      logits: logits of the trained model, same shape.
      mask: positions to average over; all where it is not given.

    Returns:
      Nats per token; NaN where the mask is empty.

    Reference:
      *RL's Razor*, https://arxiv.org/abs/2509.04259
    """
    return _masked_mean(token_forward_kl(initial_logits, logits), mask)


def token_forward_kl_k3(initial_log_probs: Any, log_probs: Any) -> Any:
    """The k3 estimate of `KL(π0‖π)` at each sampled token, `r − 1 − log r`, `r = π(y)/π0(y)`.

    Args:
      initial_log_probs: log π0 of tokens sampled by the initial model, in nats, any shape, numpy or JAX.
      log_probs: log π of the same tokens, same shape and dtype.

    Returns:
      Nats, of that shape, namespace and dtype.
    """
    log_ratio = log_probs - initial_log_probs
    return namespace(log_ratio).expm1(log_ratio) - log_ratio


def forward_kl_k3(
    initial_log_probs: Float[ArrayLike, "*batch"],
    log_probs: Float[ArrayLike, "*batch"],
    mask: Bool[ArrayLike, "*batch"] | None = None,
) -> Float[Array, ""]:
    """The k3 estimate of `KL(π0‖π)` from tokens sampled by the initial model.

    `E_{y∼π0}[r − 1 − log r]`, `r = π(y)/π0(y)`: unbiased, never negative, of low variance.

    Args:
      initial_log_probs: log π0 of the sampled tokens `[...]`, in nats.
      log_probs: log π of the same tokens.
      mask: positions to average over; all where it is not given.

    Returns:
      Nats per token; NaN where the mask is empty.

    Reference:
      John Schulman, *Approximating KL Divergence*, 2020, http://joschu.net/blog/kl-approx.html
    """
    first, second = widen(initial_log_probs, "initial_log_probs"), widen(log_probs, "log_probs")
    return _masked_mean(token_forward_kl_k3(first, second), mask)
