"""What each sampled token is credited with: GRPO, on-policy distillation, their mixture, and sparsified tokens."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Num

Mask = Num[Array, "batch time"] | Bool[Array, "batch time"]


def grpo_advantages(
    rewards: Float[Array, "groups samples"], *, epsilon: float = 1e-6, normalize: bool = True
) -> Float[Array, "groups samples"]:
    """Group-relative advantages, one per sample, shared by all its tokens.

        A_i = (r_i − mean(r)) / (std(r) + ε)

    The standard deviation is the population one (divisor G, not G - 1), and is taken within the group. A group whose
    rewards are all equal gets exactly 0: rounding of the mean is not blown up by epsilon.

    Args:
        rewards: `[groups, samples]`, the rewards of the samples of each prompt.
        epsilon: added to the standard deviation.
        normalize: False leaves out the division, as Dr. GRPO does: Understanding R1-Zero-Like Training: A Critical
            Perspective (arXiv 2503.20783).

    Returns:
        float32 `[groups, samples]`.

    Raises:
        ValueError: rewards are not two-dimensional.

    Reference: DeepSeekMath (GRPO, arXiv 2402.03300).

    >>> import jax.numpy as jnp
    >>> grpo_advantages(jnp.array([[1.0, 0.0, 0.0, 1.0]])).round(3).tolist()
    [[1.0, -1.0, -1.0, 1.0]]
    """
    if rewards.ndim != 2:
        raise ValueError(f"grpo_advantages: rewards have shape {rewards.shape}; [groups, samples] is needed")
    rewards = rewards.astype(jnp.float32)
    centred = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    if normalize:
        centred = centred / (jnp.sqrt(jnp.mean(centred**2, axis=1, keepdims=True)) + epsilon)
    return jnp.where(informative_groups(rewards)[:, None], centred, 0.0)


def informative_groups(rewards: Float[Array, "groups samples"]) -> Bool[Array, " groups"]:
    """True for the groups whose rewards differ: DAPO's dynamic filter keeps these and draws others anew.

    Args:
        rewards: `[groups, samples]`.

    Returns:
        bool `[groups]`; to drop the others from a loss, multiply it into the loss mask.

    Reference: DAPO: An Open-Source LLM Reinforcement Learning System at Scale (arXiv 2503.14476).
    """
    return jnp.max(rewards, axis=1) > jnp.min(rewards, axis=1)


def soft_overlong_penalty(lengths: np.ndarray, *, limit: int, buffer: int) -> np.ndarray:
    """DAPO's soft penalty of long answers, added to their reward.

        R(y) = 0 for |y| ≤ L − B,  ((L − B) − |y|) / B above it,  −1 for |y| ≥ L

    Args:
        lengths: `[batch]`, tokens of each answer.
        limit: L, tokens that an answer may have.
        buffer: B, tokens below the limit over which the penalty grows.

    Returns:
        float64 `[batch]`, in [−1, 0].

    Reference: DAPO: An Open-Source LLM Reinforcement Learning System at Scale (arXiv 2503.14476).

    >>> import numpy as np
    >>> soft_overlong_penalty(np.array([6, 8, 10]), limit=10, buffer=4).tolist()
    [0.0, -0.5, -1.0]
    """
    return np.clip((limit - buffer - lengths) / buffer, -1.0, 0.0)


def opd_advantages(
    student_log_probs: Float[Array, "batch time"], teacher_log_probs: Float[Array, "batch time"], mask: Mask
) -> Float[Array, "batch time"]:
    """Advantages of on-policy distillation by the sampled-token reverse KL: `A_t = -r_t`, detached.

        r_t = log π_θ(y_t) − log π_T(y_t)

    No discounting, no whitening. Nothing flows back through it, to either argument: the gradient of the reverse KL is
    `E[r_t ∇log π_θ(y_t)]`, the policy gradient, while that of the sampled `r_t` itself is `∇log π_θ(y_t)`, whose mean
    over samples is 0: noise without a signal. Differentiating through this function gives exactly 0.

    Args:
        student_log_probs: `[batch, time]`, nats, of the sampled tokens under the student that drew them.
        teacher_log_probs: the same tokens under the teacher.
        mask: `[batch, time]`, true or 1 on response tokens.

    Returns:
        float32 `[batch, time]`, 0 outside the mask.
    """
    gap = teacher_log_probs.astype(jnp.float32) - student_log_probs.astype(jnp.float32)
    return jax.lax.stop_gradient(jnp.where(mask.astype(bool), gap, 0.0))


def constant_advantages(mask: Mask, constant: float | Float[Array, ""]) -> Float[Array, "batch time"]:
    """The null of a teacher's signal: `A_t = -c` on every token of a response, whatever it is.

    What a sampled token is credited with then depends on nothing, so that the expected gradient is 0: what training
    with it does is what pressure on all sampled tokens alike does.

    Args:
        mask: `[batch, time]`, true or 1 on response tokens.
        constant: c, nats; to match the scale of distillation the mean of `|r_t|`.

    Returns:
        float32 `[batch, time]`, 0 outside the mask.

    Reference: arXiv 2608.31046.
    """
    return jax.lax.stop_gradient(jnp.where(mask.astype(bool), -jnp.asarray(constant, jnp.float32), 0.0))


def mix_advantages(
    opd: Float[Array, "batch time"],
    grpo: Float[Array, " batch"] | Float[Array, "batch time"],
    alpha: float | Float[Array, ""],
    *,
    weights: tuple[Float[Array, ""], Float[Array, ""]] | None = None,
) -> Float[Array, "batch time"]:
    """Mixture of the two signals: `A = α·(-r_t) + (1 - α)·A_GRPO`, raw.

    Args:
        opd: `[batch, time]`, from `opd_advantages` (that is, `-r_t`).
        grpo: `[batch]`, or `[batch, time]` where already spread over tokens.
        alpha: 1 is distillation alone, 0 is GRPO alone.
        weights: what to take in place of `(α, 1 - α)`, as `matched_mix_weights` gives them.

    Returns:
        float32 `[batch, time]`. With grpo `[batch]` it is not 0 outside the response: the loss masks it.

    Raises:
        ValueError: grpo is neither `[batch]` nor of opd's shape.
    """
    if grpo.shape not in (opd.shape, opd.shape[:1]):
        raise ValueError(f"mix_advantages: grpo has shape {grpo.shape}; {opd.shape[:1]} or {opd.shape} is needed")
    alpha = jnp.asarray(alpha, jnp.float32)
    opd_weight, grpo_weight = (alpha, 1.0 - alpha) if weights is None else weights
    spread = grpo[:, None] if grpo.ndim == 1 else grpo
    return opd_weight * opd.astype(jnp.float32) + grpo_weight * spread.astype(jnp.float32)


def matched_mix_weights(
    opd_norm: Float[Array, ""],
    grpo_norm: Float[Array, ""],
    alpha: float | Float[Array, ""],
    *,
    inner: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weights of the mixture at which α is a share of gradient norm, and does not change the step's scale.

        w_o = s·α,  w_g = s·(1 − α)·‖g_o‖/‖g_g‖,  s = ‖g_o‖ / ‖α·g_o + (1 − α)·(‖g_o‖/‖g_g‖)·g_g‖

    so that the two contributions have norms in the ratio `α : 1-α` and the mixed gradient has the norm of the pure
    distillation gradient. Without `inner`, s = 1 (only the ratio is matched; the norm then falls with the angle).

    Args:
        opd_norm: `‖g_o‖`, norm of the gradient with distillation's advantages alone.
        grpo_norm: `‖g_g‖`, the same with GRPO's alone, on the same batch. At 0 (no informative group) w_g is 0.
        alpha: share of distillation.
        inner: `⟨g_o, g_g⟩`, for the norm of the mixture to be matched as well.

    Returns:
        `(w_o, w_g)`, float32 scalars for `mix_advantages(..., weights=...)`. The loss is linear in the advantages, and
        the match exact, where no ratio is clipped (always so at the first step on fresh samples).
    """
    opd_norm, grpo_norm = opd_norm.astype(jnp.float32), grpo_norm.astype(jnp.float32)
    alpha = jnp.asarray(alpha, jnp.float32)
    has_grpo = grpo_norm > 0
    safe_grpo = jnp.where(has_grpo, grpo_norm, 1.0)
    opd_weight, grpo_weight = alpha, jnp.where(has_grpo, (1.0 - alpha) * opd_norm / safe_grpo, 0.0)
    if inner is None:
        return opd_weight, grpo_weight
    square = (
        (opd_weight * opd_norm) ** 2 + (grpo_weight * grpo_norm) ** 2 + 2.0 * opd_weight * grpo_weight * inner
    ).astype(jnp.float32)
    scale = jnp.where(square > 0, opd_norm / jnp.sqrt(jnp.where(square > 0, square, 1.0)), 1.0)
    return scale * opd_weight, scale * grpo_weight


