"""From what a user writes to a checkpoint."""

import os
import pathlib

from jaxgeom.checkpoints.orbax_runs import open_run
from jaxgeom.checkpoints.safetensors_files import open_safetensors
from jaxgeom.checkpoints.tensors import Checkpoint
from jaxgeom.errors import UserError


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a checkpoint without reading its weights.

    Args:
        path: a Hugging Face directory (`config.json` and `*.safetensors`), a training run (its last checkpoint),
            `RUN@STEP`, or the folder of one step, `RUN/checkpoints/STEP`.

    Returns:
        A mapping from Hugging Face names to `Tensor`s, which are read on request.

    Raises:
        UserError: nothing there, or something that is no checkpoint; the message names it.
    """
    text = os.fspath(path)
    directory = pathlib.Path(text)
    if not directory.exists() and "@" in text:
        run, _, step = text.rpartition("@")
        if not pathlib.Path(run).is_dir():
            raise UserError(f"{run}: no such run directory")
        if not step.isdigit():
            raise UserError(f"{text}: the step after '@' is no number")
        return open_run(pathlib.Path(run), int(step), text)
    if not directory.exists():
        raise UserError(f"{text}: no such checkpoint directory")
    if not directory.is_dir():
        raise UserError(f"{text}: is a file; give the directory that holds config.json and the weights")
    if (directory / "checkpoints").is_dir():
        return open_run(directory, None, text)
    if directory.name.isdigit() and (directory / "params").is_dir() and directory.parent.name == "checkpoints":
        return open_run(directory.parent.parent, int(directory.name), text)
    return open_safetensors(directory, text)
