"""Read a Hugging Face directory into the parameter tree, one tensor at a time, straight to the devices' shards."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxgeom.checkpoints.anatomy import by_key
from jaxgeom.checkpoints.experts import stacked_kind, unstacked
from jaxgeom.checkpoints.names import HEAD, key_of
from jaxgeom.checkpoints.opening import open_checkpoint
from jaxgeom.checkpoints.plain_files import read_json
from jaxgeom.checkpoints.tensors import Checkpoint, Tensor
from jaxgeom.errors import UserError, listed
from jaxgeom.models.config import Qwen3Config, ignored_fields
from jaxgeom.models.names import HFTensor, from_hf, hf_tensors
from jaxgeom.models.qwen3 import Qwen3
from jaxgeom.sharding import parameter_shardings, platform_of

_STORED = ("float32", "float16", "bfloat16", "float64")


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
    if not file.exists():
        raise UserError(f"{path}: no config.json there; a Hugging Face model directory is needed")
    return read_json(file)


def checked_config(checkpoint: Checkpoint) -> Qwen3Config:
    """The architecture of a checkpoint.

    Raises:
        UserError: none is there, or one that is not supported; the message names the checkpoint.
    """
    if checkpoint.config is None:
        raise UserError(f"{checkpoint.name}: no config.json")
    try:
        return Qwen3Config.from_hf(checkpoint.config)
    except UserError as error:
        raise UserError(f"{checkpoint.name}: {error}") from None


def load_model(
    path: str | Path,
    *,
    dtype: Any = "float32",
    mesh: jax.sharding.Mesh | None = None,
    compute_dtype: Any = None,
    remat: bool = False,
    base: str | Path | None = None,
    say: Callable[[str], Any] | None = None,
) -> tuple[Qwen3, dict[str, Any]]:
    """Load a Qwen3 checkpoint: no more than a few tensors are in host memory at a time, never the model.

    Args:
        path: Hugging Face directory, or what else `open_checkpoint` reads.
        dtype: dtype of the parameters.
        mesh: devices to shard the parameters over by `jaxgeom.sharding`'s rules, its axes of type Auto; None for the
            default device.
        compute_dtype: dtype of activations; the parameters' where None.
        remat: whether blocks are recomputed in the backward pass.
        base: the model that a LoRA adapter belongs to, where its own configuration does not lead there.
        say: told what of the directory was left out or ignored, a sentence each.
    Returns:
        The module, for the platform of the devices, and its parameters: `model.apply({"params": params}, tokens)` gives
        logits. Parameters that are moved to another platform go with `model.clone(platform=…)`.
    Raises:
        UserError: a file, field, tensor or shape is missing, broken, unknown or unsupported; a weight is NaN or
            infinite (in `dtype`); a tied model's stored head is not its embedding. The message names it.
    """
    dtype = _floating("dtype", dtype)
    compute_dtype = dtype if compute_dtype is None else _floating("compute_dtype", compute_dtype)
    if mesh is not None and any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
        raise UserError("load_model: the mesh's axes must be of type Auto, as jaxgeom.sharding.make_mesh makes them")
    checkpoint = open_checkpoint(path, base=base)
    config = checked_config(checkpoint)
    files = qwen3_tensors(checkpoint, config)
    for note in (*checkpoint.notes, *ignored_fields(checkpoint.config or {})):
        if say is not None:
            say(f"{path}: {note}")
    tensors = hf_tensors(config)
    # What is finite as it is kept is to be finite as it is computed with.
    narrow = compute_dtype if compute_dtype.itemsize < dtype.itemsize else dtype
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
        node[leaf_path[-1]] = _load_leaf(config, checkpoint.name, group, files, shape, dtype, narrow, sharding)
    return model, params


def qwen3_tensors(checkpoint: Checkpoint, config: Qwen3Config) -> dict[str, Tensor]:
    """The tensors that the parameter tree is made of, by their Hugging Face names; checked, nothing of them is read.

    Args:
        checkpoint: stored with any wrappers around its names, experts stacked or single.
        config: what it is to be.

    Returns:
        One tensor for each of `hf_tensors(config)`.

    Raises:
        UserError: tensors that are missing, not of this architecture, of another shape or dtype; a tied model whose
            stored head is another than its embedding; embedding rows that are not `vocab_size`.
    """
    where = checkpoint.name
    held: Mapping[str, Tensor] = checkpoint
    if any(stacked_kind(name, tensor.shape) for name, tensor in held.items()):
        held = unstacked(held, checkpoint.config or {})
    keys = by_key(held, where)
    if config.tie_word_embeddings and HEAD in keys:
        raise UserError(
            f"{where}: {keys[HEAD]} differs from the embedding, but config.json says tie_word_embeddings=true:"
            " set it to false to use the head, or remove the tensor"
        )
    layers = {key.split(".")[1] for key in keys if key.startswith("layers.") and key.split(".")[1].isdecimal()}
    if layers and len(layers) != config.num_hidden_layers:
        said = f"num_hidden_layers={config.num_hidden_layers}"
        raise UserError(f"{where}: config.json says {said}, there are tensors of {len(layers)} layers")
    wanted = hf_tensors(config)
    names = {key_of(tensor.name): tensor.name for tensor in wanted}
    for problem, odd in (
        ("missing", [name for key, name in names.items() if key not in keys]),
        ("not of this architecture", [name for key, name in keys.items() if key not in names]),
    ):
        if odd:
            count = "1 tensor is" if len(odd) == 1 else f"{len(odd)} tensors are"
            hint = "; its config.json does not say tie_word_embeddings=true" if odd == [HEAD] else ""
            raise UserError(f"{where}: {count} {problem}: {listed(sorted(odd))}{hint}")
    found = {tensor.name: held[keys[key_of(tensor.name)]] for tensor in wanted}
    for tensor in wanted:
        _check_tensor(where, config, tensor, found[tensor.name])
    return found


def _check_tensor(where: str, config: Qwen3Config, tensor: HFTensor, stored: Tensor) -> None:
    if stored.shape != tensor.shape:
        rows = f"[{config.vocab_size}, {config.hidden_size}]"
        if tensor.path[0] in ("embed", "head") and len(stored.shape) == 2 and stored.shape[1:] == tensor.shape[1:]:
            raise UserError(
                f"{where}: {stored.name} has {stored.shape[0]} rows, config.json says vocab_size={config.vocab_size}"
                f" ({rows}): one of the two is wrong"
            )
        raise UserError(
            f"{where}: tensor {stored.name!r} has shape {list(stored.shape)}, the config asks for {list(tensor.shape)}"
        )
    if stored.dtype not in _STORED:
        raise UserError(
            f"{where}: tensor {stored.name!r} is stored as {stored.dtype}; one of {', '.join(_STORED)} is needed"
        )


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


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _put_slice(leaf: jax.Array, part: jax.Array, start: jax.Array, narrow: Any) -> tuple[jax.Array, jax.Array]:
    """The leaf with the part in its place, and how many of the part's entries are not finite in `narrow`."""
    part = part.astype(leaf.dtype)
    return jax.lax.dynamic_update_slice(leaf, part, tuple(start)), _count_non_finite(part, narrow)


