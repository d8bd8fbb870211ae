"""The logs of a run: `metrics.jsonl`, `samples.jsonl` and TensorBoard events.

Rows end at a newline alone: a response may hold any other line separator. A checkpoint keeps how long each log was and
the digest of its bytes, so that a run that goes on continues them byte for byte, and a damaged log is found.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgeom import processes
from jaxgeom.errors import UserError
from jaxgeom.optimizers import learning_rate_schedule
from jaxgeom.rewards import logged
from jaxgeom.training.evaluation import is_evaluation
from jaxgeom.training.rollouts import Answers
from jaxgeom.training.settings import RunSettings
from jaxgeom.training.timing import StepClock

NAMES = ("metrics.jsonl", "samples.jsonl")

Positions = Mapping[str, Mapping[str, Any]]
"""By name of a log, its length in `bytes` and the `sha256` of them."""

_SAMPLES_LOGGED = 4
_BLOCK = 4096


class JsonLines:
    """A log of JSON rows that is only added to.

    Args:
        path: the file.
        length: bytes that stay; whatever is after them is cut off.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, length: int = 0):
        self._file = path.open("r+b" if path.exists() else "w+b")
        kept = self._file.read(length)
        self._digest, self._length = hashlib.sha256(kept), len(kept)
        self._file.truncate(len(kept))
        self._file.seek(len(kept))

    def write(self, rows: Iterable[dict]) -> None:
        """Adds rows, and hands them to the system."""
        for row in rows:
            text = _encoded(row)
            self._file.write(text)
            self._digest.update(text)
            self._length += len(text)
        self._file.flush()

    def position(self) -> dict[str, Any]:
        """Length and digest of what was written, on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._length, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_json_lines(path: Path) -> list[dict]:
    """The rows of a log; a last one without its newline, which a kill left, is left out.

    Raises:
        UserError: the file is missing, or a row is not one that was written.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no regular file")
        *lines, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}: line {number} is damaged; the run's own command goes on from before it")
        rows.append(row)
    return rows


def fault_of(run: Path, positions: Positions) -> str | None:
    """What is wrong with a run's logs up to a checkpoint; None where they are what was written.

    A log that is gone is no fault (`gone`): it begins anew.
    """
    for name, position in positions.items():
        path = run / name
        if path.exists() and not path.is_file():
            return f"{name} is no regular file"
        if path.exists():
            with path.open("rb") as file:
                kept = file.read(position["bytes"])
            if hashlib.sha256(kept).hexdigest() != position["sha256"]:
                line = _first_bad_line(kept)
                return f"{name} is not what was written" + (f" (line {line})" if line else "")
    return None


def gone(run: Path, positions: Positions) -> list[str]:
    """The logs that had rows at a checkpoint and are not there."""
    return [name for name, position in positions.items() if position["bytes"] and not (run / name).exists()]


