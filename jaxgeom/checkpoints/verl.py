"""What verl's trainer saves a step: `global_step_N/actor`, with `huggingface/` and the shards of FSDP's ranks."""

import hashlib
import pathlib

from jaxgeom.checkpoints.huggingface import from_tensors
from jaxgeom.checkpoints.plain_files import is_there, read_json
from jaxgeom.checkpoints.tensors import Checkpoint
from jaxgeom.checkpoints.torch_files import fsdp_files, fsdp_tensors_of
from jaxgeom.checkpoints.weight_files import has_weights


def verl_step(directory: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """Where the model of a step is.

    Args:
        directory: the step's, the actor's in it, the actor's `huggingface`, or any other.

    Returns:
        The Hugging Face directory, and the shards that hold the weights where that holds none; for any other directory
        itself and nothing.

    Raises:
        UserError: shards of some ranks are missing.
    """
    if has_weights(directory):
        return directory, []
    places = [directory / "actor" / "huggingface", directory / "huggingface", directory / "actor"]
    inner = next((place for place in places if has_weights(place)), None)
    if inner is not None and not is_there(directory / "config.json"):
        return inner, []
    for actor in (directory / "actor", directory, directory.parent if directory.name == "huggingface" else directory):
        if shards := fsdp_files(actor):
            configured = [place for place in (actor / "huggingface", actor) if is_there(place / "config.json")]
            return (configured or [actor])[0], shards
    return directory, []


def open_shards(directory: pathlib.Path, shards: list[pathlib.Path], name: str) -> Checkpoint:
    """The checkpoint that FSDP's shards make together.

    Args:
        directory: with `config.json`.
        shards: of all ranks.
        name: how the user named it.

    Raises:
        UserError: no configuration, PyTorch is not installed, shards that do not fit each other.
    """
    config = read_json(directory / "config.json")
    tensors, identity = fsdp_tensors_of(shards)
    fingerprint = hashlib.sha256(identity)
    for path in shards:
        stat = path.stat()
        fingerprint.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return from_tensors(
        name, tensors, config, fingerprint.hexdigest(), (f"read from the shards of {len(shards)} ranks",)
    )
