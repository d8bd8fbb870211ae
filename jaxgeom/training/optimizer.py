"""The optimizer of a run: the one place where its transformation is put together."""

import optax
from jaxtyping import PyTree

from jaxgeom.optimizers import adamw
from jaxgeom.training.confinement import Confinement
from jaxgeom.training.settings import RunSettings


def make_optimizer(
    settings: RunSettings, params: PyTree, confinement: Confinement | None = None
) -> optax.GradientTransformation:
    """The transformation by which a run turns gradients into updates.

    Args:
        settings: of the run.
        params: the parameters at its start, or their shapes.
        confinement: what it is confined to.

    Returns:
        An Optax transformation; parameters must be passed to its update, of a confined one those of the start too.
    """
    del params  # AdamW needs none
    optimizer = adamw(settings.optimizer, settings.steps)
    return optimizer if confinement is None else confinement.wrap(optimizer)
