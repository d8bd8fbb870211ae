"""Write the parameter tree as a Hugging Face directory that `transformers` loads."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxgeom.errors import UserError
from jaxgeom.models.config import Qwen3Config
from jaxgeom.models.names import HFTensor, hf_tensors, leaf_slice, to_hf

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""The files of a Hugging Face directory that are copied along with a model."""


def save_model(
    directory: str | Path,
    config: Qwen3Config,
    params: dict[str, Any],
    *,
    dtype: Any = None,
    tokenizer_from: str | Path | None = None,
    max_shard_bytes: int = 4 * 1024**3,
) -> None:
    """Write `config.json`, the tensors as safetensors (in shards above `max_shard_bytes`) and the tokenizer's files.

    Args:
        directory: where to; made if it is not there.
        config: the architecture.
        params: the parameter tree, on any devices; one shard at a time is brought to the host.
        dtype: dtype to store; the parameters' own where None.
        tokenizer_from: a directory whose tokenizer files are copied.
        max_shard_bytes: size above which the tensors are split over several files with an index.

    Raises:
        UserError: a weight that is NaN or infinite in `dtype`, by name; what was written before it is left.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stored = jnp.dtype(dtype or jax.tree.leaves(params)[0].dtype)
    shards = _split(hf_tensors(config), stored.itemsize, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {tensor.name: np.ascontiguousarray(_fetch(config, params, tensor, stored)) for tensor in shard}
        _save(arrays, directory / name)
        _readable(directory / name)
        weight_map |= dict.fromkeys(arrays, name)
    if len(shards) > 1:
        total = sum(int(np.prod(tensor.shape)) for shard in shards for tensor in shard) * stored.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)
    _write_json(directory / "config.json", config.to_hf() | {"torch_dtype": stored.name})
    if tokenizer_from is not None:
        copy_tokenizer(tokenizer_from, directory)


def copy_tokenizer(source: str | Path, directory: str | Path) -> None:
    """Copies those of `TOKENIZER_FILES` that `source` has into `directory`, which is made if it is not there.

    Chat templates with a name of their own (`additional_chat_templates/`) are copied too.

    Args:
        source: a directory that may hold them.
        directory: where they go.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, Path(directory) / name)
    named = Path(source) / "additional_chat_templates"
    for template in sorted(named.glob("*.jinja")):
        (Path(directory) / named.name).mkdir(exist_ok=True)
        shutil.copyfile(template, Path(directory) / named.name / template.name)


def _save(arrays: dict[str, np.ndarray], file: Path) -> None:
    """Writes a file of tensors; raises `OSError` with the system's number where the system refuses it."""
    try:
        save_file(arrays, file, metadata={"format": "pt"})
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from error


def _readable(file: Path) -> None:
    """Gives a file the permissions of any new file: safetensors makes it readable to its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def _split(tensors: list[HFTensor], itemsize: int, limit: int) -> list[list[HFTensor]]:
    shards: list[list[HFTensor]] = [[]]
    size = 0
    for tensor in tensors:
        bytes_ = int(np.prod(tensor.shape)) * itemsize
        if shards[-1] and size + bytes_ > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += bytes_
    return shards


def _fetch(config: Qwen3Config, params: dict[str, Any], tensor: HFTensor, dtype: Any) -> np.ndarray:
    leaf: Any = params
    for key in tensor.path:
        leaf = leaf[key]
    array = to_hf(config, tensor, np.asarray(leaf_slice(leaf, tensor)))
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    if bad := int(np.count_nonzero(~np.isfinite(stored.astype(np.float32)))):
        raise UserError(f"{tensor.name}: {bad} of {array.size} entries are NaN or infinite as {np.dtype(dtype).name}")
    return stored


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
