"""`jaxgeom trajectory INITIAL CKPT… --out DIR`."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tyro.conf import Positional

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.commands.entries import entry_progress
from jaxgeom.comparison import CompareSettings, trajectory_checkpoints
from jaxgeom.progress import Reporter
from jaxgeom.report import trajectory_findings, write_report
from jaxgeom.training.checkpointing import saved_steps


def trajectory(
    initial: Positional[str],
    checkpoints: Positional[tuple[str, ...]],
    settings: CompareSettings,
    out: Path,
    force: bool = False,
) -> Callable[[str], None]:
    """Trajectory diagnostics, each with its null, over checkpoints in the order of training.

    The step of a checkpoint is the number after `@`, or at the end of its directory's name; where there is none, its
    place in the list. A single run directory stands for all its checkpoints after step 0.

    Args:
        initial: The checkpoint that holds W0.
        checkpoints: The checkpoints after it.
        settings: What is measured, and how.
        out: Where trajectory.json, figures and page are written.
        force: Take over a directory that holds another measurement.
    """

    def run(command: str) -> None:
        reporter = Reporter()
        first = open_checkpoint(initial)
        opened = [(step, open_checkpoint(path)) for step, path in numbered(checkpoints)]
        with entry_progress(reporter, "trajectory") as progress:
            result = trajectory_checkpoints(first, opened, settings, out=out, progress=progress, force=force)
        page = write_report(out)
        for sentence in trajectory_findings(result):
            reporter.say(sentence)
        reporter.say(f"page: {page}")

    return run


def numbered(paths: Sequence[str]) -> list[tuple[int, str]]:
    """Checkpoints with their steps.

    >>> numbered(["run@63", "out/checkpoint-127"]), numbered(["early", "late"])
    ([(63, 'run@63'), (127, 'out/checkpoint-127')], [(1, 'early'), (2, 'late')])
    """
    if len(paths) == 1 and (steps := saved_steps(Path(paths[0]))):
        return [(step, f"{paths[0]}@{step}") for step in steps if step > 0]
    ends = [re.search(r"(\d+)/*$", path) for path in paths]
    if all(ends):
        return [(int(end.group(1)), path) for end, path in zip(ends, paths, strict=True) if end]
    return list(enumerate(paths, start=1))
