"""Checkpoints of our own training runs (Orbax), read slice by slice under their Hugging Face names."""

import hashlib
import json
import threading
from typing import Any

import numpy as np

from jaxgeom.buckets.places import checkpoints_of, is_stored
from jaxgeom.checkpoints.checksums import files_of, one_line, require_whole
from jaxgeom.checkpoints.plain_files import read_json
from jaxgeom.checkpoints.run_models import run_model
from jaxgeom.checkpoints.runs import RunCheckpoint
from jaxgeom.checkpoints.tensors import Checkpoint, Tensor
from jaxgeom.errors import UserError


def _open_store(params: Any, key: tuple[str, ...], metadata: dict[str, Any]) -> Any:
    import tensorstore  # heavy, and only needed for Orbax

    base = f"{params}/" if is_stored(params) else f"file://{params.resolve()}/"
    path = ".".join(key) + "/"
    store = {"driver": "ocdbt", "base": base, "path": path} if metadata.get("use_ocdbt", True) else base + path
    spec = {"driver": "zarr3" if metadata.get("use_zarr3") else "zarr", "kvstore": store, "recheck_cached_data": False}
    return tensorstore.open(spec, open=True, read=True).result()


class _LeafSlice:
    """Reads the part of a stacked leaf that one Hugging Face tensor is, in that tensor's layout."""

    def __init__(self, store: Any, config: Any, tensor: Any, where: Any, verified: "_Verified") -> None:
        self.store, self.config, self.tensor, self.where, self.verified = store, config, tensor, where, verified

    def __call__(self, start: int | None, stop: int | None) -> np.ndarray:
        from jaxgeom.models.names import leaf_slice, to_hf

        store = leaf_slice(self.store, self.tensor)
        if (
            start is not None and self.tensor.path[0] == "embed"
        ):  # the one leaf that is large and whose rows lie in order
            store, start, stop, rows = store[start:stop], None, None, store.shape[1:]
            return self._fetch(store).reshape(-1, *rows)
        array = np.ascontiguousarray(to_hf(self.config, self.tensor, self._fetch(store)))
        return array if start is None else array[start:stop]

    def _fetch(self, store: Any) -> np.ndarray:
        self.verified.require()
        with one_line(f"{self.where}: {self.tensor.name!r}"):
            return np.asarray(store.read().result())


class _Verified:
    """The files of a checkpoint, compared with their checksums once, before the first number is taken from them."""

    def __init__(self, folder: Any) -> None:
        self.folder, self.done, self.lock = folder, False, threading.Lock()

    def require(self) -> None:
        with self.lock:
            if not self.done:
                require_whole(self.folder, under="params/")
                self.done = True


def open_run(found: RunCheckpoint, name: str) -> Checkpoint:
    """The parameters of a training run at one step.

    Raises:
        UserError: the run has no such step, no model configuration, or leaves that its configuration does not explain.
    """
    from jaxgeom.models.config import Qwen3Config
    from jaxgeom.models.names import hf_tensors, leaf_slice

    run, step = found.run, found.saved_step()
    model = run_model(run, step)
    config = Qwen3Config.from_hf(model)
    folder = checkpoints_of(run) / str(step)
    params = folder / "params"
    require_whole(folder, under="params/", contents=False)
    metadata = read_json(params / "_METADATA")
    with one_line(params / "_METADATA"):
        stored = {
            tuple(entry["key"] for entry in leaf["key_metadata"]) for leaf in metadata.get("tree_metadata", {}).values()
        }
    wanted = hf_tensors(config)
    expected = {tuple(tensor.path) for tensor in wanted}
    if stored != expected:
        odd = sorted(".".join(path) for path in stored ^ expected)
        raise UserError(f"{params}: leaves do not fit the run's model configuration: {', '.join(odd)}")
    tensors: dict[str, Tensor] = {}
    verified = _Verified(folder)
    stores: dict[tuple[str, ...], Any] = {}
    for tensor in wanted:
        path = tuple(tensor.path)
        if path not in stores:
            try:
                with one_line(f"{params}: leaf {'.'.join(path)}"):
                    stores[path] = _open_store(params, path, metadata)
            except UserError:
                verified.require()  # names the file, where one is damaged
                raise
        store = stores[path]
        held = leaf_slice(store, tensor)
        if int(np.prod(held.shape)) != int(np.prod(tensor.shape)):
            raise UserError(
                f"{params}: leaf {'.'.join(path)} has shape {list(store.shape)}, not that of {tensor.name!r}"
            )
        dtype = np.dtype(store.dtype.numpy_dtype).name
        tensors[tensor.name] = Tensor(
            tensor.name, tuple(tensor.shape), dtype, _LeafSlice(store, config, tensor, params, verified)
        )
    fingerprint = hashlib.sha256(json.dumps(model, sort_keys=True).encode())
    for line in files_of(params):
        fingerprint.update(f"{line}\n".encode())
    return Checkpoint(name, tensors, config=model, fingerprint=fingerprint.hexdigest())
