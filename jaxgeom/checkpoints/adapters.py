"""LoRA adapters as checkpoints: `W = W0 + scale·BA` for each adapted matrix, everything else the base's."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jaxgeom.checkpoints.adapter_config import AdapterConfig
from jaxgeom.checkpoints.anatomy import by_key
from jaxgeom.checkpoints.huggingface import read_tensors
from jaxgeom.checkpoints.names import HEAD, key_of
from jaxgeom.checkpoints.plain_files import is_there, read_json
from jaxgeom.checkpoints.tensors import Checkpoint, Tensor
from jaxgeom.checkpoints.weight_files import WeightFiles, has_adapter, has_weights
from jaxgeom.errors import UserError, listed

_BLOCK_ENTRIES = 1 << 22
_PART = re.compile(r"^(.*)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.default)?(?:\.weight)?$")
_NAMED_PART = re.compile(r"\.lora_(?:embedding_)?[AB]\.([^.]+)(?:\.weight)?$")


def is_adapter_directory(directory: pathlib.Path) -> bool:
    """Whether a directory holds an adapter and no whole model (beside one an adapter is not read)."""
    return has_adapter(directory) and not has_weights(directory)


def base_of(directory: pathlib.Path, base: str | pathlib.Path | None = None) -> pathlib.Path:
    """The model that an adapter belongs to.

    Args:
        directory: the adapter's.
        base: given by the user, which wins over what the adapter's configuration names.

    Returns:
        Its directory: the name in `adapter_config.json` as a path from the adapter's directory, or from here.

    Raises:
        UserError: none is named, or it is no directory here.
    """
    if base is not None:
        return pathlib.Path(base)
    named = read_json(directory / "adapter_config.json").get("base_model_name_or_path")
    if isinstance(named, str) and named and "\0" not in named:
        found = [path for path in (directory / named, pathlib.Path(named)) if path.is_dir()]
        if found and not all(path.samefile(found[0]) for path in found):
            raise UserError(f"{directory}: its base {named!r} is {found[0]} or {found[1]}; say which by --base DIR")
        if found:
            return found[0]
    what = f"whose base {named!r} is no directory here" if named else "whose configuration names no base"
    raise UserError(f"{directory}: a LoRA adapter {what}; give the model that it was trained on by --base DIR")


def require_base_is_read(
    base: str | pathlib.Path | None, sources: Iterable[str | pathlib.Path], *, names: str = "the checkpoints"
) -> None:
    """Refuses a base that is given where none of the checkpoints is an adapter: nothing would read it.

    Args:
        base: given by the user, None where it was not.
        sources: the checkpoints that it might belong to, as the user wrote them.
        names: what these are, for the message.

    Raises:
        UserError: it is given and none of `sources` is an adapter's directory.
    """
    if base is not None and not any(is_adapter_directory(pathlib.Path(source)) for source in sources):
        raise UserError(f"base={base}: nothing reads it: no LoRA adapter is among {names}")


def open_adapter(
    directory: pathlib.Path, name: str, open_base: Callable[[pathlib.Path], Checkpoint], base: pathlib.Path
) -> Checkpoint:
    """An adapter merged with its base, matrix by matrix as they are read; adapted matrices are float32.

    Args:
        directory: with `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).
        name: how the user named it.
        open_base: opens the base.
        base: the base's directory or name.

    Raises:
        UserError: a kind of adapter that is not `W0 + scale·BA`, tensors that the base does not have or of shapes that
            do not fit it, halves of pairs.
    """
    config = read_json(directory / "adapter_config.json")
    settings = AdapterConfig(directory, config)
    stored, identity = read_tensors(_adapter_files(directory))
    checkpoint = open_base(base)
    keys = by_key(checkpoint, checkpoint.name) | {name: name for name in checkpoint}
    pairs: dict[str, dict[str, Tensor]] = {}
    tensors = dict(checkpoint)
    replaced = []
    for one, tensor in stored.items():
        found = _PART.match(one)
        if found is None:
            target = _target(one, keys)
            if target is None or checkpoint[target].shape != tensor.shape:
                raise UserError(f"{directory}: tensor {one!r} {_why_none(one, checkpoint)}")
            tensors[target] = dataclasses.replace(tensor, name=target, tower=checkpoint[target].tower)
            replaced.append(target)
        else:
            pairs.setdefault(found.group(1), {})[found.group(2)] = tensor
    if not pairs:
        raise UserError(f"{directory}: its adapter has no lora_A and lora_B")
    ranks, scales, targets = set(), set(), set()
    for module, parts in pairs.items():
        target = _target(f"{module}.weight", keys) or _target(module, keys)
        if target is None:
            raise UserError(f"{directory}: adapts {module!r}, which {checkpoint.name} does not have")
        rank, merged = _merged(directory, settings, module, parts, checkpoint[target], checkpoint.config or {})
        ranks.add(rank)
        scales.add(settings.scale(_in_model(module), rank))
        tensors[target] = merged
        targets.add(target)
    modules = {name.removesuffix(".weight") for name, tensor in checkpoint.items()
               if len(tensor.shape) == 2 and name not in targets}  # fmt: skip
    whole = [_in_model(one) for one in stored if _PART.match(one) is None]
    stale = settings.require_fits([_in_model(module) for module in pairs], whole, modules)
    said = _range(ranks), _range(scales)
    notes = [
        f"a LoRA adapter on {checkpoint.name}: {len(pairs)} of its matrices with scale·BA added, of rank {said[0]} at"
        f" most (scale {said[1]}), merged in float32"
    ]
    notes += [*settings.notes(), *stale]
    if replaced:
        notes.append(f"the adapter stores {len(replaced)} tensors whole: {listed(sorted(replaced), 3)}")
    fingerprint = hashlib.sha256(f"{checkpoint.fingerprint}{identity}{sorted(config.items(), key=str)}".encode())
    return Checkpoint(
        name, tensors, config=checkpoint.config, fingerprint=fingerprint.hexdigest(),
        notes=(*checkpoint.notes, *notes),
        adapter={
            "base": checkpoint.name, "rank": max(ranks), "scale": max(scales), "matrices": len(pairs),
            "update": f"scale*BA, of rank {said[0]} at most", "base_files": checkpoint.fingerprint,
        },
    )  # fmt: skip


def _range(values: set[Any]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _bare(name: str) -> str:
    """The name in the model of the parameter that an adapter's tensor stands for."""
    return re.sub(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.|$)", "", _in_model(name))


def _target(name: str, keys: Mapping[str, str]) -> str | None:
    """The base's name of that parameter: the same one, or what the base has without either's wrappers.

    Args:
        name: of the adapter's tensor.
        keys: the base's names by their key, and each by itself.
    """
    bare = _bare(name)
    return keys.get(bare) or keys.get(key_of(bare))


def _adapter_files(directory: pathlib.Path) -> WeightFiles:
    if is_there(directory / "adapter_model.safetensors"):
        return WeightFiles("safetensors", [directory / "adapter_model.safetensors"])
    if is_there(directory / "adapter_model.bin"):
        return WeightFiles("torch", [directory / "adapter_model.bin"])
    raise UserError(f"{directory}: a LoRA adapter's configuration, but no adapter_model.safetensors")


def _in_model(name: str) -> str:
    """A name as the model has it, by which PEFT's patterns go: without the wrapper that adapters are stored under."""
    return name.removeprefix("base_model.model.")


def _why_none(name: str, base: Checkpoint) -> str:
    """Why a tensor of an adapter's file cannot be used."""
    if found := _NAMED_PART.search(name):
        return (
            f"has the adapter's name {found.group(1)!r} in it: it was saved from a state dict;"
            " save_pretrained, or the names without that word, can be read"
        )
    if key_of(_bare(name)) == HEAD and (base.config or {}).get("tie_word_embeddings") is True:
        return (
            f"is a head of its own, but the head of {base.name} is its embedding (tie_word_embeddings=true):"
            " merge the adapter and save the model untied"
        )
    return "is none of a LoRA adapter, and the base has no such"


def _merged(
    directory: pathlib.Path,
    settings: AdapterConfig,
    module: str,
    parts: Mapping[str, Tensor],
    weight: Tensor,
    model: Mapping[str, Any],
) -> tuple[int, Tensor]:
    """The rank of the update and the merged matrix."""
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    if set(parts) != set(names):
        raise UserError(f"{directory}: {module!r} has {' and '.join(sorted(parts))}, {' and '.join(names)} are needed")
    a, b = (parts[name] for name in names)
    flipped = embedding or settings.is_flipped(module, model)
    fits = len(a.shape) == len(b.shape) == len(weight.shape) == 2 and a.shape[0] == b.shape[1] > 0
    want = (b.shape[0], a.shape[-1]) if fits else ()
    if not fits or weight.shape != (want[::-1] if flipped else want):
        raise UserError(
            f"{directory}: A {list(a.shape)} and B {list(b.shape)} of {module!r} do not fit the base's"
            f" {list(weight.shape)} ({weight.name})"
        )
    for part in (a, b, weight):
        if not part.is_float:
            raise UserError(f"{directory}: {part.name} is stored as {part.dtype}; float weights are needed")
    settings.require_rank(_in_model(module), a.shape[0])
    reader = _Merged(weight, a, b, settings.scale(_in_model(module), a.shape[0]), flipped)
    return a.shape[0], Tensor(weight.name, weight.shape, "float32", reader, weight.tower)


class _Merged:
    """Reads `W0 + scale·BA` (its transpose where `flipped`) in blocks of rows, computed in float64, as float32."""

    def __init__(self, weight: Tensor, a: Tensor, b: Tensor, scale: float, flipped: bool) -> None:
        self.weight, self.a, self.b, self.scale, self.flipped = weight, a, b, scale, flipped

    def __call__(self, start: int | None, stop: int | None) -> np.ndarray:
        first, last = (0, self.weight.shape[0]) if start is None or stop is None else (start, stop)
        left, right = (self.a.read().T, self.b.read().T) if self.flipped else (self.b.read(), self.a.read())
        right = self.scale * right.astype(np.float64)
        merged = np.empty((max(last - first, 0), self.weight.shape[1]), np.float32)
        rows = max(1, _BLOCK_ENTRIES // max(1, self.weight.shape[1]))
        for begin in range(first, last, rows):
            end = min(begin + rows, last)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named where it is measured
                block = self.weight.read_rows(begin, end).astype(np.float64)
                merged[begin - first : end - first] = block + left[begin:end].astype(np.float64) @ right
        return merged
