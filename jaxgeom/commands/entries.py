"""What the measuring commands share: progress, counted in entries of the weights, and work with other processes."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from jaxgeom import processes
from jaxgeom.comparison.run.outputs import replaced
from jaxgeom.comparison.run.processes import Team, initialize
from jaxgeom.errors import listed
from jaxgeom.progress import Reporter, Task


class _EntryProgress:
    """See `entry_progress`."""

    def __init__(self, task: Task, display: ExitStack) -> None:
        self._task, self._display, self._shown, self._begun = task, display, 0, False

    def begin(self) -> None:
        """Shows that the work goes on: it was refused by nothing."""
        if not self._begun:
            self._begun = True
            self._display.enter_context(self._task)

    def __call__(self, done: int, total: int, name: str) -> None:
        self.begin()
        place = int(1000 * done / max(total, 1))
        self._task.advance(place - self._shown, name)
        self._shown = place


@contextmanager
def entry_progress(reporter: Reporter, label: str) -> Iterator[_EntryProgress]:
    """A callback `(entries done, entries in all, name)` that drives a progress bar in permille.

    It is shown from `begin` on, before anything is finished and after all that may refuse the work.
    """
    with ExitStack() as display:
        yield _EntryProgress(reporter.task(f"{label} (‰ of the entries)", 1000), display)


@contextmanager
def other_processes(distributed: bool, out: Path) -> Iterator[Team | None]:
    """The processes that were started together with this one, None without; entered before anything touches a device.

    An error inside reaches the others, who then stop too.

    Raises:
        UserError: they were given another folder, in which they would wait for one another, or have other packages.
    """
    team = initialize() if distributed else None
    if team is not None:
        processes.require_same({"out": os.fspath(out)})
    with team.telling(out) if team is not None else nullcontext():
        yield team


def say_what_is_replaced(out: Path, force: bool, reporter: Reporter) -> None:
    """With --force, names the files of an earlier measurement that may go."""
    held = replaced(out) if force else []
    if held:
        reporter.say(f"--force: another measurement in {out} is replaced: {listed(held)}")


def say_notes(coverage: dict[str, Any], reporter: Reporter) -> None:
    """Says what of the checkpoints was left out, or read otherwise than it may seem."""
    for note in coverage.get("notes", ()):
        reporter.say(note)


def writes_report(team: Team | None, reporter: Reporter) -> bool:
    """Whether this process is the one that writes figures and page; the others say that they are done."""
    if team is None or team.index == 0:
        return True
    reporter.say(f"process {team.index} of {team.count}: done; process 0 writes the report")
    return False
