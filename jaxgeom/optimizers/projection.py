"""Links of a chain that project gradients or updates onto a subspace."""

from typing import Any, NamedTuple

import optax

from .confinement import project
from .leaves import Side, check_basis, map_leaves, own_copy


class ProjectionState(NamedTuple):
    """The bases: part of the state, so that they are sharded, saved and restored with it, and no constant of a jit."""

    bases: Any


def project_gradients(bases: Any, side: Side = "right", *, specs: Any = None) -> optax.GradientTransformation:
    r"""Projects every gradient onto a subspace: `g ← g V Vᵀ` (right) or `g ← U Uᵀ g` (left), per matrix.

    Goes first in a chain. It does **not** confine what an adaptive optimizer then does: Adam's elementwise scaling
    rotates the step out of the subspace, and decoupled weight decay never passes through here. Report
    `diagnostics.subspace_leakage`; or use `project_updates` last in the chain, or `confined`.

    Args:
        bases: tree like the parameters; at a matrix an array of orthonormal columns, `[*batch, in, K]` (right) or
            `[*batch, out, K]` (left); None at every leaf that is left as it is. Taken on at `init`, as a copy.
        side: which side of `W [out, in]` the bases span.
        specs: tree of `MatrixSpec` (None at leaves that are no matrix); None where leaves are `[..., out, in]`.

    Returns:
        an Optax transformation, whose state holds the bases.

    Raises:
        ValueError: at `init`, naming the leaf, where trees or shapes do not fit.

    Reference: On the Geometry of On-Policy Distillation (arXiv 2606.07082), section 5 (K = 16, right side, V from ΔW at
        about 20 % of training).
    """
    return _projection(bases, side, specs)


def project_updates(bases: Any, side: Side = "right", *, specs: Any = None) -> optax.GradientTransformation:
    r"""Projects every final update onto a subspace: `u ← u V Vᵀ` (right) or `u ← U Uᵀ u` (left), per matrix.

    Goes last in a chain, after the learning rate and weight decay: the cumulative update is then confined, to the
    rounding of the parameters themselves (each `W + u` rounds at W's own scale; `confined` rounds once).

    Args:
        bases: as in `project_gradients`.
        side: which side of `W [out, in]` the bases span.
        specs: as in `project_gradients`.

    Returns:
        an Optax transformation, whose state holds the bases.

    Raises:
        ValueError: at `init`, naming the leaf, where trees or shapes do not fit.
    """
    return _projection(bases, side, specs)


def _projection(bases: Any, side: Side, specs: Any) -> optax.GradientTransformation:
    def init(params: optax.Params) -> ProjectionState:
        map_leaves(lambda leaf: check_basis(leaf, side), params, bases, specs, name="bases")
        return ProjectionState(own_copy(bases))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, ProjectionState)
        return project(updates, state.bases, side, specs), state

    return optax.GradientTransformation(init, update)
