"""A Hugging Face directory as a checkpoint: its weights, each once, without what is no parameter."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgeom.checkpoints.anatomy import places_of
from jaxgeom.checkpoints.names import EMBEDDING, HEAD, is_adapter, is_buffer, is_scale
from jaxgeom.checkpoints.plain_files import is_there, read_json
from jaxgeom.checkpoints.safetensors_files import tensors_of
from jaxgeom.checkpoints.tensors import Checkpoint, Tensor
from jaxgeom.checkpoints.torch_files import torch_tensors_of
from jaxgeom.checkpoints.weight_files import WeightFiles, no_weights, side_files, weight_files
from jaxgeom.errors import UserError, listed

_BLOCK_ENTRIES = 1 << 24
_QUANTIZED = ("quantization_config", "quantization", "compression_config")
_PACKED = ("float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int16", "uint16", "int32", "uint32")


def open_directory(directory: pathlib.Path, name: str) -> Checkpoint:
    """A Hugging Face directory as a checkpoint.

    Args:
        directory: with `config.json` and weights by one of the names that `transformers` loads.
        name: how the user named it.

    Returns:
        The checkpoint; `notes` say what of the files was left out.

    Raises:
        UserError: no configuration, no weights, a file that is missing, cut off or of another format, an index that
            does not fit its files, quantised weights, an adapter that was not merged.
    """
    config_path = directory / "config.json"
    if not is_there(config_path):
        if list(directory.glob("snapshots/*")):
            raise no_weights(directory)
        raise UserError(f"{directory}: no config.json, so it is no Hugging Face directory")
    config = read_json(config_path)
    files = weight_files(directory, config)
    if files is None:
        raise no_weights(directory)
    tensors, fingerprint = read_tensors(files)
    return from_tensors(name, tensors, config, fingerprint, (*files.notes, *side_files(directory, files)))


def read_tensors(files: WeightFiles) -> tuple[dict[str, Tensor], str]:
    """All tensors of a directory's weight files by stored name, and a fingerprint of the files."""
    tensors: dict[str, Tensor] = {}
    held: dict[str, str] = {}
    fingerprint = hashlib.sha256()
    for path in files.files:
        found, identity = (tensors_of if files.kind == "safetensors" else torch_tensors_of)(path)
        twice = sorted(set(found) & set(tensors))
        if twice:
            raise UserError(f"{path}: tensors stored in more than one file: {listed(twice)}")
        tensors |= found
        held |= dict.fromkeys(found, path.name)
        stat = path.stat()
        fingerprint.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns} ".encode() + identity)
    files.check(held)
    return tensors, fingerprint.hexdigest()


def from_tensors(
    name: str, tensors: Mapping[str, Tensor], config: dict[str, Any] | None, fingerprint: str, notes: tuple[str, ...]
) -> Checkpoint:
    """The checkpoint of what the files hold: buffers left out, a tied head counted once.

    Raises:
        UserError: nothing there, quantised weights, an adapter that was not merged.
    """
    if not tensors:
        raise UserError(f"{name}: its weight files hold no tensor")
    if adapted := [one for one in tensors if is_adapter(one)]:
        raise UserError(
            f"{name}: holds a LoRA adapter beside the weights that it was not merged into ({adapted[0]}, …):"
            " save the merged model (merge_and_unload), or the adapter alone with its adapter_config.json"
        )
    places = places_of({one: tensor.size for one, tensor in tensors.items()})
    tensors = {one: dataclasses.replace(tensor, tower=places[one].tower) for one, tensor in tensors.items()}
    buffers = {one for one, tensor in tensors.items() if is_buffer(one, tensor.shape, tensor.dtype)}
    kept = {one: tensor for one, tensor in tensors.items() if one not in buffers}
    refuse_quantized(name, kept, config)
    if buffers:
        notes += (f"stored buffers, which are no parameters, are left out: {listed(sorted(buffers), 3)}",)
    head = stored_head(kept)
    if head is not None and _says_tied(config):
        if is_embedding_again(kept):
            del kept[head]
            notes += (f"{head} is the tied embedding again: counted once",)
        else:
            notes += (f"{head} differs from the embedding, though config.json says that they are tied: kept",)
    if not kept:
        raise UserError(f"{name}: its weight files hold no parameter")
    return Checkpoint(name, kept, config=config, fingerprint=fingerprint, notes=notes)


def refuse_quantized(name: str, tensors: Mapping[str, Tensor], config: dict[str, Any] | None) -> None:
    """Refuses quantised weights, which are no numbers of the model without their scales.

    Raises:
        UserError: the configuration says so, scales stand beside the weights, or a tensor that is no buffer holds
            integers or eight bits.
    """
    levels = [config or {}, text_config(config)]
    field = next((one for one in _QUANTIZED for level in levels if level.get(one) not in (None, False)), None)
    method = next((level[field] for level in levels if field in level), None) if field else None
    said = f" (config.json: {_method(field, method)})" if field else ""
    scales = [one for one in tensors if is_scale(one)]
    narrow = [one for one, tensor in tensors.items() if tensor.dtype in _PACKED]
    if not (said or scales or narrow):
        return
    example = next((f"{one} ({tensors[one].dtype})" for one in scales + narrow), "")
    raise UserError(
        f"{name}: quantized weights{said}{', such as ' + example if example else ''}:"
        " weights of float32, bfloat16 or float16 are needed; dequantize the model and save it again"
    )


def _method(field: str, value: Any) -> str:
    method = value.get("quant_method") if isinstance(value, dict) else None
    return f"quant_method {method}" if isinstance(method, str) else f"it has a {field}"


def text_config(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The configuration of the text model: that under `text_config` where there is one."""
    inner = (config or {}).get("text_config")
    return inner if isinstance(inner, dict) else config or {}


def _says_tied(config: Mapping[str, Any] | None) -> bool:
    return any(level.get("tie_word_embeddings") is True for level in (config or {}, text_config(config)))


def stored_head(tensors: Mapping[str, Tensor]) -> str | None:
    """The stored name of the head, None where none is stored."""
    return _stored(tensors, HEAD)


def is_embedding_again(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the head holds the same numbers as the embedding; both are read, where their shapes are the same."""
    head, embedding = stored_head(tensors), _stored(tensors, EMBEDDING)
    if head is None or embedding is None or tensors[head].shape != tensors[embedding].shape:
        return False
    blocks = (tensors[one].row_blocks(_BLOCK_ENTRIES) for one in (head, embedding))
    return all(np.array_equal(a.astype(np.float32), b.astype(np.float32)) for a, b in zip(*blocks, strict=True))


def _stored(tensors: Mapping[str, Tensor], key: str) -> str | None:
    places = places_of({one: tensor.size for one, tensor in tensors.items()})
    return next((one for one, place in places.items() if place.key == key), None)
