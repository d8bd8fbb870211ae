"""Which objective a run's settings are of."""

from collections.abc import Sequence

import jax

from jaxgeom.models import Qwen3
from jaxgeom.training.objectives.interface import Objective
from jaxgeom.training.objectives.opd import OPD
from jaxgeom.training.objectives.rlvr import RLVR
from jaxgeom.training.objectives.sft import SFT
from jaxgeom.training.settings import RunSettings

_ROOMS: dict[str, type[Objective]] = {"sft": SFT, "rlvr": RLVR, "opd": OPD}


def objective_of(
    settings: RunSettings, student: Qwen3, teachers: Sequence[Qwen3] = (), mesh: jax.sharding.Mesh | None = None
) -> Objective:
    """The objective of a run.

    Args:
        settings: of the run.
        student: the module that is trained.
        teachers: the modules of its teachers.
        mesh: what parameters and batches are sharded over; None for one device.
    """
    return _ROOMS[settings.objective](settings, student, tuple(teachers), mesh)
