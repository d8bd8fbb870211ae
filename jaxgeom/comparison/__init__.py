"""Comparing checkpoints: two of them, several along a run, two runs, or two trees in memory."""

from .between import between_runs as between_runs
from .files.report import Report as Report
from .run.processes import Team as Team
from .settings import CompareSettings as CompareSettings
from .trajectory import trajectory_checkpoints as trajectory_checkpoints
from .trees import compare as compare
from .two_checkpoints import compare_checkpoints as compare_checkpoints
