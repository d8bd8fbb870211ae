"""Comparing checkpoints: two of them, several along a run, two runs, or two trees in memory."""

from typing import TYPE_CHECKING

from jaxgeom.lazy import import_when_asked

if TYPE_CHECKING:
    from .between import between_runs as between_runs
    from .files.report import Report as Report
    from .run.processes import Team as Team
    from .settings import CompareSettings as CompareSettings
    from .trajectory import trajectory_checkpoints as trajectory_checkpoints
    from .trees import compare as compare
    from .two_checkpoints import compare_checkpoints as compare_checkpoints
else:
    import_when_asked(__name__)
