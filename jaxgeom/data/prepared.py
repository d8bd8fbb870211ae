"""The rows of a file as tokens, kept beside the run, and what decides how they become so.

What is kept has a key made of all that the tokens come from, so that a run that goes on is quick, and other data are
never taken for these.
"""

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxgeom.data.chat import Demonstration
from jaxgeom.owned_files import MARK
from jaxgeom.rewards import GivenRow, Truth, restored, stored

_ARRAYS = ("tokens", "targets", "starts", "numbers")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What rows must fit into.

    Attributes:
        vocabulary: Rows of the embedding.
        context: Most tokens of a sequence, `max_position_embeddings`.
        max_length: Demonstrations are cut here.
        max_prompt: Longer prompts are left out.
        new_tokens: Room that a prompt leaves for its answer.
        has_options: Whether the user may change `max_prompt` and `new_tokens`.
        rows: At most so many rows of the file.
    """

    vocabulary: int
    context: int
    max_length: int | None = None
    max_prompt: int | None = None
    new_tokens: int = 0
    has_options: bool = True
    rows: int | None = None


@dataclass(frozen=True)
class Prepared:
    """The rows of one file as tokens.

    Attributes:
        key: Of all that they come from.
        tokens: int32 `[total]`, row after row.
        targets: bool `[total]`, what a demonstration teaches; all false for prompts.
        starts: int64 `[rows + 1]`, where each begins.
        numbers: int64 `[rows]`, of each in its file.
        truths: Of prompts.
        teachers: Of prompts, who teaches each, as its row says.
        notes: Sentences for the user: what was left out, cut, or is odd.
        given: The rows as the file has them, where something reads them; None else.
    """

    key: str
    tokens: np.ndarray
    targets: np.ndarray
    starts: np.ndarray
    numbers: np.ndarray
    truths: list[Truth | None]
    teachers: list[str | int | None]
    notes: list[str] = field(default_factory=list)
    given: list[GivenRow] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def digest(self) -> str:
        """SHA-256 of all tokens, and of what they come from."""
        return _digest(self.key, {name: getattr(self, name) for name in _ARRAYS})

    def row(self, place: int) -> Demonstration:
        """Tokens and targets of one row."""
        part = slice(self.starts[place], self.starts[place + 1])
        return Demonstration(self.tokens[part], self.targets[part])

    def keep(self, directory: Path) -> None:
        """Writes them into `directory`, whole or not at all."""
        path = directory / f"{self.key}.npz"
        if path.is_file():
            return
        directory.mkdir(parents=True, exist_ok=True)
        truths = [stored(truth) for truth in self.truths]
        words = json.dumps({"truths": truths, "teachers": self.teachers, "notes": self.notes}).encode()
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                arrays = {name: getattr(self, name) for name in _ARRAYS} | {"words": np.frombuffer(words, np.uint8)}
                held = {MARK: np.array(1), **arrays, "digest": np.array(_digest(self.key, arrays))}
                np.savez(file, **held)  # type: ignore[arg-type]  (allow_pickle, a bool, is its one other keyword)
            partial.replace(path)
        except BaseException:  # of a full disk, or of an interrupt, nothing stays; it is raised again
            partial.unlink(missing_ok=True)
            raise


def _digest(key: str, arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the arrays under a key: an archive's own sums say that it is whole, not that it is ours."""
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def recall(directory: Path | None, key: str) -> Prepared | None:
    """What was kept under a key; None where nothing was, or it is damaged."""
    path = None if directory is None else directory / f"{key}.npz"
    if path is None or not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file) as held:
            arrays = {name: held[name] for name in (*_ARRAYS, "words")}
            if str(held["digest"]) != _digest(key, arrays):
                raise ValueError("other rows than were kept")
            words = json.loads(arrays.pop("words").tobytes())
            truths = [restored(truth) for truth in words["truths"]]
            return Prepared(key=key, **arrays, truths=truths, teachers=words["teachers"], notes=words["notes"])
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        with contextlib.suppress(OSError):  # a folder that is not to be written to is said where something is written
            path.unlink(missing_ok=True)
        return None
