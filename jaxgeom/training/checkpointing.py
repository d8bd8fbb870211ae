"""Orbax checkpoints of a run: parameters, optimizer, data position, seed; and starting a model from one."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgeom import processes
from jaxgeom.buckets.places import checkpoints_of, is_stored
from jaxgeom.checkpoints import checksums
from jaxgeom.checkpoints.adapters import base_of, is_adapter_directory
from jaxgeom.checkpoints.run_models import held_model, run_model
from jaxgeom.checkpoints.runs import named_run, step_names
from jaxgeom.checkpoints.verl import verl_step
from jaxgeom.data.chat import has_tokenizer
from jaxgeom.errors import UserError
from jaxgeom.files import is_full
from jaxgeom.models import Qwen3, Qwen3Config, abstract_parameters, load_model
from jaxgeom.optimizers.leaves import own_copy
from jaxgeom.sharding import partition_specs, platform_of
from jaxgeom.training import logs
from jaxgeom.training.checkpoint_folders import folders_of, read_pending, write_pending
from jaxgeom.training.keep_settings import KeepSettings
from jaxgeom.training.optimizer_state import by_name, from_names, leaf_names
from jaxgeom.training.state import Batch, TrainState


class Resume(NamedTuple):
    """Where a run goes on.

    Attributes:
        step: the newest checkpoint that is whole, with logs that are what was written up to it; None where none is.
        logs: where the logs stood at it.
        faults: what is wrong with newer ones, sentences that name the file.
        ends: steps at which the run was finished once, and gone on with later.
    """

    step: int | None
    logs: logs.Positions
    faults: list[str]
    ends: tuple[int, ...] = ()


def find_resume(run: Path, *, contents: bool = True) -> Resume:
    """The newest whole checkpoint of a run directory, by the checksums of all its files and logs.

    Args:
        run: the directory; it need not be there.
        contents: whether the checkpoint's files are read, or their sizes alone looked at.
    """
    faults: list[str] = []
    for step in reversed(step_names(checkpoints_of(run))):
        folder = checkpoints_of(run) / str(step)
        fault = checksums.fault_of(folder, contents=contents)
        if fault is not None:
            faults.append(f"checkpoints/{step} is damaged: {fault}")
            continue
        listing = checksums.read_checksums(folder) or {}
        positions = listing.get("logs", {})
        fault = logs.fault_of(run, positions)
        if fault is None:
            return Resume(step, positions, faults, tuple(listing.get("ends", ())))
        if fault not in faults:
            faults.append(fault)
    return Resume(None, {}, faults)


class Checkpoints:
    """The `checkpoints/` of a run directory; a context manager. A checkpoint is whole or, after a kill, not there.

    Items of a step: `params` (float32 masters), `optimizer` (by name, see `optimizer_state`), `data` (the grain
    iterator's state), `key` (the seed; the randomness of step n is derived from seed and n; the optimizer's names);
    where a rollout has batches for later steps `pending.npz`; beside them `checksums.json`, with the logs' positions.

    A step's arrays are copied from the devices first; they are written while the next steps go on.

    Args:
        directory: the run directory.
        say: told when a damaged checkpoint is replaced, and what cannot be removed.
        keep: which checkpoints stay once a newer one is whole.
        always: steps that stay whatever `keep` says.
        ends: steps at which the run is or was finished; they stay, and are remembered.
        saved: told of every step whose checkpoint is whole, from a thread beside.
        publish: called before a checkpoint counts as whole: what it refers to must be where it is.
        require: raises where the run is another process's by now.
    """

    def __init__(
        self, directory: Path, say: Callable[[str], None] = lambda _: None, *, keep: KeepSettings | None = None,
        always: Collection[int] = (), ends: Collection[int] = (), saved: Callable[[int], None] = lambda _: None,
        publish: Callable[[], None] = lambda: None, require: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        place = checkpoints_of(directory)
        self._folder: Any = place if is_stored(place) else place.absolute()
        self._folders, self._publish = folders_of(self._folder, say, require), publish
        self._model = held_model(directory)
        self._say, self._keep, self._always, self._ends, self._saved = say, keep, always, sorted(set(ends)), saved
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[Any, Future[None]] | None = None
        processes.from_first(self._folders.remove_unfinished)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and processes.count() > 1:
            # Orbax would wait for the other processes, of which one may be lost; where all stop, all have waited.
            self._beside.shutdown(wait=False)
            return
        try:
            self.wait()
        except UserError as error:
            if kind is None:
                raise
            self._say(str(error))  # what ends the run already is said last
        finally:
            self._beside.shutdown()
            self._orbax.close()

    def save(
        self, state: TrainState, data_state: dict, seed: int, positions: logs.Positions | None = None,
        pending: Sequence[Batch] = (),
    ) -> None:  # fmt: skip
        """Copies the checkpoint of `state.step` from the devices and begins to write it, in place of one that is there.

        One is written at a time: it waits for the last one first.

        Args:
            state: what is saved; its buffers may be given away afterwards.
            data_state: of the data iterator.
            seed: of the run.
            positions: where the logs stand.
            pending: what the last rollout has prepared for later steps.

        Raises:
            UserError: the disk is full, or the folder cannot be written to, now or when the last one was written.
        """
        self.wait()
        step = int(state.step)
        path = self._folder / str(step)
        if platform_of(state.params) == "cpu":
            state = own_copy(state)  # of what lies in host memory already Orbax takes no copy
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(by_name(state.opt_state)),
            data=ocp.args.JsonSave(data_state),
            key=ocp.args.JsonSave({"seed": seed, "step": step, "optimizer": _names(state.opt_state)}),
        )
        left = _flat(pending)

        try:
            partial = processes.from_first(lambda: self._folders.begin(step))
            with _as_os_error(path):
                self._orbax.save(partial, args=items)
        except OSError as error:
            raise self._refusal(path, error) from error
        self._writing = path, self._beside.submit(self._finish, partial, path, left, positions or {})

    def wait(self) -> None:
        """Until the checkpoint that is being written is whole.

        Raises:
            UserError: it cannot be written; the line says which step is the last that was.
        """
        if self._writing is None:
            return
        path, written = self._writing

        def result() -> None:
            try:
                written.result()
            except OSError as error:
                raise self._refusal(path, error) from error

        try:
            processes.together(result)
        finally:  # a signal may end the waiting, not the writing
            if written.done():
                self._writing = None
        if not processes.is_first():
            self._saved(int(path.name))

    def check(self) -> None:
        """Raises what `wait` does where writing has failed already; waits for nothing.

        Several processes do not know of each other whether it has: they learn of it where they wait.
        """
        if processes.count() == 1 and self._writing is not None and self._writing[1].done():
            self.wait()

    def last(self) -> int | None:
        """The newest step that is whole by the sizes of its files; None where none is."""
        return max(self._whole(), default=None)

    def _finish(self, partial: Any, path: Any, left: dict[str, Any], positions: logs.Positions) -> None:
        """Makes what Orbax writes a checkpoint, under its name; then takes away what need not stay."""
        with _as_os_error(path):
            self._orbax.wait_until_finished()
        if not processes.is_first():
            return
        write_pending(partial, left)
        step = int(path.name)
        ends = [end for end in self._ends if end <= step]
        self._publish()
        self._folders.finish(partial, step, logs=positions, ends=ends, model=self._model)
        self._saved(step)
        if self._keep is not None:
            for old in self._keep.removed(self._whole(), step, {*self._always, *self._ends}):
                self._folders.remove(old)

    def _refusal(self, path: Any, error: OSError) -> UserError:
        """One line that says which step is the last that is there; what was written in part is taken away."""
        if is_stored(path):  # what is there cannot be asked for now, and the next command takes away what is in part
            from jaxgeom.buckets.store import BucketLost

            why = getattr(error, "reason", None) or error.strerror or str(error)
            return BucketLost(f"{path}: cannot be saved: {why}; the same command goes on from the last whole step")
        if processes.is_first():
            self._folders.remove_unfinished()
        why = "the disk is full" if is_full(error) else error.strerror or str(error)
        last = self.last()
        kept = f"step {last} is the last one saved" if last is not None else "no step was saved before"
        return UserError(f"{path}: cannot be saved: {why}; {kept}, the same command goes on from there")

    def _whole(self) -> list[int]:
        """Steps whose files are there, at their sizes."""
        return [
            step
            for step in step_names(self._folder)
            if not checksums.fault_of(self._folder / str(step), contents=False)
        ]

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict, list[Batch]]:
        """The state at `step` with the shapes, dtypes and shardings of `like`, the data iterator's state, and the
        batches that its rollout has left for later steps, on the host.

        Raises:
            UserError: the checkpoint cannot be read, or is of another optimizer.
        """
        self.wait()
        path = self._folder / str(step)
        with checksums.one_line(path):
            kept = self._orbax.restore(path, args=ocp.args.Composite(key=ocp.args.JsonRestore()))["key"]
            names = kept.get("optimizer")  # None in checkpoints that list the leaves in their order
            moments = {"state": jax.tree.leaves(like.opt_state)} if names is None else by_name(like.opt_state)
            if names is not None:
                _require_same(names, _names(like.opt_state), path)
            restored = self._orbax.restore(
                path,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(jax.tree.map(_abstract, like.params)),
                    optimizer=ocp.args.StandardRestore(jax.tree.map(_abstract, moments)),
                    data=ocp.args.JsonRestore(),
                ),
            )
            found = restored["optimizer"]
            if names is None:
                opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), found["state"])
            else:
                opt_state = from_names(found, like.opt_state)
            pending = _unflat(read_pending(path))
        state = TrainState(step=_like(np.int32(step), like.step), params=restored["params"], opt_state=opt_state)
        return state, restored["data"], pending


def load_start(
    source: str | Path,
    *,
    mesh: Mesh | None,
    compute_dtype: str,
    dtype: str = "float32",
    remat: bool = False,
    base: str | Path | None = None,
    say: Callable[[str], Any] | None = None,
) -> tuple[Qwen3, Any]:
    """A model to start from: a Hugging Face directory, or a checkpoint of a run of ours (its float32 masters).

    A run is named as `open_checkpoint` takes it: `RUN@STEP`, or `RUN` for its last step.

    Args:
        source: where it lies.
        mesh: devices to put the parameters on; None for one of this process, which then may be alone in calling this.
        compute_dtype: of activations, "float32" or "bfloat16".
        dtype: of the parameters.
        remat: recompute activations in the backward pass.
        base: the model that a LoRA adapter belongs to, where its own configuration does not lead there.
        say: told what of a Hugging Face directory was left out or ignored.

    Returns:
        The module and its parameters.

    Raises:
        UserError: nothing readable is there.
    """
    found = named_run(source)
    if found is None:
        return load_model(source, dtype=dtype, mesh=mesh, compute_dtype=compute_dtype, remat=remat, base=base, say=say)
    run, step = found.run, found.saved_step()
    architecture = Qwen3Config.from_hf(run_model(run, step))
    place = mesh or jax.make_mesh(
        (1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.local_devices()[:1]
    )
    model = Qwen3(
        architecture, dtype=jax.numpy.dtype(compute_dtype), remat=remat, platform=platform_of(place), mesh=mesh
    )
    abstract = abstract_parameters(model)
    specs = partition_specs(abstract, place) if mesh else jax.tree.map(lambda _: PartitionSpec(), abstract)
    placed = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype), sharding=NamedSharding(place, spec)),
        abstract,
        specs,
    )
    folder = checkpoints_of(run) / str(step)
    folder = folder if is_stored(folder) else folder.absolute()
    checksums.require_whole(folder, under="params/")
    options = _alone() if mesh is None and processes.count() > 1 else ocp.options.MultiprocessingOptions()
    with checksums.one_line(folder), ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer:
        return model, checkpointer.restore(folder / "params", placed)


def tokenizer_directory(source: str | Path, base: str | Path | None = None) -> Path:
    """Where the tokenizer of a start is: the Hugging Face directory itself, the run's copy, or an adapter's base."""
    found = named_run(source)
    if found is not None and (found.run / "tokenizer").is_dir():
        return found.run / "tokenizer"
    directory = Path(source)
    if is_adapter_directory(directory) and not has_tokenizer(directory):
        return tokenizer_directory(base_of(directory, base))
    return verl_step(directory)[0] if directory.is_dir() else directory


def _alone() -> ocp.options.MultiprocessingOptions:
    """For Orbax to read in one process without the others, for which it would wait."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"alone{index}"
    )


