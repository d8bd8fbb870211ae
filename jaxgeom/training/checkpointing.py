"""Orbax checkpoints of a run: parameters, optimizer, data position, seed; and starting a model from one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgeom.checkpoints.adapters import base_of, is_adapter_directory
from jaxgeom.checkpoints.plain_files import read_json
from jaxgeom.checkpoints.runs import named_run
from jaxgeom.checkpoints.verl import verl_step
from jaxgeom.errors import UserError
from jaxgeom.models import Qwen3, Qwen3Config, abstract_parameters, load_model
from jaxgeom.sharding import partition_specs, platform_of
from jaxgeom.training.step import TrainState


class Checkpoints:
    """The `checkpoints/` of a run directory; a context manager. A checkpoint is whole or, after a kill, not there.

    Items of a step: `params` (float32 masters), `optimizer`, `data` (the grain iterator's state), `key` (the seed; the
    randomness of step n is derived from seed and n).
    """

    def __init__(self, directory: Path):
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(
            (directory / "checkpoints").absolute(),
            options=options,
            item_names=("params", "optimizer", "data", "key"),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest step that is stored, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data_state: dict, seed: int) -> None:
        """Writes the checkpoint of `state.step` unless it is there."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave({"state": jax.tree.leaves(state.opt_state)}),
                data=ocp.args.JsonSave(data_state),
                key=ocp.args.JsonSave({"seed": seed, "step": step}),
            ),
        )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """The state at `step` with the shapes, dtypes and shardings of `like`, and the data iterator's state."""
        leaves, structure = jax.tree.flatten(like.opt_state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(jax.tree.map(_abstract, like.params)),
                optimizer=ocp.args.StandardRestore({"state": jax.tree.map(_abstract, leaves)}),
                data=ocp.args.JsonRestore(),
            ),
        )
        opt_state = jax.tree.unflatten(structure, restored["optimizer"]["state"])
        state = TrainState(step=_like(np.int32(step), like.step), params=restored["params"], opt_state=opt_state)
        return state, restored["data"]


def load_start(
    source: str | Path,
    *,
    mesh: Mesh | None,
    compute_dtype: str,
    remat: bool = False,
    base: str | Path | None = None,
    say: Callable[[str], Any] | None = None,
) -> tuple[Qwen3, Any]:
    """A model to start from: a Hugging Face directory, or a checkpoint of a run of ours (its float32 masters).

    A run is named as `open_checkpoint` takes it: `RUN@STEP`, or `RUN` for its last step.

    Args:
        source: where it lies.
        mesh: devices to put the parameters on; None for one.
        compute_dtype: of activations, "float32" or "bfloat16".
        remat: recompute activations in the backward pass.
        base: the model that a LoRA adapter belongs to, where its own configuration does not lead there.
        say: told what of a Hugging Face directory was left out or ignored.

    Returns:
        The module and its float32 parameters.

    Raises:
        UserError: nothing readable is there.
    """
    found = named_run(source)
    if found is None:
        return load_model(
            source, dtype="float32", mesh=mesh, compute_dtype=compute_dtype, remat=remat, base=base, say=say
        )
    run, step = found.run, found.saved_step()
    config = read_json(run / "config.json")
    if not isinstance(config.get("model"), dict):
        raise UserError(f"{run / 'config.json'}: has no model configuration under 'model'")
    architecture = Qwen3Config.from_hf(config["model"])
    place = mesh or jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    model = Qwen3(
        architecture, dtype=jax.numpy.dtype(compute_dtype), remat=remat, platform=platform_of(place), mesh=mesh
    )
    abstract = abstract_parameters(model)
    specs = partition_specs(abstract, place) if mesh else jax.tree.map(lambda _: PartitionSpec(), abstract)
    placed = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(place, spec)),
        abstract,
        specs,
    )
    with ocp.CheckpointManager((run / "checkpoints").absolute(), item_names=("params",)) as manager:
        restored = manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(placed)))
    return model, restored["params"]


def tokenizer_directory(source: str | Path, base: str | Path | None = None) -> Path:
    """Where the tokenizer of a start is: the Hugging Face directory itself, the run's copy, or an adapter's base."""
    found = named_run(source)
    if found is not None and (found.run / "tokenizer").is_dir():
        return found.run / "tokenizer"
    directory = Path(source)
    if is_adapter_directory(directory) and not (directory / "tokenizer.json").exists():
        return tokenizer_directory(base_of(directory, base))
    return verl_step(directory)[0] if directory.is_dir() else directory


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _like(value: Any, leaf: jax.Array) -> jax.Array:
    return jax.device_put(value, leaf.sharding)
