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
from jaxgeom.sharding import parameter_shardings, platform_of

_STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_BLOCK_ENTRIES = 1 << 22


def read_config(path: str | Path) -> dict[str, Any]:
    """The `config.json` of a Hugging Face directory.

    Args:
        path: the directory.

    Returns:
        Its content.

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
        mesh: devices to shard the parameters over by `jaxgeom.sharding`'s rules, its axes of type Auto; None for the
            default device.
        compute_dtype: dtype of activations; the parameters' where None.
        remat: whether blocks are recomputed in the backward pass.
    Returns:
        The module, for the platform of the devices, and its parameters: `model.apply({"params": params}, tokens)` gives
        logits. Parameters that are moved to another platform go with `model.clone(platform=…)`.
    Raises:
        UserError: a file, field, tensor or shape is missing, broken, unknown or unsupported; a weight is NaN or
            infinite (in `dtype`); a tied model's stored head is not its embedding. The message names it.
    """
    path = Path(path)
    config = Qwen3Config.from_hf(read_config(path))
    dtype = _floating("dtype", dtype)
    compute_dtype = dtype if compute_dtype is None else _floating("compute_dtype", compute_dtype)
    if mesh is not None and any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
        raise UserError("load_model: the mesh's axes must be of type Auto, as jaxgeom.sharding.make_mesh makes them")
    files = _tensor_files(path)
    tensors = hf_tensors(config)
    _check_names(path, config, tensors, files)
    model = Qwen3(config, dtype=compute_dtype, remat=remat, platform=platform_of(mesh), mesh=mesh)
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
    if config.tie_word_embeddings and _HEAD in files:
        _check_tied_head(config, files)
    return model, params


