"""Arms: the trainings of an experiment, each from a model or from another arm at a step."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types
from jaxgeom.study.data import as_paths
from jaxgeom.training import OPDSettings, RLVRSettings, RunSettings, SFTSettings

_SOURCES = ("start", "basis_from", "mask_from")


@dataclass(frozen=True)
class At:
    """A step of another arm, in the run of the same seed (or in its only one).

    Attributes:
        arm: Its name.
        step: Optimizer step, from 1 to the arm's last; its end where neither a step nor a share is given.
        share: Share of the arm's steps, in (0, 1], in place of the step; rounded to the nearest step.
    """

    arm: str
    step: int | None = None
    share: float | None = None

    def __post_init__(self):
        check_types(self)
        if self.step is not None and self.share is not None:
            raise UserError(f"{self.arm} at step={self.step}, share={self.share}: one of the two, not both")
        if self.share is not None and not 0.0 < self.share <= 1.0:
            raise UserError(f"{self.arm} at share={self.share}: must be in (0, 1]")

    def step_of(self, steps: int) -> int:
        """The step, of an arm of so many steps."""
        if self.share is not None:
            return max(1, math.floor(self.share * steps + 0.5))
        return steps if self.step is None else self.step


@dataclass(frozen=True)
class Arm:
    """One training of an experiment, run once a seed.

    Attributes:
        name: Letters, digits and underscores; it names the runs' directories and stands in files.
        start: A model (Hugging Face directory, or `RUN@STEP`), another arm (its end), or an arm `at` a step. Arms that
            start from the same arm share its training.
        settings: `SFTSettings`, `RLVRSettings` or `OPDSettings`; their seed is replaced by each of the arm's.
        seeds: One run each; none: those of the experiment. Seed s starts from seed s of the arm that it starts from, or
            from its only one.
        shared: One run, with the seed of its settings, whatever the experiment's seeds: a start that all of them share.
        teacher: Of OPD; none: the experiment's.
        basis_from: Of a confined arm, where its basis comes from: an arm at a step, or `RUN@STEP`.
        mask_from: Of a confined arm, where its mask comes from: an arm at a step, or `RUN@STEP`.
        data: Which of the experiment's rows; none: prompts for RLVR and OPD, demonstrations for SFT from a model,
            `demonstrations_continued` for SFT from another arm.
        label: What it is called on the page; none: the name.
        color: On the page and in figures, such as `#0072b2`; none: one that is not taken yet.
    """

    name: str
    start: "Path | At | Arm"
    settings: SFTSettings | RLVRSettings | OPDSettings
    seeds: tuple[int, ...] | None = None
    shared: bool = False
    teacher: Path | tuple[Path, ...] | None = None
    basis_from: "Path | At | Arm | None" = None
    mask_from: "Path | At | Arm | None" = None
    data: Literal["demonstrations", "demonstrations_continued", "prompts"] | None = None
    label: str | None = None
    color: str | None = None

    def __post_init__(self):
        as_paths(self, *_SOURCES, "teacher")
        for name in _SOURCES:
            if isinstance(getattr(self, name), Arm):
                object.__setattr__(self, name, getattr(self, name).at())
        check_types(self)
        if not re.fullmatch(r"[A-Za-z0-9_]{1,60}", self.name) or self.name == "base_spectra":
            raise UserError(f"arm name={self.name!r}: up to 60 letters, digits and underscores are needed")
        if self.shared and self.seeds is not None:
            raise UserError(f"{self.name}: seeds={self.seeds}: a shared arm is run once, with its settings' seed")
        if self.seeds is not None:
            check_seeds(self.seeds, f"{self.name}: ")
        if self.teacher is not None and not self.settings.is_taught:
            raise UserError(f"{self.name}: teacher={self.teacher}: {self.settings.objective} has no teacher")
        if self.data is not None and (self.data == "prompts") != (self.settings.reads == "prompts"):
            raise UserError(
                f"{self.name}: data={self.data!r}: {self.settings.objective} learns from {self.settings.reads}"
            )
        if self.color is not None and not re.fullmatch("#[0-9a-fA-F]{6}", self.color):
            raise UserError(f"{self.name}: color={self.color!r}: # and six hexadecimal digits are needed")
        if self.label is not None and not (self.label.strip() and self.label.isprintable() and len(self.label) <= 60):
            raise UserError(f"{self.name}: label={self.label!r}: up to 60 printable letters are needed")
        try:
            self.settings.confine.require_sources(self.basis_from, self.mask_from)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from None

    def at(self, *, step: int | None = None, share: float | None = None) -> At:
        """This arm at a step, or at a share of its steps; at its end where neither is given."""
        return At(self.name, step, share)

    @property
    def title(self) -> str:
        """What it is called on the page."""
        return self.label or self.name

    @property
    def teachers(self) -> tuple[Path, ...]:
        """Its own, in order."""
        return self.teacher if isinstance(self.teacher, tuple) else () if self.teacher is None else (self.teacher,)

    def seeds_among(self, experiment: Sequence[int]) -> tuple[int, ...]:
        """The seeds of its runs, in an experiment of these seeds."""
        if self.shared:
            return (self.settings.seed,)
        return tuple(experiment) if self.seeds is None else self.seeds

    @property
    def sources(self) -> dict[str, At]:
        """The arms that it takes from, by field."""
        found = {name: getattr(self, name) for name in _SOURCES}
        return {name: source for name, source in found.items() if isinstance(source, At)}


def check_seeds(seeds: tuple[int, ...], where: str = "") -> None:
    """Refuses no seed, one twice, and one that is no seed."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"{where}seeds={seeds}: at least one, and no seed twice")
    if any(not 0 <= seed < 2**31 for seed in seeds):
        raise UserError(f"{where}seeds={seeds}: each must be between 0 and {2**31 - 1}")


