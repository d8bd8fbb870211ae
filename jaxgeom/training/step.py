"""The training step: a pure function of state, batch and frozen parameters, for every objective."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, PyTree

from jaxgeom.objectives import token_means, token_sums
from jaxgeom.training.confinement import Confinement
from jaxgeom.training.objectives.interface import Objective, Told
from jaxgeom.training.state import Batch, Frozen, TrainState

Metrics = dict[str, Float[Array, ""]]
Step = Callable[..., tuple[TrainState, Metrics]]
"""`(state, batch, frozen=Frozen()) -> (state, metrics)`."""
_Sums = tuple[Array, Metrics, PyTree]
"""Loss, metrics as sums over tokens, gradient: what adds up over the parts of a batch."""


def train_step(
    objective: Objective, optimizer: optax.GradientTransformation, confinement: Confinement | None = None
) -> Step:
    """The step `(state, batch, frozen) -> (state, metrics)`, not compiled: see `programs.make_train_step`.

    The gradient is accumulated over `settings.micro_batches` parts of the batch in float32, each divided by the whole
    batch's count, so that it is the same whatever the number of parts.

    Args:
        objective: its loss and what that is divided by.
        optimizer: any Optax transformation; the one that `confinement` wrapped where there is one.
        confinement: of the run; `frozen` holds the parameters of its start then. With `coordinates` gradients are
            summed over micro-batches in coordinates, and over the devices too where data is the only axis of the mesh
            that has several. (An axis that shards parameters sums gradients as the parameters lie.)

    Returns:
        A pure function. `frozen` holds what the loss reads of teachers and reference (`objective.step_inputs`).
        Metrics, float32 scalars: `loss`, `grad_norm`, `update_norm`, `param_norm`, `batch_tokens` (all that are no
        padding), and those of the loss, whatever the number of parts: `tokens` of the whole batch, means over all of
        them, and what `objective.of_whole_batch` says. `grad_norm`, and the norms by which losses are matched, are of
        the part of the gradient that lies where `confinement` lets parameters move.
    """

    def step(state: TrainState, batch: Batch, frozen: Frozen = Frozen()) -> tuple[TrainState, Metrics]:  # noqa: B008
        denominator = objective.denominator(batch)
        inputs = state.params, batch, dataclasses.replace(frozen, start=None), denominator, state.opt_state
        by_device = confinement is not None and confinement.sums_coordinates and _is_data_parallel(objective.mesh)
        accumulate = _summed_over_devices if by_device else _accumulate
        (value, metrics, grads), log_probs = accumulate(objective, confinement, *inputs)

        def inside(tree: PyTree) -> PyTree:
            return tree if confinement is None else confinement.inside(tree, state.opt_state)

        metrics = token_means(metrics)
        if log_probs is not None:
            metrics |= objective.of_whole_batch(batch, log_probs)
        if objective.is_matched:
            weights, mixture = objective.matched(tuple(map(inside, grads)))
            value, grads, metrics = jnp.sum(weights * value), _weighted(weights, grads), metrics | mixture
        extra = {} if confinement is None else {"start": frozen.start}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {
            "loss": value,
            "grad_norm": optax.tree.norm(inside(grads)),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
            "batch_tokens": jnp.sum(batch.valid).astype(jnp.float32),
        }
        if confinement is not None:
            metrics |= confinement.leakage(params, frozen.start, opt_state)
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def _accumulate(
    objective: Objective,
    confinement: Confinement | None,
    params: PyTree,
    batch: Batch,
    frozen: Frozen,
    denominator: Array,
    opt_state: Any,
) -> tuple[_Sums, Array | None]:
    """Loss, its metrics as sums over tokens, and gradient, summed over the parts of the batch; and what is left by row:
    the tokens' log-probabilities, where the objective tells them.
    """

    def loss(params: PyTree, part: Batch) -> tuple[Array, Told]:
        return objective.loss(params, part, frozen, denominator)

    def losses(params: PyTree, part: Batch) -> tuple[Array, Told]:
        return objective.losses(params, part, frozen, denominator)

    def confined(grads: PyTree) -> PyTree:
        return grads if confinement is None else confinement.gradients(grads, opt_state)

    def sums(part: Batch) -> tuple[_Sums, Array | None]:
        if objective.is_matched:  # one forward pass, a backward pass for each
            value, pull, told = jax.vjp(partial(losses, part=part), params, has_aux=True)
            grads: Any = tuple(confined(pull(one)[0]) for one in jnp.eye(value.size, dtype=value.dtype))
        else:
            (value, told), grads = jax.value_and_grad(loss, has_aux=True)(params, part)
            grads = confined(grads)
        return (value, token_sums(told.metrics), grads), told.log_probs

    parts = objective.settings.micro_batches
    if parts == 1:
        return sums(batch)
    # Strided parts: with the batch sharded along its first axis every device has work in every part.
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
    shapes, _ = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], split))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total: _Sums, part: Batch) -> tuple[_Sums, Array | None]:
        more, log_probs = sums(part)
        return jax.tree.map(jnp.add, total, more), log_probs

    total, log_probs = jax.lax.scan(add, zero, split)
    return total, None if log_probs is None else jnp.moveaxis(log_probs, 0, 1).reshape(batch.tokens.shape)


def _weighted(weights: Array, grads: tuple[PyTree, ...]) -> PyTree:
    """`Σ w_i·g_i`."""
    return jax.tree.map(
        lambda *leaves: sum(w.astype(g.dtype) * g for w, g in zip(weights, leaves, strict=True)), *grads
    )


def _is_data_parallel(mesh: Mesh | None) -> bool:
    """Whether the mesh splits the batch over its data axis and nothing else over any."""
    return mesh is not None and mesh.size > 1 and mesh.shape["data"] == mesh.size


def _summed_over_devices(
    objective: Objective, confinement: Confinement | None, params: PyTree, batch: Batch, *rest: Any
) -> tuple[_Sums, Array | None]:
    """`_accumulate` on each device's rows, then the sum: left to itself the compiler sums whole gradients first."""
    alone = objective.on_one_device()

    def sums(params: PyTree, batch: Batch, *rest: Any) -> PyTree:
        mine, log_probs = _accumulate(alone, confinement, params, batch, *rest)
        return jax.lax.psum(mine, "data"), log_probs

    whole, rows = PartitionSpec(), PartitionSpec("data")
    specs = (whole, rows, *(whole for _ in rest))
    run = jax.shard_map(sums, mesh=objective.mesh, in_specs=specs, out_specs=(whole, rows), check_vma=False)
    return run(params, batch, *rest)
