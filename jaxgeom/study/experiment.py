"""What an experiment is: a base, a teacher, data, and the settings of every stage; read from a Python file."""

import dataclasses
import re
import runpy
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxgeom.comparison import CompareSettings
from jaxgeom.data import ArithmeticTask
from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types
from jaxgeom.training import OPDSettings, RLVRSettings, RunSettings, SFTSettings


@dataclass(frozen=True, kw_only=True)
class SyntheticData:
    """Data made on the spot from the synthetic task.

    Attributes:
        task: Its difficulty.
        demonstrations: Rows for SFT.
        prompts: Rows for RLVR and OPD.
        heldout: Rows for evaluation, none of them in the others.
        uneven: Whether the anchor's demonstrations are uneven (see `arithmetic.demonstrations`), so that it is left
            with something to improve on; those of SFT continued are always worked out.
        seed: Of all of them.
    """

    task: ArithmeticTask = field(default_factory=ArithmeticTask)
    demonstrations: int = 20_000
    prompts: int = 5_000
    heldout: int = 400
    uneven: bool = False
    seed: int = 0

    def __post_init__(self):
        check_types(self)
        for name in ("demonstrations", "prompts", "heldout"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be positive")


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """Data on disk.

    Attributes:
        demonstrations: Rows with `messages`, for the anchor.
        demonstrations_continued: The same for SFT continued; the anchor's where none are given.
        prompts: Rows with `prompt` and `reward_model.ground_truth`.
        heldout: The same, for evaluation.
    """

    demonstrations: Path
    prompts: Path
    heldout: Path
    demonstrations_continued: Path | None = None

    def __post_init__(self):
        _as_paths(self, "demonstrations", "prompts", "heldout", "demonstrations_continued")
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Base → SFT anchor → {OPD, RLVR, SFT continued}, each measured against its origin.

    Attributes:
        name: Shown in the report; the default output directory is `runs/NAME`.
        base: Hugging Face directory (or `RUN@STEP`) of the base model.
        teacher: The stronger model that OPD learns from.
        data: Made on the spot, or files.
        anchor: SFT from the base to the shared start of the others.
        opd: On-policy distillation from the anchor.
        rlvr: GRPO with verified rewards from the anchor.
        sft_continued: SFT on from the anchor: the control for OPD and RLVR.
        measure: What is measured, and how.
        seeds: Seeds of the three methods, one run each; the anchor is shared and uses its own.
    """

    name: str
    base: Path
    teacher: Path
    data: SyntheticData | DataFiles
    anchor: SFTSettings
    opd: OPDSettings
    rlvr: RLVRSettings
    sft_continued: SFTSettings
    measure: CompareSettings = field(default_factory=CompareSettings)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self):
        _as_paths(self, "base", "teacher")
        check_types(self)
        # The default output directory is made of it.
        if not re.fullmatch(r"[^/\\\x00-\x1f]{1,100}", self.name) or self.name.strip(". ") == "":
            raise UserError(f"name={self.name!r}: the name of a directory, without slashes, is needed")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds={self.seeds}: at least one, and no seed twice")
        if any(not 0 <= seed < 2**31 for seed in self.seeds):
            raise UserError(f"seeds={self.seeds}: each must be between 0 and {2**31 - 1}")

    def methods(self) -> dict[str, RunSettings]:
        """The runs from the anchor, by name, in the order in which they are made."""
        return {"opd": self.opd, "rlvr": self.rlvr, "sft_continued": self.sft_continued}

    def with_seeds(self, count: int) -> "Experiment":
        """The same experiment over the seeds 0 … count−1."""
        if count < 1:
            raise UserError(f"seeds: {count} asked for; at least 1 is needed")
        return dataclasses.replace(self, seeds=tuple(range(count)))


def load_experiment(path: str | Path) -> Experiment:
    """Runs an experiment file and takes its variable `experiment`.

    Args:
        path: a Python file.

    Returns:
        What the file defines.

    Raises:
        UserError: the file is missing, fails (the message has its line), has an unknown field, or defines none.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such experiment file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # what it warns of fails a moment later, with its line
            namespace = runpy.run_path(str(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    # The file is the user's own program: what it raises, or `exit()`, is theirs to read, in one line with its place.
    except (Exception, SystemExit) as error:
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(error, path)
        raise UserError(f"{path}: line {line}: {type(error).__name__}: {error}") from error
    experiment = namespace.get("experiment")
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path}: defines no variable 'experiment' that is an Experiment")
    return experiment


def _as_paths(settings: Any, *names: str) -> None:
    """Paths that were written as text."""
    for name in names:
        if isinstance(getattr(settings, name), str):
            object.__setattr__(settings, name, Path(getattr(settings, name)))


def _line_in(error: BaseException, path: Path) -> int | None:
    """The last line of the file that the error passed through."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
