"""The two losses: cross-entropy on demonstrations, and the clipped policy gradient."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Num

from jaxgeom.diagnostics.functional import token_forward_kl_k3

Mask = Num[Array, "batch time"] | Bool[Array, "batch time"]
Aggregate = Literal["token", "sequence", "constant"]


def loss_denominator(mask: Mask, *, aggregate: Aggregate = "token", constant: float | None = None) -> Float[Array, ""]:
    """What a loss divides by, for this mask alone; the whole batch's is the sum over its micro-batches.

    Args:
        mask: `[batch, time]`.
        aggregate: "token": the sum of the mask. "sequence": number of sequences with any unmasked token. "constant":
            that number times `constant`.
        constant: tokens by which a sequence is divided under "constant" (the maximal response length).

    Returns:
        float32 scalar; 0 for an empty mask (the losses then give 0).

    Raises:
        ValueError: an unknown aggregate, or "constant" without a positive constant.
    """
    weight = mask.astype(jnp.float32)
    if aggregate == "token":
        return jnp.sum(weight)
    if aggregate not in ("sequence", "constant"):
        raise ValueError(f"aggregate is {aggregate!r}; 'token', 'sequence' or 'constant' is needed")
    sequences = jnp.sum(jnp.any(weight > 0, axis=1).astype(jnp.float32))
    if aggregate == "sequence":
        return sequences
    if constant is None or constant <= 0:
        raise ValueError(f"aggregate 'constant' needs a positive constant (tokens a sequence), not {constant}")
    return sequences * constant


def sft_loss(
    log_probs: Float[Array, "batch time"],
    mask: Mask,
    *,
    denominator: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy over the masked tokens, in nats a token.

        L = −Σ_{b,t} m_bt log p_θ(y_bt) / Σ_{b,t} m_bt

    Args:
        log_probs: `[batch, time]`, of the demonstration's tokens.
        mask: `[batch, time]`, true or 1 on assistant tokens; fractional weights are allowed.
        denominator: what to divide by in place of this call's `Σ m`. With the whole batch's count, the losses and the
            gradients of micro-batches (or of data-parallel shards) add up exactly to those of the whole batch.

    Returns:
        float32 scalar; 0 where nothing is unmasked.

    >>> import jax.numpy as jnp
    >>> float(sft_loss(jnp.array([[0.0, -1.0, -3.0]]), jnp.array([[0, 1, 1]])))
    2.0
    """
    weight = mask.astype(jnp.float32)
    return -divide_or_zero(jnp.sum(_masked(log_probs, weight)), jnp.sum(weight) if denominator is None else denominator)


def k3_kl(
    log_probs: Float[Array, "batch time"], reference_log_probs: Float[Array, "batch time"]
) -> Float[Array, "batch time"]:
    """Schulman's k3 estimate of `KL(π_θ‖π_ref)` at the sampled tokens: `e^d - d - 1`, `d = log π_ref - log π_θ`.

    Unbiased for samples of π_θ, never negative, and 0 where the two agree.

    Args:
        log_probs: `[batch, time]`, nats, of tokens drawn from π_θ; may be differentiated through.
        reference_log_probs: the same tokens under the reference; detached.

    Returns:
        float32 `[batch, time]`, nats.
    """
    reference = jax.lax.stop_gradient(reference_log_probs.astype(jnp.float32))
    return token_forward_kl_k3(log_probs.astype(jnp.float32), reference)