def sparsify_tokens(
    gap: Float[Array, "batch time"],
    mask: Mask,
    *,
    fraction: float,
    method: Literal["largest", "random", "first"] = "largest",
    key: Array | None = None,
) -> Float[Array, "batch time"]:
    """Weights that keep a fraction of each sample's response tokens and rescale them to the sample's full weight.

        w_t = m_t·T / Σ_s m_s,  Σ_s m_s = max(1, ⌊ρT + 1/2⌋)

    with T the sample's response tokens. Multiply the advantages by it and leave the loss mask as it is: the divisor
    is then the same as without sparsification.

    Args:
        gap: `[batch, time]`, the signed `r_t = log π_θ - log π_T` (that is, minus the OPD advantage). Not its
            magnitude: kept are the tokens to which the student gives more than the teacher. Detached.
        mask: `[batch, time]`, true or 1 on response tokens.
        fraction: ρ in (0, 1]; 1 keeps all.
        method: "largest" by gap (ties to the earlier token), "random" uniformly without replacement, or "first": the
            beginning of the response (prefix-only, arXiv 2606.22600).
        key: random key, for "random" only.

    Returns:
        float32 `[batch, time]`: 0, or `T/Σm`. A sample without response tokens is all 0.

    Raises:
        ValueError: fraction outside (0, 1], an unknown method, or "random" without a key.

    Reference: On the Geometry of On-Policy Distillation (arXiv 2606.07082), section 5.1.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"sparsify_tokens: fraction is {fraction}; a number in (0, 1] is needed")
    if method == "random":
        if key is None:
            raise ValueError("sparsify_tokens: method 'random' needs a key")
        score = jax.random.uniform(key, gap.shape)
    elif method == "largest":
        score = jax.lax.stop_gradient(gap.astype(jnp.float32))
    elif method == "first":
        score = jnp.zeros(gap.shape)  # ties go to the earlier token
    else:
        raise ValueError(f"sparsify_tokens: method is {method!r}; 'largest', 'random' or 'first' is needed")
    response = mask.astype(bool)
    score = jnp.where(response, score, -jnp.inf)
    # Stable sort of the negated score: among equals, and among -inf, the earlier token ranks first.
    rank = jnp.argsort(jnp.argsort(-score, axis=1, stable=True), axis=1)
    total = jnp.sum(response, axis=1, keepdims=True, dtype=jnp.float32)
    count = _kept(total, fraction)
    kept = response & (rank < count)
    return jnp.where(kept, total / jnp.maximum(count.astype(jnp.float32), 1.0), 0.0)


def _kept(total: Float[Array, "batch 1"], fraction: float) -> Int[Array, "batch 1"]:
    wanted = jnp.maximum(jnp.floor(total * fraction + 0.5), 1.0)
    return jnp.minimum(wanted, total).astype(jnp.int32)