class Log:
    """The three logs of a run, a context manager; a step's device metrics are fetched one step later.

    Of several processes the first writes; what the others are given they check alone.

    Args:
        settings: of the run.
        out: the run directory.
        done: the step that the run goes on from; None where it begins.
        positions: of the logs at that step.
        clock: of the steps.
        judge: raises where a run cannot go on from the numbers of a step, before they are written.
    """

    def __init__(
        self, settings: RunSettings, out: Path, done: int | None, positions: Positions, *,
        clock: StepClock | None = None, judge: Callable[[int, dict[str, float]], None] | None = None,
    ):  # fmt: skip
        self._files: dict[str, JsonLines] = {}
        self._events: _Events | None = None

        def opened() -> set[int]:
            for name in NAMES:
                self._files[name] = JsonLines(out / name, positions.get(name, {}).get("bytes", 0))
            self._events = _Events(out, 0 if done is None else done + 1)
            return {row["step"] for row in read_json_lines(out / "metrics.jsonl") if is_evaluation(row)}

        self._evaluated = processes.from_first(opened)
        self._schedule = learning_rate_schedule(settings.optimizer, settings.steps)
        self._rates = -1, np.empty(0)
        self._clock, self._judge = clock, judge
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._last: dict[str, float] = {}

    def step(self, step: int, metrics: dict[str, Any], host: dict[str, Any], answers: Answers | None) -> None:
        """Takes a step's metrics, its rollout's, on the host or the device, and its answers."""
        self.flush()
        self._pending = (step, metrics | host | {"learning_rate": self._rate(step)})
        if answers is not None and self._files:
            first = list(zip(answers.prompts, answers.texts, answers.rewards, strict=True))[:_SAMPLES_LOGGED]
            self._files["samples.jsonl"].write(
                {
                    "step": step,
                    "prompt": prompt.row,
                    "response": text,
                    "ground_truth": logged(prompt.ground_truth),
                    "reward": None if np.isnan(reward) else float(reward),
                }
                for prompt, text, reward in first
            )

    def _rate(self, step: int) -> float:
        """The learning rate of a step. A block of steps at a time is computed: all may be more than memory holds."""
        block, place = divmod(step - 1, _BLOCK)
        if self._rates[0] != block:
            self._rates = block, np.asarray(self._schedule(jnp.arange(block * _BLOCK, (block + 1) * _BLOCK)))
        return float(self._rates[1][place])

    def flush(self) -> None:
        """Writes the metrics of the last step."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        row = {key: float(value) for key, value in jax.device_get(metrics).items()}
        if self._judge is not None:
            self._judge(step, row)
        if self._clock is not None:
            row |= self._clock.row(step)
            row["tokens_per_second"] = row.pop("batch_tokens", 0.0) / row["seconds"]
        self.write(step, row)
        self._last = row

    def write(self, step: int, row: dict[str, float]) -> None:
        """Writes a row of numbers at a step."""
        if self._events is not None:
            self._files["metrics.jsonl"].write([{"step": step, **row}])
            self._events.write(step, row)
        if is_evaluation(row):
            self._evaluated.add(step)

    def is_evaluated(self, step: int) -> bool:
        """Whether the log has the accuracy at a step."""
        return step in self._evaluated

    def positions(self) -> dict[str, dict[str, Any]]:
        """Where the logs stand, for a checkpoint."""
        return {name: file.position() for name, file in self._files.items()}

    def status(self) -> str:
        """The last numbers, in a few words."""
        shown = [f"{key} {self._last[key]:.3g}" for key in ("loss", "reward", "gap") if key in self._last]
        speed = self._last.get("tokens_per_second")
        return " ".join(shown if not speed else [*shown, f"{speed:,.0f} tokens/s"])

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        if self._events is not None:
            self._events.close()


class _Events:
    """TensorBoard events, written where they arise: a thread of their own would wait for ever on a full disk."""

    def __init__(self, out: Path, first: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        # A file of its own for every time that the run goes on; events from `first` on in earlier ones are hidden.
        self._writer = EventsWriter(str(out / "events"), f".{os.getpid()}.{first}")
        self._messages: Any = event_pb2  # made at run time: a type checker sees nothing in it
        start = {"status": 1}  # SessionLog.START
        self._write(step=first, session_log=start)

    def write(self, step: int, row: dict[str, float]) -> None:
        from tensorboardX.proto import summary_pb2
        from tensorboardX.summary import scalar

        messages: Any = summary_pb2
        together = messages.Summary()  # one event a row: each is checksummed in Python
        for key, value in row.items():
            together.MergeFrom(scalar(key, value))
        self._write(step=step, summary=together)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write_event(self._messages.Event(wall_time=time.time(), **fields))


def _encoded(row: dict) -> bytes:
    """One line; text that is no Unicode (a lone surrogate) is written with escapes."""
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(row) + "\n").encode()


def _first_bad_line(kept: bytes) -> int:
    """The first line that is no JSON object, 0 where all are."""
    for number, line in enumerate(kept.split(b"\n"), 1):
        if line:
            try:
                if isinstance(json.loads(line), dict):
                    continue
            except (ValueError, RecursionError):
                pass
            return number
    return 0