@contextlib.contextmanager
def _as_os_error(path: Any) -> Iterator[None]:
    """Orbax and TensorStore say in many ways that a file cannot be written; to a user it is one.

    That another process is lost, which writes its part, they say too: that is no word of the file.

    Args:
        path: of the step.

    Raises:
        OSError: it cannot be written.
        ProcessLost: another process is lost.
    """
    try:
        yield
    except Exception as error:
        if processes.tells_of_loss(error):
            raise processes.as_loss(error, path) from error
        raise OSError(None, " ".join(str(error).split())[:300]) from error


def _names(state: Any) -> list[str]:
    return [".".join(path) for path in leaf_names(state)]


def _require_same(held: Sequence[str], wanted: Sequence[str], path: Any) -> None:
    """Refuses the state of another optimizer by the first name that only one of them has."""
    odd = [*(name for name in held if name not in wanted), *(name for name in wanted if name not in held)]
    if odd:
        there = "has" if odd[0] in held else "has no"
        raise UserError(f"{path}: its optimizer {there} {odd[0]}: it is of another optimizer than this run's")


def _flat(batches: Sequence[Batch]) -> dict[str, Any]:
    """Arrays of batches by place and name; what is None in a batch is left out."""
    named = [(place, name, value) for place, batch in enumerate(batches) for name, value in vars(batch).items()]
    return {f"{place}.{name}": processes.whole(value) for place, name, value in named if value is not None}


def _unflat(held: Mapping[str, np.ndarray]) -> list[Batch]:
    """The inverse of `_flat`."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for key, value in held.items():
        place, _, name = key.partition(".")
        found.setdefault(int(place), {})[name] = value
    return [Batch(**found[place]) for place in sorted(found)]


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _like(value: Any, leaf: jax.Array) -> jax.Array:
    return processes.placed(value, leaf.sharding)