def abstract_parameters(model: Qwen3, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The parameter tree as `ShapeDtypeStruct`s: nothing is allocated.

    Args:
        model: its config gives the shapes.
        dtype: of every leaf.

    Returns:
        A tree like the parameters.
    """
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)


def _floating(name: str, dtype: Any) -> Any:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise UserError(f"load_model: {name}={dtype!r} must be a floating-point dtype such as float32 or bfloat16")
    return found


def _tensor_files(path: Path) -> dict[str, Path]:
    """Which file holds each tensor: those of the index where there is one, else of every `*.safetensors`."""
    where: dict[str, Path] = {}
    index = path / "model.safetensors.index.json"
    listed = _read_index(index) if index.is_file() else None
    found = sorted(path.glob("*.safetensors") if listed is None else {path / file for file in listed.values()})
    if not found:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
        words = "is a pickle, which can run code and is never read: save it as safetensors"
        also = f"; {pickled[0]} {words}" if pickled else ""
        raise UserError(f"{path}: no *.safetensors there{also}")
    for file in found:
        if listed is not None and not file.is_file():
            raise UserError(f"{file}: missing, although {index.name} lists it")
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():
                    if name in where:
                        raise UserError(f"{path}: tensor {name!r} is in both {where[name].name} and {file.name}")
                    where[name] = file
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: not a readable safetensors file ({error})") from None
    if listed is not None:
        _check_index(index, listed, where)
    return where


def _read_index(index: Path) -> dict[str, str]:
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        good = isinstance(listed, dict) and bool(listed) and all(Path(file).name == file for file in listed.values())
    except (ValueError, KeyError, TypeError):
        good, listed = False, {}
    if not good:
        raise UserError(f"{index}: no weight_map there that maps tensors to files of this directory")
    if "model.safetensors" not in listed.values() and (index.parent / "model.safetensors").is_file():
        # transformers reads the one file then and passes over the index.
        raise UserError(f"{index}: lists other files than model.safetensors, which is there too; remove one of the two")
    return listed


def _check_index(index: Path, listed: dict[str, str], where: dict[str, Path]) -> None:
    for name, file in listed.items():
        if name not in where or where[name].name != file:
            raise UserError(f"{index}: lists tensor {name!r} in {file}, which does not hold it")
    for name in where:
        if name not in listed:
            raise UserError(f"{index}: does not list tensor {name!r}, which is in {where[name].name}")


def _check_names(path: Path, config: Qwen3Config, tensors: list[HFTensor], files: dict[str, Path]) -> None:
    wanted = {tensor.name for tensor in tensors}
    # A tied checkpoint may store the head as well, where it is the embedding again.
    extra = set(files) - wanted - ({_HEAD} if config.tie_word_embeddings else set())
    for problem, names in (("missing", wanted - set(files)), ("not of this architecture", extra)):
        if names:
            raise UserError(
                f"{path}: {len(names)} tensors are {problem}: {', '.join(sorted(names)[:8])}"
                f"{' …' if len(names) > 8 else ''}"
            )


def _check_tied_head(config: Qwen3Config, files: dict[str, Path]) -> None:
    """Refuse a stored head that is not the embedding: `transformers` then takes the head in spite of the config."""
    rows = max(1, _BLOCK_ENTRIES // config.hidden_size)
    differing = 0
    with safe_open(files[_HEAD], framework="np") as heads, safe_open(files[_EMBEDDING], framework="np") as embeddings:
        head, embedding = heads.get_slice(_HEAD), embeddings.get_slice(_EMBEDDING)
        if head.get_shape() != embedding.get_shape():
            shapes = f"{head.get_shape()}, {_EMBEDDING} {embedding.get_shape()}"
            raise UserError(f"{files[_HEAD]}: {_HEAD} has shape {shapes}, but tie_word_embeddings=true")
        for start in range(0, config.vocab_size, rows):
            block = slice(start, min(start + rows, config.vocab_size))
            ours, theirs = (part[block].astype(np.float32) for part in (head, embedding))
            differing += int(np.count_nonzero(ours != theirs))
    if differing:
        raise UserError(
            f"{files[_HEAD]}: {_HEAD} differs from {_EMBEDDING} in {differing} entries, but config.json says "
            "tie_word_embeddings=true: set it to false to use the head, or remove the tensor"
        )


@functools.partial(jax.jit, donate_argnums=0)
def _put_slice(leaf: jax.Array, part: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The leaf with the part in its place, and how many of the part's entries are not finite in the leaf's dtype."""
    part = part.astype(leaf.dtype)
    return jax.lax.dynamic_update_slice(leaf, part, tuple(start)), _count_non_finite(part)


@jax.jit
def _count_non_finite(x: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(x), dtype=jnp.int32)


def _check_finite(tensor: HFTensor, files: dict[str, Path], count: jax.Array, dtype: Any) -> None:
    if bad := int(count):
        size = int(np.prod(tensor.shape))
        raise UserError(
            f"{files[tensor.name]}: tensor {tensor.name!r} has {bad} of {size} entries that are NaN or infinite "
            f"as {jnp.dtype(dtype).name}"
        )


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
        # Cast there and not here: the host never holds the tensor in a wider dtype than the file's.
        leaf = jax.device_put(_read(config, group[0], files), sharding).astype(dtype)
        _check_finite(group[0], files, _count_non_finite(leaf), dtype)
        return leaf
    leaf = jnp.zeros(shape, dtype, device=sharding)
    for tensor in group:
        part = _read(config, tensor, files)
        index = [tensor.layer] if tensor.expert is None else [tensor.layer, tensor.expert]
        part = part.reshape((1,) * len(index) + part.shape)
        start = np.array(index + [0] * (len(shape) - len(index)), np.int32)
        placed = jax.device_put(part, _part_sharding(sharding, len(index), part.shape))
        del part
        leaf, bad = _put_slice(leaf, placed, start)
        del placed
        # Reading the count waits: the next tensor is read when this one has left the host, not one more is in memory.
        _check_finite(tensor, files, bad, dtype)
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
