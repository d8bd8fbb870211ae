"""Checkpoints of one model that were stored in different ways, brought to one set of names."""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxgeom.checkpoints.anatomy import by_key
from jaxgeom.checkpoints.experts import stacked_kind, unstacked
from jaxgeom.checkpoints.huggingface import is_embedding_again, text_config
from jaxgeom.checkpoints.names import HEAD, dropped
from jaxgeom.checkpoints.tensors import Checkpoint, Renamed, Tensor


def matched(sides: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints under the names of the first that has each parameter.

    Names are matched without wrappers (`module.`, `model.language_model.`, a missing `model.`), stacked experts with
    single ones, a stored head that is the embedding again with none; a tower that only some have is left out. What is
    done stands in `notes`. What does not match even so keeps its name.

    Args:
        sides: at least one.

    Returns:
        One checkpoint a side, the very same where nothing is to be done.
    """
    tensors: list[Mapping[str, Tensor]] = list(sides)
    stacks = [_stacks(side) for side in sides]
    unlike = any(held != stacks[0] for held in stacks)
    if all(set(side) == set(sides[0]) for side in sides) and not unlike:
        return list(sides)
    notes: list[list[str]] = [[] for _ in sides]
    if unlike:
        for place, side in enumerate(sides):
            if stacks[place]:
                tensors[place] = unstacked(side, text_config(side.config))
                notes[place].append(f"{len(stacks[place])} tensors of stacked experts are read expert by expert")
    keys = [by_key(held, side.name) for held, side in zip(tensors, sides, strict=True)]
    names: dict[str, str] = {}
    for held in keys:
        names = held | names
    found: list[Checkpoint] = []
    for place, side in enumerate(sides):
        left = _left_out(place, keys, tensors)
        renamed: dict[str, Tensor] = {}
        prefixes: set[str] = set()
        stored_names: dict[str, str] = {}
        for key, stored in keys[place].items():
            if key in left:
                continue
            name = names[key]
            if name != stored:
                prefixes.add(dropped(stored, key))
            renamed[name] = dataclasses.replace(tensors[place][stored], name=name)
            if stored in side:
                stored_names[name] = stored
        if prefixes:
            notes[place].append(f"names with {' and '.join(sorted(prefixes))} are matched by what follows")
        notes[place] += sorted(set(left.values()))
        same = not left and not notes[place]
        found.append(side if same else Renamed(side, renamed, stored_names, notes[place]))
    return found


def _left_out(place: int, keys: Sequence[Mapping[str, str]], tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, str]:
    """Keys of one side that are not compared, with the sentence that says so.

    A tower that only some have is no fault of theirs, unless parameters of the text model are missing too: it may be
    those under another name, and all is refused together.
    """
    absent = [key for key in keys[place] if not all(key in held for held in keys)]
    found = {}
    if HEAD in absent and is_embedding_again(tensors[place]):
        found[HEAD] = f"{keys[place][HEAD]} is the embedding again, and not every checkpoint stores it: counted once"
    for held, own in zip(keys, tensors, strict=True):
        for key, stored in held.items():
            missing = own[stored].tower is None and not all(key in other for other in keys)
            if missing and not (key == HEAD and is_embedding_again(own)):
                return found
    towers = [{tensor.tower for tensor in held.values()} for held in tensors]
    for key in absent:
        tower = tensors[place][keys[place][key]].tower
        if tower is not None and not all(tower in held for held in towers):
            found[key] = f"{tower} is not in every checkpoint and left out"
    return found


def _stacks(side: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of the stacks of experts, by key: what lies there in the same way is the same in two checkpoints."""
    found = {name: tensor for name, tensor in side.items() if stacked_kind(name, tensor.shape) and not tensor.tower}
    return {key: found[name].shape for key, name in by_key(side, "").items() if name in found} if found else {}
