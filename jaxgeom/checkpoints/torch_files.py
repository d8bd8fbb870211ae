"""PyTorch's own files (`pytorch_model*.bin`, FSDP's shards of DTensors), read without running code in them."""

import logging
import pathlib
import re
from typing import Any

import ml_dtypes
import numpy as np

from jaxgeom.checkpoints.plain_files import require_file
from jaxgeom.checkpoints.tensors import Tensor
from jaxgeom.errors import UserError, listed

_SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")


def torch_tensors_of(path: pathlib.Path) -> tuple[dict[str, Tensor], bytes]:
    """The tensors of one `*.bin` or `*.pt`, mapped into memory and read on request.

    Args:
        path: the file.

    Returns:
        Tensors by stored name, and what identifies them: their names.

    Raises:
        UserError: PyTorch is not installed; no file of PyTorch's, or one that holds more than tensors.
    """
    held = _state(path)
    tensors = {name: _tensor(name, value.shape, value.dtype, _Whole(value)) for name, value in held.items()}
    return tensors, "\n".join(sorted(tensors)).encode()


def fsdp_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The shards that verl's FSDP trainer wrote into a directory, by rank; none where there are none.

    Raises:
        UserError: some ranks are missing, or shards of several world sizes lie there.
    """
    found = {path: _SHARD.fullmatch(path.name) for path in directory.glob("model_world_size_*_rank_*.pt")}
    ranks = {(int(m.group(1)), int(m.group(2))): path for path, m in found.items() if m}
    if not ranks:
        return []
    sizes = sorted({size for size, _ in ranks})
    if len(sizes) > 1:
        raise UserError(f"{directory}: shards of several world sizes ({', '.join(map(str, sizes))}); keep one set")
    missing = [rank for rank in range(sizes[0]) if (sizes[0], rank) not in ranks]
    if missing:
        raise UserError(f"{directory}: of {sizes[0]} shards those of rank {listed(map(str, missing))} are missing")
    return [ranks[sizes[0], rank] for rank in range(sizes[0])]


def fsdp_tensors_of(files: list[pathlib.Path]) -> tuple[dict[str, Tensor], bytes]:
    """The tensors that the shards of all ranks make together.

    Raises:
        UserError: as `torch_tensors_of`; ranks that hold different tensors; tensors that are split and do not say how.
    """
    # That no process group is there is known: nothing is communicated, the parts are read from the files.
    logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)
    shards = [_state(path) for path in files]
    for path, shard in zip(files, shards, strict=True):
        if set(shard) != set(shards[0]):
            raise UserError(f"{path}: holds other tensors than rank 0: {listed(sorted(set(shard) ^ set(shards[0])))}")
    tensors = {}
    for name, first in shards[0].items():
        parts = [shard[name] for shard in shards]
        if not all(hasattr(part, "to_local") for part in parts):
            if len(parts) > 1:
                raise UserError(
                    f"{files[0]}: tensor {name!r} is no DTensor, so how it was split is unknown: merge first"
                )
            tensors[name] = _tensor(name, first.shape, first.dtype, _Whole(first))
            continue
        ranks, placements = np.asarray(first.device_mesh.mesh), list(first.placements)
        if ranks.size != len(parts):
            raise UserError(f"{files[0]}: tensor {name!r} lies on {ranks.size} ranks, there are {len(parts)} shards")
        if not all(type(one).__name__ in ("Shard", "Replicate") for one in placements):
            raise UserError(
                f"{files[0]}: tensor {name!r} has placements {placements}, which jaxgeom cannot put together"
            )
        reader = _Sharded([part.to_local() for part in parts], ranks, placements)
        tensors[name] = _tensor(name, first.shape, first.dtype, reader)
    return tensors, "\n".join(sorted(tensors)).encode()


def _tensor(name: str, shape: Any, dtype: Any, reader: Any) -> Tensor:
    return Tensor(name, tuple(shape), str(dtype).removeprefix("torch.").removesuffix("_"), reader)


class _Whole:
    """Reads rows of a tensor that one file holds."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __call__(self, start: int | None, stop: int | None) -> np.ndarray:
        return _array(self.tensor if start is None else self.tensor[start:stop])


class _Sharded:
    """Puts a tensor together from the parts that ranks hold: mesh axes from the outermost in, replicas once."""

    def __init__(self, parts: list[Any], ranks: np.ndarray, placements: list[Any]) -> None:
        self.parts, self.ranks, self.placements = parts, ranks, placements

    def __call__(self, start: int | None, stop: int | None) -> np.ndarray:
        whole = self._join(self.ranks, self.placements)
        return whole if start is None else whole[start:stop]

    def _join(self, ranks: Any, placements: list[Any]) -> np.ndarray:
        if not placements:
            return _array(self.parts[int(ranks)])
        if type(placements[0]).__name__ == "Replicate":
            return self._join(ranks[0], placements[1:])
        return np.concatenate([self._join(part, placements[1:]) for part in ranks], axis=placements[0].dim)


def _array(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _state(path: pathlib.Path) -> dict[str, Any]:
    """The tensors of a file by name, read with `weights_only=True`."""
    require_file(path)
    try:
        import torch
        import torch.distributed.tensor  # makes its DTensors readable with weights_only
    except ImportError:
        raise UserError(
            f"{path}: a file of PyTorch's, which is not installed: pip install torch (the extra 'validate'),"
            " or save the model as safetensors"
        ) from None
    try:
        held = _load(torch, path)
    except UserError:
        raise
    except Exception as error:  # unpickling can raise whatever a damaged file makes it
        words = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"{path}: no file of tensors that PyTorch reads without running code in it ({words[0][:160]})"
        ) from None
    if isinstance(held, dict) and len(held) <= 2:
        held = next((held[key] for key in ("state_dict", "module", "model") if isinstance(held.get(key), dict)), held)
    if not isinstance(held, dict) or not all(
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        for name, value in held.items()
    ):
        raise UserError(
            f"{path}: holds more than named tensors, or tensors without their numbers: a file with the model's weights"
            " alone is needed"
        )
    return held


def _load(torch: Any, path: pathlib.Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # only this form can be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True if zipped else None)