def check_arms(arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    """Refuses arms that cannot be run together.

    Args:
        arms: of an experiment.
        seeds: of the experiment.

    Raises:
        UserError: two of one name, an arm that is not there, a circle, a step that an arm does not come to, a seed that
            it does not have.
    """
    by_name: dict[str, Arm] = {}
    for arm in arms:
        if arm.name.lower() in map(str.lower, by_name):  # directories of some systems are the same then
            raise UserError(f"arms: two are called {arm.name!r}")
        by_name[arm.name] = arm
    for arm in arms:
        for field in _SOURCES:
            path = getattr(arm, field)
            if isinstance(path, Path) and str(path) in by_name and not path.exists():
                raise UserError(f"{arm.name}: {field}={str(path)!r}: no such directory; the arm is At({str(path)!r})")
        for field, source in arm.sources.items():
            where = f"{arm.name}: {field}={source.arm!r}"
            if source.arm not in by_name:
                raise UserError(f"{where}: no such arm; there are {', '.join(by_name)}")
            parent = by_name[source.arm]
            step = source.step_of(parent.settings.steps)
            if not 1 <= step <= parent.settings.steps:
                raise UserError(f"{where} at step {step}: {parent.name} saves steps 1 to {parent.settings.steps} alone")
            held = parent.seeds_among(seeds)
            missing = [seed for seed in arm.seeds_among(seeds) if seed not in held]
            if missing and len(held) > 1:
                raise UserError(f"{where}: {arm.name} has seed {missing[0]}, and {parent.name} has {held}")
    _refuse_circles(by_name)


def _refuse_circles(arms: dict[str, Arm]) -> None:
    sound: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise UserError(f"arms: {' from '.join((*path[path.index(name) :], name))}: each starts from the next")
        if name not in sound:
            for source in arms[name].sources.values():
                visit(source.arm, (*path, name))
            sound.add(name)

    for name in arms:
        visit(name, ())


def lineage(arms: dict[str, Arm], arm: Arm) -> Iterator[Arm]:
    """An arm, what it starts from, and so on."""
    yield arm
    while isinstance(arm.start, At):
        arm = arms[arm.start.arm]
        yield arm


def root(arms: dict[str, Arm], arm: Arm) -> Path:
    """The model that an arm starts from in the end."""
    *_, first = lineage(arms, arm)
    assert isinstance(first.start, Path)
    return first.start


def with_inherited_template(arms: dict[str, Arm], arm: Arm) -> RunSettings:
    """Its settings, with the chat template that it finds in the tokenizer of the arm that it starts from."""
    given = (one.settings.rows.chat_template for one in lineage(arms, arm))
    template: Any = next((path for path in given if path is not None), None)
    return dataclasses.replace(arm.settings, rows=dataclasses.replace(arm.settings.rows, chat_template=template))
