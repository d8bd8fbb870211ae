"""Ground truths as data sets have them: text, a number, a list of allowed answers."""

import json
import math
from decimal import Decimal
from typing import Any

from jaxgeom.data.templates import RowError

GroundTruth = str | tuple[str, ...]
"""The right answer, or several of which any is right."""


def read_truth(value: Any, name: str) -> GroundTruth:
    """The truth of one row.

    A list means that any of its entries is right; so does a text that is a JSON list of texts, as some data sets write
    it. (A text such as `[1, 2]` is an answer itself: an interval, a vector.)

    Args:
        value: as the row has it.
        name: of the field, for messages.

    Raises:
        RowError: nothing that an answer can be compared with.
    """
    if isinstance(value, str):
        entries = _listed_texts(value)
        value = value if entries is None else entries
    if isinstance(value, list | tuple):
        if not value:
            raise RowError(f"{name} is an empty list")
        several = tuple(dict.fromkeys(_one(entry, f"an entry of {name}") for entry in value))
        return several[0] if len(several) == 1 else several
    return _one(value, name)


def _one(value: Any, name: str) -> str:
    if isinstance(value, str):
        if not value.strip():
            raise RowError(f"{name} is empty: no answer can be right")
        return value
    if isinstance(value, bool) or value is None or not isinstance(value, int | float | Decimal):
        kind = "null" if value is None else type(value).__name__
        raise RowError(f"{name} is {kind}: it must be text, a number, or a list of these")
    if not math.isfinite(value):
        raise RowError(f"{name} is {value}: no answer can be right")
    try:
        # Digits as they are written by hand: 0.0000001, not 1e-07.
        return (
            str(value)
            if isinstance(value, int)
            else format(Decimal(repr(value) if isinstance(value, float) else value), "f")
        )
    except ValueError as error:  # Python refuses to write integers of more than 4,300 digits
        raise RowError(f"{name} has too many digits") from error


def _listed_texts(text: str) -> list[str] | None:
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value) else None