def policy_gradient_loss(
    log_probs: Float[Array, "batch time"],
    old_log_probs: Float[Array, "batch time"],
    advantages: Float[Array, "batch time"] | Float[Array, " batch"],
    mask: Mask,
    *,
    clip_low: float | None = 0.2,
    clip_high: float | None = 0.28,
    aggregate: Aggregate = "token",
    constant: float | None = None,
    denominator: Float[Array, ""] | None = None,
    entropy: Float[Array, "batch time"] | None = None,
    reference_log_probs: Float[Array, "batch time"] | None = None,
    kl_coefficient: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Clipped policy gradient over the masked tokens.

        ρ_t = π_θ(y_t) / π_old(y_t),  ℓ_t = −min(ρ_t·A_t, clip(ρ_t, 1 − ε_low, 1 + ε_high)·A_t)

    and `L = Σ m·ℓ / Σ m` ("token", DAPO), the mean over sequences of each one's token mean ("sequence", GRPO's
    paper), or `Σ m·ℓ / (sequences · constant)` ("constant", Dr. GRPO).

    Args:
        log_probs: `[batch, time]`, nats, of the sampled tokens under the policy in training; differentiated through.
        old_log_probs: the same under the policy that the step started from; detached.
        advantages: `[batch, time]` or `[batch]` (shared by a sample's tokens); detached.
        mask: `[batch, time]`, true or 1 on the response tokens that count. Drop uninformative groups here.
        clip_low: ε_low; None leaves the ratio unclipped below.
        clip_high: ε_high; None leaves it unclipped above. (Off-policy rollouts: both None.)
        aggregate: "token", "sequence" or "constant". A sequence without unmasked tokens is not counted.
        constant: tokens by which a sequence is divided under "constant".
        denominator: what to divide by in place of `loss_denominator` of this mask. With the sum of that over all
            micro-batches, their losses and gradients add up exactly to those of the whole batch.
        entropy: `[batch, time]`, nats, for the metric alone.
        reference_log_probs: log-probabilities under a reference policy, for the KL term and its metric.
        kl_coefficient: multiplies `k3_kl` of policy and reference, added to every token's loss.

    Returns:
        `(loss, metrics)`. Metrics are float32 scalars without gradient: "tokens" (the sum of the mask) and means over
        the masked tokens of this call, which `token_sums` and `token_means` join over micro-batches: "ratio_mean",
        "clip_fraction" (the share of tokens where the clipped branch is the smaller: their gradient is 0),
        "clip_fraction_low", "clip_fraction_high", "approx_kl" (k3 estimate of KL(old‖new)), "advantage_mean", and
        where given "entropy" and "reference_kl".

    Raises:
        ValueError: advantages of another shape, a negative clip range, an unknown aggregate, a missing constant, or a
            KL coefficient without reference.

    References: Proximal Policy Optimization Algorithms (arXiv 1707.06347); DeepSeekMath (GRPO, arXiv 2402.03300); DAPO:
        An Open-Source LLM Reinforcement Learning System at Scale (arXiv 2503.14476); Understanding R1-Zero-Like
        Training: A Critical Perspective (Dr. GRPO, arXiv 2503.20783).
    """
    if advantages.shape not in (log_probs.shape, log_probs.shape[:1]):
        raise ValueError(
            f"policy_gradient_loss: advantages have shape {advantages.shape}; "
            f"{log_probs.shape} or {log_probs.shape[:1]} is needed"
        )
    for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
        if value is not None and value < 0:
            raise ValueError(f"policy_gradient_loss: {name} is {value}; a number at least 0, or None, is needed")
    if kl_coefficient != 0.0 and reference_log_probs is None:
        raise ValueError(
            f"policy_gradient_loss: kl_coefficient is {kl_coefficient} but there are no reference_log_probs"
        )
    if denominator is None:
        denominator = loss_denominator(mask, aggregate=aggregate, constant=constant)
    elif aggregate not in ("token", "sequence", "constant"):
        raise ValueError(f"aggregate is {aggregate!r}; 'token', 'sequence' or 'constant' is needed")

    weight = mask.astype(jnp.float32)
    advantage = jax.lax.stop_gradient(advantages.astype(jnp.float32))
    advantage = jnp.broadcast_to(advantage[:, None] if advantage.ndim == 1 else advantage, weight.shape)
    log_ratio = _masked(
        log_probs.astype(jnp.float32) - jax.lax.stop_gradient(old_log_probs.astype(jnp.float32)), weight, 0
    )
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(
        ratio, None if clip_low is None else 1.0 - clip_low, None if clip_high is None else 1.0 + clip_high
    )
    token_loss = -jnp.minimum(ratio * advantage, clipped * advantage)

    metrics: dict[str, Array] = {}
    tokens = jnp.sum(weight)

    def token_mean(values: Array) -> Array:
        return jax.lax.stop_gradient(divide_or_zero(jnp.sum(_masked(values.astype(jnp.float32), weight)), tokens))

    if reference_log_probs is not None:
        reference_kl = _masked(k3_kl(_masked(log_probs, weight, 0), _masked(reference_log_probs, weight, 0)), weight, 0)
        token_loss = token_loss + kl_coefficient * reference_kl
        metrics["reference_kl"] = token_mean(reference_kl)
    per_token = _masked(token_loss, weight)
    total = aggregated(per_token, weight, aggregate)

    cut = ratio * advantage > clipped * advantage
    metrics |= {
        "tokens": tokens,
        "ratio_mean": token_mean(ratio),
        "clip_fraction": token_mean(cut),
        "clip_fraction_low": token_mean(cut & (advantage < 0)),
        "clip_fraction_high": token_mean(cut & (advantage > 0)),
        "approx_kl": token_mean(ratio - 1.0 - log_ratio),
        "advantage_mean": token_mean(advantage),
    }
    if entropy is not None:
        metrics["entropy"] = token_mean(entropy)
    return divide_or_zero(total, denominator), metrics


def _masked(values: Array, weight: Array, times: Literal[0, 1] = 1) -> Array:
    """Values times their weight (or the bare values), and 0 where the weight is: padding may hold inf or NaN."""
    return jnp.where(weight > 0, values.astype(jnp.float32) * weight if times else values, 0.0)


def aggregated(per_token: Array, weight: Array, aggregate: Aggregate) -> Array:
    """The sum of `[batch, time]` losses that are weighted already; under "sequence" of each sequence's mean."""
    if aggregate == "sequence":
        return jnp.sum(divide_or_zero(jnp.sum(per_token, axis=1), jnp.sum(weight, axis=1)))
    return jnp.sum(per_token)


def divide_or_zero(total: Array, count: Array) -> Array:
    """`total / count` elementwise in float32, and 0 where the count is 0."""
    count = count.astype(jnp.float32)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0)
