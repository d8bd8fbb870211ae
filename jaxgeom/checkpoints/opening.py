"""From what a user writes to a checkpoint."""

import os
import pathlib

from jaxgeom.checkpoints.orbax_runs import open_run
from jaxgeom.checkpoints.runs import named_run
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
    found = named_run(text)
    if found is not None:
        return open_run(found, text)
    directory = pathlib.Path(text)
    if not directory.exists():
        raise UserError(f"{text}: no such checkpoint directory")
    if not directory.is_dir():
        raise UserError(f"{text}: is a file; give the directory that holds config.json and the weights")
    return open_safetensors(directory, text)
