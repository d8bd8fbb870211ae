"""A user's own verifier: a function of texts and rows, imported by name, whose every fault is said in one line."""

import contextlib
import copy
import importlib
import itertools
import math
import os
import reprlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from jaxgeom.errors import UserError, words_of
from jaxgeom.rewards.sources import digest_of

LARGEST_REWARD = 1e9
"""Of its square times that of a weight float32 still has the mean, from which GRPO's deviations are."""


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
        digest: Of its module's source, see `digest_of`.
    """

    name: str
    function: Callable[..., Any]
    digest: str = ""

    def __call__(self, texts: Sequence[str], rows: Sequence[GivenRow]) -> list[float]:
        """The rewards, in order; without answers, as a process may be that shares few with others, it is not called.

        Args:
            texts: answers.
            rows: those that they answer.

        Raises:
            UserError: the function raises, returns other than a finite number for each answer; the row is named.
        """
        if not texts:
            return []
        try:
            with _users_own():
                values = [_plain(value) for value in self._called(texts, rows)]
                numbers = [_as_number(value) for value in values]
        except _NoNumbersError as error:
            raise UserError(f"reward {self.name} returned {error}, not a list of numbers") from None
        except _RaisedError as error:
            culprit = self._culprit(texts, rows)
            raise UserError(f"{culprit}: reward {self.name} raised {error}") from error.__cause__
        if len(values) != len(texts):
            many = f"more than {len(texts)}" if len(values) > len(texts) else len(values)
            raise UserError(f"{_places(rows)}: reward {self.name} returned {many} numbers for {len(texts)} answers")
        for number, value, row in zip(numbers, values, rows, strict=True):
            if number is None or not math.isfinite(number):
                raise UserError(f"{row.place}: reward {self.name} returned {_shown(value)}: a finite number is needed")
            if abs(number) > LARGEST_REWARD:
                raise UserError(
                    f"{row.place}: reward {self.name} returned {_shown(value)}: at most {LARGEST_REWARD:g} can be"
                    " compared with others in float32"
                )
        return [number for number in numbers if number is not None]

    def _called(self, texts: Sequence[str], rows: Sequence[GivenRow]) -> list[Any]:
        """What it returns, one value more than there are answers at the most."""
        # Copies: one prompt has several answers, and a row is asked again in every epoch. What the run writes by a
        # relative path must be found again, wherever the function goes.
        own = os.getpid()
        try:
            with contextlib.chdir(os.curdir):
                found = self.function(list(texts), [copy.deepcopy(row.content) for row in rows])
                # Of these each has numbers, and none is the answers' in order.
                if isinstance(found, (str, bytes, bytearray, Mapping, Set)):
                    raise _NoNumbersError(type(found).__name__)
                try:
                    values = iter(found)
                except TypeError:
                    raise _NoNumbersError(type(found).__name__) from None
                return list(itertools.islice(values, len(texts) + 1))
        finally:
            if os.getpid() != own:  # a child that it forked: the run is its parent's
                os._exit(1)

    def _culprit(self, texts: Sequence[str], rows: Sequence[GivenRow]) -> str:
        """The first row that it raises on by itself; all of them where it does on none."""
        for text, row in zip(texts, rows, strict=True):
            try:
                with _users_own():
                    for value in self._called([text], [row]):
                        _as_number(_plain(value))
            except _NoNumbersError:
                continue
            except _RaisedError:
                return row.place
        return _places(rows)


class _NoNumbersError(Exception):
    """What was returned is no list; the text says what it is."""


class _RaisedError(Exception):
    """The user's own program raised its cause; the text says what and where."""


@contextlib.contextmanager
def _users_own() -> Iterator[None]:
    """Whatever the user's program raises, SystemExit among it, is theirs to read; an interruption from outside is ours.

    Raises:
        _RaisedError: for what it raises.
    """
    try:
        yield
    except (_NoNumbersError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _RaisedError(_said(error)) from error


def _plain(value: Any) -> Any:
    """A value that an array or tensor without axes holds; any other as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _as_number(value: Any) -> float | None:
    """A number of any kind; None for what is none."""
    if not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _shown(value: Any) -> str:
    """A value in a message; a long one is cut."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"{type(value).__name__} of too many digits"


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
        with _users_own(), contextlib.chdir(os.curdir):
            found: Any = importlib.import_module(module_name)
    except _RaisedError as error:
        raise UserError(f"reward={name}: {module_name} cannot be imported: {error}") from error.__cause__
    digest = digest_of(found)
    for part in path.split("."):
        if not hasattr(found, part):
            raise UserError(f"reward={name}: {getattr(found, '__name__', module_name)} has no {part}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"reward={name}: {path} is {type(found).__name__}, not a function")
    return OwnReward(name, found, digest)


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
    return f"{type(error).__name__}: {' '.join(words_of(error).split())[:300]}{where}"
