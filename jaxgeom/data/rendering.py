"""Rendering many rows: processes that run templates within limits, as many as the rows are worth."""

import atexit
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxgeom.cores import usable_cores
from jaxgeom.data.templates import Rendered, RowError, Template
from jaxgeom.errors import UserError

SECONDS_A_ROW = 3.0  # of processor time; a long conversation takes milliseconds
CHUNK = 256
_ROWS_A_PROCESS = 4_000  # below, starting another process takes longer than it saves
_TO_DIE = 10.0  # seconds of wall time, for the system to take down a process whose pipe is closed
_OUT_OF_TIME = (-signal.SIGPROF, -signal.SIGVTALRM)
_PROGRAM = Path(__file__).with_name("templates.py")

Request = tuple[Sequence[dict], Any] | tuple[Sequence[dict], Any, int]
"""Messages and tools of a row, and of a demonstration how many messages are its prompt."""


class EndlessTemplateError(RowError):
    """The template did not come to an end on a row."""


class LostRowsError(RowError):
    """The process that renders died with rows in work; whether one of them was at fault, nobody knows."""


class _UnusableTemplateError(ValueError):
    """The template is no template."""


class _Renderer:
    """One process; used by one thread at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM), str(SECONDS_A_ROW)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        if self._line() != "ready\n":
            _, complaint = self.process.communicate()
            last = (complaint.strip().split("\n") or ["no message"])[-1]
            raise RuntimeError(f"the process that renders chat templates did not start: {last}")

    def render(self, template: Template, rows: Sequence[Request], *, prompts: bool) -> list[Rendered | RowError]:
        """A chunk of rows; after a row that did not end the others are missing, and the process is of no more use.

        Where the process died, the first of the rows that were in work has that as its error.
        """
        assert self.process.stdin is not None
        request = {"template": template.source, "variables": template.variables, "prompts": prompts, "rows": rows}
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            return [self._death()]
        found: list[Rendered | RowError] = []
        for _ in rows:
            line = self._line()
            if not line.endswith("\n"):
                return [*found, self._death()]
            reply: dict[str, Any] = json.loads(line)
            if "fatal" in reply:
                raise _UnusableTemplateError(reply["fatal"])
            if "endless" in reply:
                self.close()
                return [*found, _endless()]
            if "bad" in reply:
                found.append(RowError(reply["bad"]))
            else:
                spans = tuple((begin, end) for begin, end in reply["spans"])
                found.append(Rendered(reply["text"], spans, reply["last_only"], reply["asked_too"], reply["head"]))
        return found

    def _death(self) -> RowError:
        """What is said of a process that has closed its end, after it is gone."""
        try:
            status = self.process.wait(_TO_DIE)
        except subprocess.TimeoutExpired:  # it closed its output and lives on
            status = 0
        self.close()
        if status in _OUT_OF_TIME:  # the limit on a row, for what no handler in Python can interrupt
            return _endless()
        if status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            how = f"was ended by {name}" + (" (out of memory, perhaps)" if name == "SIGKILL" else "")
        else:
            how = f"ended with status {status}"
        return LostRowsError(f"the process that renders chat templates {how}")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def _endless() -> EndlessTemplateError:
    limit = f"{SECONDS_A_ROW:g} s of processor time"
    return EndlessTemplateError(f"the chat template does not come to an end on it ({limit})")


_idle: list[_Renderer] = []
_lock = threading.Lock()


def render_rows(
    template: Template, rows: Sequence[Request], *, prompts: bool, source: str = "the chat template"
) -> Iterator[list[tuple[Request, Rendered | RowError]]]:
    """All rows in order, in chunks; each is rendered or has an error that says what is wrong with it.

    Args:
        template: the chat template with its variables.
        rows: see `Request`.
        prompts: whether they are prompts, to be followed by the generation prompt, or demonstrations.
        source: where the template is from, for messages.

    Raises:
        UserError: the template itself is not usable.
        EndlessTemplateError: raised by nothing here: it is the last entry of its chunk, which ends there.
        LostRowsError: likewise; all rows of its chunk from there on were in work.
    """
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]

    def work(chunk: Sequence[Request]) -> list[tuple[Request, Rendered | RowError]]:
        renderer = _lent() or _Renderer()
        try:
            found = renderer.render(template, chunk, prompts=prompts)
        except BaseException:  # an interrupt too leaves no process behind; it is raised again
            renderer.close()
            raise
        if renderer.process.returncode is None:
            with _lock:
                _idle.append(renderer)
        return list(zip(chunk, found, strict=False))

    processes = max(1, min(usable_cores(), len(rows) // _ROWS_A_PROCESS))
    with ThreadPoolExecutor(processes) as pool:
        futures = [pool.submit(work, chunk) for chunk in chunks]
        try:
            for future in futures:
                try:
                    yield future.result()
                except _UnusableTemplateError as error:
                    raise UserError(f"{source}: {error}") from error
        finally:
            for future in futures:
                future.cancel()


def _lent() -> _Renderer | None:
    """An idle process that lives; one that died while it was idle cost nobody a row."""
    while True:
        with _lock:
            if not _idle:
                return None
            renderer = _idle.pop()
        if renderer.process.poll() is None:
            return renderer
        renderer.close()


def close_renderers() -> None:
    """Ends the idle processes; new ones start when needed. Done at exit by itself."""
    with _lock:
        renderers = _idle.copy()
        _idle.clear()
    for renderer in renderers:
        renderer.close()


atexit.register(close_renderers)
