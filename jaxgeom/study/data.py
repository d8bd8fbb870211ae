"""What an experiment learns from: rows made on the spot from the synthetic task, or files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxgeom.buckets.places import local
from jaxgeom.data import ArithmeticTask, arithmetic
from jaxgeom.data.rows import write_jsonl
from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types
from jaxgeom.study.marks import is_marked, key_of, mark
from jaxgeom.training.settings import to_json

_MOST_ROWS = 2**22  # some gigabytes of them in memory


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
            count = getattr(self, name)
            if count < 1:
                raise UserError(f"{name}={count}: must be positive")
            if count > _MOST_ROWS:
                raise UserError(f"{name}={count}: at most {_MOST_ROWS:,} rows are made on the spot; give files of more")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must not be negative")
        arithmetic.require_heldout(self.task, self.heldout)


@dataclass(frozen=True, kw_only=True)
class DataFiles:
    """Data on disk.

    Attributes:
        demonstrations: Rows with `messages`, for SFT from a model, such as the anchor's.
        demonstrations_continued: The same for SFT that goes on from another arm; the first where none are given.
        prompts: Rows with `prompt` and `reward_model.ground_truth`.
        heldout: The same, for evaluation.
    """

    demonstrations: Path
    prompts: Path
    heldout: Path
    demonstrations_continued: Path | None = None

    def __post_init__(self):
        as_paths(self, "demonstrations", "prompts", "heldout", "demonstrations_continued")
        check_types(self)


def as_paths(settings: Any, *names: str) -> None:
    """Paths that were written as text; a `gs://` path becomes that of its copy here, which is made later."""
    for name in names:
        if isinstance(getattr(settings, name), str):
            object.__setattr__(settings, name, local(getattr(settings, name)))


def data_files(data: SyntheticData | DataFiles, out: Path) -> DataFiles:
    """Where the rows of a study lie; made on the spot, they are in `out/data` once they are made."""
    if isinstance(data, DataFiles):
        return data
    directory = out / "data"
    return DataFiles(
        demonstrations=directory / "demonstrations.jsonl",
        prompts=directory / "prompts.jsonl",
        heldout=directory / "heldout.jsonl",
        demonstrations_continued=directory / "demonstrations_continued.jsonl",
    )


def make_data(data: SyntheticData | DataFiles, out: Path) -> None:
    """Writes the rows that are made on the spot, unless they are there."""
    if isinstance(data, DataFiles):
        return
    files, directory = data_files(data, out), out / "data"
    assert files.demonstrations_continued is not None
    written = [files.demonstrations, files.demonstrations_continued, files.prompts, files.heldout]
    key = key_of(to_json(data))
    if not is_marked(directory / "done", key, written):
        directory.mkdir(exist_ok=True)
        task, seed = data.task, data.seed
        count = data.demonstrations
        write_jsonl(files.demonstrations, arithmetic.demonstrations(task, count, seed=seed, uneven=data.uneven))
        write_jsonl(files.demonstrations_continued, arithmetic.demonstrations(task, count, seed=seed + 2))
        write_jsonl(files.prompts, arithmetic.prompts(task, data.prompts, seed=seed + 1))
        write_jsonl(files.heldout, arithmetic.prompts(task, data.heldout, split="heldout", seed=seed))
        mark(directory / "done", key, written)
