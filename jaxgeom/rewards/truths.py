"""Right answers as data sets have them: text, a number, a list of allowed answers."""

import ast
import json
import math
import re
from decimal import Decimal
from typing import Any

from .math_extraction import extract_answer

GroundTruth = str | tuple[str, ...]
"""The right answer, or several of which any is right."""

_LONGEST_LIST = 100_000
_MOST = 10_000  # of answers that are right alike
_LONGEST = 100_000  # characters; the longest worked solutions have some ten thousand
_BOXED = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{\s*\}")
_HALVES = re.compile(r"[\ud800-\udfff]")
_HOLLOW = re.compile(r"\\(?:boxed|fbox|framebox|text|textbf|mathrm|mbox|[,;:! ()\[\]])|</?answer>|[\s{}$]")
"""What a text may have around an answer; one that is nothing but that, or an empty list, holds none."""


def read_truth(value: Any, name: str = "ground_truth") -> GroundTruth:
    """The right answer of one row.

    A list means that any of its entries is right; so does a text that is a list of texts, of JSON or of Python, as some
    data sets write it. (A text such as `[1, 2]` is an answer itself: an interval, a vector.)

    Args:
        value: as the row has it.
        name: of the field, for messages.

    Raises:
        ValueError: nothing that an answer can be compared with, or what is too long for one.

    >>> read_truth("['34', '34.0']")
    ('34', '34.0')
    >>> read_truth("[1, 2]")
    '[1, 2]'
    """
    if isinstance(value, str):
        entries = _listed_texts(value)
        value = value if entries is None else entries
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"{name} is an empty list")
        if len(value) > _MOST:
            raise ValueError(f"{name} is a list of {len(value):,} answers; at most {_MOST:,} can be right")
        several = tuple(dict.fromkeys(_one(entry, f"an entry of {name}") for entry in value))
        return several[0] if len(several) == 1 else several
    return _one(value, name)


def allowed_answers(value: Any) -> tuple[str, ...]:
    r"""The answers of which one is enough; a worked solution is reduced to its own final answer.

    Args:
        value: see `read_truth`.

    Raises:
        ValueError: likewise.

    >>> allowed_answers([r"so it is \boxed{5}", 6])
    ('5', '6')
    """
    truth = read_truth(value)
    several = (truth,) if isinstance(truth, str) else truth
    return tuple(extract_answer(answer) or answer.rpartition("</think>")[2].strip() for answer in several)


def _one(value: Any, name: str) -> str:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{name} is empty: no answer can be right")
        if len(value) > _LONGEST:
            raise ValueError(f"{name} has {len(value):,} characters: a right answer has at most {_LONGEST:,}")
        if _HALVES.search(value):
            raise ValueError(f"{name} has half of a surrogate pair, which is no text: no answer can be right")
        answer = value.rpartition("</think>")[2]
        if "<think>" in answer:
            raise ValueError(f"{name} is a thought that is not closed (<think>): no answer can be right")
        if _HOLLOW.sub("", answer) in ("", "[]") or (_BOXED.search(value) and extract_answer(value) is None):
            raise ValueError(f"{name} is {value.strip()[:40]!r}, which holds no answer: none can be right")
        return value
    if isinstance(value, bool) or value is None or not isinstance(value, int | float | Decimal):
        kind = "null" if value is None else type(value).__name__
        raise ValueError(f"{name} is {kind}: it must be text, a number, or a list of these")
    if not isinstance(value, int) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}: no answer can be right")
    try:
        # Digits as they are written by hand: 0.0000001, not 1e-07.
        return (
            str(value)
            if isinstance(value, int)
            else format(Decimal(repr(value) if isinstance(value, float) else value), "f")
        )
    except ValueError as error:  # Python refuses to write integers of more than 4,300 digits
        raise ValueError(f"{name} has too many digits") from error


def _listed_texts(text: str) -> list[str] | None:
    text = text.strip()
    if (
        not (text.startswith("[") and text.endswith("]"))
        or not 2 < len(text) < _LONGEST_LIST
        or text[1] not in "'\" \n"
    ):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
            return value
    return None
