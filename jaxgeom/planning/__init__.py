"""Runs planned ahead: their programs compiled for devices that need not be there, and counted."""

from typing import TYPE_CHECKING

from jaxgeom.lazy import import_when_asked

if TYPE_CHECKING:
    from .counting import Counts as Counts
    from .counting import count_program as count_program
    from .planning import Plan as Plan
    from .planning import make_plan as make_plan
    from .settings import PlanSettings as PlanSettings
else:
    import_when_asked(__name__)
