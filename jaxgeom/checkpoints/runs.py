"""What an argument names in a training run of ours: `RUN`, `RUN@STEP` or `RUN/checkpoints/STEP`. Read here alone."""

import dataclasses
import os
import pathlib
import re
from typing import Any

from jaxgeom.buckets.places import checkpoints_of, is_stored
from jaxgeom.checkpoints.weight_files import has_adapter, has_weights
from jaxgeom.errors import UserError, listed

_STEP = re.compile(
    r"(?:^|[^a-z])(?:step|checkpoint|ckpt|iter|iteration)s?[-_=]?(\d{1,18})(?![\d.])", re.IGNORECASE | re.ASCII
)
_IS_STEP = re.compile(r"0|[1-9][0-9]{0,17}")


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
            raise UserError(f"{self.run}: no checkpoint in {checkpoints_of(self.run)}")
        step = steps[-1] if self.step is None else self.step
        if step not in steps:
            raise UserError(f"{self.run}: no checkpoint at step {step}; there are {listed(map(str, steps))}")
        return step


def saved_steps(run: str | os.PathLike[str]) -> list[int]:
    """Steps of the whole checkpoints in a run directory, ascending; none for any other directory.

    Args:
        run: its directory.

    Returns:
        Steps whose parameters are there.
    """
    folder = checkpoints_of(run)
    if is_stored(folder):
        return [step for step in step_names(folder) if step in _stored(folder, "params/")]
    if not folder.is_dir():
        return []
    return [step for step in step_names(folder) if (folder / str(step) / "params").is_dir()]


def step_names(folder: Any) -> list[int]:
    """Steps that the entries of a run's `checkpoints` are named by, whole or not, ascending: decimal digits alone.

    In a bucket, where no folder is renamed when it is whole, those that have their list of checksums, written last.
    """
    if is_stored(folder):
        return sorted(_stored(folder, "checksums.json"))
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if _IS_STEP.fullmatch(name))


def _stored(folder: Any, what: str) -> set[int]:
    """Steps in a bucket below which there is a file, or something in a folder."""
    from jaxgeom.buckets import store  # heavy, and only needed for buckets

    found = (name.partition("/") for name in store.listed(str(folder)))
    return {int(step) for step, _, rest in found if rest.startswith(what) and _IS_STEP.fullmatch(step)}


def split_step(text: str) -> tuple[str, int | None]:
    """What stands before the last `@` and the step after it, by the letters alone; None where no step is named.

    >>> split_step("run@63"), split_step("out/checkpoint-127"), split_step("you@home/run")
    (('run', 63), ('out/checkpoint-127', None), ('you@home/run', None))
    """
    head, at, step = text.rpartition("@")
    return (head, int(step)) if at and re.fullmatch("[0-9]{1,18}", step) else (text, None)


def step_of_path(path: str) -> int | None:
    """The step that a path names: its last name where that is a number, else the last name with a number after a word.

    Any other number is part of a name: a seed, a version, a precision.

    >>> step_of_path("verl/global_step_40/actor/huggingface"), step_of_path("step20-lr1e-5"), step_of_path("run/20")
    (40, 20, 20)
    >>> step_of_path("Qwen3-0.6B"), step_of_path("fp16"), step_of_path("run-v2"), step_of_path("seed0")
    (None, None, None, None)
    """
    names = pathlib.PurePath(path).parts[::-1]
    if names and re.fullmatch("[0-9]{1,18}", names[0]):
        return int(names[0])
    return next((int(found.group(1)) for name in names if (found := _STEP.search(name))), None)


def is_a_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a folder has what a checkpoint has, whole or not: a configuration, weights, an adapter."""
    return (folder / "config.json").exists() or has_weights(folder) or has_adapter(folder)


def step_folders(folder: pathlib.Path) -> list[tuple[int, str]]:
    """The checkpoints of a folder that has one a step (`checkpoint-20`, `global_step_20`), ascending by step.

    Whatever the folder's own name is. Where it is a checkpoint itself, as where a trainer leaves its final model above
    them, only folders with weights of their own count; none in one that is named as a step.

    Raises:
        UserError: two of them name the same step.
    """
    if not folder.is_dir():
        return []
    # A checkpoint may hold its trainer's state in a folder that names the step again.
    is_checkpoint = is_a_checkpoint(folder)
    if is_checkpoint and step_of_path(folder.name) is not None:
        return []
    found: dict[int, str] = {}
    for entry in sorted(folder.iterdir()):
        step = step_of_path(entry.name) if entry.is_dir() else None
        if is_checkpoint and not (has_weights(entry) or has_adapter(entry)):
            continue
        if step is not None and step in found:
            raise UserError(f"{folder}: {found[step]} and {entry} are both of step {step}")
        if step is not None:
            found[step] = str(entry)
    return sorted(found.items())


def named_run(source: str | os.PathLike[str]) -> RunCheckpoint | None:
    """The checkpoint of a run that an argument names; None where it names no run: a Hugging Face directory, or nothing.

    A directory whose own name has an `@` in it is that directory.

    Raises:
        UserError: `RUN@STEP` without such a directory, or with a step that is no number.
    """
    text = os.fspath(source)
    directory = pathlib.Path(text)
    if directory.is_dir():
        # A trainer may keep its checkpoints in a folder of that name below its final model.
        if (directory / "checkpoints").is_dir() and not (has_weights(directory) or has_adapter(directory)):
            return RunCheckpoint(directory)
        if (
            _IS_STEP.fullmatch(directory.name)
            and (directory / "params").is_dir()
            and directory.parent.name == "checkpoints"
        ):
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
