"""Checkpoints of one model that were stored in different ways, brought to one set of names."""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxgeom.checkpoints.experts import stacked_kind, unstacked
from jaxgeom.checkpoints.huggingface import is_embedding_again, text_config
from jaxgeom.checkpoints.names import HEAD, by_key, key_of, tower_of
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
    if all(set(side) == set(sides[0]) for side in sides):
        return list(sides)
    tensors: list[Mapping[str, Tensor]] = list(sides)
    notes: list[list[str]] = [[] for _ in sides]
    stacks = [{name for name in side if stacked_kind(name, side[name].shape)} for side in sides]
    if any(stacks) and not all(stacks):
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
        left = _left_out(place, keys, tensors[place])
        renamed: dict[str, Tensor] = {}
        prefixes = set()
        for key, stored in keys[place].items():
            if key in left:
                continue
            name = names[key]
            if name != stored:
                prefixes.add(stored.removesuffix(key) or "no prefix")
            renamed[name] = dataclasses.replace(tensors[place][stored], name=name)
        if prefixes:
            notes[place].append(f"names with {' and '.join(sorted(prefixes))} are matched by what follows")
        notes[place] += sorted(set(left.values()))
        whole = {name: keys[place][key_of(name)] for name in renamed if keys[place].get(key_of(name)) in side}
        same = not left and not notes[place]
        found.append(side if same else Renamed(side, renamed, whole, notes[place]))
    return found


def _left_out(place: int, keys: Sequence[Mapping[str, str]], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Keys of one side that are not compared, with the sentence that says so."""
    absent = [key for key in keys[place] if not all(key in held for held in keys)]
    found = {}
    if HEAD in absent and is_embedding_again(tensors):
        found[HEAD] = f"{keys[place][HEAD]} is the embedding again, and not every checkpoint stores it: counted once"
    towers = [{tower for key in held if (tower := tower_of(key))} for held in keys]
    for key in absent:
        tower = tower_of(key)
        if tower is not None and not all(tower in held for held in towers):
            found[key] = f"{tower} is not in every checkpoint and left out"
    return found
