"""What a training step takes: the state that it changes, the batch that it learns from, and what stays as it is."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import PyTree

from jaxgeom.processes import placed
from jaxgeom.sharding import batch_sharding, parameter_shardings


@flax.struct.dataclass
class TrainState:
    """What a step changes: the number of steps done, float32 master parameters, the optimizer's state."""

    # Any, since trees of shapes and of shardings have this form too.
    step: Any
    params: PyTree
    opt_state: PyTree

    def skipped(self) -> "TrainState":
        """The state after a step that had nothing to learn from."""
        return TrainState(step=self.step + 1, params=self.params, opt_state=self.opt_state)


@flax.struct.dataclass
class Batch:
    """What a step learns from, `[batch, time]` each where nothing else is said.

    Attributes:
        tokens: int32 ids.
        valid: True on real tokens.
        loss_mask: True on the tokens that are learned from.
        old_log_probs: float32, under the policy that the ratio is taken against; None where the loss has no ratio, or
            takes it against the policy as it is in the step.
        advantages: float32, one per token; None where the loss has none, or makes them itself.
        teacher_log_probs: float32, of the tokens under the teacher, for losses that read them; None for others.
        weights: float32, of the tokens in the loss; None weighs all alike.
        teacher: int32 `[batch]`, the place of each row's teacher; None where the loss has not several.
        reference_log_probs: float32, of the tokens under the run's start; None where no KL to it is taken.
        reward_advantages: float32, those of rewards where they are mixed in the step; None where they are mixed before.
        segments: int32, the number of each token's sequence in a row that holds several; None where none does.
        sampled_log_probs: float32, of the answers' tokens as the sampler computed them; None where the step does not
            compare them with its own.
        response: True on the answers' tokens, learned from or not; None where nothing is measured over them.
    """

    # Not Int[Array, "batch time"]: tree maps build batches of parts, of shapes, of specs.
    tokens: Any
    valid: Any
    loss_mask: Any
    old_log_probs: Any = None
    advantages: Any = None
    teacher_log_probs: Any = None
    weights: Any = None
    teacher: Any = None
    reference_log_probs: Any = None
    reward_advantages: Any = None
    segments: Any = None
    sampled_log_probs: Any = None
    response: Any = None


@flax.struct.dataclass
class Frozen:
    """Parameters that a run reads and never changes. They are inputs of its programs, never constants in them.

    Attributes:
        teachers: Parameters of each teacher, in the order in which they were given; empty without.
        reference: Parameters of the policy that a KL term is taken against; None without.
        start: Parameters of the run's start, that a confined or measured update is counted from; None without.
    """

    teachers: tuple[Any, ...] = ()
    reference: Any = None
    start: Any = None


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
    step = placed(np.int32(0), _everywhere(sharding.mesh))
    init, held = _without_constants(optimizer.init, params)
    return TrainState(step=step, params=params, opt_state=jax.jit(init, out_shardings=shardings)(held, params))


def abstract_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """`initial_state` of parameters that are not there: shapes, dtypes and shardings, nothing allocated.

    Args:
        params: tree of `jax.ShapeDtypeStruct` with shardings.
        optimizer: any Optax transformation.
    """
    sharding = jax.tree.leaves(params)[0].sharding
    moments = jax.eval_shape(optimizer.init, params)
    if isinstance(sharding, jax.sharding.NamedSharding) and isinstance(sharding.mesh, jax.sharding.Mesh):
        shardings, scalar = parameter_shardings(moments, sharding.mesh), _everywhere(sharding.mesh)
    else:
        shardings, scalar = jax.tree.map(lambda _: sharding, moments), sharding
    moments = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                           moments, shardings)  # fmt: skip
    return TrainState(step=jax.ShapeDtypeStruct((), jnp.int32, sharding=scalar), params=params, opt_state=moments)


def on_mesh(arrays: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """A tree of `[batch, ...]` arrays on the devices, their rows split over the mesh; without one, on the first."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, arrays)
    return jax.tree.map(lambda rows: placed(rows, batch_sharding(mesh)), arrays)


def _without_constants(function: Any, argument: PyTree) -> tuple[Any, list[Any]]:
    """A function with what it holds (a confined optimizer its bases) as a first argument, and what that is: a program
    cannot have arrays of other processes' devices as its constants.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(argument)

    def called(held: list[Any], argument: PyTree) -> PyTree:
        found = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, held))(*jax.tree.leaves(argument))
        return jax.tree.unflatten(jax.tree.structure(shape), found)

    return called, closed.consts


def _everywhere(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
