"""What an argument names in a training run of ours: `RUN`, `RUN@STEP` or `RUN/checkpoints/STEP`. Read here alone."""

import dataclasses
import os
import pathlib

from jaxgeom.errors import UserError


@dataclasses.dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint of a training run.

    Attributes:
        run: the run directory.
        step: the optimizer step; None for the last that was saved.
    """

    run: pathlib.Path
    step: int | None = None

    def saved_step(self) -> int:
        """The step, which is there; the last one where none is named.

        Raises:
            UserError: the run has no such checkpoint, or none at all.
        """
        steps = saved_steps(self.run)
        if not steps:
            raise UserError(f"{self.run}: no checkpoint in {self.run / 'checkpoints'}")
        step = steps[-1] if self.step is None else self.step
        if step not in steps:
            raise UserError(f"{self.run}: no checkpoint at step {step}; there are {', '.join(map(str, steps))}")
        return step


def saved_steps(run: str | os.PathLike[str]) -> list[int]:
    """Steps of the whole checkpoints in a run directory, ascending; none for any other directory.

    Args:
        run: its directory.

    Returns:
        Steps whose parameters are there.
    """
    folder = pathlib.Path(run) / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit() and (entry / "params").is_dir())


def split_step(text: str) -> tuple[str, int | None]:
    """What stands before the last `@` and the step after it, by the letters alone; None where no step is named.

    >>> split_step("run@63"), split_step("out/checkpoint-127"), split_step("you@home/run")
    (('run', 63), ('out/checkpoint-127', None), ('you@home/run', None))
    """
    head, at, step = text.rpartition("@")
    return (head, int(step)) if at and step.isdigit() else (text, None)


def named_run(source: str | os.PathLike[str]) -> RunCheckpoint | None:
    """The checkpoint of a run that an argument names; None where it names no run: a Hugging Face directory, or nothing.

    A directory whose own name has an `@` in it is that directory.

    Raises:
        UserError: `RUN@STEP` without such a directory, or with a step that is no number.
    """
    text = os.fspath(source)
    directory = pathlib.Path(text)
    if directory.is_dir():
        if (directory / "checkpoints").is_dir():
            return RunCheckpoint(directory)
        if directory.name.isdigit() and (directory / "params").is_dir() and directory.parent.name == "checkpoints":
            return RunCheckpoint(directory.parent.parent, int(directory.name))
        return None
    if directory.exists() or "@" not in text:
        return None
    head, step = split_step(text)
    run = pathlib.Path(head if step is not None else text.rpartition("@")[0])
    if not run.is_dir():
        raise UserError(f"{run}: no such run directory")
    if step is None:
        raise UserError(f"{text}: the step after '@' is no number")
    return RunCheckpoint(run, step)
