"""Any optimizer confined to a subspace per matrix: by its gradients, its updates, or in the subspace's coordinates."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from .adam import with_standard_promotion
from .leaves import Leaf, Side, check_basis, from_coordinates, map_leaves, own_copy, to_coordinates

Form = Literal["gradients", "updates", "coordinates"]
Others = Literal["free", "frozen"]


class ConfinedState(NamedTuple):
    """The wrapped optimizer's state, and the bases: sharded, saved and restored with it, and no constant of a jit."""

    inner: Any
    bases: Any


def confined(
    inner: optax.GradientTransformation,
    bases: Any,
    form: Form,
    *,
    side: Side = "right",
    specs: Any = None,
    others: Others = "free",
    gradients_in_coordinates: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""An optimizer that works within a subspace per matrix, `W → W + C Vᵀ` (right) or `W + U C` (left).

    - `gradients`: `g ← g V Vᵀ` before the optimizer. Leaks: Adam's elementwise scaling rotates the step out of the
      subspace, and decoupled weight decay never passes through it.
    - `updates`: the final update is projected, `u ← u V Vᵀ`, decay included. Moments are of the whole matrix.
    - `coordinates`: the optimizer sees the matrix as its coordinates `W V`, `[*batch, out, K]` (left: `Uᵀ W`,
      `[*batch, K, in]`), and the gradient likewise; its moments have that size. What it decays is the component in the
      subspace. The step depends on the choice of basis of the same subspace, as Adam's depends on coordinates
      everywhere.

    The inner optimizer sees leaves as they are stored, or their coordinates, layers and experts stacked in front in
    both: one that goes by the number of axes has to be told. Optax's Muon hands whatever has not two to Adam, without a
    word, unless `muon_weight_dimension_numbers` says which axes are the matrix's; in coordinates these are −1 (reduced)
    and −2 (output), for a tree of `MuonDimensionNumbers(-1, -2)` at confined leaves and None at those that Adam takes.

    The last two confine the cumulative update to the rounding of the parameters. Each `W + u` rounds at W's own scale,
    and these roundings add up outside of the subspace; where `update` is given the parameters of the start (its keyword
    `start`), the new parameters are `start + ΔW V Vᵀ`, rounded once, however many steps were taken.

    Args:
        inner: the optimizer: any Optax transformation, its learning rate included.
        bases: tree like the parameters: orthonormal columns `[*batch, in, K]` (right) or `[*batch, out, K]` (left) at
            confined matrices, None at the others. Columns of zeros add nothing. Taken on at `init`, as a copy.
        form: see above.
        side: which side of `W [out, in]` the bases span.
        specs: tree of `MatrixSpec` (None at leaves that are no matrix); None where leaves are `[..., out, in]`.
        others: leaves without a basis are trained as `inner` alone would, or left bitwise as they are, without a state.
        gradients_in_coordinates: with `coordinates`: the gradients passed to update are those of
            `subspace_coordinates` already.

    Returns:
        an Optax transformation; `update(gradients, state, params, *, start=None)`.

    Raises:
        ValueError: an unknown form; at `init`, naming the leaf, where trees or shapes do not fit; at update without
            parameters.

    Reference: On the Geometry of On-Policy Distillation (arXiv 2606.07082), section 5 (`gradients`, K = 16, right side,
        V from ΔW at about 20 % of training).
    """
    if form not in ("gradients", "updates", "coordinates"):
        raise ValueError(f"form is {form!r}; 'gradients', 'updates' or 'coordinates' is needed")
    if others not in ("free", "frozen"):
        raise ValueError(f"others is {others!r}; 'free' or 'frozen' is needed")
    optimizer = with_standard_promotion(inner)

    def seen(tree: Any, own_bases: Any, *, turned: bool = False) -> Any:
        """The tree as the inner optimizer sees it; `turned` where it is in coordinates already."""

        if form == "coordinates" and not turned:
            tree = subspace_coordinates(tree, own_bases, specs=specs, side=side)
        if others == "free":
            return tree

        def kept(leaf: Leaf) -> Any:
            return optax.MaskedNode() if leaf.companion is None else leaf.value

        return map_leaves(kept, tree, own_bases, None, name="bases")

    def init(params: optax.Params) -> ConfinedState:
        map_leaves(lambda leaf: check_basis(leaf, side), params, bases, specs, name="bases")
        own = own_copy(bases)
        return ConfinedState(optimizer.init(seen(params, own)), own)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        start: Any = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, ConfinedState)
        if params is None:
            raise ValueError("confined: update needs the parameters as its third argument")
        if form == "gradients":
            updates = project(updates, state.bases, side, specs)
        turned = form == "coordinates" and gradients_in_coordinates
        gradients = seen(updates, state.bases, turned=turned)
        steps, inner_state = optimizer.update(gradients, state.inner, seen(params, state.bases), **extra)
        final = _as_updates(steps, params, start, state.bases, form, side, specs)
        return final, ConfinedState(inner_state, state.bases)

    return optax.GradientTransformationExtraArgs(init, update)


def subspace_coordinates(tree: Any, bases: Any, *, specs: Any = None, side: Side = "right") -> Any:
    """Every confined leaf in its K coordinates: `W V`, `[*batch, out, K]`, or `Uᵀ W`, `[*batch, K, in]`.

    Linear, so that it commutes with the sum over data shards: applied to each shard's gradients before they are
    summed, it cuts what is sent by in/K (see `gradients_in_coordinates` of `confined`).

    Args:
        tree: gradients or parameters.
        bases: tree like it; None at leaves that are left as they are.
        specs: tree of `MatrixSpec`; None where leaves are `[..., out, in]`.
        side: which side the bases span.

    Returns:
        a tree like `tree`; float32 at confined leaves.
    """

    def one(leaf: Leaf) -> Any:  # a leaf without a basis is passed on as it came
        return leaf.value if leaf.companion is None else to_coordinates(leaf.matrix(), leaf.companion, side)

    return map_leaves(one, tree, bases, specs, name="bases")


def project(tree: Any, bases: Any, side: Side, specs: Any) -> Any:
    """Every leaf that has a basis projected onto its span, in its own layout and dtype.

    Args:
        tree: gradients, updates or a difference of parameters.
        bases: tree like it; None at leaves that are left as they are.
        side: which side the bases span.
        specs: tree of `MatrixSpec`; None where leaves are `[..., out, in]`.
    """

    def one(leaf: Leaf) -> Array:
        if leaf.companion is None:
            return leaf.value
        inside = from_coordinates(to_coordinates(leaf.matrix(), leaf.companion, side), leaf.companion, side)
        return leaf.restore(inside).astype(leaf.value.dtype)

    return map_leaves(one, tree, bases, specs, name="bases")


def _as_updates(steps: Any, params: Any, start: Any, bases: Any, form: Form, side: Side, specs: Any) -> Any:
    """What is added to the parameters, from the inner optimizer's steps; a tree like the parameters."""

    def one(leaf: Leaf) -> Array:
        step, basis, first = leaf.companion.step, leaf.companion.basis, leaf.companion.start
        if isinstance(step, optax.MaskedNode):
            # x + (-0.0) is x for every x; x + 0.0 would turn -0.0 into 0.0.
            return jnp.full_like(leaf.value, -0.0)
        if basis is None or form == "gradients":
            return step.astype(leaf.value.dtype)
        inside = to_coordinates(leaf._replace(value=step).matrix(), basis, side) if form == "updates" else step
        if first is None:
            return leaf.restore(from_coordinates(inside, basis, side)).astype(leaf.value.dtype)
        value, first = leaf.value.astype(jnp.float32), first.astype(jnp.float32)
        inside = to_coordinates(leaf._replace(value=value - first).matrix(), basis, side) + inside
        moved = (first + leaf.restore(from_coordinates(inside, basis, side))).astype(leaf.value.dtype)
        return moved - leaf.value

    def masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    found = jax.tree.flatten(steps, is_leaf=masked)[0]
    own = jax.tree.flatten(bases, is_leaf=lambda node: node is None)[0]
    firsts = [None] * len(found) if start is None else jax.tree.leaves(start)
    beside = [_Companion(*three) for three in zip(found, own, firsts, strict=True)]
    return map_leaves(one, params, jax.tree.unflatten(jax.tree.structure(params), beside), specs, name="bases")


@dataclass(frozen=True)
class _Companion:
    """What belongs to one leaf; no pytree, so that the tree that holds it does not look inside."""

    step: Any
    basis: Array | None
    start: Array | None
