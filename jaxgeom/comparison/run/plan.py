"""What a measurement reads: the sides, which must match, and their parts in the order of a report."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxgeom.checkpoints.matching import matched
from jaxgeom.checkpoints.tensors import FLOAT_DTYPES, Checkpoint, Tensor
from jaxgeom.comparison.files.population import MODULES, Part, parts_of
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.errors import UserError, listed


@runtime_checkable
class Reader(Protocol):
    """The part of `Checkpoint` that the engine uses; trees in memory have it too."""

    name: str
    config: dict[str, Any] | None
    fingerprint: str
    notes: tuple[str, ...]
    adapter: dict[str, Any] | None

    @property
    def dtype(self) -> str: ...
    def __getitem__(self, name: str, /) -> Tensor: ...
    def __iter__(self) -> Iterator[str]: ...
    def sha256(self, known: Mapping[str, str] | None = None) -> str: ...


def match_sides(sides: Sequence[Reader]) -> list[Reader]:
    """The sides under one set of names, however each was stored (`jaxgeom.checkpoints.matching`)."""
    checkpoints = [side for side in sides if isinstance(side, Checkpoint)]
    return [*matched(checkpoints)] if len(checkpoints) == len(sides) else list(sides)


def check_pair(initial: Reader, final: Reader, settings: CompareSettings) -> list[str]:
    """The names that two checkpoints share and the settings select, in order of layers.

    What is no part of the population is not looked at.

    Raises:
        UserError: names or shapes differ, a dtype is no float, or nothing is selected.
    """
    names, others = ([name for name in side if _selected(side, name, settings)] for side in (initial, final))
    only_initial, only_final = sorted(set(names) - set(others)), sorted(set(others) - set(names))
    odd_shapes = [name for name in names if name in final and initial[name].shape != final[name].shape]
    problems = []
    if only_initial:
        problems.append(f"only in {initial.name}: {listed(only_initial)}")
    if only_final:
        problems.append(f"only in {final.name}: {listed(only_final)}")
    if odd_shapes:
        shapes = (f"{one} has shape {list(initial[one].shape)} and {list(final[one].shape)}" for one in odd_shapes)
        problems.append(listed(shapes))
    if problems:
        differing = {*only_initial, *only_final, *odd_shapes}
        raise UserError(f"the checkpoints do not match: {'; '.join(problems)}{_way_out(names, differing)}")
    if not names:
        if settings.population != "all" and any(settings.selects(name) for name in initial):
            raise UserError(f"population = {settings.population!r}: leaves no parameter to measure")
        raise UserError("include/exclude leave no parameter to compare")
    for side in (initial, final):
        odd = [f"{name} ({side[name].dtype})" for name in names if not side[name].is_float]
        if odd:
            raise UserError(f"{side.name}: weights of dtype {', '.join(FLOAT_DTYPES)} are needed; not so {listed(odd)}")
    return names


class _Shapes(Mapping[str, tuple[int, ...]]):
    """The shapes of a checkpoint's tensors, looked up where they are asked for."""

    def __init__(self, side: Reader) -> None:
        self._side = side

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._side[name].shape

    def __iter__(self) -> Iterator[str]:
        return iter(self._side)

    def __len__(self) -> int:
        return sum(1 for _ in self._side)


def _selected(side: Reader, name: str, settings: CompareSettings) -> bool:
    """Whether a tensor, or a part of it, is measured at all."""
    if not settings.selects(name):
        return False
    if settings.population == "all":
        return True
    return any(settings.admits(part.module) for part in parts_of(side[name], side.config, _Shapes(side)))


def _way_out(names: Sequence[str], differing: set[str]) -> str:
    """The `--exclude` that leaves out what differs, where that is a few kinds of parameters and something is left."""
    kinds = sorted({re.sub(r"\.(weight|bias)$", "", name).rpartition(".")[2] for name in differing})
    pattern = "|".join(map(re.escape, kinds))
    left = [name for name in names if name not in differing and not re.search(pattern, name)]
    return f"; --exclude '{pattern}' leaves them out" if len(kinds) <= 4 and left else ""


def read_notes(sides: Sequence[Reader]) -> dict[str, list[str]]:
    """What was left out of the sides, or read otherwise than it may seem: an entry of `coverage`, none for nothing."""
    notes = [f"{side.name}: {note}" for side in sides for note in side.notes]
    return {"notes": notes} if notes else {}


def text_parameters(side: Reader) -> int:
    """Entries of a checkpoint without its towers, where it has more than those: what shares are of."""
    text = sum(side[name].size for name in side if side[name].tower is None)
    return text or sum(side[name].size for name in side)


def check_sides(sides: Sequence[Reader], settings: CompareSettings) -> list[str]:
    """`check_pair` of the first side with each of the others."""
    names = [check_pair(sides[0], side, settings) for side in sides[1:]]
    return names[0]


def plan_parts(initial: Reader, names: Sequence[str], settings: CompareSettings) -> list[Part]:
    """All parts of the named tensors that the settings' population has.

    Embedding first, then layers in order with their modules in order, then the rest, then towers. Where towers alone
    are selected they are what is measured, and no group beside it.

    Raises:
        UserError: nothing of the population is there.
    """
    shapes = _Shapes(initial)
    parts = [part for name in names for part in parts_of(initial[name], initial.config, shapes) if initial[name].size]
    parts = sorted(admitted(parts, settings), key=_order)
    alone = bool(parts) and all(part.tower for part in parts)
    return [dataclasses.replace(part, tower=None) for part in parts] if alone else parts


def admitted(parts: Sequence[Part], settings: CompareSettings) -> list[Part]:
    """The parts that belong to the settings' population; `UserError` where a population leaves none."""
    kept = [part for part in parts if settings.admits(part.module)]
    if parts and not kept:
        raise UserError(f"population = {settings.population!r}: leaves no parameter to measure")
    return kept


def _order(part: Part) -> tuple[int, int, int, list[tuple[int, str]]]:
    place = 3 if part.tower else 1 if part.layer is not None else 0 if part.group == "embedding" else 2
    module = MODULES.index(part.module) if part.module in MODULES else len(MODULES)
    words = [
        (int(word), "") if word.isdecimal() and len(word) < 19 else (-1, word) for word in re.split(r"(\d+)", part.name)
    ]
    return place, part.layer or 0, module, words
