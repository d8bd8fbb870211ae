"""The training step: a pure function of state and batch, for every objective."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxgeom.models import Qwen3
from jaxgeom.objectives import loss_denominator, policy_gradient_loss, sft_loss, token_means, token_sums
from jaxgeom.sharding import mesh_of, parameter_shardings
from jaxgeom.training.scoring import sequence_log_probs
from jaxgeom.training.settings import OnPolicySettings, RunSettings

Metrics = dict[str, Float[Array, ""]]


@flax.struct.dataclass
class TrainState:
    """What a step changes: the number of steps done, float32 master parameters, the optimizer's state."""

    # Any, since trees of shapes and of shardings have this form too.
    step: Any
    params: PyTree
    opt_state: PyTree


@flax.struct.dataclass
class Batch:
    """What a step learns from, `[batch, time]` each.

    Attributes:
        tokens: int32 ids.
        valid: True on real tokens.
        loss_mask: True on the tokens that are learned from.
        old_log_probs: float32, under the policy that the ratio is taken against; None for SFT.
        advantages: float32, one per token; None for SFT.
    """

    # Not Int[Array, "batch time"]: tree maps build batches of parts, of shapes, of specs.
    tokens: Any
    valid: Any
    loss_mask: Any
    old_log_probs: Any = None
    advantages: Any = None


def initial_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0: the optimizer's moments sharded as the parameters are, its scalars on their mesh.

    Args:
        params: float32 parameters, sharded or not.
        optimizer: any Optax transformation.

    Returns:
        State with `step` 0.
    """
    sharding = jax.tree.leaves(params)[0].sharding
    if not isinstance(sharding, jax.sharding.NamedSharding) or not isinstance(sharding.mesh, jax.sharding.Mesh):
        state = TrainState(step=jnp.int32(0), params=params, opt_state=jax.jit(optimizer.init)(params))
        # Bound to their device, as what the step returns is: else its second call would compile once more.
        return jax.device_put(state, sharding) if isinstance(sharding, jax.sharding.SingleDeviceSharding) else state
    # Stated, not left to the compiler: zeros depend on no input, and would all lie on the first device.
    shardings = parameter_shardings(jax.eval_shape(optimizer.init, params), sharding.mesh)
    step = jax.device_put(jnp.int32(0), jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()))
    return TrainState(step=step, params=params, opt_state=jax.jit(optimizer.init, out_shardings=shardings)(params))


def make_loss(
    model: Qwen3, settings: RunSettings, mesh: jax.sharding.Mesh | None = None
) -> Callable[[PyTree, Batch, Array], tuple[Array, Metrics]]:
    """`loss(params, batch, denominator) -> (loss, metrics)`; summed over micro-batches it is the whole batch's loss."""

    def loss(params: PyTree, batch: Batch, denominator: Array) -> tuple[Array, Metrics]:
        if not isinstance(settings, OnPolicySettings):
            log_probs = sequence_log_probs(model, params, batch.tokens, batch.valid, mesh=mesh)
            return sft_loss(log_probs, batch.loss_mask, denominator=denominator), {}
        assert batch.old_log_probs is not None and batch.advantages is not None
        log_probs = sequence_log_probs(
            model, params, batch.tokens, batch.valid, temperature=settings.temperature, mesh=mesh
        )
        return policy_gradient_loss(
            log_probs,
            batch.old_log_probs,
            batch.advantages,
            batch.loss_mask,
            clip_low=clip_range(settings)[0],
            clip_high=clip_range(settings)[1],
            aggregate=settings.aggregate,
            denominator=denominator,
        )

    return loss


def clip_range(settings: OnPolicySettings) -> tuple[float, float]:
    """ε_low and ε_high; (1, ∞) for rollouts of the teacher, whose ratio is not clipped."""
    if getattr(settings, "rollouts", "student") == "teacher":
        return 1.0, float("inf")
    return settings.clip_low, settings.clip_high


def make_train_step(
    model: Qwen3, optimizer: optax.GradientTransformation, settings: RunSettings, state: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The compiled step `(state, batch) -> (state, metrics)`; the state is donated and keeps its shardings.

    The gradient is accumulated over `settings.micro_batches` parts of the batch in float32, each divided by the whole
    batch's count, so that it is the same whatever the number of parts.

    Args:
        model: Qwen3 module.
        optimizer: Any Optax transformation.
        settings: Objective, clipping, aggregation, number of parts.
        state: The first state, for its shardings: left to itself the compiler may return parameters laid out otherwise.

    Returns:
        A jitted function. Metrics, float32 scalars: `loss`, `grad_norm`, `update_norm`, `param_norm`, and those of the
        loss: `tokens` of the whole batch, the others means over all of them, whatever the number of parts.
    """
    loss = make_loss(model, settings, mesh_of(state.params))
    aggregate = settings.aggregate if isinstance(settings, OnPolicySettings) else "token"

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        constant = float(settings.batch_size * settings.max_new_tokens) if aggregate == "constant" else None
        denominator = loss_denominator(batch.loss_mask, aggregate=aggregate, constant=constant)
        (value, metrics), grads = _accumulate(loss, state.params, batch, denominator, settings.micro_batches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {
            "loss": value,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
        }
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


def _accumulate(
    loss: Callable[..., Any], params: PyTree, batch: Batch, denominator: Array, parts: int
) -> tuple[tuple[Array, Metrics], PyTree]:
    """Loss and gradient summed over the parts, the loss's metrics averaged over their tokens."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, batch, denominator)

    def sums(part: Batch) -> tuple[tuple[Array, Metrics], PyTree]:
        (value, metrics), grads = gradient(params, part, denominator)
        return (value, token_sums(metrics)), grads

    # Strided parts: with the batch sharded along its first axis every device has work in every part.
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
    shapes = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], split))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total: PyTree, part: Batch) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, sums(part)), None

    ((value, metrics), grads), _ = jax.lax.scan(add, zero, split)
    return (value, token_means(metrics)), grads
