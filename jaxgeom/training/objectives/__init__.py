"""One room an objective: what it draws and prepares from a rollout, and its loss in the step."""

from typing import TYPE_CHECKING

from jaxgeom.lazy import import_when_asked

if TYPE_CHECKING:
    from .interface import Objective as Objective
    from .interface import Prepared as Prepared
    from .interface import Tools as Tools
    from .opd import OPD as OPD
    from .rlvr import RLVR as RLVR
    from .rooms import objective_of as objective_of
    from .sft import SFT as SFT
else:
    import_when_asked(__name__)
