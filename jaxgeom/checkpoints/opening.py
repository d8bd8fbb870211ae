"""From what a user writes to a checkpoint."""

import os
import pathlib

from jaxgeom.checkpoints.adapters import base_of, is_adapter_directory, open_adapter
from jaxgeom.checkpoints.huggingface import open_directory
from jaxgeom.checkpoints.orbax_runs import open_run
from jaxgeom.checkpoints.runs import named_run
from jaxgeom.checkpoints.tensors import Checkpoint
from jaxgeom.checkpoints.verl import open_shards, verl_step
from jaxgeom.errors import UserError


def open_checkpoint(path: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Opens a checkpoint without reading its weights (but for a stored head that is to be the embedding again).

    Args:
        path: a Hugging Face directory (`config.json` and weights), a training run (its last checkpoint), `RUN@STEP`, or
            the folder of one step, `RUN/checkpoints/STEP`; a LoRA adapter's directory; a step that verl saved.
        base: the model that a LoRA adapter belongs to, where `adapter_config.json` does not lead there.

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
    if is_adapter_directory(directory):
        where = base_of(directory, None if base is None else pathlib.Path(base))
        if where.is_dir() and is_adapter_directory(where):
            raise UserError(f"{where}: is a LoRA adapter itself; give the whole model that {text} was trained on")
        return open_adapter(directory, text, open_checkpoint, where)
    inner, shards = verl_step(directory)
    return open_shards(inner, shards, text) if shards else open_directory(inner, text)
