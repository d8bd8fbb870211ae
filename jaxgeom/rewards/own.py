"""A user's own verifier: a function of texts and rows, imported by name, whose every fault is said in one line."""

import copy
import hashlib
import importlib
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxgeom.errors import UserError

# The module is the user's own program: whatever it raises, or `exit()`, is theirs to read.
_RAISED = (Exception, SystemExit)


class GivenRow(NamedTuple):
    """A row as its file has it.

    Attributes:
        place: File and number, for messages.
        content: The object.
    """

    place: str
    content: dict[str, Any]


@dataclass(frozen=True)
class OwnReward:
    """A function `(texts, rows) -> numbers`, one number an answer.

    Attributes:
        name: `module:function`.
        function: What it names.
        digest: SHA-256 of the module's file; empty for a module without one.
    """

    name: str
    function: Callable[..., Any]
    digest: str = ""

    def __call__(self, texts: Sequence[str], rows: Sequence[GivenRow]) -> list[float]:
        """The rewards, in order.

        Args:
            texts: answers.
            rows: those that they answer.

        Raises:
            UserError: the function raises, returns other than a finite number for each answer; the row is named.
        """
        try:
            found = self._called(texts, rows)
        except _RAISED as error:
            raise UserError(f"{self._culprit(texts, rows)}: reward {self.name} raised {_said(error)}") from error
        try:
            values = list(found)
        except TypeError:
            raise UserError(f"reward {self.name} returned {type(found).__name__}, not a list of numbers") from None
        if len(values) != len(texts):
            raise UserError(
                f"{_places(rows)}: reward {self.name} returned {len(values)} numbers for {len(texts)} answers"
            )
        return [self._number(value, row) for value, row in zip(values, rows, strict=True)]

    def _called(self, texts: Sequence[str], rows: Sequence[GivenRow]) -> Any:
        # Copies: one prompt has several answers, and a row is asked again in every epoch.
        return self.function(list(texts), [copy.deepcopy(row.content) for row in rows])

    def _culprit(self, texts: Sequence[str], rows: Sequence[GivenRow]) -> str:
        """The first row that it raises on by itself; all of them where it does on none."""
        for text, row in zip(texts, rows, strict=True):
            try:
                self._called([text], [row])
            except _RAISED:
                return row.place
        return _places(rows)

    def _number(self, value: Any, row: GivenRow) -> float:
        value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
        if not isinstance(value, Real) or not math.isfinite(value):
            raise UserError(f"{row.place}: reward {self.name} returned {value!r}: a finite number is needed")
        return float(value)


def own_reward(name: str) -> OwnReward:
    """Imports a user's verifier, from the working directory too.

    Args:
        name: `module:function`.

    Raises:
        UserError: the module cannot be imported, or has no such function.
    """
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except _RAISED as error:
        raise UserError(f"reward={name}: {module_name} cannot be imported: {_said(error)}") from error
    digest = _digest(found)
    for part in path.split("."):
        if not hasattr(found, part):
            raise UserError(f"reward={name}: {getattr(found, '__name__', module_name)} has no {part}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"reward={name}: {path} is {type(found).__name__}, not a function")
    return OwnReward(name, found, digest)


def _digest(module: ModuleType) -> str:
    source = getattr(module, "__file__", None)
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source and Path(source).is_file() else ""


def _places(rows: Sequence[GivenRow]) -> str:
    first, last = rows[0].place, rows[-1].place
    return first if first == last else f"{first} to {last}"


def _said(error: BaseException) -> str:
    """Kind, text and place of what was raised, in one line."""
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}, line {error.lineno})"
        return f"SyntaxError: {error.msg}{where}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    last = frames[-1] if frames and frames[-1].filename != __file__ else None
    where = f" ({last.filename}, line {last.lineno})" if last else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"