@functools.partial(jax.jit, static_argnums=1)
def _count_non_finite(x: jax.Array, narrow: Any) -> jax.Array:
    return jnp.sum(~jnp.isfinite(x.astype(narrow)), dtype=jnp.int32)


def _check_finite(where: str, stored: Tensor, count: jax.Array, dtype: Any) -> None:
    if bad := int(count):
        raise UserError(
            f"{where}: tensor {stored.name!r} has {bad} of {stored.size} entries that are NaN or infinite "
            f"as {jnp.dtype(dtype).name}"
        )


def _load_leaf(
    config: Qwen3Config, where: str, group: list[HFTensor], files: Mapping[str, Tensor], shape: tuple[int, ...],
    dtype: Any, narrow: Any, sharding: Any,
) -> jax.Array:  # fmt: skip
    """Fill one (stacked) leaf on the devices from its tensors."""
    if group[0].layer is None:
        stored = files[group[0].name]
        # Cast there and not here: the host never holds the tensor in a wider dtype than the file's.
        leaf = jax.device_put(from_hf(config, group[0], stored.read()), sharding).astype(dtype)
        _check_finite(where, stored, _count_non_finite(leaf, narrow), narrow)
        return leaf
    leaf = jnp.zeros(shape, dtype, device=sharding)
    for tensor in group:
        part = from_hf(config, tensor, files[tensor.name].read())
        index = [tensor.layer] if tensor.expert is None else [tensor.layer, tensor.expert]
        part = part.reshape((1,) * len(index) + part.shape)
        start = np.array(index + [0] * (len(shape) - len(index)), np.int32)
        placed = jax.device_put(part, _part_sharding(sharding, len(index), part.shape))
        del part
        leaf, bad = _put_slice(leaf, placed, start, narrow)
        del placed
        # Reading the count waits: the next tensor is read when this one has left the host, not one more is in memory.
        _check_finite(where, files[tensor.name], bad, narrow)
    return leaf


def _part_sharding(sharding: Any, stacked: int, shape: tuple[int, ...]) -> Any:
    """The leaf's sharding for one slice of it: the stacked axes, of size 1 there, are not split."""
    if sharding is None:
        return None
    spec = list(sharding.spec) + [None] * (len(shape) - len(sharding.spec))
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*([None] * stacked + spec[stacked:])))
