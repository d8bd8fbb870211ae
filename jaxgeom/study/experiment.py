"""What an experiment is: arms, data, and what is measured; read from a Python file."""

import contextlib
import dataclasses
import os
import re
import runpy
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxgeom.buckets import copies
from jaxgeom.buckets.places import url_of
from jaxgeom.comparison import CompareSettings
from jaxgeom.errors import UserError, words_of
from jaxgeom.field_types import check_types
from jaxgeom.interruption import Interrupted
from jaxgeom.study.arms import Arm, At, check_arms, check_seeds
from jaxgeom.study.data import DataFiles, SyntheticData, as_paths
from jaxgeom.training import OPDSettings, RLVRSettings, RunSettings, SFTSettings

FOUR = {
    "sft_anchor": ("anchor", "sft"),
    "opd": ("opd", "opd"),
    "rlvr": ("rlvr", "rlvr"),
    "sft_continued": ("sft_continued", "sft"),
}
"""The arms that an experiment has fields for: by name the field and the objective."""

_MOST_SEEDS = 1000
_LABELS = {"sft_anchor": "SFT (anchor)", "opd": "OPD", "rlvr": "RLVR", "sft_continued": "SFT continued"}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms, each measured against where it starts.

    Four arms have fields of their own, base → SFT anchor → {OPD, RLVR, SFT continued}: `sft_anchor`, `opd`, `rlvr`,
    `sft_continued`. They come before `arms`, which may start from them by name: `At("opd", share=0.2)`.

    Attributes:
        name: Shown in the report; the default output directory is `runs/NAME`.
        base: Hugging Face directory (or `RUN@STEP`) of the base model that `anchor` starts from.
        teacher: The stronger model that OPD learns from, where an arm has none of its own.
        data: Made on the spot, or files.
        anchor: SFT from the base to the shared start of the three others, run once with its own seed.
        opd: On-policy distillation from the anchor.
        rlvr: GRPO with verified rewards from the anchor.
        sft_continued: SFT on from the anchor: the control for OPD and RLVR.
        arms: Any others, in the order of the page.
        measure: What is measured, and how.
        seeds: Of every arm that is not shared and has none of its own, one run each.
    """

    name: str
    base: Path | None = None
    teacher: Path | None = None
    data: SyntheticData | DataFiles
    anchor: SFTSettings | None = None
    opd: OPDSettings | None = None
    rlvr: RLVRSettings | None = None
    sft_continued: SFTSettings | None = None
    arms: tuple[Arm, ...] = ()
    measure: CompareSettings = field(default_factory=CompareSettings)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self):
        as_paths(self, "base", "teacher")
        if isinstance(self.arms, list):
            object.__setattr__(self, "arms", tuple(self.arms))
        check_types(self)
        # The default output directory is made of it.
        if not re.fullmatch(r"[^/\\\x00-\x1f]{1,100}", self.name) or self.name.strip(". ") == "":
            raise UserError(f"name={self.name!r}: the name of a directory, without slashes, is needed")
        check_seeds(self.seeds)
        if self.anchor is not None and self.base is None:
            raise UserError("base=None: anchor is given, which starts from it")
        later = [name for name in ("opd", "rlvr", "sft_continued") if getattr(self, name) is not None]
        if later and self.anchor is None:
            raise UserError(f"anchor=None: {later[0]} is given, which starts from it; arms may start anywhere")
        arms = self.every_arm()
        if not arms:
            raise UserError("arms=(): there is nothing to train")
        for arm in arms:
            if arm.settings.is_taught and not self.teachers_of(arm):
                raise UserError(
                    f"{arm.name}: teacher=None: {arm.settings.objective} needs one, its own or the experiment's"
                )
        check_arms(arms, self.seeds)

    def every_arm(self) -> tuple[Arm, ...]:
        """Those with fields of their own first, then the others."""
        found = []
        for name, (field_, _) in FOUR.items():
            settings = getattr(self, field_)
            if settings is not None:
                is_anchor = name == "sft_anchor"
                start = self.base if is_anchor else At("sft_anchor")
                assert start is not None
                found.append(Arm(name, start, settings, shared=is_anchor, label=_LABELS[name]))
        return (*found, *self.arms)

    def methods(self) -> dict[str, RunSettings]:
        """The settings of every arm that is run once a seed, by name, in order."""
        return {arm.name: arm.settings for arm in self.every_arm() if not arm.shared}

    def teachers_of(self, arm: Arm) -> tuple[Path, ...]:
        """The teachers of an arm, none of one that is not taught."""
        if not arm.settings.is_taught:
            return ()
        return arm.teachers or (() if self.teacher is None else (self.teacher,))

    def with_seeds(self, count: int) -> "Experiment":
        """The same experiment over the seeds 0 … count−1; arms with seeds of their own keep them."""
        if not 1 <= count <= _MOST_SEEDS:
            raise UserError(f"seeds: {count} asked for; between 1 and {_MOST_SEEDS} can be had")
        return dataclasses.replace(self, seeds=tuple(range(count)))


def load_experiment(path: str | Path) -> Experiment:
    """Runs an experiment file and takes its variable `experiment`.

    Args:
        path: a Python file.

    Returns:
        What the file defines. What it names by `gs://` paths has its copy here.

    Raises:
        UserError: the file is missing, fails (the message has its line), has an unknown field, or defines none; a
            `gs://` path that cannot be read, or was made a `Path`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such experiment file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # what it warns of fails a moment later, with its line
            with contextlib.chdir(os.curdir):  # what is written by a relative path stays where the command was given
                namespace = runpy.run_path(str(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    # The file is the user's own program: what it raises, or `exit()`, is theirs to read, in one line with its place.
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if isinstance(error, Interrupted) or stopped:  # that is the user's, no fault of the file's
            raise
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(error, path)
        where = path if line is None else f"{path}: line {line}"
        raise UserError(f"{where}: {type(error).__name__}: {words_of(error)}") from error
    experiment = namespace.get("experiment")
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path}: defines no variable 'experiment' that is an Experiment")
    for held in dict.fromkeys(_paths_in(experiment)):
        if re.match(r"gs:/[^/]", str(held)):
            raise UserError(f"{path}: {held}: write 'gs://{str(held)[4:]}' as text; Path makes another path of it")
        url = url_of(held)
        if url is not None:
            copies.taken(url)
    return experiment


def _paths_in(held: Any) -> Iterator[Path]:
    """The paths among the fields of a dataclass, and in what these hold."""
    if isinstance(held, Path):
        yield held
    elif dataclasses.is_dataclass(held):
        for one in vars(held).values():
            yield from _paths_in(one)
    elif isinstance(held, tuple):
        for one in held:
            yield from _paths_in(one)


def _line_in(error: BaseException, path: Path) -> int | None:
    """The last line of the file that the error passed through."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
