"""AdamW as the study uses it, and its learning-rate schedules."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxgeom.optimizers.settings import AdamWSettings


def learning_rate_schedule(settings: AdamWSettings, steps: int) -> Callable[[Any], Array]:
    r"""Learning rate of every step, as a function of the count of steps taken before it.

    Linear from `peak/warmup` (at step 0: the first step moves) to the peak over the warmup, then constant, or
    `end + (peak - end)·(1 + cos(π·(n - warmup)/(steps - warmup)))/2`; after the last step it stays.

    Args:
        settings: names the schedule.
        steps: optimizer steps of the whole run.

    Returns:
        an Optax schedule: integer count -> rate, float32 scalar.

    Raises:
        ValueError: steps below 1.
    """
    if steps < 1:
        raise ValueError(f"learning_rate_schedule: steps is {steps}; at least 1 is needed")
    warmup = min(round(settings.warmup_fraction * steps), steps)
    peak, end = settings.learning_rate, settings.learning_rate_end

    def schedule(count: Any) -> Array:
        taken = jnp.asarray(count).astype(jnp.float32)
        rate = jnp.full_like(taken, peak)
        if settings.schedule == "cosine":
            progress = jnp.clip((taken - warmup) / max(steps - warmup, 1), 0.0, 1.0)
            rate = end + (peak - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return jnp.where(taken < warmup, peak * (taken + 1.0) / max(warmup, 1), rate)

    return schedule


def with_standard_promotion(transform: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same transformation, runnable where `jax_numpy_dtype_promotion` is "strict" (Optax mixes int and float).

    Args:
        transform: any Optax transformation.

    Returns:
        One with the same states and updates.
    """
    inner = optax.with_extra_args_support(transform)

    def init(params: optax.Params) -> optax.OptState:
        with jax.numpy_dtype_promotion("standard"):
            return inner.init(params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def adamw(settings: AdamWSettings, steps: int, *, matrices: Any = None) -> optax.GradientTransformation:
    r"""AdamW: `W ← W - lr·( m̂/(√v̂ + eps) + weight_decay·W )`, optionally after clipping the gradient's norm.

    Args:
        settings: rates and coefficients.
        steps: optimizer steps of the run, for the schedule.
        matrices: tree like the parameters, True at the leaves to decay when `settings.decay` is "matrices" (say,
            those whose `MatrixSpec` is not None). None: leaves of at least two axes whose name is "kernel" or
            "embedding", the names of this package's models.

    Returns:
        an Optax transformation; parameters must be passed to its update.

    Raises:
        ValueError: steps below 1.

    Reference: Decoupled Weight Decay Regularization (arXiv 1711.05101).
    """
    mask = (matrices if matrices is not None else decayed_by_name) if settings.decay == "matrices" else None
    transform = optax.adamw(
        learning_rate_schedule(settings, steps),
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        mask=mask,
    )
    if settings.clip_norm is not None:
        transform = optax.chain(optax.clip_by_global_norm(settings.clip_norm), transform)
    return with_standard_promotion(transform)


def decayed_by_name(params: Any) -> Any:
    """Tree of bools: True at leaves named "kernel" or "embedding", False at scales and biases.

    Args:
        params: tree with dict keys.

    Returns:
        A tree of the same structure, for `decay_mask`.
    """

    def is_matrix(path: tuple[Any, ...], leaf: Array) -> bool:
        name = str(getattr(path[-1], "key", "")) if path else ""
        return leaf.ndim >= 2 and name in ("kernel", "embedding")

    return jax.tree_util.tree_map_with_path(is_matrix, params)
