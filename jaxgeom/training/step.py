"""The training step: a pure function of state, batch and frozen parameters, for every objective."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxgeom.objectives import token_means, token_sums
from jaxgeom.training.objectives.interface import Objective
from jaxgeom.training.state import Batch, Frozen, TrainState

Metrics = dict[str, Float[Array, ""]]
Step = Callable[..., tuple[TrainState, Metrics]]
"""`(state, batch, frozen=Frozen()) -> (state, metrics)`."""


def train_step(objective: Objective, optimizer: optax.GradientTransformation) -> Step:
    """The step `(state, batch, frozen) -> (state, metrics)`, not compiled: see `programs.make_train_step`.

    The gradient is accumulated over `settings.micro_batches` parts of the batch in float32, each divided by the whole
    batch's count, so that it is the same whatever the number of parts.

    Args:
        objective: its loss and what that is divided by.
        optimizer: any Optax transformation.

    Returns:
        A pure function. `frozen` holds what the loss reads of teachers and reference (`objective.step_inputs`).
        Metrics, float32 scalars: `loss`, `grad_norm`, `update_norm`, `param_norm`, and those of the loss: `tokens` of
        the whole batch, the others means over all of them, whatever the number of parts.
    """

    def step(state: TrainState, batch: Batch, frozen: Frozen = Frozen()) -> tuple[TrainState, Metrics]:  # noqa: B008
        denominator = objective.denominator(batch)

        def loss(params: PyTree, part: Batch) -> tuple[Array, Metrics]:
            return objective.loss(params, part, frozen, denominator)

        (value, metrics), grads = _accumulate(loss, state.params, batch, objective.settings.micro_batches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {
            "loss": value,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
        }
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def _accumulate(
    loss: Callable[..., Any], params: PyTree, batch: Batch, parts: int
) -> tuple[tuple[Array, Metrics], PyTree]:
    """Loss and gradient summed over the parts, the loss's metrics averaged over their tokens."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, batch)

    def sums(part: Batch) -> tuple[tuple[Array, Metrics], PyTree]:
        (value, metrics), grads = gradient(params, part)
        return (value, token_sums(metrics)), grads

    # Strided parts: with the batch sharded along its first axis every device has work in every part.
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
    shapes = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], split))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total: PyTree, part: Batch) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, sums(part)), None

    ((value, metrics), grads), _ = jax.lax.scan(add, zero, split)
    return (value, token_means(metrics)), grads
