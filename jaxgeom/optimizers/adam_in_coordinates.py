"""AdamW whose moments live in the K coordinates of a subspace: exact confinement at a fraction of the memory."""

from collections.abc import Callable
from typing import Any

import optax

from .confinement import confined
from .leaves import Side


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
) -> optax.GradientTransformationExtraArgs:
    """AdamW in the coordinates of a subspace, per matrix: `confined(optax.adamw(…), bases, "coordinates")`.

        c = g V,  m, v = moments of c [out, K],  W ← W − η·(m̂ / (√v̂ + ε) + λ·W V) Vᵀ

    Every update is a matrix times `Vᵀ`, weight decay included, so `ΔW (I - VVᵀ) = 0` to the rounding of W itself.
    Moments take K/in of AdamW's memory. Leaves without a basis get ordinary AdamW.

    Args:
        bases: as in `confined`.
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
    inner = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask)
    return confined(
        inner, bases, "coordinates", side=side, specs=specs, gradients_in_coordinates=gradients_in_coordinates
    )
