"""What a measurement reads: the sides, which must match, and their parts in the order of a report."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxgeom.checkpoints.tensors import FLOAT_DTYPES, Tensor
from jaxgeom.comparison.files.population import MODULES, Part, parts_of
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.errors import UserError


@runtime_checkable
class Reader(Protocol):
    """The part of `Checkpoint` that the engine uses; trees in memory have it too."""

    name: str
    config: dict[str, Any] | None
    fingerprint: str

    @property
    def dtype(self) -> str: ...
    def __getitem__(self, name: str, /) -> Tensor: ...
    def __iter__(self) -> Iterator[str]: ...
    def sha256(self, known: Mapping[str, str] | None = None) -> str: ...


def check_pair(initial: Reader, final: Reader, settings: CompareSettings) -> list[str]:
    """The names that two checkpoints share and the settings select, in order of layers.

    Raises:
        UserError: names or shapes differ (all of them listed), a dtype is no float, or nothing is selected.
    """
    problems = []
    names = [name for name in initial if settings.selects(name)]
    others = {name for name in final if settings.selects(name)}
    only_initial, only_final = [n for n in names if n not in others], sorted(others - set(names))
    if only_initial:
        problems.append(f"only in {initial.name}: {', '.join(sorted(only_initial))}")
    if only_final:
        problems.append(f"only in {final.name}: {', '.join(only_final)}")
    for name in names:
        if name in others and initial[name].shape != final[name].shape:
            problems.append(f"{name} has shape {list(initial[name].shape)} and {list(final[name].shape)}")
    if problems:
        raise UserError(f"the checkpoints do not match: {'; '.join(problems)}")
    if not names:
        raise UserError("include/exclude leave no parameter to compare")
    for side in (initial, final):
        odd = [f"{name} ({side[name].dtype})" for name in names if not side[name].is_float]
        if odd:
            raise UserError(
                f"{side.name}: weights of dtype {', '.join(FLOAT_DTYPES)} are needed; not so {', '.join(odd)}"
            )
    return names


def check_sides(sides: Sequence[Reader], settings: CompareSettings) -> list[str]:
    """`check_pair` of the first side with each of the others."""
    names = [check_pair(sides[0], side, settings) for side in sides[1:]]
    return names[0]


def plan_parts(initial: Reader, names: Sequence[str], settings: CompareSettings) -> list[Part]:
    """All parts of the named tensors that the settings' population has.

    Embedding first, then layers in order with their modules in order, then the rest.

    Raises:
        UserError: nothing of the population is there.
    """
    parts = [part for name in names for part in parts_of(initial[name], initial.config) if initial[name].size]
    return sorted(admitted(parts, settings), key=_order)


def admitted(parts: Sequence[Part], settings: CompareSettings) -> list[Part]:
    """The parts that belong to the settings' population; `UserError` where a population leaves none."""
    kept = [part for part in parts if settings.admits(part.module)]
    if parts and not kept:
        raise UserError(f"population = {settings.population!r}: leaves no parameter to measure")
    return kept


def _order(part: Part) -> tuple[int, int, int, list[tuple[int, str]]]:
    place = 1 if part.layer is not None else 0 if part.group == "embedding" else 2
    module = MODULES.index(part.module) if part.module in MODULES else len(MODULES)
    words = [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", part.name)]
    return place, part.layer or 0, module, words
