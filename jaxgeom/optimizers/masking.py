"""Training of chosen entries only: gradients outside a mask dropped, frozen entries left bitwise as they are."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from .leaves import Leaf, map_leaves, own_copy


class MaskedState(NamedTuple):
    """The state of an optimizer that trains masked entries, and the masks."""

    inner: Any
    masks: Any


class MaskState(NamedTuple):
    """The masks: part of the state, so that they are sharded, saved and restored with it."""

    masks: Any


def mask_gradients(masks: Any, *, specs: Any = None) -> optax.GradientTransformation:
    """Sets gradients to 0 outside a mask.

    Goes first in a chain. By itself it freezes nothing under AdamW: decoupled weight decay moves every entry. Use
    `masked_training`, or `restore_frozen` after each step.

    Args:
        masks: tree like the parameters: bool arrays, True where trained; None where the whole leaf is trained. Where
            the leaf has a spec, the mask is `[*batch, out, in]`; else it has the leaf's shape (or broadcasts to it).
        specs: tree of `MatrixSpec` or None; None where masks have the leaves' own layout.

    Returns:
        an Optax transformation, whose state holds the masks.

    Raises:
        ValueError: at `init`, naming the leaf, where trees or shapes do not fit.

    References: The Path Not Taken (arXiv 2511.08567); Dense Supervision, Sparse Updates (arXiv 2606.13657); LIFT (arXiv
        2506.00772).
    """

    def init(params: optax.Params) -> MaskState:
        map_leaves(_check, params, masks, specs, name="masks")
        return MaskState(own_copy(masks))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, MaskState)
        return within_masks(updates, state.masks, specs, 0.0), state

    return optax.GradientTransformation(init, update)


def masked_training(
    transform: optax.GradientTransformation, masks: Any, *, specs: Any = None
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that trains the entries of a mask only; the others stay bitwise what they were.

    Gradients are masked before the optimizer (so that its moments and clipping see the trained entries alone) and
    updates after it (so that weight decay does not move the others).

    Args:
        transform: the optimizer.
        masks: as in `mask_gradients`.
        specs: as in `mask_gradients`.

    Returns:
        an Optax transformation.

    Raises:
        ValueError: at `init`, naming the leaf, where trees or shapes do not fit.
    """
    optimizer = optax.with_extra_args_support(transform)

    def init(params: optax.Params) -> MaskedState:
        map_leaves(_check, params, masks, specs, name="masks")
        return MaskedState(optimizer.init(params), own_copy(masks))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, MaskedState)
        inside = within_masks(updates, state.masks, specs, 0.0)
        steps, inner = optimizer.update(inside, state.inner, params, **extra)
        # x + (-0.0) is x for every x; x + 0.0 would turn -0.0 into 0.0.
        return within_masks(steps, state.masks, specs, -0.0), MaskedState(inner, state.masks)

    return optax.GradientTransformationExtraArgs(init, update)


def restore_frozen(params: Any, initial: Any, masks: Any, *, specs: Any = None) -> Any:
    """Parameters with the entries outside the mask put back to what they were.

    Args:
        params: after a step.
        initial: what frozen entries are put back to; a tree like params.
        masks: as in `mask_gradients`.
        specs: as in `mask_gradients`.

    Returns:
        a tree like params.
    """
    kept = map_leaves(lambda leaf: _OldAndMask(leaf.value, leaf.companion), initial, masks, None, name="masks")

    def one(leaf: Leaf) -> Array:
        if leaf.companion.mask is None:
            return leaf.value
        return jnp.where(_in_layout(leaf._replace(companion=leaf.companion.mask)), leaf.value, leaf.companion.old)

    return map_leaves(one, params, kept, specs, name="initial parameters")


def within_masks(tree: Any, masks: Any, specs: Any = None, fill: float = 0.0) -> Any:
    """The tree with `fill` outside the masks.

    Args:
        tree: gradients or updates.
        masks: as in `mask_gradients`.
        specs: as in `mask_gradients`.
        fill: in place of what is outside.
    """

    def one(leaf: Leaf) -> Array:
        if leaf.companion is None:
            return leaf.value
        return jnp.where(_in_layout(leaf), leaf.value, jnp.asarray(fill, leaf.value.dtype))

    return map_leaves(one, tree, masks, specs, name="masks")


def _check(leaf: Leaf) -> None:
    if leaf.companion is None:
        return
    if leaf.companion.dtype != jnp.bool_:
        raise ValueError(f"masks{leaf.path}: dtype {leaf.companion.dtype}; bool is needed")
    try:
        fits = jnp.broadcast_shapes(_in_layout(leaf).shape, leaf.value.shape) == leaf.value.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"masks{leaf.path}: shape {leaf.companion.shape} does not fit the parameter's {leaf.value.shape}"
        )


def _in_layout(leaf: Leaf) -> Array:
    return leaf.companion if leaf.spec is None else leaf.restore(leaf.companion)


@dataclass(frozen=True)
class _OldAndMask:
    """The companion of one leaf; no pytree, so that the tree that holds it does not look inside."""

    old: Array
    mask: Array | None
