"""What a training run reads: model, rows, held-out prompts, teachers, and the runs that bases and masks come from."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxgeom.errors import UserError

_Repeated: Any = tuple[Path, ...]
_NAMED = re.compile(r"([\w.@-]+)=(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """What a run reads.

    Attributes:
        model: The start: a Hugging Face directory, or `RUN@STEP`.
        data: JSONL or parquet rows: demonstrations for SFT, prompts for RLVR and OPD.
        eval_data: Held-out prompts, as FILE or NAME=FILE; none, no evaluation. Of several each has a name, under which
            its numbers are logged.
        teacher: For OPD: a Hugging Face directory or `RUN@STEP`, with the model's tokens; of several, each row's field
            `teacher` names its own.
        base: The model that a LoRA adapter (as model or teacher) belongs to, where its own configuration does not say.
        basis_from: `RUN@STEP`: the run's update up to there gives the basis of a confined run.
        mask_from: `RUN@STEP`: what the run changed up to there is the mask of a confined run.
    """

    model: Path
    data: Path
    eval_data: Annotated[
        Path | tuple[Path, ...] | None,
        tyro.conf.arg(metavar="[NAME=]FILE", constructor=_Repeated, help_behavior_hint="(default: none) (repeatable)"),
        tyro.conf.UseAppendAction,
    ] = ()
    teacher: Annotated[
        Path | tuple[Path, ...] | None,
        tyro.conf.arg(metavar="DIR", constructor=_Repeated, help_behavior_hint="(required) (repeatable)"),
        tyro.conf.UseAppendAction,
    ] = ()
    base: Path | None = None
    basis_from: Path | None = None
    mask_from: Path | None = None

    def __post_init__(self):
        for name in ("teacher", "eval_data"):
            given = getattr(self, name)
            several = () if given is None else (given,) if isinstance(given, str | Path) else given
            object.__setattr__(self, name, tuple(map(Path, several)))
        _ = self.evaluations  # named once, and each of several
        twice = [path for place, path in enumerate(self.teachers) if path in self.teachers[:place]]
        if twice:
            raise UserError(f"teacher={twice[0]}: given twice")

    @property
    def teachers(self) -> tuple[Path, ...]:
        """All of them, in order."""
        assert isinstance(self.teacher, tuple)
        return self.teacher

    @property
    def evaluations(self) -> dict[str, Path]:
        """The files of held-out prompts by name, "" for one that has none.

        Raises:
            UserError: a name twice, or several files of which one has none.
        """
        assert isinstance(self.eval_data, tuple)
        found: dict[str, Path] = {}
        for path in self.eval_data:
            named = None if path.exists() else _NAMED.fullmatch(str(path))
            name, file = (named[1], Path(named[2])) if named else ("", path)
            if name in found:
                what = f"the name {name} twice" if name else "two files without a name"
                raise UserError(f"eval_data={path}: {what}; give each as NAME=FILE")
            found[name] = file
        if "" in found and len(found) > 1:
            raise UserError(f"eval_data={found['']}: of several files each needs a name: NAME=FILE")
        return found

    @property
    def paths(self) -> list[Path]:
        """Whatever is read."""
        several = ("teacher", "eval_data")
        values = [getattr(self, field_.name) for field_ in dataclasses.fields(self) if field_.name not in several]
        return [path for path in (*values, *self.teachers, *self.evaluations.values()) if path is not None]
