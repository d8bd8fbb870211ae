"""Read a Hugging Face directory into the parameter tree, one tensor at a time, straight to the devices' shards."""

import functools
import json
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxgeom.errors import UserError
from jaxgeom.models.config import Qwen3Config
from jaxgeom.models.names import HFTensor, from_hf, hf_tensors
from jaxgeom.models.qwen3 import Qwen3
from jaxgeom.sharding import parameter_shardings

_STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def read_config(path: str | Path) -> dict[str, Any]:
    """The `config.json` of a Hugging Face directory.

    Raises:
        UserError: the directory or the file is not there, or is no JSON object.
    """
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no config.json there; a Hugging Face model directory is needed") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{file}: a JSON object is needed")
    return config


def load_model(
    path: str | Path,
    *,
    dtype: Any = "float32",
    mesh: jax.sharding.Mesh | None = None,
    compute_dtype: Any = None,
    remat: bool = False,
) -> tuple[Qwen3, dict[str, Any]]:
    """Load a Qwen3 Hugging Face directory: no more than a few tensors are in host memory at a time, never the model.

    Args:
        path: directory with `config.json` and one or more `*.safetensors`.
        dtype: dtype of the parameters.
        mesh: devices to shard the parameters over by `jaxgeom.sharding`'s rules; None for the default device.
        compute_dtype: dtype of activations; the parameters' where None.
        remat: whether blocks are recomputed in the backward pass.
    Returns:
        The module and its parameters: `model.apply({"params": params}, tokens)` gives logits.
    Raises:
        UserError: a file, field, tensor or shape is missing, broken, unknown or unsupported; the message names it.
    """
    path = Path(path)
    config = Qwen3Config.from_hf(read_config(path))
    dtype = jnp.dtype(dtype)
    files = _tensor_files(path)
    tensors = hf_tensors(config)
    _check_names(path, config, tensors, files)
    model = Qwen3(config, dtype=jnp.dtype(compute_dtype or dtype), remat=remat)
    abstract = abstract_parameters(model, dtype)
    shardings = parameter_shardings(abstract, mesh) if mesh is not None else jax.tree.map(lambda _: None, abstract)
    by_path: dict[tuple[str, ...], list[HFTensor]] = {}
    for tensor in tensors:
        by_path.setdefault(tensor.path, []).append(tensor)
    params: dict[str, Any] = {}
    for leaf_path, group in by_path.items():
        shape = cast(Any, functools.reduce(lambda tree, key: tree[key], leaf_path, abstract)).shape
        sharding = functools.reduce(lambda tree, key: tree[key], leaf_path, shardings) if mesh is not None else None
        node = params
        for key in leaf_path[:-1]:
            node = node.setdefault(key, {})
        node[leaf_path[-1]] = _load_leaf(config, group, files, shape, dtype, sharding)
    return model, params


def abstract_parameters(model: Qwen3, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The parameter tree as `ShapeDtypeStruct`s: nothing is allocated."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def _tensor_files(path: Path) -> dict[str, Path]:
    """Which file holds each tensor; duplicates and unreadable files are refused."""
    where: dict[str, Path] = {}
    found = sorted(path.glob("*.safetensors"))
    if not found:
        raise UserError(f"{path}: no *.safetensors there")
    for file in found:
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():
                    if name in where:
                        raise UserError(f"{path}: tensor {name!r} is in both {where[name].name} and {file.name}")
                    where[name] = file
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: not a readable safetensors file ({error})") from None
    return where


def _check_names(path: Path, config: Qwen3Config, tensors: list[HFTensor], files: dict[str, Path]) -> None:
    wanted = {tensor.name for tensor in tensors}
    # A tied checkpoint may store the head as well; it is the embedding again.
    extra = set(files) - wanted - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    for problem, names in (("missing", wanted - set(files)), ("not of this architecture", extra)):
        if names:
            raise UserError(
                f"{path}: {len(names)} tensors are {problem}: {', '.join(sorted(names)[:8])}"
                f"{' …' if len(names) > 8 else ''}"
            )


@functools.partial(jax.jit, donate_argnums=0)
def _put_slice(leaf: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(leaf, part.astype(leaf.dtype), tuple(start))


def _load_leaf(
    config: Qwen3Config,
    group: list[HFTensor],
    files: dict[str, Path],
    shape: tuple[int, ...],
    dtype: Any,
    sharding: Any,
) -> jax.Array:
    """Fill one (stacked) leaf on the devices from its tensors."""
    if group[0].layer is None:
        return jax.device_put(_read(config, group[0], files).astype(dtype, copy=False), sharding)
    leaf = jnp.zeros(shape, dtype, device=sharding)
    for tensor in group:
        part = _read(config, tensor, files)
        index = [tensor.layer] if tensor.expert is None else [tensor.layer, tensor.expert]
        part = part.reshape((1,) * len(index) + part.shape)
        start = np.array(index + [0] * (len(shape) - len(index)), np.int32)
        placed = jax.device_put(part, _part_sharding(sharding, len(index), part.shape))
        leaf = _put_slice(leaf, placed, start)
        # The next tensor is read when this one has left the host: not one more is in memory.
        jax.block_until_ready(leaf)
        del part, placed
    return leaf


def _part_sharding(sharding: Any, stacked: int, shape: tuple[int, ...]) -> Any:
    """The leaf's sharding for one slice of it: the stacked axes, of size 1 there, are not split."""
    if sharding is None:
        return None
    spec = list(sharding.spec) + [None] * (len(shape) - len(sharding.spec))
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*([None] * stacked + spec[stacked:])))


def _read(config: Qwen3Config, tensor: HFTensor, files: dict[str, Path]) -> np.ndarray:
    file = files[tensor.name]
    try:
        with safe_open(file, framework="np") as opened:
            header = opened.get_slice(tensor.name)
            stored, shape = header.get_dtype(), tuple(header.get_shape())
            if shape != tensor.shape:
                raise UserError(
                    f"{file}: tensor {tensor.name!r} has shape {list(shape)}, the config asks for {list(tensor.shape)}"
                )
            if stored not in _STORED:
                raise UserError(
                    f"{file}: tensor {tensor.name!r} is stored as {stored}; one of {', '.join(_STORED)} is needed"
                )
            array = opened.get_tensor(tensor.name)
    except SafetensorError as error:
        raise UserError(f"{file}: tensor {tensor.name!r} cannot be read ({error})") from None
    return from_hf(config, tensor, array)
