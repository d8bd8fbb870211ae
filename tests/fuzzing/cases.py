"""One case: an input with damage that its number determines, the command that reads it, and whether that ends well."""

import contextlib
import dataclasses
import io
import os
import re
import signal
import tempfile
import threading
import time
import unittest.mock
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzzing.inputs import KINDS

PROCESSOR_SECONDS, SECONDS, LONGEST_LINE = 10.0, 240.0, 1500
# Processor time is what is judged; the other limit is for what waits, on a machine that has much else to do.


class _Accepted(BaseException):
    """A run was about to begin: its inputs have been accepted."""


class _TooLong(BaseException):
    """The command did not end."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        kind: of input.
        number: of the case.
        result: `accepted`, `refused` (status 2, one line, nothing written), or what is wrong.
        said: the line on stderr.
        seconds: processor time of the command.
    """

    kind: str
    number: int
    result: str
    said: str
    seconds: float

    @property
    def good(self) -> bool:
        return self.result in ("accepted", "refused")


def run_case(base: Path, number: int, *, seed: int = 0, keep: Path | None = None) -> Outcome:
    """Makes the case and runs its command.

    Args:
        base: what `write_base` wrote; it is only read.
        number: of the case; its kind is the number modulo the number of kinds.
        seed: of all cases.
        keep: where the damaged input is left.
    """
    from jaxgeom.cli import main

    kind = list(KINDS)[number % len(KINDS)]
    with tempfile.TemporaryDirectory() as name:
        folder = keep or Path(name)
        folder.mkdir(exist_ok=True)
        for path in base.iterdir():
            (folder / path.name).symlink_to(path)
        out = folder / "out"
        arguments = list(map(str, KINDS[kind](np.random.default_rng([seed, number]), folder, out)))
        before, begun, started = _tree(folder), time.process_time(), time.monotonic()
        said, told = io.StringIO(), io.StringIO()
        status: Any = None
        try:
            with _surroundings(folder, said, told):
                status = main(arguments)
        except _Accepted:
            status = 0
        except _TooLong:
            status = "did not end"
        except BaseException as error:  # whatever comes out of the command line is what is looked for
            status = f"raised {type(error).__name__}: {error}"
        seconds = time.process_time() - begun
        result = _judge(status, said.getvalue(), told.getvalue(), _tree(folder) - before)
        if time.monotonic() - started > SECONDS:
            result = "did not end"
    return Outcome(kind, number, result, said.getvalue().strip(), seconds)


def _judge(status: Any, said: str, told: str, written: set[str]) -> str:
    if not isinstance(status, int):
        return str(status)
    if "Traceback" in said + told:
        return "printed a traceback"
    if "fault of this program" in said:
        return "was a fault that nothing foresaw"
    if status == 0:
        return "accepted" if not said else "accepted with words on stderr"
    if status != 2:
        return f"ended with status {status}"
    if said.count("\n") != 1 or not said.startswith("jaxgeom: ") or len(said) > LONGEST_LINE:
        return "refused in other than one short line"
    return f"refused, but wrote {', '.join(sorted(written))}" if written else "refused"


def _tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@contextlib.contextmanager
def _surroundings(folder: Path, said: io.StringIO, told: io.StringIO) -> Iterator[None]:
    """Where a command runs: its streams kept, its time limited, stopped where a run would begin to write.

    The page of a comparison is left out: it is the same whatever the inputs were, and costs more than all else.
    """
    import jaxgeom.report
    import jaxgeom.study.runner
    import jaxgeom.training.loop
    import jaxgeom.training.run_directory

    def accept(*_: Any, **__: Any) -> None:
        raise _Accepted

    def too_long(*_: Any) -> None:
        raise _TooLong

    here = os.getcwd()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(contextlib.redirect_stdout(told))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default")  # a warning is a line on stderr too
        claim = getattr(jaxgeom.training.run_directory, "Claim", None)
        modules = (jaxgeom.study.runner, jaxgeom.training.loop)
        for place, name in [(claim, "carry_out")] if claim else [(module, "claim_directory") for module in modules]:
            stack.enter_context(unittest.mock.patch.object(place, name, accept))
        stack.enter_context(unittest.mock.patch.object(jaxgeom.report, "write_report", lambda out: out))
        stack.enter_context(unittest.mock.patch.object(jaxgeom.report, "print_table", lambda *_: None))
        for which, timer, limit in (
            (signal.SIGPROF, signal.ITIMER_PROF, PROCESSOR_SECONDS),
            (signal.SIGALRM, signal.ITIMER_REAL, SECONDS),
        ):
            stack.callback(signal.signal, which, signal.signal(which, too_long))
            signal.setitimer(timer, limit)
            stack.callback(signal.setitimer, timer, 0)
        waiting = threading.Timer(SECONDS, _release, [folder])  # no signal reaches a library that waits for a pipe
        waiting.daemon = True
        waiting.start()
        stack.callback(waiting.cancel)
        os.chdir(folder)
        stack.callback(os.chdir, here)
        yield


def _release(folder: Path) -> None:
    """Ends the waiting of whoever opened a pipe that has no other end."""
    for path in folder.rglob("*"):
        if path.is_fifo():
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def table(outcomes: list[Outcome]) -> str:
    """Counts by kind of input, as a table in Markdown."""
    rows = ["| input | cases | accepted | refused in one line | otherwise |", "|---|---|---|---|---|"]
    for kind in [*KINDS, *{outcome.kind: None for outcome in outcomes if outcome.kind not in KINDS}]:
        held = [outcome for outcome in outcomes if outcome.kind == kind]
        counts = [sum(outcome.result == result for outcome in held) for result in ("accepted", "refused")]
        rows.append(f"| {kind} | {len(held)} | {counts[0]} | {counts[1]} | {len(held) - sum(counts)} |")
    return "\n".join(rows)


def one_line_of(outcome: Outcome) -> str:
    """A case that did not end well."""
    words = re.sub(r"\s+", " ", outcome.said)[:300]
    return f"case {outcome.number} ({outcome.kind}): {outcome.result}, {outcome.seconds:.1f} s: {words}"
