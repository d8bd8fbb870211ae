"""`jaxgeom export RUN --step N --to DIR`."""

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from jaxgeom.buckets import places
from jaxgeom.checkpoints.checksums import NAME as CHECKSUMS
from jaxgeom.checkpoints.checksums import fault_of, read_checksums, write_checksums
from jaxgeom.checkpoints.runs import named_run
from jaxgeom.commands.options import Directory, SomeCount
from jaxgeom.errors import UserError, listed
from jaxgeom.files import as_user_error
from jaxgeom.owned_files import Contents, contents_of, empty

_KIND = "export"


def export(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    to: Directory,
    step: SomeCount = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    force: bool = False,
) -> Callable[[str], None]:
    """Writes a checkpoint of a training run as a Hugging Face directory that `transformers` loads.

    Args:
        run: The run directory, or RUN@STEP.
        to: The directory to write; new or empty.
        step: Which checkpoint; the last where not given.
        dtype: Of the stored weights. float32 are the run's own, without rounding; bfloat16 takes half the room.
        force: Delete an earlier export that is in the directory to write; nothing else.
    """

    def write(command: str) -> None:
        named = named_run(run)
        if named is not None and named.step is not None and step not in (None, named.step):
            raise UserError(f"{run}: names step {named.step}, and --step says {step}; give one of them")
        source = run if named is None else named.run
        asked = step if named is None or named.step is None else named.step
        _write(source, to, asked, dtype, force)

    return write


def _write(run: Path, to: Path, step: int | None, dtype: Literal["float32", "bfloat16"], force: bool) -> None:
    from jaxgeom.checkpoints import saved_steps
    from jaxgeom.models import save_model
    from jaxgeom.progress import Reporter
    from jaxgeom.training import load_start

    steps = saved_steps(run)
    if not steps:
        raise UserError(f"{run}: no checkpoints there")
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise UserError(f"{run}: step={chosen} was not saved; the run has {listed(map(str, steps))}")
    target = to.resolve()
    _check_target(target, run.resolve(), force)  # before the minutes that a model may take to load
    reporter = Reporter()
    reporter.say(f"reading {run}@{chosen}")
    model, params = load_start(f"{run}@{chosen}", mesh=None, compute_dtype="float32")
    # Written beside and moved at the end: what a kill leaves behind is no half of a model under the name asked for.
    # Under a new name: one that is there already is somebody's, whatever it looks like.
    left = rf"\.{re.escape(target.name)}\.partial\.\w{{8}}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in target.parent.iterdir():
            if re.fullmatch(left, path.name):
                reporter.say(f"{path}: left by an export that was killed, if none is under way; you may remove it")
        beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.partial."))
    except OSError as error:
        raise as_user_error(error, to) from error
    try:
        partial = beside / target.name
        reporter.say(f"writing {to}")
        save_model(partial, model.config, params, dtype=dtype, tokenizer_from=run / "tokenizer")
        write_checksums(partial, kind=_KIND, run=places.named(str(run)), step=chosen)
        held = _check_target(target, run.resolve(), force)  # once more: something may have come there meanwhile
        if held.own:
            empty(target, "an export", held, inputs=[run], say=reporter.say, last=CHECKSUMS)
        partial.rename(target)  # in the place of a folder that is empty, or not there
    except OSError as error:
        raise as_user_error(error, to) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    reporter.say(f"model: {to}")


def _check_target(target: Path, run: Path, force: bool) -> Contents:
    """What is in the directory to write, which may be deleted: an earlier export, unchanged, or nothing."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file, not a directory")
    if target == run or target in run.parents or run / "checkpoints" in (target, *target.parents):
        raise UserError(f"{target}: holds the run itself; choose another directory")
    if not target.is_dir() or not any(target.iterdir()):
        return Contents([], [])
    if not force:
        raise UserError(f"{target}: is not empty; choose another directory or give --force")
    held = read_checksums(target) or {}
    if held.get("kind") != _KIND:
        raise UserError(f"{target}: is no export of ours, and --force deletes nothing else; choose another directory")
    fault = fault_of(target)
    if fault is not None:
        raise UserError(f"{target}: is not the export that was written: {fault}; choose another directory")
    contents = contents_of(target, re.escape(CHECKSUMS), also=held["files"])
    empty(target, "", dataclasses.replace(contents, own=[]))  # refuses what is not of the export, deletes nothing yet
    return contents
