"""The optimizer of a run: the one place where its transformation is put together."""

import optax
from jaxtyping import PyTree

from jaxgeom.optimizers import adamw
from jaxgeom.training.settings import RunSettings


def make_optimizer(settings: RunSettings, params: PyTree) -> optax.GradientTransformation:
    """The transformation by which a run turns gradients into updates.

    Args:
        settings: of the run.
        params: the parameters at its start, or their shapes.

    Returns:
        An Optax transformation; parameters must be passed to its update.
    """
    del params  # AdamW needs none
    return adamw(settings.optimizer, settings.steps)
