"""Progress with an estimate of the time left: a live bar on a terminal, plain lines elsewhere."""

import os
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from jaxgeom.buckets.places import named

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_OF_SPEED = 900.0  # what the time left is judged by: a large matrix alone may take minutes


class _Console(Console):
    """Where the reader of a pipe has gone rich itself would end the process, with the status of a check that failed."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Status(ProgressColumn):
    """What was finished last; the one column that a narrow terminal cuts short."""

    def render(self, task: Any) -> Text:
        return Text(task.fields["status"], no_wrap=True, overflow="ellipsis")


class Task:
    """One piece of work of `total` units; a context manager. `advance` counts units and may say a short status."""

    def __init__(self, console: Console, label: str, total: int, *, done: int = 0):
        self._console, self._label, self._total, self._done = console, label, total, done
        self._entered = self._said = time.monotonic()
        self._start: float | None = None
        self._first = done
        self._bar: Progress | None = None

    def __enter__(self) -> "Task":
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                _Status(),
                console=self._console,
                speed_estimate_period=_SECONDS_OF_SPEED,
            )
            self._bar.start()
            self._bar.add_task(self._label, total=self._total, completed=self._done, status="")
        else:
            self._say(f"{self._label}: {self._total} to do" + (f", {self._done} done" if self._done else ""))
        return self

    def advance(self, units: int = 1, status: str = "") -> None:
        """Counts `units` as done; `status` is shown beside the bar or on the next line.

        The time left is judged from the end of the first call on: compiling is part of that call, and so may be what an
        interrupted run had done already.
        """
        self._done += units
        if self._start is None:
            self._start, self._first = time.monotonic(), self._done
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, status=status)
        elif time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES and self._done < self._total:
            self._said = time.monotonic()
            self._say(f"{self._label}: {self._done}/{self._total}, {self._left()} left {status}".rstrip())

    def note(self, status: str) -> None:
        """Says what goes on before the first unit is done, which may take long."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], status=status)
        else:
            self._say(f"{self._label}: {status}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._say(f"{self._label}: done in {duration(time.monotonic() - self._entered)}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False)  # the brackets of `experts.down_proj[3]` are part of a name

    def _left(self) -> str:
        worked = self._done - self._first
        if not worked or self._start is None:
            return "unknown time"
        return duration((time.monotonic() - self._start) / worked * (self._total - self._done))


class Reporter:
    """Where commands say what they do; `quiet` says nothing (library use, tests)."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False):
        self.console = console or _Console(quiet=quiet, highlight=False, emoji=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self.console.print(named(text), markup=False)

    def warn(self, text: str) -> None:
        """A line that must not be overlooked: apart from the others, and in bold red on a terminal."""
        self.console.print()
        self.console.print(named(text), markup=False, style="bold red")
        self.console.print()

    def fall_silent(self) -> None:
        """The reader of a pipe has gone, and the command goes on: nothing more is said."""
        self.console.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where what Python still writes when it ends may go

    def task(self, label: str, total: int, *, done: int = 0) -> Task:
        return Task(self.console, label, total, done=done)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
