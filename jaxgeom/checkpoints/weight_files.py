"""Which files of a directory hold the weights: the rule that `transformers` has, here alone.

`model.safetensors`; else the files of `model.safetensors.index.json`; else `pytorch_model.bin`; else the files of
`pytorch_model.bin.index.json`. What lies beside them (`consolidated.safetensors`, an adapter, an index that is not
used) is not read, and said where it could be taken for the weights.
"""

import dataclasses
import pathlib
from typing import Any, Literal

from jaxgeom.checkpoints.plain_files import in_directory, is_there, read_json
from jaxgeom.errors import UserError, listed

_SINGLE: tuple[tuple[str, Literal["safetensors", "torch"]], ...] = (
    ("model.safetensors", "safetensors"),
    ("pytorch_model.bin", "torch"),
)
INDEX_ENDING = ".index.json"


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The files of one directory that hold its weights.

    Attributes:
        kind: their format.
        files: in the order of their names.
        index: the index that lists them, None for a single file.
        weight_map: the index's table from tensor to file.
        notes: what lies beside them and was not read.
    """

    kind: Literal["safetensors", "torch"]
    files: list[pathlib.Path]
    index: pathlib.Path | None = None
    weight_map: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def check(self, held: dict[str, str]) -> None:
        """Compares the index with what its files hold.

        Args:
            held: the file name of each tensor.

        Raises:
            UserError: a tensor that is in another file, in none, or that the index does not list.
        """
        if self.index is None:
            return
        wrong = [name for name, file in self.weight_map.items() if name in held and held[name] != file]
        if wrong:
            name = wrong[0]
            raise UserError(
                f"{self.index}: lists tensor {name!r} in {self.weight_map[name]}, but {held[name]} holds it"
            )
        absent = sorted(set(self.weight_map) - set(held))
        if absent:
            raise UserError(f"{self.index}: lists tensors that no file holds: {listed(absent)}")
        more = sorted(set(held) - set(self.weight_map))
        if more:
            raise UserError(f"{self.index}: does not list tensors that its files hold: {listed(more)}")


def has_weights(directory: pathlib.Path) -> bool:
    """Whether a directory has weights, whole or not, by a name that `transformers` loads."""
    return any(is_there(directory / (name + ending)) for name, _ in _SINGLE for ending in ("", INDEX_ENDING))


def has_adapter(directory: pathlib.Path) -> bool:
    """Whether a directory has a file of an adapter, by PEFT's names."""
    names = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
    return any(is_there(directory / name) for name in names)


def weight_files(directory: pathlib.Path, config: dict[str, Any] | None = None) -> WeightFiles | None:
    """The files that hold the weights of a Hugging Face directory.

    Args:
        directory: it.
        config: its `config.json`, whose `transformers_weights` may name the file.

    Returns:
        The files, None where there are none by any name that `transformers` loads.

    Raises:
        UserError: an index that is broken or names files elsewhere or absent ones.
    """
    named = (config or {}).get("transformers_weights")
    if named is not None:
        path = in_directory(directory / "config.json", named)
        if not is_there(path):
            raise UserError(f"{path}: missing, although config.json names it as transformers_weights")
        kind = "torch" if ".bin" in path.name else "safetensors"
        return _indexed(path, kind) if path.name.endswith(INDEX_ENDING) else WeightFiles(kind, [path])
    for name, kind in _SINGLE:
        single, index = directory / name, directory / (name + INDEX_ENDING)
        if is_there(single):
            return WeightFiles(kind, [single], notes=_beside(single, index))
        if is_there(index):
            return _indexed(index, kind)
    return None


def _indexed(index: pathlib.Path, kind: Literal["safetensors", "torch"]) -> WeightFiles:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{index}: has no weight_map")
    files = sorted({in_directory(index, file) for file in table.values()})
    missing = [path for path in files if not is_there(path)]
    if missing:
        raise UserError(f"{missing[0]}: missing, although {index.name} lists it")
    return WeightFiles(kind, files, index=index, weight_map=table)


def side_files(directory: pathlib.Path, files: WeightFiles) -> tuple[str, ...]:
    """A sentence on weight files that lie beside those that are read, none where there are none."""
    read = {path.name for path in files.files}
    others = sorted(path.name for path in directory.glob("*.safetensors") if path.name not in read)
    return (f"not read, since transformers does not load them: {listed(others)}",) if others else ()


def _beside(single: pathlib.Path, index: pathlib.Path) -> tuple[str, ...]:
    if not is_there(index):
        return ()
    try:
        if set(read_json(index)["weight_map"].values()) == {single.name}:
            return ()
    except (UserError, KeyError, AttributeError, TypeError):
        pass  # broken or not: it is passed over
    return (f"{index}: not used, since {single.name} is there too (which is what transformers loads)",)


def no_weights(directory: pathlib.Path) -> UserError:
    """The line for a directory without weights, with the way out that it has."""
    snapshots = sorted(path for path in directory.glob("snapshots/*") if path.is_dir())
    if snapshots:
        return UserError(f"{directory}: is the root of a hub cache; give the snapshot in it: {snapshots[-1]}")
    others = sorted(path.name for path in directory.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if others:
        return UserError(
            f"{directory}: no model.safetensors and no model.safetensors.index.json, which transformers would load;"
            f" there are {listed(others)}"
        )
    return UserError(f"{directory}: holds no *.safetensors file (model.safetensors or an index is needed)")
