"""AdamW whose moments live in the K coordinates of a subspace: exact confinement at a fraction of the memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from .adamw import with_standard_promotion
from .leaves import Leaf, Side, check_basis, from_coordinates, map_leaves, own_copy, to_coordinates


class SubspaceAdamWState(NamedTuple):
    """Steps taken, Adam's state over the coordinates, and the bases."""

    count: Array
    adam: Any
    bases: Any


def subspace_coordinates(tree: Any, bases: Any, *, specs: Any = None, side: Side = "right") -> Any:
    """Every projected leaf in its K coordinates: `W V`, `[*batch, out, K]`, or `Uᵀ W`, `[*batch, K, in]`.

    Linear, so that it commutes with the sum over data shards: applied to each shard's gradients before they are
    summed, it cuts what is sent by in/K (see `gradients_in_coordinates` of `subspace_adamw`).

    Args:
        tree: gradients or parameters.
        bases: tree like it; None at leaves that are left as they are.
        specs: tree of `MatrixSpec`; None where leaves are `[..., out, in]`.
        side: which side the bases span.

    Returns:
        a tree like `tree`; float32 at projected leaves.
    """

    def one(leaf: Leaf) -> Array:
        return leaf.value if leaf.companion is None else to_coordinates(leaf.matrix(), leaf.companion, side)

    return map_leaves(one, tree, bases, specs, name="bases")


def subspace_adamw(
    bases: Any,
    learning_rate: float | Callable[[Any], Any],
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    *,
    side: Side = "right",
    specs: Any = None,
    decay_mask: Any = None,
    gradients_in_coordinates: bool = False,
) -> optax.GradientTransformation:
    """AdamW in the coordinates of a subspace, per matrix.

        c = g V,  m, v = moments of c [out, K],  W ← W − η·(m̂ / (√v̂ + ε) + λ·W V) Vᵀ

    Every update is a matrix times `Vᵀ`, weight decay included, so `ΔW (I - VVᵀ) = 0` to the rounding of W itself.
    Moments take K/in of AdamW's memory. The step depends on the choice of basis of the same subspace, as Adam's
    depends on coordinates everywhere. Leaves without a basis get ordinary AdamW.

    Args:
        bases: tree like the parameters: orthonormal columns `[*batch, in, K]` (right) or `[*batch, out, K]` (left) at
            projected matrices, None elsewhere. Taken on at `init`, as a copy.
        learning_rate: a rate, or an Optax schedule.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, multiplied by the learning rate; only the component in the subspace decays.
        side: which side of `W [out, in]` the bases span.
        specs: tree of `MatrixSpec`; None where leaves are `[..., out, in]`.
        decay_mask: tree of bools like the parameters, False at leaves that do not decay; None decays all.
        gradients_in_coordinates: the gradients passed to update are those of `subspace_coordinates` already.

    Returns:
        an Optax transformation; parameters must be passed to its update.

    Raises:
        ValueError: at `init`, naming the leaf, where trees or shapes do not fit; at update without parameters.
    """
    adam = with_standard_promotion(optax.scale_by_adam(b1=b1, b2=b2, eps=eps))

    def coordinates(tree: Any, own_bases: Any) -> Any:
        return subspace_coordinates(tree, own_bases, specs=specs, side=side)

    def init(params: optax.Params) -> SubspaceAdamWState:
        map_leaves(lambda leaf: check_basis(leaf, side), params, bases, specs, name="bases")
        shapes = jax.eval_shape(coordinates, params, bases)
        template = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return SubspaceAdamWState(jnp.zeros((), jnp.int32), adam.init(template), own_copy(bases))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, SubspaceAdamWState)
        if params is None:
            raise ValueError("subspace_adamw: update needs the parameters as its third argument")
        gradients = updates if gradients_in_coordinates else coordinates(updates, state.bases)
        steps, adam_state = adam.update(gradients, state.adam)
        if weight_decay:
            decays = jax.tree.map(lambda _: True, params) if decay_mask is None else decay_mask
            steps = jax.tree.map(
                lambda step, weight, decay: step + weight_decay * weight.astype(step.dtype) if decay else step,
                steps,
                coordinates(params, state.bases),
                decays,
            )
        with jax.numpy_dtype_promotion("standard"):
            rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        rate = jnp.asarray(rate, jnp.float32)

        def back(leaf: Leaf) -> Array:
            change = -rate * leaf.companion.step.astype(jnp.float32)
            if leaf.companion.basis is not None:
                change = leaf.restore(from_coordinates(change, leaf.companion.basis, side))
            return change.astype(leaf.value.dtype)

        pairs = map_leaves(
            lambda leaf: _BasisAndStep(leaf.companion, leaf.value), steps, state.bases, None, name="bases"
        )
        final = map_leaves(back, params, pairs, specs, name="bases")
        return final, SubspaceAdamWState(state.count + 1, adam_state, state.bases)

    return optax.GradientTransformation(init, update)


@dataclass(frozen=True)
class _BasisAndStep:
    """The companion of one leaf; no pytree, so that the tree that holds it does not look inside."""

    basis: Array | None
    step: Array
